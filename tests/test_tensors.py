from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from golden_leaves import GOLDEN, GOLDEN_PACK, LEAF_FOLDER, PACK_FILE
from hypothesis import given
from hypothesis import strategies as st
from trees import LAYOUTS, QUICK, arrays

from brainstore import dtypes
from brainstore.address import Digest
from brainstore.errors import BadParams, Corrupt
from brainstore.packs import MIN_PACK_BYTES, PACK_BYTES, pack
from brainstore.tensors import (
    ALIGNMENT,
    DIRECT_ALIGNMENT,
    LARGE_BYTES,
    LEAF_ENTRY,
    Tensor,
    blob_of,
    encode,
    parse_header,
    view,
)

# What the library's NumPy reader turns into the same NumPy dtype.
READ_BY_SAFETENSORS = {"bool", "float16", "float32", "float64", "complex64"} | {
    f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64)
}


def encoded(tensor: Tensor) -> bytes:
    return b"".join(encode(tensor))


def read_back(blob: bytes, tensor: Tensor, name: str = LEAF_ENTRY) -> np.ndarray:
    return view(blob, parse_header(blob)[name], tensor.dtype, tensor.shape)


def bits(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    tensor = Tensor.of(array)
    return tensor.dtype, tensor.shape, b"".join(tensor.chunks())


def of_bytes(count: int, seed: int = 0) -> Tensor:
    return Tensor.of(np.random.default_rng(seed).integers(0, 256, count, np.uint8))


@given(arrays())
@QUICK
def test_an_array_comes_back_bit_for_bit(array):
    found = read_back(encoded(Tensor.of(array)), Tensor.of(array))
    assert found.dtype == array.dtype
    assert bits(found) == bits(array)


@given(arrays(), st.sampled_from(LAYOUTS))
@QUICK
def test_the_memory_layout_does_not_change_the_digest(array, lay_out):
    assert Tensor.of(lay_out(array)).digest == Tensor.of(array).digest


@given(arrays(), st.integers(0, 3))
@QUICK
def test_a_broadcast_array_is_stored_as_its_values(array, repeats):
    broadcast = np.broadcast_to(array, (repeats, *array.shape))
    assert Tensor.of(broadcast).digest == Tensor.of(broadcast.copy()).digest


@given(arrays())
@QUICK
def test_the_safetensors_library_reads_the_same(array):
    blob = encoded(Tensor.of(array))
    [(name, raw)] = safetensors.deserialize(blob)
    assert name == LEAF_ENTRY
    assert bytes(raw["data"]) == b"".join(Tensor.of(array).chunks())
    assert (raw["dtype"], tuple(raw["shape"])) == dtypes.carrier(array.dtype.name, array.shape)
    if array.dtype.name in READ_BY_SAFETENSORS:
        found = safetensors.numpy.load(blob)[LEAF_ENTRY]
        assert bits(found) == bits(array)


@pytest.mark.parametrize("dtype", ["int2", "int4", "uint2", "uint4"])
def test_the_safetensors_library_reads_the_values_of_narrow_integers(dtype):
    low, high = ml_dtypes.iinfo(dtype).min, ml_dtypes.iinfo(dtype).max
    values = np.arange(low, high + 1).astype(dtypes.numpy_dtype(dtype))
    found = safetensors.numpy.load(encoded(Tensor.of(values)))[LEAF_ENTRY]
    assert found.tolist() == list(range(low, high + 1))


@pytest.mark.parametrize(("dtype", "low_bits"), [("int4", 15), ("uint4", 15), ("int2", 3)])
def test_bits_above_a_narrow_dtype_do_not_count(dtype, low_bits):
    dirty = np.array([0xFF, 0x01], np.uint8).view(dtypes.numpy_dtype(dtype))
    clean = (np.array([0xFF, 0x01], np.uint8) & low_bits).view(dtypes.numpy_dtype(dtype))
    assert Tensor.of(dirty).digest == Tensor.of(clean).digest


def test_a_header_is_padded_until_the_data_is_aligned():
    for count in (0, 1, LARGE_BYTES - 1):
        assert parse_header(encoded(of_bytes(count)))[LEAF_ENTRY].start == 2 * ALIGNMENT
    for count in (LARGE_BYTES, LARGE_BYTES + 1):
        assert parse_header(encoded(of_bytes(count)))[LEAF_ENTRY].start == DIRECT_ALIGNMENT


def test_contiguous_data_is_one_piece_of_the_callers_memory():
    array = np.arange(5 << 20, dtype=np.float64)
    header, body = encode(Tensor.of(array))
    assert np.frombuffer(body, np.uint8).ctypes.data == array.ctypes.data
    assert encode(Tensor.of(array)).size_bytes == len(header) + array.nbytes


@pytest.mark.parametrize(
    ("array", "stored"),
    [
        (np.arange(6 << 20, dtype=np.uint32).reshape(3, -1).T, "<u4"),
        (np.arange(6 << 20, dtype=np.uint32).reshape(2, 3, -1)[:, ::-1], "<u4"),
        (np.broadcast_to(np.arange(1 << 20, dtype=np.uint32), (7, 1 << 20)), "<u4"),
        (np.arange(3 << 20, dtype=">c16"), "<c16"),
        (np.full(20 << 20, -3, ml_dtypes.int4), "i1"),
    ],
)
def test_other_layouts_are_copied_in_pieces_that_stay_valid(array, stored):
    pieces = list(Tensor.of(array).chunks())
    assert max(piece.nbytes for piece in pieces) <= 8 << 20
    assert b"".join(pieces) == array.astype(stored).tobytes()


def test_a_blob_gives_the_same_bytes_each_time():
    blob = encode(Tensor.of(np.arange(12).reshape(3, 4).T))
    assert b"".join(blob) == b"".join(blob)
    assert len(b"".join(blob)) == blob.size_bytes
    assert Digest.of(b"".join(blob)) == blob.digest


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([object()]),
        np.array([1], "datetime64[s]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, np.longdouble),
        np.array([b"a"]),
        np.ma.masked_array([1, 2], [True, False]),
    ],
)
def test_what_jax_cannot_hold_is_refused(array):
    with pytest.raises(BadParams, match="cannot be stored"):
        Tensor.of(array)


