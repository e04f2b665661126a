"""The reader of torch's files gives what torch.load(weights_only=True) gives."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import pickled, saved, write_archive

from brainstore.migrate import read_checkpoint
from brainstore.migrate.checkpoint import array_of, is_tensor
from brainstore.migrate.torchfile import DTYPES
from brainstore.migrate.unpickling import unpickle

NAMES = sorted(name for name, jax_name in DTYPES.items() if jax_name == name)


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def assert_same(found: Any, expected: Any) -> None:
    """Compare what our reader gave with what torch gave, bit for bit."""
    if isinstance(expected, torch.Tensor):
        array = array_of(found)
        assert array.dtype.name == DTYPES[str(expected.dtype).removeprefix("torch.")]
        assert array.shape == tuple(expected.shape)
        assert np.ascontiguousarray(array).tobytes() == bits(expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def assert_read_as_torch_reads(path: Path) -> None:
    assert_same(read_checkpoint(path).tree, torch.load(path, weights_only=True))


def random_tensor(name: str, *shape: int) -> torch.Tensor:
    """Return a tensor of that dtype with random bits (0 and 1 of a bool)."""
    dtype = getattr(torch, name)
    raw = torch.randint(
        0, 2 if name == "bool" else 256, (*shape, dtype.itemsize), dtype=torch.uint8
    )
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_is_read_bit_for_bit(tmp_path: Path, name: str) -> None:
    tensor = random_tensor(name, 3, 4)
    path = saved(
        tmp_path / "a.pt",
        {
            "whole": tensor,
            "transposed": tensor.T,
            "part": tensor[1:, 2],
            "scalar": tensor[2, 3],
            "empty": tensor[:0],
        },
    )
    assert_read_as_torch_reads(path)


def test_views_of_one_storage_are_read_as_what_they_are(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    views = {
        "base": base,
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "expanded": base[:1].expand(5, 6),
        "spread": torch.tensor(2.5).expand(3, 4),
        "diagonal": base.diagonal(),
        "permuted": base.reshape(2, 2, 6).permute(2, 0, 1),
        "windows": base.unfold(1, 3, 2),
        "scalar": base[3, 5],
        "nothing": base[4:],
        "of no length": torch.empty(0, 3),
        "one element": torch.as_strided(base, (1, 2), (999, 1), 3),
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "imaginary": torch.randn(3, dtype=torch.complex64).conj().imag,
    }
    path = saved(tmp_path / "a.pt", views)
    assert_read_as_torch_reads(path)
    tree = read_checkpoint(path).tree
    assert tree["base"].storage is tree["windows"].storage


def test_tensors_are_views_of_the_file_and_read_only(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.ones(1000)})
    array = read_checkpoint(path).tree["w"].array()
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


def test_whole_training_checkpoints_are_read(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": 0.5,
        "name": "ünï\u0000code",
        "sizes": torch.Size([1, 2]),
        "flags": (None, True, False, 2**40, -(2**70), 10**400, 1e300),
        "parameter": network[0].weight,
        "nested": [OrderedDict(a=[{}, set(), ()])],
        "rng": torch.get_rng_state(),
    }
    path = saved(tmp_path / "a.pt", checkpoint)
    found = torch.load(path, weights_only=True)
    found["sizes"] = tuple(found["sizes"])
    assert_same(read_checkpoint(path).tree, found)


def test_values_of_numpy_are_read_without_asking_numpy_to_unpickle(tmp_path: Path) -> None:
    values = {
        "return": np.float64(7.25),
        "steps": np.int32(3),
        "mean": np.arange(6, dtype=">f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 2), np.int16),
        "flag": np.bool_(True),
    }
    path = saved(tmp_path / "a.pt", {**values, "w": torch.ones(1)})
    tree = read_checkpoint(path).tree
    for name, expected in values.items():
        found = array_of(tree[name]) if is_tensor(tree[name]) else tree[name]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int64", "uint8", "complex64", "bool"])
def test_files_of_big_endian_machines_are_read(tmp_path: Path, name: str) -> None:
    tensor = random_tensor(name, 3, 4)
    little = saved(tmp_path / "little.pt", {"w": tensor, "part": tensor.T[1:]})
    width = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)
    big = tmp_path / "big.pt"
    with zipfile.ZipFile(little) as source, zipfile.ZipFile(big, "w") as target:
        for record in source.namelist():
            content = source.read(record)
            if record.endswith("byteorder"):
                content = b"big"
            if "/data/" in record:
                content = np.frombuffer(content, f"u{width}").byteswap().tobytes()
            target.writestr(record, content)
    assert_same(read_checkpoint(big).tree, torch.load(little, weights_only=True))
    assert_read_as_torch_reads(big)


def test_files_written_without_checksums_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pt", {"w": torch.randn(9)})
    finally:
        torch.serialization.set_crc32_options(before)
    assert_read_as_torch_reads(path)


def test_files_under_any_name_are_told_by_what_they_hold(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.ones(2)})
    for name in ("model", "model.ckpt", "model.bin", "model.zip"):
        shutil.copy(path, tmp_path / name)
        assert read_checkpoint(tmp_path / name).kind == "torch"


def test_large_archives_with_64_bit_sizes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled({"n": 1})), ("version", b"3")):
            with archive.open(f"archive/{name}", "w", force_zip64=True) as record:
                record.write(content)
    assert read_checkpoint(path).tree == {"n": 1}


def test_subclasses_of_tensors_are_read_as_tensors(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.note = "kept by torch"  # so that torch writes its state, too
    path = saved(tmp_path / "a.pt", {"p": parameter, "b": torch.nn.Buffer(torch.ones(2))})
    tree = read_checkpoint(path).tree
    np.testing.assert_array_equal(tree["p"].array(), parameter.detach().numpy())
    np.testing.assert_array_equal(tree["b"].array(), [1, 1])


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(-5, 5) | st.text(max_size=3), inner, max_size=3)
        | st.sets(st.integers(-(2**50), 2**50), max_size=3)
        | st.sets(st.integers(-9, 9), max_size=3).map(frozenset)
    ),
    max_leaves=9,
)


@settings(deadline=None, max_examples=60)
@given(plain, st.integers(0, 5))
def test_plain_values_of_every_protocol_are_read(value: Any, protocol: int) -> None:
    import pickle

    from brainstore.migrate.torchfile import KNOWN

    assert unpickle(pickle.dumps(value, protocol), KNOWN) == value


def test_reading_needs_no_torch_flax_or_jax(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2)})
    code = (
        "import sys; from brainstore.migrate import convert_torch_to_flax, read_checkpoint; "
        f"convert_torch_to_flax(read_checkpoint({str(path)!r}).tree); "
        "print(*sorted({'torch', 'flax', 'jax', 'pickle'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"pickle"}  # which NumPy imports, and nothing of ours


def test_storages_named_by_hand_are_read(tmp_path: Path) -> None:
    body = (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00K\x02\x85K\x01\x85"
        b"\x89ccollections\nOrderedDict\n)RtRs."
    )
    content = {"data/0": np.array([1.5, -2], np.float32).tobytes()}
    path = write_archive(tmp_path / "a.pt", body, content)
    np.testing.assert_array_equal(read_checkpoint(path).tree["w"].array(), [1.5, -2])
    assert_read_as_torch_reads(path)
