"""The original's plain files, into a zoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from originals import META, dense, nested, write_original
from safetensors.flax import save_file as flax_save_file
from trees import assert_equal

from brainstore.errors import BadParams, BadReference, NotFound, Unsupported
from brainstore.fsck import fsck
from brainstore.manager import BrainManager


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    folder.mkdir()
    return folder


@pytest.fixture
def zoo(tmp_path: Path) -> Any:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


def test_an_original_zoo_is_imported_with_its_numbers(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"ppo_swarm_v1": dense(1), "ppo_swarm_v2": dense(2), "nav_v1": dense(3)})
    assert zoo.import_zoo(tree) == ["nav_v1", "ppo_swarm_v1", "ppo_swarm_v2"]
    assert zoo.list_models() == ["nav_v1", "ppo_swarm_v1", "ppo_swarm_v2"]
    params, meta = zoo.load("ppo_swarm:1")
    assert_equal(params, nested(dense(1)))
    assert (meta.brain_type, meta.input_dim, meta.training_steps) == ("ppo", 4, 1000)
    assert meta.created_at == META["created_at"]
    assert meta.config == {}
    assert meta.tags == []
    assert zoo.get_latest("ppo_swarm") == "ppo_swarm_v2"


def test_importing_the_same_tree_again_saves_nothing(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"ppo_swarm_v1": dense(1), "ppo_swarm_v2": dense(2)})
    assert zoo.import_zoo(tree) == zoo.import_zoo(tree)
    assert zoo.list_models() == ["ppo_swarm_v1", "ppo_swarm_v2"]


def test_a_tree_without_times_is_not_imported_twice_either(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"ppo_swarm_v1": dense(1)}, created_at=None)
    zoo.import_zoo(tree)
    zoo.import_zoo(tree)
    assert zoo.list_models() == ["ppo_swarm_v1"]


def test_taken_numbers_are_appended_and_keep_their_old_name(tree: Path, zoo: BrainManager) -> None:
    zoo.save("ppo_swarm", {"w": jnp.ones(2)})
    write_original(tree, {"ppo_swarm_v1": dense(1), "ppo_swarm_v2": dense(2)})
    names = zoo.import_zoo(tree)
    assert names == ["ppo_swarm_v2", "ppo_swarm_v3"]
    meta = zoo.load("ppo_swarm:3")[1]
    assert meta.config["imported_from"] == "ppo_swarm_v2"
    assert meta.tags == ["ppo_swarm_v2"]
    assert zoo.import_zoo(tree) == names
    assert len(zoo.list_models()) == 3


def test_a_tree_that_continues_the_model_keeps_its_numbers(tree: Path, zoo: BrainManager) -> None:
    zoo.save("ppo_swarm", {"w": jnp.ones(2)})
    write_original(tree, {"ppo_swarm_v2": dense(2)})
    assert zoo.import_zoo(tree) == ["ppo_swarm_v2"]
    assert zoo.load("ppo_swarm:2")[1].config == {}


def test_a_gap_in_the_numbers_is_closed(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"ppo_swarm_v1": dense(1), "ppo_swarm_v12": dense(2)})
    assert zoo.import_zoo(tree) == ["ppo_swarm_v1", "ppo_swarm_v2"]
    assert zoo.load("ppo_swarm:2")[1].config == {"imported_from": "ppo_swarm_v12"}


def test_other_params_under_an_imported_name_are_saved(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"ppo_swarm_v1": dense(1)})
    zoo.import_zoo(tree)
    flax_save_file(dense(9), tree / "ppo_swarm/v1/params.safetensors")
    assert zoo.import_zoo(tree) == ["ppo_swarm_v2"]


def test_a_source_checkpoint_in_the_tree_becomes_a_parent_under_its_new_number(
    tree: Path, zoo: BrainManager
) -> None:
    zoo.save("nav", {"w": jnp.ones(2)})
    write_original(tree, {"ppo_swarm_v1": dense(1), "nav_v1": dense(3)})
    meta = {**META, "source_checkpoint": "nav_v1"}
    (tree / "ppo_swarm/v1/meta.json").write_text(json.dumps(meta))
    assert zoo.import_zoo(tree) == ["nav_v2", "ppo_swarm_v1"]
    [parent] = zoo.manifest("ppo_swarm").parents
    assert (parent.name, parent.version) == ("nav", 2)
    assert zoo.import_zoo(tree) == ["nav_v2", "ppo_swarm_v1"]


def test_dotted_keys_become_dicts_where_no_key_has_a_slash(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"a_v1": {"params.dense_0.kernel": jnp.ones(2), "log_std": jnp.ones(1)}})
    zoo.import_zoo(tree)
    assert set(zoo.load("a")[0]["params"]["dense_0"]) == {"kernel"}


def test_dots_are_text_where_a_key_has_a_slash(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"a_v1": {"params/dense.0": jnp.ones(2), "w.b": jnp.ones(1)}})
    zoo.import_zoo(tree)
    params, _ = zoo.load("a")
    assert set(params) == {"params", "w.b"}
    assert set(params["params"]) == {"dense.0"}


def test_dotted_keys_stay_flat_where_one_would_lie_under_another(
    tree: Path, zoo: BrainManager
) -> None:
    write_original(tree, {"a_v1": {"w": jnp.ones(2), "w.b": jnp.ones(1)}})
    zoo.import_zoo(tree)
    assert set(zoo.load("a")[0]) == {"w", "w.b"}


def test_a_registry_alone_gives_the_metadata(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"ppo_swarm_v1": dense(1)}, seed=7)
    (tree / "ppo_swarm/v1/meta.json").unlink()
    registry = json.loads((tree / "registry.json").read_text())
    del registry["latest"]
    (tree / "registry.json").write_text(json.dumps(registry))
    zoo.import_zoo(tree)
    meta = zoo.load("ppo_swarm")[1]
    assert meta.notes == "the first"
    assert meta.config == {"seed": 7}


def test_records_of_the_original_travel_as_files(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"ppo_swarm_v1": dense(1)})
    place = tree / "ppo_swarm/v1"
    (place / "lineage.json").write_text("{}")
    (place / "frozen_experts").mkdir()
    (place / "frozen_experts/nav.json").write_text("[1]")
    zoo.import_zoo(tree)
    assert zoo.file("ppo_swarm", "frozen_experts/nav.json") == b"[1]"
    assert zoo.file("ppo_swarm", "lineage.json") == b"{}"


def test_a_latest_that_is_not_the_highest_is_told(
    tree: Path, zoo: BrainManager, caplog: pytest.LogCaptureFixture
) -> None:
    write_original(tree, {"ppo_swarm_v1": dense(1), "ppo_swarm_v2": dense(2)})
    registry = json.loads((tree / "registry.json").read_text())
    registry["latest"]["ppo_swarm"] = "ppo_swarm_v1"
    (tree / "registry.json").write_text(json.dumps(registry))
    zoo.import_zoo(tree)
    assert "latest of ppo_swarm was ppo_swarm_v1" in caplog.text


# Bad trees


def assert_refused(zoo: BrainManager, tree: Path, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        zoo.import_zoo(tree)
    assert zoo.list_models() == []


def test_a_folder_without_registry_is_refused_with_what_was_found(
    tree: Path, zoo: BrainManager
) -> None:
    (tree / "stuff.txt").write_text("")
    assert_refused(zoo, tree, NotFound, r"expected registry\.json .* found stuff\.txt")
    assert_refused(zoo, tree / "nowhere", NotFound, "found nothing")


def test_versions_that_were_made_from_each_other_are_refused(
    tree: Path, zoo: BrainManager, tmp_path: Path
) -> None:
    with BrainManager(tmp_path / "others") as others:
        others.save("nav", nested(dense(1)))
        others.save("nav", nested(dense(2)), parents={"nav:1": "fine_tuned"})
        others.export_all(tree)
    digest = json.loads((tree / "nav/v2/meta.json").read_text())["digest"]
    parent = {"name": "nav", "version": 2, "digest": digest, "relation": "fine_tuned"}
    lineage = {"parents": [parent], "frozen_experts": {}}
    (tree / "nav/v1/lineage.json").write_text(json.dumps(lineage))
    assert_refused(zoo, tree, BadParams, "made from each other: nav_v1 → nav_v2 → nav_v1")


def test_truncated_params_are_named_before_anything_is_saved(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"a_v1": dense(1), "b_v1": dense(2)})
    path = tree / "b/v1/params.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(zoo, tree, BadParams, r"b_v1.*params\.safetensors.*copied whole")


def test_a_version_without_files_is_named(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"a_v1": dense(1), "b_v1": dense(2)})
    (tree / "b/v1/params.safetensors").unlink()
    assert_refused(zoo, tree, NotFound, r"b_v1: expected .*params\.safetensors")
    (tree / "b").rename(tree / "c")
    assert_refused(zoo, tree, NotFound, "b_v1")


@pytest.mark.parametrize(
    "key", ["../x_v1", "/etc_v1", "a/../../x_v1", "PPO_v1", "a_v0", "a", "", "con_v1", "a\\b_v1"]
)
def test_hostile_and_bad_names_are_refused(tree: Path, zoo: BrainManager, key: str) -> None:
    write_original(tree, {"a_v1": dense(1)})
    (tree / "registry.json").write_text(json.dumps({"models": {"a_v1": {}, key: {}}}))
    assert_refused(zoo, tree, BadReference, r"registry\.json")


@pytest.mark.parametrize(
    "part", ["registry.json", "a", "a/v1", "a/v1/params.safetensors", "a/v1/meta.json"]
)
def test_links_that_lead_outside_are_refused(tree: Path, zoo: BrainManager, part: str) -> None:
    write_original(tree, {"a_v1": dense(1)})
    elsewhere = tree.parent / "elsewhere"
    (tree / part).rename(elsewhere)
    (tree / part).symlink_to(elsewhere)
    assert_refused(zoo, tree, BadParams, "outside of")


def test_a_link_among_the_files_that_leads_outside_is_refused(
    tree: Path, zoo: BrainManager
) -> None:
    write_original(tree, {"a_v1": dense(1)})
    (tree.parent / "secret").write_text("secret")
    (tree / "a/v1/files").mkdir()
    (tree / "a/v1/files/notes").symlink_to(tree.parent / "secret")
    assert_refused(zoo, tree, BadParams, "outside of")


@pytest.mark.parametrize(
    "text", ["", "[1", "[]", "{}", '{"models": []}', '{"models": {"a_v1": 3}}', "[" * 100_000]
)
def test_a_damaged_registry_is_refused(tree: Path, zoo: BrainManager, text: str) -> None:
    (tree / "registry.json").write_text(text)
    assert_refused(zoo, tree, BadParams, r"registry\.json")


def test_metadata_that_cannot_be_kept_is_refused(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"a_v1": dense(1)}, input_dim="many")
    assert_refused(zoo, tree, BadParams, r"a_v1.*input_dim")


def test_params_without_a_tensor_are_refused(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"a_v1": {}})
    assert_refused(zoo, tree, BadParams, "a_v1.*no tensor")


def test_keys_that_lie_under_another_array_are_refused(tree: Path, zoo: BrainManager) -> None:
    write_original(tree, {"a_v1": {"w": jnp.ones(1), "w/b": jnp.ones(1)}})
    assert_refused(zoo, tree, BadParams, "rename one")


def test_a_zoo_is_no_tree(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.init()
    with pytest.raises(BadParams, match="is a zoo itself"):
        zoo.import_zoo(tmp_path / "brains")
    with pytest.raises(BadParams, match="is a zoo itself"):
        zoo.export_all(tmp_path / "brains")


def test_the_folder_of_the_original_is_not_taken_for_a_zoo(tmp_path: Path) -> None:
    folder = tmp_path / "brains"
    write_original(folder, {"ppo_swarm_v1": dense(1.0)})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    zoo = BrainManager(folder)
    for call in (
        zoo.init,
        zoo.list_models,
        lambda: zoo.load("ppo_swarm"),
        lambda: zoo.save("ppo_swarm", {"w": np.ones(2, np.float32)}),
    ):
        with pytest.raises(Unsupported, match=r"brainstore --zoo NEW_ZOO import"):
            call()
    assert any("original" in finding.text for finding in fsck(zoo.zoo, repair=True))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert BrainManager(tmp_path / "zoo").import_zoo(folder) == ["ppo_swarm_v1"]
