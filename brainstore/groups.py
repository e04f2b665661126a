"""The pytrees of a version <-> its groups in the manifest and its blobs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from brainstore import packs, pytree, tensors
from brainstore.address import Digest
from brainstore.blobs import Blobs
from brainstore.dtypes import Array
from brainstore.errors import BadParams, Corrupt, NotFound
from brainstore.pytree import HostLeaf
from brainstore.records import Group, Leaf, Manifest, Piece
from brainstore.tensors import Blob

PARAMS = "params"
ALL = "all"

_GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class Encoding:
    """Pytrees, flattened and packed, ready to be stored.

    Each group has packs of its own, so that who loads params never fetches Adam's
    moments.
    """

    def __init__(self, trees: Mapping[str, Any]) -> None:
        """Flatten `trees`, by group. Nothing is copied or changed.

        Raises:
            BadParams: a leaf is no array or number, the params have no leaf, or a group
                has a name that it cannot have.
        """
        self._flats = {
            _group_name(name): pytree.flatten(tree, where=name) for name, tree in trees.items()
        }
        if PARAMS in self._flats and not self._flats[PARAMS].leaves:
            raise BadParams("params: the tree has no leaf; there is nothing to save")
        self._packings = {
            name: packs.pack((leaf.path, leaf.tensor) for leaf in flat.leaves)
            for name, flat in self._flats.items()
        }

    def require_subtree(self, path: str) -> None:
        """Raise BadParams unless the params have this subtree."""
        try:
            pytree.subtree(self._flats[PARAMS].structure, path)
        except NotFound as error:
            raise BadParams(f"frozen_experts: {path!r}: {error}") from error

    @property
    def blobs(self) -> list[Blob]:
        """What is to be stored; the digests of large blobs are computed when asked for."""
        return [blob for packing in self._packings.values() for blob in packing.blobs]

    @property
    def size_bytes(self) -> int:
        """The data of all leaves, each counted as often as it occurs."""
        return sum(leaf.tensor.nbytes for flat in self._flats.values() for leaf in flat.leaves)

    def groups(self) -> dict[str, Group]:
        """Return what the manifest records: structure, and digest and place of each leaf."""
        return {
            name: Group(
                structure=flat.structure,
                leaves=tuple(_record(leaf, self._packings[name]) for leaf in flat.leaves),
            )
            for name, flat in self._flats.items()
        }


def _group_name(name: object) -> str:
    if not isinstance(name, str) or not _GROUP_NAME.fullmatch(name) or name == ALL:
        raise BadParams(
            f"groups: {name!r:.80} cannot be the name of a group; expected letters, digits, "
            f"_ . -, and not {ALL!r}"
        )
    return name


def _record(leaf: pytree.Leaf, packing: packs.Packing) -> Leaf:
    tensor = leaf.tensor
    place = packing.places.get(tensor.digest)
    return Leaf(
        path=leaf.path,
        dtype=tensor.dtype,
        shape=tensor.shape,
        digest=tensor.digest,
        blob=place.blob if place else None,
        entry=place.entry if place else tensors.LEAF_ENTRY,
        scalar=leaf.scalar,
    )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where loaded leaves go, and as what. See `BrainManager.load`."""

    device: Any = None
    sharding: Any = None
    dtype: Any = None
    as_numpy: bool = False


class Reader:
    """Reads groups of one version; fetches only the blobs that are needed, all at once."""

    def __init__(self, manifest: Manifest, blobs: Blobs, owner: str, *, verify: bool) -> None:
        self._manifest = manifest
        self._blobs = blobs
        self._owner = owner
        self._verify = verify

    def read(
        self, names: Sequence[str], subtree: str | None, placement: Placement
    ) -> dict[str, Any]:
        """Return the trees of these groups; built-in containers come back as they were."""
        chosen = {name: self._subtree(name, subtree) for name in names}
        views = self._open([leaf for _, leaves in chosen.values() for leaf in leaves])
        return {
            name: pytree.unflatten(structure, pytree.place(views.host(leaves), **vars(placement)))
            for name, (structure, leaves) in chosen.items()
        }

    def read_into(
        self,
        targets: Mapping[str, Any],
        subtree: str | None,
        placement: Placement,
        *,
        strict: bool,
    ) -> dict[str, Any]:
        """Return trees of the structure, dtypes and shardings of `targets`, by group.

        Raises:
            BadParams: leaves are missing, unexpected, or do not fit; all are listed.
        """
        plans = {}
        for name, target in targets.items():
            _, leaves = self._subtree(name, subtree)
            where = f"{self._owner}, {name}"
            plan = pytree.match(leaves, target, strict=strict, where=where)
            plans[name] = (plan, [leaves[index] for index in plan.needed])
        views = self._open([leaf for _, leaves in plans.values() for leaf in leaves])
        return {
            name: plan.build(views.arrays(leaves), **vars(placement))
            for name, (plan, leaves) in plans.items()
        }

    def arrays(self, leaves: Sequence[Leaf]) -> list[Array]:
        """Return these leaves as arrays, mapped where they are on this machine.

        PRNG keys come as their uint32 key data, scalars as arrays without dimensions.
        """
        return self._open(leaves).arrays(leaves)

    def group(self, name: str) -> Group:
        """Return what the manifest records of the group.

        Raises:
            NotFound: the version has no such group; those that it has are listed.
        """
        group = self._manifest.groups.get(name)
        if group is None:
            raise NotFound(
                f"{self._owner} has no group {name!r}; it has {', '.join(self._manifest.groups)}"
            )
        return group

    def _subtree(self, name: str, subtree: str | None) -> tuple[Any, Sequence[Leaf]]:
        group = self.group(name)
        if not subtree or name != PARAMS:
            return group.structure, group.leaves
        structure, chosen = pytree.subtree(group.structure, subtree)
        prefix = subtree.strip("/")
        leaves = [_below(leaf, prefix) for leaf in group.leaves[chosen]]
        return structure, leaves

    def _open(self, leaves: Sequence[Leaf]) -> _Views:
        needed = {digest for leaf in leaves for digest in leaf.blobs()}
        unlisted = needed - set(self._manifest.blobs)
        if unlisted:
            raise Corrupt(
                f"{self._owner}: the manifest places a leaf in {next(iter(unlisted)).short}…, "
                "which it does not list. Run: brainstore fsck"
            )
        wanted = {digest: self._manifest.blobs[digest] for digest in needed}
        # A pack is small; to hash it costs a millisecond or two. A large leaf costs what
        # reading it does, which mapping avoids; one in pieces is read all the same.
        packed = {digest for leaf in leaves if leaf.blob or leaf.pieces for digest in leaf.blobs()}
        hashed = needed if self._verify else packed
        return _Views(self._blobs.open(wanted, owner=self._owner, hashed=hashed))