def test_a_view_is_read_only_and_shares_the_memory_of_the_buffer():
    tensor = Tensor.of(np.arange(6, dtype=np.float32).reshape(2, 3))
    blob = bytearray(encoded(tensor))
    found = read_back(blob, tensor)
    assert np.shares_memory(found, np.frombuffer(blob, np.uint8))
    assert not found.flags.writeable


@pytest.mark.parametrize("dtype", ["int32", "bfloat16", "complex128", "key<rbg>", "float33"])
def test_a_view_of_another_dtype_is_refused(dtype):
    blob = encoded(Tensor.of(np.zeros((2, 3), np.float32)))
    with pytest.raises(Corrupt):
        view(blob, parse_header(blob)[LEAF_ENTRY], dtype, (2, 3))


def test_a_view_of_another_shape_is_refused():
    blob = encoded(Tensor.of(np.zeros((2, 3), np.float32)))
    with pytest.raises(Corrupt, match=r"float32\[3, 2\].*F32\[2, 3\]"):
        view(blob, parse_header(blob)[LEAF_ENTRY], "float32", (3, 2))


NESTED: Any = 1
for _ in range(500):
    NESTED = [NESTED]
GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": {**GOOD, "dtype": "F4"}},
        {"a": {**GOOD, "dtype": 4}},
        {"a": {**GOOD, "shape": [3]}},
        {"a": {**GOOD, "shape": [-2]}},
        {"a": {**GOOD, "shape": [2.0]}},
        {"a": {**GOOD, "shape": [True, 2]}},
        {"a": {**GOOD, "shape": [1] * 99 + [2]}},
        {"a": {**GOOD, "data_offsets": [8, 0]}},
        {"a": {**GOOD, "data_offsets": [4, 12]}},
        {"a": {**GOOD, "data_offsets": [0, 8, 16]}},
        {"a": {**GOOD, "more": 1}},
        {"a": GOOD, "b": GOOD},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {**GOOD, "shape": [2, 0, 2**70], "data_offsets": [0, 0]}},
        {"a": None},
        {"a": NESTED},
        {},
        [],
        None,
    ],
)
def test_a_malformed_header_is_corrupt(header):
    text = json.dumps(header).encode()
    with pytest.raises(Corrupt, match="no safetensors file"):
        parse_header(struct.pack("<Q", len(text)) + text + bytes(8))


