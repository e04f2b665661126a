"""A whole zoo as version 0.1 wrote it: where everything lies, and that it stays readable."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from zoos import params, read_raw

from brainstore import BrainManager, NotFound
from brainstore.fsck import fsck
from brainstore.storage.local import LocalStore

GOLDEN = Path(__file__).parent / "golden" / "zoo"

# By name and number, what was saved; version 2 is deleted, 4 was deleted and restored.
FILLED = {("ppo", 3): (2, "f4"), ("ppo", 4): (4, "f4"), ("ppo", 5): (5, "f4")}
FILLED |= {("team/scout", 1): (3, "f2")}


@pytest.fixture
def zoo(tmp_path: Path) -> BrainManager:
    """A copy of it, which may be changed."""
    return BrainManager(shutil.copytree(GOLDEN, tmp_path / "zoo"))


def test_every_version_still_loads(zoo: BrainManager) -> None:
    assert zoo.list_models() == ["ppo_v1", "ppo_v3", "ppo_v4", "ppo_v5", "team/scout_v1"]
    for (name, number), (value, dtype) in FILLED.items():
        tree, _ = zoo.load(name, number, as_numpy=True, verify=True)
        assert tree["w"].tobytes() == np.full(2, value, dtype).tobytes()
    with pytest.raises(NotFound, match="diverged"):
        zoo.load("ppo:2")


def test_every_group_and_kind_of_leaf_still_loads(zoo: BrainManager) -> None:
    groups, meta = zoo.load("ppo:1", groups="all", as_numpy=True, verify=True)
    tree = groups["params"]
    assert tree["dense"]["kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tree["dense"]["bias"].dtype == ml_dtypes.bfloat16
    assert tree["dense"]["bias"].tolist() == [1, -2, 3]
    assert tree["empty"].shape == (0, 4)
    first, (half, nothing, seven) = tree["heads"]
    assert first.dtype == ml_dtypes.int4
    assert first.tolist() == [1, -8, 7]
    assert (type(half), half, nothing, seven) == (np.float32, 0.5, None, 7)
    assert groups["opt_state"]["mu"].tolist() == [1, 1, 1]
    assert groups["opt_state"]["count"] == 4
    key = zoo.load("ppo:1", groups=["rng"])[0]["rng"]
    assert jax.random.key_data(key).tolist() == jax.random.key_data(jax.random.key(3)).tolist()
    assert (meta.brain_type, meta.input_dim, meta.config) == ("ppo", 3, {"lr": 3e-4})
    assert meta.metrics["return"] == 1.5
    assert np.isnan(meta.metrics["lost"])
    assert zoo.file("ppo:1", "notes.md") == b"# first\n"


def test_what_was_done_is_still_told(zoo: BrainManager) -> None:
    assert zoo.aliases("ppo") == {"latest": 5, "prod": 3}
    assert zoo.resolve("ppo:prod~1").version == 1
    told = [(each.what, each.ref) for each in zoo.history("ppo")]
    assert ("moved 1 → 3", "ppo:prod") in told
    assert ("deleted", "ppo:2") in told
    assert ("restored", "ppo:4") in told
    assert [str(pin.name) for pin in zoo.manifest("ppo:3").frozen_experts.values()] == ["ppo"]


def test_it_is_healthy_and_goes_on(zoo: BrainManager) -> None:
    # Git keeps no modes.
    assert {finding.kind for finding in fsck(zoo.zoo)} <= {"writable"}
    assert zoo.save("ppo", params(6)) == "ppo_v6"
    assert zoo.undelete("ppo:2").version == 2
    assert zoo.load("ppo:2", as_numpy=True)[0]["w"].tolist() == [1, 1]
    zoo.close()
    assert list(zoo.zoo.store.list("journal/")) == []
    assert {finding.kind for finding in fsck(zoo.zoo)} <= {"writable"}
    assert read_raw(zoo.zoo.store).problems == []


def shapes(folder: Path) -> set[str]:
    """Return the keys below the folder, with digests, times and what is random left out."""
    keys = {stat.key for stat in LocalStore(folder).list("")}
    return {re.sub(r"[0-9a-f]{62,64}|[0-9A-Z]{26}|(?<=blobs/)..", "*", key) for key in keys}


def test_what_is_written_now_lies_where_it_lay_then(tmp_path: Path) -> None:
    zoo = BrainManager(tmp_path)
    zoo.zoo.committer.tidy = lambda: None  # type: ignore[method-assign]  # the fact is to stay
    for number in range(1, 6):
        zoo.save("ppo", params(number))
    zoo.save("team/scout", params(1))
    zoo.alias("ppo:1", "prod")
    zoo.alias("ppo:1", "old")
    zoo.close()
    written = shapes(tmp_path)
    assert {key for key in written if key.startswith("journal/")} == {
        *(f"journal/*~save~ppo~{number}" for number in range(1, 6)),
        "journal/*~save~team+scout~1",
        "journal/*~move~ppo~1~1~prod",
        "journal/*~move~ppo~1~1~old",
    }
    assert {key for key in written if not key.startswith("journal/")} == {
        key for key in shapes(GOLDEN) if not key.startswith("journal/")
    }