def _below(leaf: Leaf, prefix: str) -> Leaf:
    return msgspec.structs.replace(leaf, path=leaf.path[len(prefix) :].lstrip("/"))


class _Views:
    """Opened blobs, their headers parsed once."""

    def __init__(self, blobs: Mapping[Digest, memoryview]) -> None:
        self._blobs = blobs
        self._entries = {digest: tensors.parse_header(view) for digest, view in blobs.items()}

    def host(self, leaves: Sequence[Leaf]) -> list[HostLeaf]:
        """Return the leaves as `pytree.place` takes them."""
        return [HostLeaf(leaf.path, leaf.dtype, self._array(leaf), leaf.scalar) for leaf in leaves]

    def arrays(self, leaves: Sequence[Leaf]) -> list[Array]:
        """Return the leaves as `pytree.Plan.build` takes them."""
        return [self._array(leaf) for leaf in leaves]

    def _array(self, leaf: Leaf) -> Any:
        if leaf.pieces:
            return self._joined(leaf)
        return self._view(leaf, leaf.blob or leaf.digest, leaf.entry, leaf.shape)

    def _view(self, leaf: Leaf, blob: Digest, name: str, shape: tuple[int, ...]) -> Any:
        entry = self._entries[blob].get(name)
        if entry is None:
            raise Corrupt(
                f"{leaf.path}: blob {blob.short}… has no entry {name[:20]}. Run: brainstore fsck"
            )
        return tensors.view(self._blobs[blob], entry, leaf.dtype, shape)

    def _joined(self, leaf: Leaf) -> Any:
        parts = [(piece.index, self._piece(leaf, piece)) for piece in leaf.pieces]
        tails = {array.shape[len(leaf.shape) :] for _, array in parts}
        held = sum(array.size for _, array in parts)
        shape = (*leaf.shape, *tails.pop())
        # First the sum, which bounds what is allocated; without an overlap, it is a cover.
        if tails or held != math.prod(shape) or not _is_covered(leaf, parts):
            raise Corrupt(
                f"{leaf.path}: its pieces hold {held:,} elements, of {math.prod(shape):,}, or some "
                "of them twice. Run: brainstore fsck"
            )
        whole = _empty(leaf.path, shape, parts[0][1].dtype)
        for index, array in parts:
            whole[_slices(index)] = array
        return whole

    def _piece(self, leaf: Leaf, piece: Piece) -> Any:
        fits = len(piece.index) == len(leaf.shape) and all(
            0 <= start <= stop <= size
            for (start, stop), size in zip(piece.index, leaf.shape, strict=False)
        )
        if not fits:
            raise Corrupt(f"{leaf.path}: a piece lies outside of it. Run: brainstore fsck")
        shape = tuple(stop - start for start, stop in piece.index)
        return self._view(leaf, piece.blob, piece.entry, shape)


_Index = tuple[tuple[int, int], ...]


def _is_covered(leaf: Leaf, parts: Sequence[tuple[_Index, Array]]) -> bool:
    """Return whether the pieces cover the leaf.

    Not by comparing each with each other: a manifest may name very many.
    """
    is_filled = _empty(leaf.path, leaf.shape, np.dtype(bool))
    is_filled[...] = False
    for index, _ in parts:
        is_filled[_slices(index)] = True
    return bool(is_filled.all())


def _slices(index: _Index) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in index)


def _empty(path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    try:
        return np.empty(shape, dtype)
    except (ValueError, MemoryError, OverflowError) as error:
        raise Corrupt(
            f"{path}: there can be no array {dtype}{list(shape)} here ({error}). "
            "Run: brainstore fsck"
        ) from error
