"""One array <-> its canonical safetensors bytes, and how to read them in place.

Leaf encoding 1, frozen: a safetensors file with one entry, named `tensor`.

    8 bytes    length of the header, little-endian
    header     {"tensor":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}   and spaces
    data       C order, little-endian

The spaces end where the data starts at a multiple of 64 bytes, or of 4,096 when there
is 1 MiB of data or more. The same array, in any memory layout and byte order, has the
same bytes and so the same digest. `brainstore.packs` puts several leaves into one file.
"""

from __future__ import annotations

import json
import math
import mmap
import reprlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3

from brainstore import dtypes
from brainstore.address import Digest
from brainstore.dtypes import Array, Shape
from brainstore.errors import BadParams, Corrupt

ALIGNMENT = 64
DIRECT_ALIGNMENT = 4096
LARGE_BYTES = 1 << 20
LEAF_ENTRY = "tensor"

_CHUNK_BYTES = 8 << 20
_MAX_HEADER_BYTES = 100_000_000  # what the safetensors library accepts

Buffer = bytes | bytearray | memoryview | mmap.mmap


@dataclass(frozen=True, eq=False)
class Tensor:
    """One array as the store sees it.

    Attributes:
        dtype: logical dtype, such as "float32", "int4" or "key<threefry2x32>".
        shape: logical shape; without the trailing dimensions of a key's data.
        array: the array itself, in any memory layout and byte order; of a PRNG key its
            uint32 key data. It is never modified, and must not be while it is stored.
    """

    dtype: str
    shape: Shape
    array: Array
    _digest: Digest | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, array: Array) -> Tensor:
        """Return the tensor of a NumPy array. No copy.

        Raises:
            BadParams: no leaf can have its dtype, or some of its elements are masked out.
        """
        if isinstance(array, np.ma.MaskedArray):
            raise BadParams(
                "a masked array cannot be stored; store its .filled() values and its mask"
            )
        return cls(dtypes.logical_dtype(array), array.shape, np.asarray(array))

    @classmethod
    def of_key(cls, impl: str, shape: Shape, key_data: Array) -> Tensor:
        """Return the tensor of PRNG keys; `key_data` is uint32, `shape` and more dimensions."""
        return cls(f"key<{impl}>", shape, key_data)

    @property
    def digest(self) -> Digest:
        """The digest of the leaf's own encoding. Computed once, in pieces, without a copy."""
        if self._digest is None:
            object.__setattr__(self, "_digest", digest_of(encode(self)))
        assert self._digest is not None
        return self._digest

    @property
    def code(self) -> str:
        """The safetensors dtype that carries the array."""
        return dtypes.carrier(self.dtype, self.array.shape)[0]

    @property
    def stored_shape(self) -> Shape:
        """The shape that the safetensors header states."""
        return dtypes.carrier(self.dtype, self.array.shape)[1]

    @property
    def nbytes(self) -> int:
        """How many bytes the data takes in a blob."""
        return self.array.nbytes

    @property
    def is_large(self) -> bool:
        """Whether the leaf is a blob of its own."""
        return self.nbytes >= LARGE_BYTES

    def chunks(self) -> Iterator[memoryview]:
        """Yield the data as it is stored.

        One view of the array's own memory where that has the stored layout; copies of
        at most 8 MiB otherwise, each valid for as long as it is kept.
        """
        for part in _slabs(self.array, self._is_stored_as_is()):
            if part.size:
                yield _canonical(part, self.dtype)

    def _is_stored_as_is(self) -> bool:
        flags = self.array.flags.c_contiguous and self.array.dtype.isnative
        return flags and dtypes.is_direct(self.dtype)


def _slabs(array: Array, whole: bool) -> Iterator[Array]:
    if whole or array.nbytes <= _CHUNK_BYTES:
        yield array
        return
    row_bytes = array[0].nbytes
    if row_bytes > _CHUNK_BYTES:
        for row in array:
            yield from _slabs(row, whole)
        return
    rows = _CHUNK_BYTES // row_bytes
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _canonical(array: Array, dtype: str) -> memoryview:
    stored = dtypes.to_carrier(array, dtype)
    if not stored.dtype.isnative:
        stored = stored.astype(stored.dtype.newbyteorder("<"))
    return np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data.toreadonly()


@dataclass(frozen=True, eq=False)
class Blob:
    """Tensors as the bytes of one safetensors file: a `Body` that may be iterated again.

    `names[i]` is the entry of `tensors[i]`; the data lies in this order.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    header: bytes = field(repr=False)
    _digest: Digest | None = field(default=None, init=False, repr=False)

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)

    @property
    def entries(self) -> tuple[Digest, ...]:
        """The digests of the leaves inside."""
        return tuple(tensor.digest for tensor in self.tensors)

    @property
    def digest(self) -> Digest:
        """The digest of all bytes. Computed once; of a leaf's own blob, it is the leaf's."""
        if self.names == (LEAF_ENTRY,):
            return self.tensors[0].digest
        if self._digest is None:
            object.__setattr__(self, "_digest", digest_of(self))
        assert self._digest is not None
        return self._digest

    def __iter__(self) -> Iterator[memoryview]:
        yield memoryview(self.header)
        for tensor in self.tensors:
            yield from tensor.chunks()


def encode(tensor: Tensor) -> Blob:
    """Return the leaf's own blob. Nothing is copied; contiguous data is one piece."""
    return blob_of([tensor], [LEAF_ENTRY])


def blob_of(tensors: Sequence[Tensor], names: Sequence[str]) -> Blob:
    """Return the blob of several tensors, their data in the order given."""
    return Blob(tuple(tensors), tuple(names), _header(tensors, names))


