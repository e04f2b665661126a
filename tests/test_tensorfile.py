"""Files of tensors that other programs wrote."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from originals import dense, nested
from safetensors.flax import save_file as flax_save_file
from safetensors.numpy import save_file
from trees import assert_equal

from brainstore.classic.tensorfile import read_tensors
from brainstore.errors import BadParams
from brainstore.manager import BrainManager


@pytest.fixture
def zoo(tmp_path: Path) -> Any:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


def test_tensors_of_both_kinds_of_file_become_nested_dicts(tmp_path: Path) -> None:
    flat = {"dense/kernel": np.ones((2, 3), np.float32), "bias": np.arange(3)}
    save_file(flat, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **flat)
    np.savez_compressed(tmp_path / "b.npz", **flat)
    for name in ("a.safetensors", "a.npz", "b.npz"):
        found = read_tensors(tmp_path / name)
        np.testing.assert_array_equal(found["dense"]["kernel"], flat["dense/kernel"])
        np.testing.assert_array_equal(found["bias"], flat["bias"])
        assert not found["bias"].flags.writeable


def test_fp8_is_read_from_a_file_of_the_library(tmp_path: Path) -> None:
    values = jnp.array([1.5, -2.0, 448.0], jnp.float8_e4m3fn)
    flax_save_file({"w": values}, tmp_path / "a.safetensors")
    assert_equal(read_tensors(tmp_path / "a.safetensors"), {"w": np.asarray(values)})


def test_a_file_is_imported_as_the_next_version(zoo: BrainManager, tmp_path: Path) -> None:
    flax_save_file(dense(1), tmp_path / "a.safetensors")
    assert zoo.import_file(tmp_path / "a.safetensors", "ppo", notes="from a file") == "ppo_v1"
    params, meta = zoo.load("ppo")
    assert_equal(params, nested(dense(1)))
    assert meta.source_checkpoint == str(tmp_path / "a.safetensors")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.array([{}], object))
    with pytest.raises(BadParams, match=r"a\.npz.*allow_pickle"):
        read_tensors(tmp_path / "a.npz")
    np.array([{}], object).dump(tmp_path / "b.npz")
    with pytest.raises(BadParams, match=r"b\.npz"):
        read_tensors(tmp_path / "b.npz")


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_files_truncated_anywhere_are_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "npz":
        np.savez(whole, w=np.ones((4, 4)))
    else:
        save_file({"w": np.ones((4, 4))}, whole)
    content = whole.read_bytes()
    for length in range(0, len(content), 7):
        cut = tmp_path / f"cut{length}.{suffix}"
        cut.write_bytes(content[:length])
        with pytest.raises(BadParams, match=cut.name):
            read_tensors(cut)


def test_an_archive_of_other_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(BadParams, match=r"data\.pkl.*no array"):
        read_tensors(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_damaged_npz_file_is_read_or_refused(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "whole.npz", w=np.ones((4, 4)))
    content = (tmp_path / "whole.npz").read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        (tmp_path / "a.npz").write_bytes(damaged)
        with contextlib.suppress(BadParams):
            read_tensors(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.pt", "a.npy", "a", "a.msgpack"])
def test_other_kinds_of_file_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadParams, match=r"expected a \.safetensors or \.npz"):
        read_tensors(tmp_path / name)


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    for name in ("none.safetensors", "none.npz", "folder.npz"):
        with pytest.raises(BadParams, match=name):
            read_tensors(tmp_path / name)


def test_text_arrays_are_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.array(["text"]))
    with pytest.raises(BadParams, match=r"'w'.*cannot be stored"):
        read_tensors(tmp_path / "a.npz")
