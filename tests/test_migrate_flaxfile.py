"""Files with Flax's names and layouts, and .safetensors of both kinds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dial_encoders import DialEncoder, assert_encodes_as
from flax import serialization
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.flax import save_file as save_flax
from safetensors.torch import save_file as save_torch

from brainstore import BadParams, BrainManager, BrainstoreError
from brainstore.migrate import migrate, migrate_v2_checkpoint
from brainstore.migrate.flaxfile import read_msgpack


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[BrainManager]:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


def test_safetensors_with_names_of_torch_are_converted(zoo: BrainManager, tmp_path: Path) -> None:
    module = DialEncoder()
    save_torch(module.state_dict(), tmp_path / "a.safetensors")
    migrate_v2_checkpoint(tmp_path / "a.safetensors", zoo)
    assert_encodes_as(module, zoo.load("dial_encoder")[0])


def test_safetensors_with_names_of_flax_are_taken_as_they_are(
    zoo: BrainManager, tmp_path: Path
) -> None:
    kernel = jnp.arange(6.0).reshape(2, 3)
    for separator in ("/", "."):
        path = tmp_path / "a.safetensors"
        save_flax({f"params{separator}Dense_0{separator}kernel": kernel}, path)
        found = migrate(path)
        assert found.report.how == "flax"
        np.testing.assert_array_equal(found.params["params"]["Dense_0"]["kernel"], kernel)


def variables_of_flax() -> Any:
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))

    return Normed().init(jax.random.key(1), jnp.ones((1, 3)))


def test_msgpack_of_flax_brings_params_and_groups(zoo: BrainManager, tmp_path: Path) -> None:
    variables = variables_of_flax()
    path = tmp_path / "a.msgpack"
    path.write_bytes(serialization.to_bytes(variables))
    target = jax.eval_shape(variables_of_flax)
    migrate(path, target=target).save(zoo, "normed")
    groups, _ = zoo.load("normed", groups="all")
    jax.tree.map(np.testing.assert_array_equal, groups["params"]["params"], variables["params"])
    stats = variables["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, groups["batch_stats"], stats)
    with pytest.raises(
        BadParams, match=r"at 6 leaves: params/Dense_0/bias \(expected \[5\], found \[4\]\)"
    ):
        migrate(path, target={"params": {"Dense_0": {"bias": jnp.zeros(5)}}})
    with pytest.raises(BadParams, match="takes no map"):
        migrate(path, mapping={"layers": [{"torch": "", "flax": "a", "rule": "copy"}]})


def test_a_train_state_of_flax_keeps_its_optimizer_beside_the_params(
    zoo: BrainManager, tmp_path: Path
) -> None:
    params = variables_of_flax()["params"]
    state = TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    path = tmp_path / "state"
    path.write_bytes(serialization.to_bytes(state))
    migrate(path).save(zoo, "trained")
    groups, _ = zoo.load("trained", groups="all")
    assert set(groups) == {"params", "opt_state", "step"}
    assert groups["step"] == 0
    mu = groups["opt_state"]["0"]["mu"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(mu, np.zeros((3, 4)))


LEAVES: list[Any] = [
    *[np.arange(6).reshape(2, 3).astype(kind) for kind in ("f4", "f2", "i8", "u1", "?", "c8")],
    jnp.ones((2, 2), jnp.bfloat16),
    np.zeros((0, 3), np.float32),
    np.float32(2.5),
    3,
    2.5,
    1 + 2j,
    "text",
    None,
    True,
]


def test_msgpack_is_read_as_flax_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    tree = {"leaves": {str(n): leaf for n, leaf in enumerate(LEAVES)}, "many": np.arange(99.0)}
    body = serialization.msgpack_serialize(tree)
    found, expected = read_msgpack(memoryview(body)), serialization.msgpack_restore(body)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)


BAD_MSGPACK = [
    b"\x81\xa1w\xc7\x05\x01hello",
    b"\x81\xa1w\xc7\x05\x09hello",
    b"\x81\xa1w\xc7\x10\x01\x93\x91\x05\xa7float32\xc4\x01\x00\x00\x00\x00",
    b"\x81\xa1w\xc7\x0d\x01\x93\x91\xff\xa7float32\xc4\x00",
    b"\x81\xa1w\xc7\x0c\x01\x93\x91\x01\xa6object\xc4\x00",
    b"\x81\xa1w\xc7\x03\x02\xa1xx",
    b"\x81\xa1w\x91" * 5000,
    b"\x81\xb9__msgpack_chunked_array__\xc3",
    b"\x81\xa1w\xdd\xff\xff\xff\xff",
]


@pytest.mark.parametrize("body", BAD_MSGPACK)
def test_msgpack_that_is_damaged_is_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "a.msgpack"
    path.write_bytes(body)
    with pytest.raises(BadParams, match=r"a\.msgpack"):
        migrate(path)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**4), st.binary(min_size=1, max_size=3))
def test_edited_msgpack_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, content: bytes
) -> None:
    body = bytearray(serialization.msgpack_serialize({"a": {"b": np.ones(3)}, "c": 1 + 2j}))
    position = at % len(body)
    body[position : position + len(content)] = content
    path = tmp_path_factory.getbasetemp() / "edited.msgpack"
    path.write_bytes(body)
    with contextlib.suppress(BrainstoreError):
        migrate(path)