def test_entries_that_hold_nothing_may_have_any_shape_on_paper():
    text = json.dumps({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}).encode()
    blob = struct.pack("<Q", len(text)) + text
    entry = parse_header(blob)["a"]
    with pytest.raises(Corrupt, match="NumPy"):
        view(blob, entry, "float32", (0, 2**62))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        bytes(7),
        bytes(8),
        b"\xff" * 16,
        struct.pack("<Q", 4) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b" {}",
        struct.pack("<Q", 2) + b"\xff\xfe",
        struct.pack("<Q", 40000) + b"[" * 40000,
        struct.pack("<Q", 13) + b'{"a":1,"a":1}',
    ],
)
def test_bytes_that_are_no_safetensors_file_are_corrupt(blob):
    with pytest.raises(Corrupt, match="brainstore fsck"):
        parse_header(blob)


def test_metadata_of_foreign_files_is_passed_over():
    blob = safetensors.numpy.save({"a": np.zeros(2, np.float32)}, {"made by": "somebody"})
    assert list(parse_header(blob)) == ["a"]


@given(arrays(), st.data())
@QUICK
def test_a_flipped_byte_is_noticed(array, data):
    tensor = Tensor.of(array)
    blob = bytearray(encoded(tensor))
    position = data.draw(st.integers(0, len(blob) - 1))
    blob[position] ^= data.draw(st.integers(1, 255))
    assert Digest.of(bytes(blob)) != tensor.digest
    with suppress(Corrupt, KeyError):
        read_back(bytes(blob), tensor)


@given(arrays(), st.data())
@QUICK
def test_a_truncated_blob_is_corrupt(array, data):
    blob = encoded(Tensor.of(array))
    with pytest.raises(Corrupt):
        parse_header(blob[: data.draw(st.integers(0, len(blob) - 1))])


@given(st.binary(max_size=200))
@QUICK
def test_no_bytes_crash_the_reader(noise):
    with suppress(Corrupt):
        parse_header(struct.pack("<Q", max(0, len(noise) - 20)) + noise)


def leaves_of(sizes: list[int], prefix: str = "leaf") -> list[tuple[str, Tensor]]:
    return [(f"{prefix}/{n}", of_bytes(size, seed=n)) for n, size in enumerate(sizes)]


def test_a_large_leaf_is_a_blob_of_its_own_under_its_own_digest():
    tensor = of_bytes(LARGE_BYTES)
    packing = pack([("a", tensor)])
    [blob] = packing.blobs
    assert blob.digest == tensor.digest == Digest.of(b"".join(blob))
    assert packing.places == {}  # it lies where its digest says


@given(st.lists(arrays(), max_size=8))
@QUICK
def test_every_leaf_of_a_pack_is_found_and_aligned(found):
    leaves = [(str(n), Tensor.of(array)) for n, array in enumerate(found)]
    packing = pack(leaves)
    blobs = {blob.digest: b"".join(blob) for blob in packing.blobs}
    assert len(blobs) == min(1, len(leaves))
    for _, tensor in leaves:
        place = packing.places[tensor.digest]
        blob = blobs[place.blob]
        entry = parse_header(blob)[place.entry]
        assert Digest.of(blob) == place.blob
        assert bits(view(blob, entry, tensor.dtype, tensor.shape)) == bits(tensor.array)
        assert entry.start % tensor.array.itemsize == 0
        assert tensor.nbytes % ALIGNMENT or entry.start % ALIGNMENT == 0
        assert place.entry == tensor.digest


