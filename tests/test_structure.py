from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict, namedtuple
from contextlib import suppress
from typing import Any

import flax.struct
import jax
import pytest
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st
from trees import (
    QUICK,
    Point,
    load,
    save,
)

from brainstore.errors import BadParams, BrainstoreError, Corrupt, NotFound
from brainstore.pytree import (
    flatten,
    place,
    register,
    subtree,
    unflatten,
)

register(Point)


@flax.struct.dataclass
class Policy:
    weights: Any
    name: str = flax.struct.field(pytree_node=False, default="none")


def test_a_structure_says_what_the_containers_are():
    point = Point({}, [])
    tree = {"d": {2: 0.0, 1: 1.0}, "l": [1, None], "o": OrderedDict(b=1, a=()), "p": point}
    assert flatten(tree).structure == {
        "d": ["dict", [1, "*"], [2, "*"]],
        "l": ["list", "*", None],
        "o": ["OrderedDict", ["b", "*"], ["a", ["tuple"]]],
        "p": ["namedtuple", "trees.Point", ["x", {}], ["y", ["list"]]],
    }


def test_other_classes_come_back_as_plain_dicts():
    pair = namedtuple("pair", "left right")
    tree = [pair(1, 2), defaultdict(list, a=3), FrozenDict({"b": 4}), Policy(5, "good")]
    assert load(save(tree)) == [{"left": 1, "right": 2}, {"a": 3}, {"b": 4}, {"weights": 5}]


def test_registered_classes_come_back_as_themselves():
    register(Policy)
    assert load(save(Policy(5, "good"))) == Policy(5)
    assert load(save([Point(1, Point(2, 3))])) == [Point(1, Point(2, 3))]


def test_a_registered_class_that_has_changed_is_named():
    structure = ["namedtuple", "trees.Point", ["x", "*"], ["z", "*"]]
    with pytest.raises(BadParams, match=r"trees\.Point.*\['x', 'z'\].*target"):
        unflatten(structure, [1, 2])


def test_a_class_without_named_children_can_be_registered():
    class Pair:
        def __init__(self, *parts):
            self.parts = parts

    jax.tree_util.register_pytree_node(
        Pair, lambda p: (p.parts, None), lambda _, parts: Pair(*parts)
    )
    saved = save(Pair(1, 2))
    assert load(saved) == {0: 1, 1: 2}
    register(Pair)
    assert load(saved).parts == (1, 2)


def test_a_name_in_a_structure_imports_nothing():
    structure = ["node", "antigravity.fly", ["x", "*"]]
    assert unflatten(structure, [1]) == {"x": 1}
    assert "antigravity" not in sys.modules


DEEP: Any = "*"


for _ in range(2000):
    DEEP = ["list", DEEP]


@pytest.mark.parametrize(
    "structure",
    [
        "leaf",
        1,
        True,
        [],
        ["set", "*"],
        ["dict", "*"],
        ["dict", ["a"]],
        ["dict", [["float", "x"], "*"]],
        ["dict", [["bytes", "0"], "*"]],
        ["dict", [1.5, "*"]],
        ["dict", [None, "*"]],
        ["dict", [1, "*"], [1, "*"]],
        ["node"],
        ["node", 3],
        ["namedtuple", "a", "*"],
        ["list", ["list", 3]],
        {"a": {"b": 0}},
        DEEP,
        ["set", DEEP],
        ["dict", [DEEP, "*"]],
    ],
)
def test_a_malformed_structure_is_corrupt(structure):
    with pytest.raises(Corrupt, match="fsck"):
        unflatten(structure, [1])


def test_a_wrong_number_of_leaves_is_corrupt():
    with pytest.raises(Corrupt, match="has 2 leaves, found 1"):
        unflatten(["list", "*", "*"], [1])


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["*", "dict", "a"])
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
)


@given(json_values)
@QUICK
def test_no_structure_crashes_the_reader(structure):
    with suppress(BrainstoreError):
        unflatten(structure, [1])


TREE = {"encoder": {"dense_0": {"w": 1, "b": 2}, "x/y": [3, (4, 5)]}, "head": 6}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", TREE),
        ("encoder", TREE["encoder"]),
        ("/encoder/dense_0/", {"w": 1, "b": 2}),
        ("encoder/x%2Fy/1", (4, 5)),
        ("encoder/x%2Fy/1/0", 4),
        ("head", 6),
    ],
)
def test_a_subtree_is_found_by_its_path(path, expected):
    saved = save(TREE)
    structure, chosen = subtree(saved.flat.structure, path)
    found = place([leaf.host for leaf in saved.read()[chosen]])
    assert unflatten(structure, found) == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "encoder/dense_1",
            r"no 'dense_1' under 'encoder'; found dense_0, x%2Fy\. Did you mean 'dense_0'",
        ),
        ("nose", "no 'nose' at the top of the tree; found encoder, head"),
        ("head/w", "no 'w' under 'head': it has no keys"),
    ],
)
def test_a_missing_subtree_is_answered_with_the_keys_there_are(path, message):
    with pytest.raises(NotFound, match=message):
        subtree(flatten(TREE).structure, path)
