"""A checkpoint becomes a version, or nothing does."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from blake3 import blake3
from dial_encoders import DialEncoder, FlaxEncoder, assert_encodes_as
from flax import nnx
from torch_files import Asks, pickled, saved, write_archive

import brainstore
from brainstore import BadParams, BrainManager, BrainMeta, convert_torch_to_flax
from brainstore.errors import Corrupt
from brainstore.migrate import (
    migrate,
    migrate_v2_checkpoint,
    migrate_version,
    read_checkpoint,
    shapes_of,
)
from brainstore.migrate.report import decode


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


def test_the_readers_own_result_converts_as_that_of_torch(v2: tuple[Path, DialEncoder]) -> None:
    path, _ = v2
    found, expected = map(convert_torch_to_flax, (read_checkpoint(path), torch.load(path)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_v2_with_a_map_another_name_and_fields(
    zoo: BrainManager, v2: tuple[Path, DialEncoder]
) -> None:
    path, module = v2
    layers = [{"torch": f"net.{n}", "flax": f"Dense_{n // 2}", "rule": "linear"} for n in (0, 2)]
    full_name = migrate_v2_checkpoint(
        path, zoo, name="speaker", mapping={"layers": layers}, notes="ours", training_steps=4000
    )
    assert full_name == "speaker_v1"
    params, meta = zoo.load("speaker", target={"params": shapes_of_network(FlaxEncoder(), 8)})
    assert_encodes_as(module, params)
    assert (meta.notes, meta.training_steps, meta.output_dim) == ("ours", 4000, 36)


def shapes_of_network(network: nn.Module, width: int) -> Any:
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, width)))["params"]


def test_v2_takes_the_names_of_the_network_that_it_is_for(
    zoo: BrainManager, v2: tuple[Path, DialEncoder]
) -> None:
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(36, name="message")(nn.relu(nn.Dense(64, name="hidden")(x)))

    path, module = v2
    target = jax.eval_shape(Named().init, jax.random.key(0), jnp.zeros((1, 8)))
    migrate_v2_checkpoint(path, zoo, target=target)
    params, _ = zoo.load("dial_encoder", target=target)
    x = torch.randn(4, 8)
    expected = module(x).detach().numpy()
    np.testing.assert_allclose(Named().apply(params, x.numpy()), expected, atol=1e-5)


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


def test_a_version_with_batch_statistics_is_a_target(zoo: BrainManager, tmp_path: Path) -> None:
    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))

    migrate(saved(tmp_path / "a.pt", network().state_dict())).save(zoo, "normed")
    state = {f"net.{name}": tensor for name, tensor in network().state_dict().items()}
    found = migrate(saved(tmp_path / "b.pt", state), target=shapes_of(zoo, "normed:1"))
    assert set(found.params["params"]) == {"Dense_0", "BatchNorm_0"}
    assert set(found.groups["batch_stats"]["BatchNorm_0"]) == {"mean", "var"}


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


def test_a_module_of_nnx_is_filled_from_the_saved_version(
    zoo: BrainManager, tmp_path: Path
) -> None:
    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, epsilon=1e-5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.norm(self.first(x))

    module = torch.nn.Sequential(
        OrderedDict(first=torch.nn.Linear(3, 4), norm=torch.nn.BatchNorm1d(4))
    )
    module(torch.randn(9, 3))
    path = saved(tmp_path / "a.pt", module.eval().state_dict())
    network = Network(nnx.Rngs(0))
    migrate(path, target=network).save(zoo, "nnx")
    zoo.load_into(network, "nnx")
    x = torch.randn(2, 3)
    np.testing.assert_allclose(network(x.numpy()), module(x).detach().numpy(), atol=1e-5)


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
        "seed": 2**100,
        "best": np.float64(0.5),
        "worst": float("nan"),
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
    assert report.values == {
        "optimizer/state/0/step": 3,
        "optimizer/lr/0": 0.1,
        "epoch": 7,
        "seed": hex(2**100),
        "best": 0.5,
    }

    later = migrate_version(zoo, "old", mapping={"root": "model"})
    later.save(zoo, "dial_encoder")
    assert_encodes_as(module, zoo.load("dial_encoder")[0])
    (parent,) = zoo.manifest("dial_encoder").parents
    assert (parent.name, parent.version) == ("old", 1)


def test_as_is_takes_no_map(v2: tuple[Path, DialEncoder]) -> None:
    path, _ = v2
    layers = [{"torch": "net.0", "flax": "a", "rule": "linear"}]
    for mapping in ({"layers": layers}, {"root": "net"}):
        with pytest.raises(BadParams, match="nothing is converted"):
            migrate(path, as_is=True, mapping=mapping)


def test_a_tensor_alone_is_kept(zoo: BrainManager, tmp_path: Path) -> None:
    migrate(saved(tmp_path / "a.pt", torch.arange(3.0)), as_is=True).save(zoo, "alone")
    np.testing.assert_array_equal(zoo.load("alone", as_numpy=True)[0], [0, 1, 2])


def test_keys_that_read_the_same_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"3": torch.ones(2), 3: torch.zeros(1)})
    for as_is in (True, False):
        with pytest.raises(BadParams, match="same"):
            migrate(path, as_is=as_is)


def test_mixed_keys_are_kept_as_text(zoo: BrainManager, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"a": torch.ones(2), 3: torch.zeros(1)})
    migrate(path, as_is=True).save(zoo, "mixed")
    assert set(zoo.load("mixed")[0]) == {"a", "3"}
