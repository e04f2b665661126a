"""A zoo as plain files in the layout of the original, and back."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from originals import dense, write_original
from safetensors import safe_open
from safetensors.numpy import save_file
from trees import assert_equal

from brainstore.address import Name
from brainstore.classic import export
from brainstore.errors import BadParams, Conflict, Corrupt
from brainstore.manager import BrainManager
from brainstore.tensors import parse_header


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    folder.mkdir()
    return folder


@pytest.fixture
def zoo(tmp_path: Path) -> Any:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


def all_sorts() -> Any:
    return {
        "layers": [jnp.ones((2, 3)), (jnp.zeros(2, jnp.bfloat16), None)],
        "by_number": {1: {"a/b": np.arange(4, dtype=np.int8)}, -2: np.float32([2])},
        "ordered": OrderedDict(z=np.float32([2]), a=np.float32([3])),
        "by_tuple": {("t", 0): np.array([1.5, -2.0], ml_dtypes.float8_e4m3fn)},
        "empty": [{}, (), []],
        "__metadata__": np.float32([1.0]),
    }


def rare_dtypes() -> dict[str, Any]:
    return {
        "int4": np.array([-8, 7, 0], ml_dtypes.int4),
        "uint2": np.array([[0, 1], [2, 3]], ml_dtypes.uint2),
        "float4": np.array([1.5, -2.0], ml_dtypes.float4_e2m1fn),
        "fp8": np.array([1.5, np.nan], ml_dtypes.float8_e5m2),
        "fp8_carried": np.array([1.5, -2.0], ml_dtypes.float8_e3m4),
        "bf16": np.array([1.5, np.inf], ml_dtypes.bfloat16),
        "complex": np.array([[1 + 2j, -3j]]),
        "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        "empty": np.zeros((0, 3), np.float32),
        "none": None,
        "count": 3,
        "rate": 0.5,
        "flag": True,
        "numpy": np.float16(0.25),
    }


def other_zoo(tmp_path: Path) -> BrainManager:
    return BrainManager(tmp_path / "other")


def through_files(zoo: BrainManager, tmp_path: Path) -> BrainManager:
    zoo.export_all(tmp_path / "out")
    other = other_zoo(tmp_path)
    other.import_zoo(tmp_path / "out")
    return other


def test_containers_and_keys_survive_export_and_import(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.save("a", all_sorts(), notes="héllo", metrics={"return": float("nan")})
    other = through_files(zoo, tmp_path)
    found, meta = other.load("a", as_numpy=True)
    assert_equal(found, zoo.load("a", as_numpy=True)[0])
    assert isinstance(found["layers"][1], tuple)
    assert meta.notes == "héllo"
    assert np.isnan(meta.metrics["return"])


@pytest.mark.filterwarnings("ignore:.*64-bit mode is off:UserWarning")
def test_rare_dtypes_and_scalars_survive_export_and_import(
    zoo: BrainManager, tmp_path: Path
) -> None:
    zoo.save("a", rare_dtypes())
    other = through_files(zoo, tmp_path)
    found = other.load("a", as_numpy=True)[0]
    assert_equal(found, rare_dtypes())
    assert type(found["count"]) is int
    assert type(found["numpy"]) is np.float16
    assert found["flag"] is True
    leaves = [each.manifest("a").groups["params"].leaves for each in (zoo, other)]
    assert [leaf.digest for leaf in leaves[0]] == [leaf.digest for leaf in leaves[1]]


def test_random_keys_and_groups_survive_export_and_import(
    zoo: BrainManager, tmp_path: Path
) -> None:
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 2)
    zoo.save("a", jnp.ones(3), groups={"rng": {"key": keys}, "nothing": (), "step": 7})
    other = through_files(zoo, tmp_path)
    found, _ = other.load("a", groups="all")
    assert_equal(found, zoo.load("a", groups="all")[0])
    assert found["rng"]["key"].dtype == keys.dtype
    assert found["nothing"] == ()


def test_the_library_reads_what_was_exported(zoo: BrainManager, tmp_path: Path) -> None:
    params = {"b": np.float32([1, 2, 3]), "k": np.arange(6, dtype=np.int16).reshape(2, 3).T}
    params["big"] = np.ones((512, 1024), np.float32)
    zoo.save("a", {"dense": params})
    path = zoo.export("a", tmp_path / "out") / "params.safetensors"
    with safe_open(path, "np") as opened:
        assert sorted(opened.keys()) == ["dense/b", "dense/big", "dense/k"]
        for name in params:
            np.testing.assert_array_equal(opened.get_tensor(f"dense/{name}"), params[name])


def test_every_exported_entry_is_aligned(zoo: BrainManager, tmp_path: Path) -> None:
    params = {"a": np.ones(3, np.int8), "b": np.ones(5, np.float32), "c": np.ones(64, np.float32)}
    zoo.save("a", params)
    path = zoo.export("a", tmp_path / "out") / "params.safetensors"
    entries = parse_header(path.read_bytes())
    assert entries["c"].start % 64 == 0
    assert entries["b"].start % 4 == 0


def test_an_export_has_the_layout_of_the_original(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.save("nav", {"w": jnp.ones(2)})
    zoo.save("team/swarm", {"w": jnp.ones(2)}, files={"notes/a.md": b"hello", "empty": b""})
    zoo.save(
        "team/swarm",
        {"w": jnp.ones(2), "experts": {"nav": {"w": jnp.ones(2)}}},
        parents={"team/swarm:1": "fine_tuned"},
        frozen_experts={"experts/nav": "nav:1"},
    )
    out = tmp_path / "out"
    folders = zoo.export_all(out)
    assert [str(folder.relative_to(out)) for folder in folders] == [
        "nav/v1",
        "team/swarm/v1",
        "team/swarm/v2",
    ]
    assert os.readlink(out / "team/swarm/latest") == "v2"
    registry = json.loads((out / "registry.json").read_text())
    assert list(registry["models"]) == ["nav_v1", "team/swarm_v1", "team/swarm_v2"]
    assert registry["latest"] == {"nav": "nav_v1", "team/swarm": "team/swarm_v2"}
    assert (out / "team/swarm/v1/files/notes/a.md").read_bytes() == b"hello"
    assert (out / "team/swarm/v1/files/empty").read_bytes() == b""
    lineage = json.loads((out / "team/swarm/v2/lineage.json").read_text())
    assert lineage["parents"][0]["relation"] == "fine_tuned"
    expert = json.loads((out / "team/swarm/v2/frozen_experts/experts%2Fnav.json").read_text())
    assert expert["folder"] == "nav/v1"
    meta = json.loads((out / "team/swarm/v2/meta.json").read_text())
    assert meta["digest"] == zoo.resolve("team/swarm").digest
    assert not (out / "team/swarm/v2/quality_report.json").exists()
    assert not list(out.rglob(".*"))


def test_parents_experts_and_files_survive_export_and_import(
    zoo: BrainManager, tmp_path: Path
) -> None:
    zoo.save("z", {"w": jnp.ones(2)}, files={"notes/a.md": b"hello"})
    zoo.save("a", {"w": jnp.ones(2)}, parents={"z:1": "distilled"}, frozen_experts={"w": "z:1#w"})
    other = through_files(zoo, tmp_path)
    manifest = other.manifest("a")
    [parent] = manifest.parents
    assert (parent.name, parent.relation) == ("z", "distilled")
    expert = manifest.frozen_experts["w"]
    assert (expert.digest, expert.subtree) == (other.resolve("z:1").digest, "w")
    other.export("a", tmp_path / "again")
    told = json.loads((tmp_path / "again/a/v1/frozen_experts/w.json").read_text())
    assert (told["subtree"], told["expert_subtree"], told["folder"]) == ("w", "w", "z/v1")
    assert other.file("z", "notes/a.md") == b"hello"


def test_pins_of_versions_that_are_nowhere_are_kept_as_a_file(
    zoo: BrainManager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zoo.save("z", {"w": jnp.ones(2)})
    zoo.save("a", {"w": jnp.ones(3)}, parents=["z:1"])
    zoo.export("a", tmp_path / "out")
    other = other_zoo(tmp_path)
    assert other.import_zoo(tmp_path / "out") == ["a_v1"]
    assert other.manifest("a").parents == ()
    assert json.loads(other.file("a", "lineage.json"))["parents"][0]["name"] == "z"
    assert "a_v1: a version that it pins is not here" in caplog.text


def test_pins_lead_to_versions_that_are_here_already(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.save("z", {"w": jnp.ones(2)})
    zoo.save("a", {"w": jnp.ones(3)}, parents=["z:1"])
    zoo.export("a", tmp_path / "out")
    zoo.delete("a:1")
    assert zoo.import_zoo(tmp_path / "out") == ["a_v2"]
    assert zoo.manifest("a").parents[0].digest == zoo.resolve("z:1").digest


def test_an_export_imported_where_it_came_from_changes_nothing(
    zoo: BrainManager, tmp_path: Path
) -> None:
    zoo.save("a", all_sorts())
    zoo.save("a", all_sorts(), groups={"step": 3})
    zoo.export_all(tmp_path / "out")
    assert zoo.import_zoo(tmp_path / "out") == ["a_v1", "a_v2"]
    assert zoo.list_models() == ["a_v1", "a_v2"]


def test_exporting_again_leaves_what_is_there_and_adds_the_rest(
    zoo: BrainManager, tmp_path: Path
) -> None:
    zoo.save("a", {"w": jnp.ones(2)})
    zoo.save("a", {"w": jnp.ones(3)})
    folder = zoo.export("a:2", tmp_path / "out")
    before = (folder / "params.safetensors").stat().st_mtime_ns
    zoo.export("a:1", tmp_path / "out")
    assert os.readlink(tmp_path / "out/a/latest") == "v2"
    zoo.export_all(tmp_path / "out")
    assert (folder / "params.safetensors").stat().st_mtime_ns == before
    registry = json.loads((tmp_path / "out/registry.json").read_text())
    assert set(registry["models"]) == {"a_v1", "a_v2"}
    assert registry["latest"] == {"a": "a_v2"}


def test_another_version_of_that_number_is_a_conflict(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.save("a", {"w": jnp.ones(2)})
    zoo.export_all(tmp_path / "out")
    other = other_zoo(tmp_path)
    other.save("a", {"w": jnp.ones(3)})
    with pytest.raises(Conflict, match="holds another a:1"):
        other.export_all(tmp_path / "out")


def test_an_export_joins_what_the_original_wrote(
    tree: Path, zoo: BrainManager, tmp_path: Path
) -> None:
    write_original(tree, {"nav_v1": dense(1)})
    zoo.save("a", {"w": jnp.ones(2)})
    zoo.export_all(tree)
    registry = json.loads((tree / "registry.json").read_text())
    assert set(registry["models"]) == {"nav_v1", "a_v1"}
    assert registry["latest"] == {"nav": "nav_v1", "a": "a_v1"}
    assert other_zoo(tmp_path).import_zoo(tree) == ["a_v1", "nav_v1"]


def test_a_failed_export_leaves_no_part_of_a_version(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.save("a", {"w": jnp.ones(2)})
    [blob] = (tmp_path / "brains/blobs").rglob("??*/*")
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(Corrupt, match="a:1"):
        zoo.export_all(tmp_path / "out")
    assert list((tmp_path / "out/a").iterdir()) == []


def test_no_link_leads_an_export_elsewhere(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.save("a", {"w": jnp.ones(2)})
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadParams, match="is no folder"):
        zoo.export_all(tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_hostile_names_in_a_manifest_do_not_leave_the_folder(
    zoo: BrainManager, tmp_path: Path
) -> None:
    zoo.save("a", {"w": jnp.ones(2)}, files={"note": b"hello"})
    path = tmp_path / "brains/models/a/v1/manifest.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"note"', b'"../../../x"'))
    version, _ = zoo.zoo.registry.by_number(Name("a"), 1)
    with pytest.raises(Corrupt, match="cannot be a file's name"):
        export(zoo.zoo, [version], tmp_path / "out")
    assert not (tmp_path / "x").exists()


def test_a_model_named_latest_keeps_its_folder(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.save("a", {"w": jnp.ones(2)})
    zoo.save("a/latest", {"w": jnp.ones(2)})
    zoo.export_all(tmp_path / "out")
    assert (tmp_path / "out/a/latest/v1/meta.json").is_file()
    assert (tmp_path / "out/a/latest.txt").read_text() == "v1\n"


def test_without_symlinks_latest_is_a_text(
    zoo: BrainManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no symlinks here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    zoo.save("a", {"w": jnp.ones(2)})
    zoo.export_all(tmp_path / "out")
    assert (tmp_path / "out/a/latest.txt").read_text() == "v1\n"


def test_meta_and_tensors_that_disagree_are_refused(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.save("a", {"w": jnp.ones(2)})
    folder = zoo.export("a", tmp_path / "out")
    save_file({"v": np.ones(2)}, folder / "params.safetensors")
    with pytest.raises(BadParams, match="disagree"):
        other_zoo(tmp_path).import_zoo(tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("structure", {"params": ["namedtuple"]}),
        ("structure", {"params": 3}),
        ("structure", []),
        ("structure", {"params": {"w": "*"}, "../x": None}),
        ("carriers", {"params": {"w": "float99"}}),
        ("carriers", {"params": {"w": "key<threefry2x32>"}}),
        ("carriers", {"params": {"w": 3}}),
        ("scalars", {"params": {"w": "int"}}),
    ],
)
def test_damaged_trees_in_the_meta_are_refused(
    zoo: BrainManager, tmp_path: Path, key: str, value: Any
) -> None:
    zoo.save("a", {"w": jnp.ones(2)})
    path = zoo.export("a", tmp_path / "out") / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(BadParams, match="a_v1"):
        other_zoo(tmp_path).import_zoo(tmp_path / "out")
    assert other_zoo(tmp_path).list_models() == []
