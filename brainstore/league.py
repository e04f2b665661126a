"""The params of several versions as one tree, for a league under vmap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from brainstore import pytree
from brainstore.dtypes import Array
from brainstore.errors import BadParams
from brainstore.groups import Reader
from brainstore.pytree import HostLeaf
from brainstore.pytree.structure import shown
from brainstore.records import Group, Leaf
from brainstore.zoo import Zoo


def stacked(zoo: Zoo, refs: Sequence[str], group: str) -> Any:
    """Return the group's tree with the versions' leaves stacked along a new first axis [N].

    Each blob is read once. Python scalars become arrays [N], like all leaves.

    Raises:
        BadParams: no version is named, or their trees differ; lists where.
    """
    if isinstance(refs, str) or not refs:
        raise BadParams(f"load_stacked: expected a list of references, found {refs!r:.80}")
    readers = [_reader(zoo, ref) for ref in refs]
    groups = [reader.group(group) for _, reader in readers]
    names = [name for name, _ in readers]
    _require_alike(names, groups, group)
    arrays = [reader.arrays(each.leaves) for (_, reader), each in zip(readers, groups, strict=True)]
    leaves = [
        _stack(leaf, members) for leaf, *members in zip(groups[0].leaves, *arrays, strict=True)
    ]
    return pytree.unflatten(groups[0].structure, pytree.place(leaves))


def _stack(leaf: Leaf, members: Sequence[Array]) -> HostLeaf:
    import jax

    array = np.stack(members)
    if leaf.scalar is not None:
        # As JAX takes a number: in its own width, not in that of Python.
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        return HostLeaf(leaf.path, array.dtype.name, array)
    return HostLeaf(leaf.path, leaf.dtype, array)


def _reader(zoo: Zoo, ref: str) -> tuple[str, Reader]:
    version, manifest, owner = zoo.find(ref)
    return str(version), Reader(manifest, owner.blobs, str(version), verify=False)


def _require_alike(names: Sequence[str], groups: Sequence[Group], group: str) -> None:
    first = groups[0]
    problems = []
    for name, other in zip(names[1:], groups[1:], strict=True):
        found = list(_differences(first, other))
        problems += [f"  {name}: {text}" for text in dict.fromkeys(found)]
    if problems:
        lines = "\n".join(dict.fromkeys(problems))
        raise BadParams(
            f"{group}: these cannot be stacked, since they differ from {names[0]}:\n{lines}\n"
            "A league under vmap needs brains of one architecture"
        )


def _differences(first: Group, other: Group) -> Iterator[str]:
    expected = {leaf.path: leaf for leaf in first.leaves}
    found = {leaf.path: leaf for leaf in other.leaves}
    for path in dict.fromkeys([*expected, *found]):
        one, two = _typed(expected.get(path)), _typed(found.get(path))
        if one != two:
            yield f"{shown(path)}: expected {one}, found {two}"
    same = expected.keys() == found.keys()
    if same and msgspec.to_builtins(first.structure) != msgspec.to_builtins(other.structure):
        yield "the same leaves, in other containers"


def _typed(leaf: Leaf | None) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
