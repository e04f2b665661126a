"""A live pytree -> its structure, and its leaves as they are, each with its path.

JAX is asked what the children of a node are, one level at a time; so whatever JAX can
flatten is understood here, in JAX's order. Two things of flax are seen through: an nnx
Module stands for its state, and a box around one value (nnx.Param, linen Partitioned)
for that value.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np

from brainstore.errors import BadParams
from brainstore.pytree.structure import (
    LEAF,
    MAX_DEPTH,
    Node,
    class_name,
    key_text,
    plain_key,
    record,
    shown,
)

_LEAF_TYPES = frozenset([np.ndarray, bool, int, float, complex, str, bytes])


def walk(tree: Any, where: str) -> tuple[Any, list[tuple[str, Any]]]:
    """Return the structure of a tree, and (path, leaf) for each leaf, in JAX's order.

    The tree is not changed, and leaves are not looked at. `where` names it in errors.

    Raises:
        BadParams: it is cyclic or nested deeper than 128 levels, two leaves have the same
            path, or a dict has keys that cannot be recorded or ordered.
    """
    walker = _Walker(where)
    structure = walker.visit(tree, ())
    return structure, list(walker.leaves.items())


def with_states(tree: Any) -> Any:
    """Return the tree with each nnx Module replaced by its state."""
    import jax

    return jax.tree.map(_see_through, tree, is_leaf=_is_module)


def _see_through(node: Any) -> Any:
    return sys.modules["flax.nnx"].state(node) if _is_module(node) else node


def _is_module(node: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, getattr(nnx, "Pytree", None) or nnx.Object)


def _is_box(node: Any) -> bool:
    nnx, meta = sys.modules.get("flax.nnx"), sys.modules.get("flax.core.meta")
    if nnx is not None and isinstance(node, nnx.Variable):
        return True
    return meta is not None and isinstance(node, meta.AxisMetadata)


class _Walker:
    def __init__(self, where: str) -> None:
        self.where = where
        self.leaves: dict[str, Any] = {}
        self.open: set[int] = set()

    def visit(self, node: Any, path: tuple[str, ...]) -> Any:
        node = _see_through(node)
        opened = self._open(node, path)
        if opened is None:
            self._add("/".join(path), node)
            return LEAF
        self._enter(node, path)
        structures = [
            self.visit(child, self._join(path, key, opened)) for key, child in opened.children
        ]
        self.open.discard(id(node))
        return self._record(opened, structures, path)

    def _open(self, node: Any, path: tuple[str, ...]) -> Node | None:
        try:
            opened = _open_live(node)
            return None if opened is None else _with_plain_keys(opened)
        except BadParams as error:
            raise self._bad(path, str(error)) from error
        except (TypeError, ValueError) as error:
            kind = type(node).__name__
            raise self._bad(path, f"JAX cannot flatten this {kind} ({error})") from error

    def _enter(self, node: Any, path: tuple[str, ...]) -> None:
        if id(node) in self.open:
            raise self._bad(path, "contains itself; a pytree must end somewhere")
        if len(self.open) > MAX_DEPTH:
            raise self._bad(path[:3], f"is nested deeper than {MAX_DEPTH} levels")
        self.open.add(id(node))

    def _join(self, path: tuple[str, ...], key: Any, opened: Node) -> tuple[str, ...]:
        return path if opened.kind == "box" else (*path, key_text(key))

    def _add(self, path: str, leaf: Any) -> None:
        if path in self.leaves:
            raise BadParams(f"{self.where}: two leaves have the path {path!r}; rename one")
        self.leaves[path] = leaf

    def _record(self, opened: Node, structures: list[Any], path: tuple[str, ...]) -> Any:
        if opened.kind == "None":
            return None
        if opened.kind == "box":
            return structures[0]
        keys = [key for key, _ in opened.children]
        try:
            return record(replace(opened, children=list(zip(keys, structures, strict=True))))
        except BadParams as error:
            raise self._bad(path, str(error)) from error

    def _bad(self, path: tuple[str, ...], problem: str) -> BadParams:
        return BadParams(f"{self.where}: {shown('/'.join(path))}: {problem}")


def _with_plain_keys(node: Node) -> Node:
    return replace(node, children=[(plain_key(key), child) for key, child in node.children])


def _open_live(node: Any) -> Node | None:
    """Return the node with its children by key, or None for a leaf."""
    kind = type(node)
    if node is None:
        return Node("None", [])
    if kind in _LEAF_TYPES:
        return None
    if kind is dict:
        return Node("dict", [(key, node[key]) for key in sorted(node)])
    if kind is list or kind is tuple:
        return Node(kind.__name__, list(enumerate(node)))
    return _open_with_jax(node)


def _open_with_jax(node: Any) -> Node | None:
    children = _children(node)
    if children is None:
        return None
    if _is_box(node) and len(children) == 1:
        return Node("box", children)
    if _is_state(node):
        return Node("dict", children)
    if type(node) is OrderedDict:
        return Node("OrderedDict", children)
    kind = "namedtuple" if isinstance(node, tuple) and hasattr(node, "_fields") else "node"
    return Node(kind, children, class_name(type(node)))


def _is_state(node: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, nnx.State)


def _children(node: Any) -> list[tuple[Any, Any]] | None:
    from jax.tree_util import tree_flatten_with_path

    # Only the first question is about the node itself. Asking `x is not node` instead
    # would never end where a node is its own child.
    first = iter([False])
    children, _ = tree_flatten_with_path(node, is_leaf=lambda _: next(first, True))
    if children and not children[0][0]:
        return None
    return [(_key(keys[0]), child) for keys, child in children]


def _key(key: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)
