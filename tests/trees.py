"""Hypothesis strategies for arrays and pytrees, and a way to store them in memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from brainstore import dtypes, packs, pytree, tensors

QUICK = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Point(NamedTuple):
    """A namedtuple that the tests register."""

    x: Any
    y: Any


def array_of_bits(dtype: str, shape: tuple[int, ...], bits: bytes) -> np.ndarray:
    """Return an array whose elements have exactly these bits, as far as the dtype has them."""
    raw = np.frombuffer(bits, np.uint8)
    if dtype == "bool":
        return (raw & 1).astype(bool).reshape(shape)
    if dtype in ("uint2", "uint4"):
        return (
            (raw & (3 if dtype == "uint2" else 15)).astype(dtypes.numpy_dtype(dtype)).reshape(shape)
        )
    if dtype in ("int2", "int4"):
        width = int(dtype[3:])
        values = (raw.astype(np.int16) & (2**width - 1)) - 2 ** (width - 1)
        return values.astype(np.int8).astype(dtypes.numpy_dtype(dtype)).reshape(shape)
    if dtype == "float4_e2m1fn":
        raw = raw & 15
    return raw.view(dtypes.numpy_dtype(dtype)).reshape(shape)


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn, dtype: str | None = None) -> np.ndarray:
    """A C-contiguous array of any dtype and bit pattern: NaN payloads, -0.0, subnormals."""
    dtype = dtype or draw(st.sampled_from(dtypes.LOGICAL_DTYPES))
    shape = draw(shapes)
    size = math.prod(shape) * dtypes.numpy_dtype(dtype).itemsize
    return array_of_bits(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


def in_fortran_order(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="F")


def strided(array: np.ndarray) -> np.ndarray:
    wide = np.zeros([2 * length for length in array.shape], array.dtype)
    part = wide[(..., *(slice(None, None, 2) for _ in array.shape))]
    part[...] = array
    return part


def backwards(array: np.ndarray) -> np.ndarray:
    every = (..., *(slice(None, None, -1) for _ in array.shape))
    return np.ascontiguousarray(array[every]).reshape(array.shape)[every]


def big_endian(array: np.ndarray) -> np.ndarray:
    if not dtypes.numpy_dtype(array.dtype.name).isbuiltin or array.dtype.name not in np.sctypeDict:
        return array
    return array.astype(array.dtype.newbyteorder(">"))


def unaligned(array: np.ndarray) -> np.ndarray:
    room = np.zeros(array.nbytes + 1, np.uint8)
    part = room[1:].view(array.dtype).reshape(array.shape)
    part[...] = array
    return part


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = (in_fortran_order, strided, backwards, big_endian, unaligned, read_only)

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.complex_numbers(),
    arrays().map(lambda array: array.reshape(-1)[0] if array.size else np.float32(0)),
)


@st.composite
def keys(draw: st.DrawFn) -> Any:
    key = jax.random.key(
        draw(st.integers(0, 2**31)), impl=draw(st.sampled_from(["threefry2x32", "rbg"]))
    )
    return jax.random.split(key, draw(st.integers(1, 3))) if draw(st.booleans()) else key


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


def _containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(names, children, max_size=3),
        st.dictionaries(st.integers(-9, 9), children, max_size=3),
        st.dictionaries(st.tuples(st.integers(0, 3), names), children, max_size=3),
        st.dictionaries(st.booleans(), children, max_size=2),
        st.dictionaries(st.binary(max_size=3), children, max_size=2),
        st.dictionaries(st.floats(allow_nan=False), children, max_size=2),
        st.dictionaries(names, children, max_size=3).map(OrderedDict),
        st.builds(Point, children, children),
    )


leaves = st.one_of(scalars, arrays(), keys())
trees = st.recursive(st.one_of(leaves, st.none()), _containers, max_leaves=8)


@dataclass(frozen=True)
class SavedLeaf:
    path: str
    dtype: str
    shape: tuple[int, ...]
    scalar: str | None
    array: np.ndarray

    @property
    def host(self) -> pytree.HostLeaf:
        return pytree.HostLeaf(self.path, self.dtype, self.array, self.scalar)


@dataclass(frozen=True)
class Saved:
    """A tree as the store has it: structure, leaf records, blobs by digest."""

    flat: pytree.Flat
    packing: packs.Packing
    blobs: dict[str, bytes]

    def read(self, which: Iterable[int] | None = None) -> list[SavedLeaf]:
        chosen = range(len(self.flat)) if which is None else which
        return [self._read(self.flat.leaves[n]) for n in chosen]

    def _read(self, leaf: pytree.Leaf) -> SavedLeaf:
        place = self.packing.places[leaf.tensor.digest]
        blob = self.blobs[place.blob]
        entry = tensors.parse_header(blob)[place.entry]
        array = tensors.view(blob, entry, leaf.tensor.dtype, leaf.tensor.shape)
        return SavedLeaf(leaf.path, leaf.tensor.dtype, leaf.tensor.shape, leaf.scalar, array)


def save(tree: Any) -> Saved:
    flat = pytree.flatten(tree)
    packing = packs.pack([(leaf.path, leaf.tensor) for leaf in flat.leaves])
    return Saved(flat, packing, {blob.digest: b"".join(blob) for blob in packing.blobs})


def load(saved: Saved, **options: Any) -> Any:
    placed = pytree.place([leaf.host for leaf in saved.read()], **options)
    return pytree.unflatten(saved.flat.structure, placed)


def load_as(saved: Saved, target: Any, *, strict: bool = True, **options: Any) -> Any:
    specs = saved.read()
    plan = pytree.match(specs, target, strict=strict)
    return plan.build([specs[n].array for n in plan.needed], **options)


def bits(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Return all that two equal leaves have in common: dtype, shape, bits."""
    tensor = pytree.flatten(leaf).leaves[0].tensor
    return tensor.dtype, tensor.shape, b"".join(tensor.chunks())


def assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert bits(one) == bits(other)
