"""A checkpoint becomes a version, or nothing does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from blake3 import blake3
from command_line import ok, parsed, refused, run
from flax import serialization
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.flax import save_file as save_flax
from safetensors.torch import save_file as save_torch
from torch_files import Asks, pickled, saved, write_archive

import brainstore
from brainstore import BadParams, BrainManager, BrainMeta, BrainstoreError, convert_torch_to_flax
from brainstore.errors import Corrupt
from brainstore.migrate import migrate, migrate_v2_checkpoint, migrate_version
from brainstore.migrate.flaxfile import read_msgpack
from brainstore.migrate.report import decode


class DialEncoder(torch.nn.Module):
    """The encoder of V2: 8 inputs, 64 hidden, 36 outputs (32 tokens and 4 payload bits)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 36)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(x)
        return found


class FlaxEncoder(nn.Module):
    """The same in Flax."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(36)(x)


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[BrainManager]:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


@pytest.fixture
def v2(tmp_path: Path) -> tuple[Path, DialEncoder]:
    """A checkpoint of V2, and the module that it is of."""
    torch.manual_seed(3)
    module = DialEncoder()
    return saved(tmp_path / "dial.pt", module.state_dict()), module


def assert_encodes_as(module: DialEncoder, params: Any) -> None:
    x = torch.randn(5, 8)
    inner = params["params"]
    found = FlaxEncoder().apply({"params": inner.get("net", inner)}, x.numpy())
    np.testing.assert_allclose(found, module(x).detach().numpy(), atol=1e-5, rtol=0)


# The owner's case


def test_a_v2_checkpoint_becomes_the_dial_encoder(
    zoo: BrainManager, v2: tuple[Path, DialEncoder]
) -> None:
    path, module = v2
    assert brainstore.migrate_v2_checkpoint(path, zoo) == "dial_encoder_v1"
    params, meta = zoo.load("dial_encoder")
    assert_encodes_as(module, params)
    assert (meta.brain_type, meta.input_dim, meta.hidden_dim, meta.output_dim) == (
        "dial_encoder", 8, 64, 36,
    )  # fmt: skip
    assert meta.source_checkpoint == str(path)
    assert meta.notes == "Migrated from V2 PyTorch"


def test_the_owners_own_code_works_as_he_wrote_it(
    zoo: BrainManager, v2: tuple[Path, DialEncoder]
) -> None:
    def migrate_v2_checkpoint(old_path: str, manager: BrainManager) -> None:
        old_state = torch.load(old_path, map_location="cpu")
        params = convert_torch_to_flax(old_state)
        meta = BrainMeta(
            name="migrated_dial",
            version=0,
            brain_type="dial_encoder",
            input_dim=8,
            output_dim=36,
            hidden_dim=64,
            created_at=datetime.now(UTC).isoformat(),
            training_steps=0,
            source_checkpoint=old_path,
            notes="Migrated from V2 PyTorch",
        )
        manager.save("dial_encoder", params, meta)

    path, module = v2
    with pytest.warns(UserWarning, match="migrated_dial"):
        migrate_v2_checkpoint(str(path), zoo)
    params, meta = zoo.load("dial_encoder:1")
    assert_encodes_as(module, params)
    assert (meta.source_checkpoint, meta.tags) == (str(path), ["migrated_dial"])


def test_v2_with_a_map_another_name_and_fields(
    zoo: BrainManager, v2: tuple[Path, DialEncoder]
) -> None:
    path, module = v2
    layers = [{"torch": f"net.{n}", "flax": f"Dense_{n // 2}", "rule": "linear"} for n in (0, 2)]
    full_name = migrate_v2_checkpoint(
        path, zoo, name="speaker", mapping={"layers": layers}, notes="ours", training_steps=4000
    )
    assert full_name == "speaker_v1"
    params, meta = zoo.load("speaker", target={"params": shapes_of(FlaxEncoder(), 8)})
    assert_encodes_as(module, params)
    assert (meta.notes, meta.training_steps, meta.output_dim) == ("ours", 4000, 36)


def shapes_of(network: nn.Module, width: int) -> Any:
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, width)))["params"]


def test_two_heads_become_the_one_of_the_encoder(zoo: BrainManager, tmp_path: Path) -> None:
    body, token, payload = (torch.nn.Linear(*size) for size in ((8, 64), (64, 32), (64, 4)))
    module = torch.nn.ModuleDict({"body": body, "token": token, "payload": payload})
    path = saved(tmp_path / "a.pt", {"state_dict": module.state_dict(), "epoch": 9})
    layers = [
        {"torch": "body", "flax": "Dense_0", "rule": "linear"},
        {"torch": ["token", "payload"], "flax": "Dense_1", "rule": "linear"},
    ]
    migrate_v2_checkpoint(path, zoo, mapping={"layers": layers})
    params, meta = zoo.load("dial_encoder")
    x = torch.randn(3, 8)
    hidden = torch.relu(body(x))
    expected = torch.cat([token(hidden), payload(hidden)], -1).detach().numpy()
    np.testing.assert_allclose(FlaxEncoder().apply(params, x.numpy()), expected, atol=1e-5)
    assert (meta.input_dim, meta.hidden_dim, meta.output_dim) == (8, 64, 36)


# What is kept with a version, and that nothing is saved unless all fits


def test_the_report_is_kept_with_the_version(
    zoo: BrainManager, v2: tuple[Path, DialEncoder]
) -> None:
    path, _ = v2
    migrate_v2_checkpoint(path, zoo)
    body = zoo.file("dial_encoder", "migration.json")
    report = decode(body)
    assert report.source is not None
    assert report.source.digest == "blake3:" + blake3(path.read_bytes()).hexdigest()
    assert (report.tensors_read, report.leaves_made, report.parameters) == (4, 4, 2916)
    first = json.loads(body)["layers"][0]
    assert first["torch"] == {"net.0.weight": [64, 8], "net.0.bias": [64]}
    assert first["rule"] == "linear"
    assert [leaf["path"] for leaf in first["leaves"]] == [
        "params/net/Dense_0/kernel",
        "params/net/Dense_0/bias",
    ]
    with pytest.raises(Corrupt, match=r"migration\.json"):
        decode(body[:50])


def test_batch_statistics_are_a_group_of_their_own(zoo: BrainManager, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    module(torch.randn(6, 3))
    path = saved(tmp_path / "a.pt", module.state_dict())
    migrate(path).save(zoo, "normed", tags=["old"])
    groups, meta = zoo.load("normed", groups="all")
    assert set(groups) == {"params", "batch_stats"}
    assert set(groups["params"]["params"]) == {"Dense_0", "BatchNorm_0"}
    assert set(groups["batch_stats"]["BatchNorm_0"]) == {"mean", "var"}
    assert (meta.tags, meta.input_dim, meta.output_dim) == (["old"], 3, 4)

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.BatchNorm(use_running_average=True, epsilon=1e-5)(nn.Dense(4)(x))

    x = torch.randn(2, 3)
    variables = {**groups["params"], "batch_stats": groups["batch_stats"]}
    found = Normed().apply(variables, x.numpy())
    np.testing.assert_allclose(found, module(x).detach().numpy(), atol=1e-5)


def test_nothing_is_saved_unless_everything_fits(zoo: BrainManager, tmp_path: Path) -> None:
    layers = [{"torch": "net.0", "flax": "Dense_0", "rule": "linear"}]
    path = saved(tmp_path / "a.pt", DialEncoder().state_dict())
    with pytest.raises(BadParams, match=r"a\.pt: nothing was converted:\n  unmapped: net\.2"):
        migrate_v2_checkpoint(path, zoo, mapping={"layers": layers})
    harmful = write_archive(tmp_path / "b.pt", pickled({"w": Asks("os", "system", "true")}))
    with pytest.raises(BadParams, match=r"os\.system"):
        migrate_v2_checkpoint(harmful, zoo)
    assert not (tmp_path / "brains").exists()


def test_tied_weights_are_stored_once(zoo: BrainManager, tmp_path: Path) -> None:
    weight = torch.randn(600, 500)
    state = {"embed.weight": weight, "head.weight": weight, "head.bias": torch.zeros(600)}
    path = saved(tmp_path / "a.pt", state)
    lines = [
        {"torch": "embed", "flax": "embed", "rule": "embedding"},
        {"torch": "head", "flax": "head", "rule": "linear"},
    ]
    migrate(path, as_is=True).save(zoo, "tied")
    assert len(zoo.manifest("tied").blobs) == 3  # the weight, the bias, the report
    migrate(path, mapping={"layers": lines}).save(zoo, "untied")
    params, _ = zoo.load("untied")
    np.testing.assert_array_equal(params["params"]["head"]["kernel"], weight.numpy().T)


# As is, and later


def test_tensors_may_be_kept_as_they_are_and_converted_later(
    zoo: BrainManager, v2: tuple[Path, DialEncoder], tmp_path: Path
) -> None:
    _, module = v2
    checkpoint = {
        "model": {f"module.{name}": each for name, each in module.state_dict().items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2), "step": 3}}, "lr": [0.1]},
        "epoch": 7,
        "view": torch.arange(6.0).reshape(2, 3).t(),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    path = saved(tmp_path / "all.pt", checkpoint)
    migrate(path, as_is=True).save(zoo, "old")
    params, meta = zoo.load("old")
    assert meta.source_checkpoint == str(path)
    assert set(params["model"]) == set(checkpoint["model"])
    assert params["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["view"], checkpoint["view"])
    np.testing.assert_array_equal(params["optimizer"]["state"][0]["exp_avg"], [1, 1])
    report = decode(zoo.file("old", "migration.json"))
    assert report.values == {"optimizer/state/0/step": 3, "optimizer/lr/0": 0.1, "epoch": 7}

    later = migrate_version(zoo, "old", mapping={"root": "model"})
    later.save(zoo, "dial_encoder")
    assert_encodes_as(module, zoo.load("dial_encoder")[0])
    (parent,) = zoo.manifest("dial_encoder").parents
    assert (parent.name, parent.version) == ("old", 1)


def test_as_is_takes_no_map(v2: tuple[Path, DialEncoder]) -> None:
    path, _ = v2
    layers = [{"torch": "net.0", "flax": "a", "rule": "linear"}]
    with pytest.raises(BadParams, match="nothing is converted"):
        migrate(path, as_is=True, mapping={"layers": layers})


def test_mixed_keys_are_kept_as_text(zoo: BrainManager, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"a": torch.ones(2), 3: torch.zeros(1)})
    migrate(path, as_is=True).save(zoo, "mixed")
    assert set(zoo.load("mixed")[0]) == {"a", "3"}


# Other files


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
    with pytest.raises(BadParams, match="does not fit the target: params/Dense_0/bias"):
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
    assert {"params", "opt_state"} <= set(groups)
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


@settings(deadline=None, max_examples=100)
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


# The command line


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a checkpoint, old.pt, and the zoo ./brains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAINSTORE_ZOO", raising=False)
    torch.manual_seed(3)
    saved(tmp_path / "old.pt", {"model": DialEncoder().state_dict(), "epoch": 3})
    (tmp_path / "map.toml").write_text(
        'layers = [\n  { torch = "net.0", flax = "Dense_0", rule = "linear" },\n'
        '  { torch = "net.2", flax = "Dense_1", rule = "linear" },\n]\n'
    )
    return tmp_path


def test_the_verb_saves_and_says_what_became_what(here: Path) -> None:
    options = ["--name", "dial_encoder", "--brain-type", "dial_encoder", "--map", "map.toml"]
    printed = ok("migrate", "old.pt", *options, "--tag", "v2", "--alias", "prod", "--notes", "old")
    assert printed.splitlines() == [
        "TORCH                    RULE    FLAX     LEAVES",
        "net.0.weight net.0.bias  linear  Dense_0  kernel[8,64] bias[64]",
        "net.2.weight net.2.bias  linear  Dense_1  kernel[64,36] bias[36]",
        "left out: epoch",
        "4 tensors → 4 leaves, 2,916 parameters, by the map",
        "dial_encoder_v1",
    ]
    params, meta = BrainManager("brains").load("dial_encoder:prod")
    assert set(params["params"]) == {"Dense_0", "Dense_1"}
    assert (meta.brain_type, meta.tags, meta.notes) == ("dial_encoder", ["v2"], "old")
    assert (meta.input_dim, meta.hidden_dim, meta.output_dim) == (8, 64, 36)


def test_a_dry_run_of_the_verb_saves_nothing(here: Path) -> None:
    printed = ok("migrate", "old.pt", "--name", "dial_encoder", "--dry-run")
    assert "would be saved as the next version of dial_encoder; nothing was done" in printed
    assert "by names and shapes alone" in printed
    assert not (here / "brains").exists()


def test_the_verb_in_json(here: Path) -> None:
    found = parsed("migrate", "old.pt", "--name", "dial", "--output-dim", "35", "-n")
    assert (found["full_name"], found["version"], found["dry_run"]) == (None, None, True)
    assert found["dims"] == {"input_dim": 8, "hidden_dim": 64, "output_dim": 36}
    assert found["report"]["root"] == "model"
    found = parsed("migrate", "old.pt", "--name", "dial", "--output-dim", "35")
    assert (found["full_name"], found["version"]) == ("dial_v1", 1)
    assert BrainManager("brains").load("dial")[1].output_dim == 35


def test_the_verb_keeps_a_checkpoint_as_it_is_and_converts_the_version_later(here: Path) -> None:
    assert "by their own names, as is\nold_v1" in ok(
        "migrate", "old.pt", "--name", "old", "--as-is"
    )
    ok("migrate", "old:1", "--name", "dial", "--map", "map.toml")
    assert BrainManager("brains").manifest("dial").parents[0].name == "old"
    assert "no such file" in run("migrate", "gone.pt", "--name", "x", "--as-is").output


def test_the_verb_takes_the_shapes_of_a_version(here: Path) -> None:
    variables = FlaxEncoder().init(jax.random.key(0), jnp.zeros((1, 8)))
    BrainManager("brains").save("ours", variables)
    printed = ok("migrate", "old.pt", "--name", "dial", "--target", "ours")
    assert "by the target's shapes" in printed
    assert set(BrainManager("brains").load("dial")[0]["params"]) == {"Dense_0", "Dense_1"}


def test_the_verb_refuses_with_one_error_and_saves_nothing(here: Path) -> None:
    write_archive(here / "bad.pt", pickled(Asks("os", "system", "touch canary")))
    (here / "bad.toml").write_text("layer = []")
    (here / "text.pt").write_text("hello")
    torch.save({"w": torch.ones(1)}, here / "legacy.pt", _use_new_zipfile_serialization=False)
    assert "asks for os.system" in refused(2, "migrate", "bad.pt", "--name", "x")
    assert "Did you mean layers?" in refused(
        2, "migrate", "old.pt", "--name", "x", "--map", "bad.toml"
    )
    assert "no checkpoint" in refused(2, "migrate", "text.pt", "--name", "x")
    assert "save it again" in refused(1, "migrate", "legacy.pt", "--name", "x")
    assert "'../x'" in refused(2, "migrate", "old.pt", "--name", "../x")
    assert not (here / "canary").exists()
    assert not (here / "brains").exists()
