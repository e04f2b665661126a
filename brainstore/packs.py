"""Which leaves share a blob.

A leaf of 1 MiB or more is a blob of its own, in leaf encoding 1. All others go into
packs of at most 8 MiB of data, in the order of their paths as given; even a pack of one
leaf is a pack, so that the form of a blob tells what it is. The entries of a pack are
named by the digests of its leaves. How leaves are packed is no part of the format: the
manifest says where each one lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from brainstore.address import Digest
from brainstore.tensors import ALIGNMENT, Blob, Tensor, blob_of, encode

PACK_BYTES = 8 << 20
MIN_PACK_BYTES = 1 << 20
_BOUNDARY_BYTES = 2 << 20


class Place(NamedTuple):
    """Where a leaf lies: in which blob, under which entry name."""

    blob: Digest
    entry: str


@dataclass(frozen=True)
class Packing:
    """The blobs of a save, and the places of the small leaves by their digests.

    A large leaf is the blob of its own digest.
    """

    blobs: tuple[Blob, ...]
    places: dict[Digest, Place]


def pack(leaves: Iterable[tuple[str, Tensor]]) -> Packing:
    """Return the blobs that hold the leaves, given as (path, tensor) in the tree's order.

    Equal small arrays are stored once. The same leaves give the same blobs, on every
    machine. A pack ends before it would pass 8 MiB, and, once it holds 1 MiB, where the
    hash of a path says so; so one more leaf changes the packs around it and not all that
    follow, and a model of less than 1 MiB is one blob, whatever its paths are.

    Hashes the small arrays. Large ones are left to whoever stores their blobs, so that
    hashing one hides behind writing another; two equal ones are two blobs of one digest.
    """
    leaves = list(leaves)
    large = [encode(tensor) for _, tensor in leaves if tensor.is_large]
    small = _first_uses((path, tensor) for path, tensor in leaves if not tensor.is_large)
    packs = [_pack(group) for group in _groups(small)]
    return Packing((*large, *packs), dict(place for blob in packs for place in _places(blob)))


def _first_uses(leaves: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    seen: set[Digest] = set()
    for path, tensor in leaves:
        if tensor.digest not in seen:
            seen.add(tensor.digest)
            yield path, tensor


def _groups(leaves: Iterable[tuple[str, Tensor]]) -> Iterator[list[Tensor]]:
    group: list[Tensor] = []
    size_bytes = 0
    for path, tensor in leaves:
        if size_bytes + tensor.nbytes > PACK_BYTES:
            yield group
            group, size_bytes = [], 0
        group.append(tensor)
        size_bytes += tensor.nbytes
        if size_bytes >= MIN_PACK_BYTES and _ends_pack(path, tensor.nbytes):
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _ends_pack(path: str, size_bytes: int) -> bool:
    # Weighed by size: a boundary every 2 MiB or so, be the leaves many or few. A fixed
    # chance per leaf would let packs of big leaves run to the limit, and all shift.
    draw = int.from_bytes(blake3(path.encode()).digest(8), "big")
    return draw * _BOUNDARY_BYTES < size_bytes << 64


def _pack(tensors: list[Tensor]) -> Blob:
    ordered = sorted(tensors, key=lambda tensor: (-_alignment_kept(tensor), tensor.digest))
    return blob_of(ordered, [tensor.digest for tensor in ordered])


def _alignment_kept(tensor: Tensor) -> int:
    """Return the largest power of two, at most 64, that divides the size of the data.

    In descending order of it, each entry starts at a multiple of its own: always one of
    its item size, and of 64 for as long as sizes are multiples of 64.
    """
    return (tensor.nbytes | ALIGNMENT) & -(tensor.nbytes | ALIGNMENT)


def _places(blob: Blob) -> Iterator[tuple[Digest, Place]]:
    for name in blob.names:
        yield Digest(name), Place(blob.digest, name)
