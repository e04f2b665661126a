"""What differs between two versions, held against NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from brainstore import diff as room
from brainstore.diff import Diff, LeafChange
from brainstore.errors import BadReference, NotFound
from brainstore.manager import BrainManager

pytestmark = pytest.mark.filterwarnings("ignore:.*64-bit mode is off:UserWarning")


@pytest.fixture
def zoo(tmp_path: Path) -> Any:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


def changed(zoo: BrainManager, old: Any, new: Any) -> LeafChange:
    """Save two params of one leaf, and return what became of it."""
    zoo.save("a", {"w": old})
    zoo.save("a", {"w": new})
    [leaf] = zoo.diff("a:latest~1" if zoo.aliases("a")["latest"] > 2 else "a:1", "a").leaves
    return leaf


def leaf_of(found: Diff, path: str) -> LeafChange:
    return next(leaf for leaf in found.leaves if leaf.path == path)


def test_numbers_are_those_of_numpy(zoo: BrainManager) -> None:
    random = np.random.default_rng(0)
    old, new = (random.normal(size=(7, 5)).astype(np.float32) for _ in range(2))
    leaf = changed(zoo, old, new)
    step = new.astype(np.float64) - old.astype(np.float64)
    assert leaf.status == "changed"
    assert leaf.l2 == pytest.approx(np.linalg.norm(step), rel=1e-12)
    assert leaf.max_abs == np.abs(step).max()
    cosine = np.vdot(old.astype(float), new) / np.linalg.norm(old) / np.linalg.norm(new)
    assert leaf.cosine == pytest.approx(cosine, rel=1e-6)


def test_numbers_do_not_depend_on_the_blocks(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    old, new = (random.normal(size=(33, 3)) for _ in range(2))
    monkeypatch.setattr(room, "BLOCK_ELEMENTS", 10)
    leaf = changed(zoo, old, new)
    assert leaf.l2 == pytest.approx(np.linalg.norm(new - old), rel=1e-12)
    assert leaf.max_abs == np.abs(new - old).max()


def test_numbers_by_hand(zoo: BrainManager) -> None:
    leaf = changed(zoo, np.float32([3, 0, 0]), np.float32([3, 4, 0]))
    assert (leaf.l2, leaf.max_abs, leaf.cosine) == (4.0, 4.0, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("old", "new", "l2"),
    [
        (np.array([True, False]), np.array([True, True]), 1.0),
        (np.array([1, 2], np.uint8), np.array([0, 0], np.uint8), 5**0.5),
        (np.array([-8, 7], ml_dtypes.int4), np.array([7, 7], ml_dtypes.int4), 15.0),
        (np.array([1], ml_dtypes.float8_e8m0fnu), np.array([4], ml_dtypes.float8_e8m0fnu), 3.0),
        (np.array([1], ml_dtypes.bfloat16), np.array([1.5], np.float32), 0.5),
        (np.array([3j]), np.array([4 + 0j]), 5.0),
        (np.array([2.0]), np.array([2 + 1j], np.complex64), 1.0),
        (1, 3, 2.0),
    ],
)
def test_any_dtype_is_compared(zoo: BrainManager, old: Any, new: Any, l2: float) -> None:
    assert changed(zoo, old, new).l2 == pytest.approx(l2)


def test_nan_is_counted_and_does_not_spread(zoo: BrainManager) -> None:
    old = np.float32([1, np.nan, np.nan, 2, np.inf])
    leaf = changed(zoo, old, np.float32([1, np.nan, 5, 4, np.inf]))
    assert (leaf.l2, leaf.max_abs, leaf.nan) == (2.0, 2.0, 1)
    assert leaf.cosine is None


def test_infinity_is_infinitely_far(zoo: BrainManager) -> None:
    leaf = changed(zoo, np.float32([1, 2]), np.float32([1, np.inf]))
    assert leaf.l2 == leaf.max_abs == np.inf
    assert leaf.cosine is None


def test_zero_has_no_direction(zoo: BrainManager) -> None:
    leaf = changed(zoo, np.zeros(3, np.float32), np.ones(3, np.float32))
    assert leaf.cosine is None
    assert leaf.l2 == pytest.approx(3**0.5)


def test_another_dtype_with_the_same_values_is_a_change_of_length_zero(zoo: BrainManager) -> None:
    leaf = changed(zoo, np.float32([1, 2]), np.array([1, 2], ml_dtypes.bfloat16))
    assert (leaf.status, leaf.l2, leaf.cosine) == ("changed", 0.0, pytest.approx(1.0))
    assert (leaf.old_dtype, leaf.new_dtype) == ("float32", "bfloat16")


def test_other_shapes_and_random_keys_are_just_changed(zoo: BrainManager) -> None:
    leaf = changed(zoo, jnp.ones(3), jnp.ones((3, 1)))
    assert (leaf.status, leaf.l2, leaf.old_shape, leaf.new_shape) == ("changed", None, (3,), (3, 1))
    zoo.save("k", {"w": jax.random.key(0)})
    zoo.save("k", {"w": jax.random.key(1)})
    [leaf] = zoo.diff("k:1", "k:2").leaves
    assert (leaf.status, leaf.l2, leaf.cosine) == ("changed", None, None)


def test_empty_arrays_of_another_dtype_are_compared(zoo: BrainManager) -> None:
    zoo.save("a", {"w": np.zeros((0, 2), np.float32), "b": np.ones(1)})
    zoo.save("a", {"w": np.zeros((0, 2), np.int32), "b": np.ones(1)})
    leaf = leaf_of(zoo.diff("a:1", "a:2"), "w")
    assert (leaf.status, leaf.l2, leaf.max_abs) == ("changed", 0.0, 0.0)


def test_equal_versions_are_the_same_and_nothing_is_read(zoo: BrainManager, tmp_path: Path) -> None:
    for _ in range(2):
        zoo.save("a", {"w": jnp.ones(3)}, metrics={"x": float("nan")}, groups={"step": 3})
    for blob in (tmp_path / "brains/blobs").rglob("??*/*"):
        blob.unlink()
    found = zoo.diff("a:1", "a:2")
    assert found.is_same
    assert found.lines() == ["a:1 → a:2: no difference", "  2 leaves same"]


def test_leaves_of_all_groups_are_compared_params_first(zoo: BrainManager) -> None:
    zoo.save("a", {"x": jnp.ones(3), "y": jnp.ones(2)}, groups={"opt_state": {"mu": jnp.ones(3)}})
    zoo.save("a", {"x": jnp.ones(3), "z": jnp.ones(2)}, groups={"opt_state": {"mu": jnp.zeros(3)}})
    found = zoo.diff("a:1", "a:2")
    assert [(leaf.path, leaf.status) for leaf in found.leaves] == [
        ("x", "same"),
        ("y", "removed"),
        ("opt_state:mu", "changed"),
        ("z", "added"),
    ]
    assert not found.is_same


def test_fields_are_compared_by_path_metrics_with_their_delta(zoo: BrainManager) -> None:
    old = {"lr": 1e-3, "net": {"width": 64, "act": "tanh"}, "gone": 1}
    zoo.save("a", {"w": jnp.ones(1)}, config=old, metrics={"return": 6.5}, notes="one")
    new = {"lr": 1e-3, "net": {"width": 128, "act": "tanh"}}
    zoo.save("a", {"w": jnp.ones(1)}, config=new, metrics={"return": 7.0, "n": 3}, notes="two")
    found = zoo.diff("a:1", "a:2")
    fields = {change.path: (change.old, change.new, change.delta) for change in found.fields}
    assert fields == {
        "metrics.return": (6.5, 7.0, 0.5),
        "metrics.n": (None, 3, None),
        "config.net.width": (64, 128, 64),
        "config.gone": (1, None, None),
        "notes": ("one", "two", None),
    }
    assert list(fields)[-1] == "notes"


def test_parents_experts_and_files_are_compared(zoo: BrainManager) -> None:
    zoo.save("a", {"w": jnp.ones(1)}, files={"n.md": b"1"})
    zoo.save("a", {"w": jnp.ones(1)}, files={"n.md": b"2"}, frozen_experts={"w": "a:1#w"})
    zoo.save("a", {"w": jnp.ones(1)}, files={"n.md": b"2"}, parents=["a:1"])
    paths = [change.path for change in zoo.diff("a:1", "a:2").fields]
    assert paths == ["files.n.md", "frozen_experts.w"]
    paths = [change.path for change in zoo.diff("a:2", "a:3").fields]
    assert paths == ["parents", "frozen_experts.w"]


def test_a_list_that_became_a_tuple_is_no_equal_tree(zoo: BrainManager) -> None:
    zoo.save("a", {"layers": [jnp.ones(1)], "b": jnp.ones(1)})
    zoo.save("a", {"layers": (jnp.ones(1),), "b": jnp.ones(1)})
    found = zoo.diff("a:1", "a:2")
    [field] = found.fields
    assert (field.path, field.old, field.new) == ("params/layers (container)", "list", "tuple")
    assert not found.is_same


def test_a_part_is_compared_with_a_whole(zoo: BrainManager) -> None:
    zoo.save("nav", {"k": jnp.ones(3)}, groups={"step": 1})
    zoo.save("fused", {"experts": {"nav": {"k": jnp.ones(3)}}, "gate": jnp.ones(1)})
    found = zoo.diff("nav", "fused#experts/nav")
    assert [(leaf.path, leaf.status) for leaf in found.leaves] == [("k", "same")]
    assert found.new == "fused:1#experts/nav"


def test_versions_of_two_zoos_are_compared(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.save("a", {"w": jnp.ones(3)})
    with BrainManager(tmp_path / "other") as other:
        other.save("a", {"w": jnp.full(3, 2.0)})
    found = zoo.diff("a", f"{tmp_path / 'other'}::a")
    assert leaf_of(found, "w").max_abs == 1.0
    assert found.new == f"{tmp_path / 'other'}::a:1"
    zoo.load("a")


def test_references_that_name_nothing_are_refused(zoo: BrainManager) -> None:
    zoo.save("a", {"w": jnp.ones(3)})
    with pytest.raises(NotFound):
        zoo.diff("a", "a:9")
    with pytest.raises(NotFound):
        zoo.diff("a", "a#nowhere")
    with pytest.raises(BadReference):
        zoo.diff("a", "a:")


def test_the_text_names_the_biggest_changes_first(zoo: BrainManager) -> None:
    zoo.save("a", {"x": jnp.zeros(2), "y": jnp.ones(2), "z": jnp.ones(3), "s": jnp.ones(1)})
    new = {"x": jnp.ones(2), "y": jnp.full(2, 9.0), "n": jnp.ones(1), "s": jnp.ones(1)}
    zoo.save("a", new, metrics={"return": 1.5})
    assert str(zoo.diff("a:1", "a:2")).splitlines() == [
        "a:1 → a:2",
        "  metrics.return  nothing → 1.5",
        "  1 leaf same, 2 changed, 1 added, 1 removed:",
        "  ~ y  float32[2]  l2 11.31  max 8  cosine 1.000000",
        "  ~ x  float32[2]  l2 1.414  max 1",
        "  + n  float32[1]",
        "  - z  float32[3]",
    ]
    assert zoo.diff("a:1", "a:2").lines(most=1)[-1] == "  … and 3 more"


def test_the_dict_is_json(zoo: BrainManager) -> None:
    zoo.save("a", {"w": jnp.ones(3)})
    zoo.save("a", {"w": jnp.zeros(3)}, tags=["x"])
    found = json.loads(json.dumps(zoo.diff("a:1", "a:2").to_dict()))
    assert found["is_same"] is False
    assert found["leaves"][0]["old_shape"] == [3]
    assert found["fields"] == [{"path": "tags", "old": [], "new": ["x"], "delta": None}]