@given(st.lists(arrays(), min_size=1, max_size=8))
@QUICK
def test_the_safetensors_library_opens_every_pack(found):
    [blob] = pack([(str(n), Tensor.of(array)) for n, array in enumerate(found)]).blobs
    raw = dict(safetensors.deserialize(b"".join(blob)))
    for array in found:
        tensor = Tensor.of(array)
        assert bytes(raw[tensor.digest]["data"]) == b"".join(tensor.chunks())


def test_equal_leaves_are_stored_once():
    tensor = of_bytes(100)
    again = Tensor.of(tensor.array.copy())
    [blob] = pack([("a", tensor), ("b", again)]).blobs
    assert blob.entries == (tensor.digest,)


def test_equal_leaves_are_stored_once_across_packs():
    filler = leaves_of([LARGE_BYTES // 2] * 40)
    packing = pack([("first", of_bytes(99, 77)), *filler, ("last", of_bytes(99, 77))])
    assert len(packing.blobs) > 1
    assert [entry for blob in packing.blobs for entry in blob.entries].count(
        of_bytes(99, 77).digest
    ) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_model_of_less_than_a_mebibyte_is_one_blob(seed):
    leaves = leaves_of([MIN_PACK_BYTES // 40 - 1] * 40, prefix=f"model{seed}")
    assert len(pack(leaves).blobs) == 1


def test_a_pack_holds_at_most_eight_mebibytes():
    blobs = pack(leaves_of([LARGE_BYTES - 64] * 40)).blobs
    assert all(sum(t.nbytes for t in blob.tensors) <= PACK_BYTES for blob in blobs)
    assert sum(len(blob.entries) for blob in blobs) == 40


@pytest.mark.parametrize("size", [20_000, 300_000])
def test_one_more_leaf_leaves_most_packs_alone(size):
    leaves = leaves_of([size] * (60_000_000 // size))
    before = {blob.digest for blob in pack(leaves).blobs}
    after = {blob.digest for blob in pack([("early", of_bytes(size, 10**6)), *leaves]).blobs}
    assert len(before) >= 10
    assert len(after - before) <= 3


def test_a_pack_does_not_depend_on_the_order_of_equal_work():
    leaves = leaves_of([64, 3, 8, 128, 0])
    assert pack(leaves).blobs[0].digest == pack(leaves[::-1]).blobs[0].digest


def test_packing_nothing_gives_nothing():
    assert pack([]).blobs == ()


@pytest.mark.parametrize("name", GOLDEN)
def test_leaf_encoding_1_is_frozen(name):
    tensor, digest = GOLDEN[name]
    golden = (LEAF_FOLDER / f"{name}.safetensors").read_bytes()
    assert encoded(tensor) == golden
    assert tensor.digest == digest == Digest.of(golden)
    assert bits(read_back(golden, tensor)) == bits(tensor.array)


def test_the_header_of_a_large_leaf_is_frozen():
    tensor = Tensor.of(np.zeros((512, 512), np.float32))
    assert tensor.digest == (
        "blake3:db967963bd86191b7c672d39e0a9b51662ce166e3479e00ea0f5ff94e5429b8d"
    )


def test_a_pack_written_once_keeps_loading():
    golden = PACK_FILE.read_bytes()
    tensors, digest = GOLDEN_PACK
    assert Digest.of(golden) == digest
    for tensor in tensors:
        assert bits(read_back(golden, tensor, tensor.digest)) == bits(tensor.array)
    assert blob_of(*_in_order(golden, tensors)).digest == digest


def _in_order(golden: bytes, tensors: list[Tensor]) -> tuple[list[Tensor], list[str]]:
    names = list(parse_header(golden))
    by_digest = {tensor.digest: tensor for tensor in tensors}
    return [by_digest[name] for name in names], names