def _header(tensors: Sequence[Tensor], names: Sequence[str]) -> bytes:
    fields: dict[str, Any] = {}
    start = 0
    for name, tensor in zip(names, tensors, strict=True):
        stop = start + tensor.nbytes
        shape = list(tensor.stored_shape)
        fields[name] = {"dtype": tensor.code, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(fields, separators=(",", ":")).encode()
    alignment = DIRECT_ALIGNMENT if tensors[0].is_large else ALIGNMENT
    padded = text.ljust(len(text) + -(8 + len(text)) % alignment)
    return struct.pack("<Q", len(padded)) + padded


def digest_of(pieces: Iterable[memoryview]) -> Digest:
    """Return the digest of the pieces joined. Large ones are hashed by several threads."""
    hasher = blake3(max_threads=blake3.AUTO)
    for piece in pieces:
        hasher.update(piece)
    return Digest("blake3:" + hasher.hexdigest())


class Entry(NamedTuple):
    """An entry of a blob: its safetensors dtype and shape, and where its data lies in it."""

    dtype: str
    shape: Shape
    start: int
    stop: int


def parse_header(buffer: Buffer) -> dict[str, Entry]:
    """Return the entries of a safetensors file by name; offsets count from its first byte.

    As strict as the safetensors library: the data of all entries lies end to end, and
    fills the file. `__metadata__`, which brainstore never writes, is passed over.

    Raises:
        Corrupt: the bytes are no such file.
    """
    view_ = memoryview(buffer)
    fields, data_start = _read_header(view_)
    fields.pop("__metadata__", None)
    entries = {name: _entry(name, value, data_start) for name, value in fields.items()}
    _check_tiling(entries, data_start, view_.nbytes)
    return entries


def _read_header(buffer: memoryview) -> tuple[dict[str, Any], int]:
    if buffer.nbytes < 8:
        raise _corrupt(f"{buffer.nbytes} bytes are too few to hold a header")
    (length,) = struct.unpack("<Q", buffer[:8])
    if not 2 <= length <= min(buffer.nbytes - 8, _MAX_HEADER_BYTES):
        raise _corrupt(f"a header of {length:,} bytes in a file of {buffer.nbytes:,}")
    try:
        text = bytes(buffer[8 : 8 + length]).decode()
        fields = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _corrupt(f"the header is no JSON ({error})") from error
    if not isinstance(fields, dict) or not text.startswith("{"):
        raise _corrupt(f"the header is a JSON {type(fields).__name__}, expected an object")
    return fields, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("an entry is named twice")
    return fields


def _entry(name: str, value: Any, data_start: int) -> Entry:
    match value:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [start, stop], **rest}:
            counts = (*shape, start, stop)
            if not rest and len(shape) <= 64 and all(type(n) is int and n >= 0 for n in counts):
                return _checked_size(name, Entry(code, tuple(shape), start, stop), data_start)
    raise _corrupt(
        f"entry {name!r} is {reprlib.repr(value)}, expected dtype, shape and data_offsets"
    )


def _checked_size(name: str, entry: Entry, data_start: int) -> Entry:
    stored = dtypes.stored_dtype(entry.dtype)
    if stored is None:
        raise _corrupt(f"entry {name!r} has the unknown dtype {entry.dtype!r:.40}")
    expected = math.prod(entry.shape) * stored.itemsize
    if entry.stop - entry.start != expected:
        raise _corrupt(
            f"entry {name!r}: {entry.dtype}{list(entry.shape)} takes {expected:,} bytes, "
            f"found {entry.stop - entry.start:,}"
        )
    return entry._replace(start=entry.start + data_start, stop=entry.stop + data_start)


def _check_tiling(entries: dict[str, Entry], data_start: int, size_bytes: int) -> None:
    end = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise _corrupt(f"entry {name!r} starts at {entry.start:,}, expected {end:,}")
        end = entry.stop
    if end != size_bytes:
        raise _corrupt(f"the entries end at {end:,}, and the file at {size_bytes:,}")


def _corrupt(problem: str) -> Corrupt:
    return Corrupt(f"this is no safetensors file: {problem}. Run: brainstore fsck")


def view(buffer: Buffer, entry: Entry, dtype: str, shape: Shape) -> Array:
    """Return a leaf as a read-only array on the buffer's own memory. No copy.

    Args:
        buffer: the whole blob; it must outlive the array, which keeps it referenced.
        entry: where the leaf lies in it, from `parse_header`.
        dtype: the logical dtype, and
        shape: the logical shape, both as the manifest records them.

    Returns:
        An array of the logical dtype and shape; for PRNG keys their uint32 key data.

    Raises:
        Corrupt: the entry does not carry this dtype and shape.
    """
    _check_carrier(entry, dtype, tuple(shape))
    stored = dtypes.stored_dtype(entry.dtype)
    assert stored is not None
    piece = memoryview(buffer)[entry.start : entry.stop].toreadonly()
    # An empty buffer is no buffer to np.frombuffer.
    flat = np.frombuffer(piece, stored) if piece.nbytes else np.empty(0, stored)
    try:
        array = dtypes.from_carrier(flat.reshape(entry.shape), dtype)
    except ValueError as error:
        raise _corrupt(f"NumPy cannot have the shape {list(entry.shape)} ({error})") from error
    array.flags.writeable = False
    return array


def _check_carrier(entry: Entry, dtype: str, shape: Shape) -> None:
    code, stored_shape = dtypes.carrier(dtype, shape)
    found = entry.shape[: len(shape)] if dtypes.key_impl(dtype) else entry.shape
    if (code, stored_shape) != (entry.dtype, found):
        raise Corrupt(
            f"a leaf {dtype}{list(shape)} is carried by {code}{list(stored_shape)}, but its "
            f"entry is {entry.dtype}{list(entry.shape)}. Run: brainstore fsck"
        )
