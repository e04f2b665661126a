"""Files that are damaged, or no checkpoints: a clear error, and nothing else."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_files import MEBIBYTE, at_most, pickled, read, saved, write_archive

from brainstore.errors import BadParams, BrainstoreError, Unsupported
from brainstore.migrate import migrate
from brainstore.migrate.archive import MAX_DIRECTORY_BYTES
from brainstore.migrate.torchfile import KNOWN

# Archives


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    state = torch.nn.Linear(3, 4).state_dict()
    return saved(tmp_path / "whole.pt", {"model": state, "epoch": 3}).read_bytes()


def test_truncated_files_are_refused(tmp_path: Path, whole: bytes) -> None:
    for length in range(0, len(whole), 13):
        path = tmp_path / "cut.pt"
        path.write_bytes(whole[:length])
        with pytest.raises(BadParams, match=r"cut\.pt"):
            read(path)


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path: Path, whole: bytes) -> None:
    values = torch.load(io.BytesIO(whole))["model"]["weight"].numpy().tobytes()
    damaged = bytearray(whole)
    damaged[whole.index(values) + 5] ^= 1
    path = tmp_path / "a.pt"
    path.write_bytes(damaged)
    with pytest.raises(BadParams, match=r"a\.pt: .*data/0' does not match its CRC-32"):
        read(path)


def test_encrypted_archives_are_refused(tmp_path: Path, whole: bytes) -> None:
    encrypted = bytearray(whole)
    at = whole.index(b"PK\1\2")
    encrypted[at + 8] |= 1
    path = tmp_path / "a.pt"
    path.write_bytes(encrypted)
    with pytest.raises(Unsupported, match="is encrypted"):
        read(path)


def test_a_zip_bomb_is_refused_uninflated(tmp_path: Path) -> None:
    records = {"data/0": bytes(64 * MEBIBYTE)}
    path = write_archive(tmp_path / "a.pt", pickled({}), records, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MEBIBYTE
    with at_most(MEBIBYTE), pytest.raises(Unsupported, match=r"is compressed.*zip -0"):
        read(path)


def test_records_that_share_bytes_are_refused(tmp_path: Path, whole: bytes) -> None:
    overlapping = bytearray(whole)
    sizes = struct.pack("<LL", len(whole) // 2, len(whole) // 2)
    at = whole.index(b"PK\1\2") + 20
    overlapping[at : at + 8] = sizes
    path = tmp_path / "a.pt"
    path.write_bytes(overlapping)
    with pytest.raises(BadParams, match="overlaps"):
        read(path)


def test_two_names_for_one_record_are_refused(tmp_path: Path, whole: bytes) -> None:
    entries = [at for at in range(len(whole)) if whole.startswith(b"PK\1\2", at)]
    twice = bytearray(whole)
    twice[entries[1] + 42 : entries[1] + 46] = whole[entries[0] + 42 : entries[0] + 46]
    path = tmp_path / "a.pt"
    path.write_bytes(twice)
    with pytest.raises(BadParams, match="is not where"):
        read(path)


def test_a_directory_larger_than_any_of_torch_is_not_even_read(tmp_path: Path) -> None:
    size = MAX_DIRECTORY_BYTES + 1
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, size, 4, 0)
    path = tmp_path / "a.pt"
    with path.open("wb") as stream:
        stream.write(b"PK\3\4")
        stream.truncate(4 + size)
        stream.seek(0, io.SEEK_END)
        stream.write(end)
    with at_most(MEBIBYTE), pytest.raises(BadParams, match="claims a directory of"):
        read(path)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (20, 2**31, "two sizes"),
        (24, 2**31, "two sizes"),
        (42, 2**31, "is not where"),
        (42, 1, "is not where"),
        (28, 0xFFFF, "is damaged"),
    ],
)
def test_a_directory_that_lies_is_refused(
    tmp_path: Path, whole: bytes, field: int, value: int, problem: str
) -> None:
    lying = bytearray(whole)
    form = "<H" if field == 28 else "<L"
    struct.pack_into(form, lying, whole.index(b"PK\1\2") + field, value)
    path = tmp_path / "a.pt"
    path.write_bytes(lying)
    with pytest.raises(BadParams, match=problem):
        read(path)


def test_an_end_that_lies_is_refused(tmp_path: Path) -> None:
    # torch writes a 64-bit end, which counts alone; this archive has none.
    whole = write_archive(tmp_path / "whole.pt", pickled({})).read_bytes()
    at = whole.rindex(b"PK\5\6")
    for field, value in ((10, 0xFFFE), (12, 2**31), (16, 2**31), (16, 2**32 - 1)):
        lying = bytearray(whole)
        struct.pack_into("<H" if field == 10 else "<L", lying, at + field, value)
        path = tmp_path / "a.pt"
        path.write_bytes(lying)
        with pytest.raises(BadParams, match=r"a\.pt"):
            read(path)


# Other files


@pytest.mark.filterwarnings("ignore")
def test_files_of_old_torch_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(Unsupported, match=r"a\.pt: .*before 1\.6.*save it again"):
        read(path)
    path.write_bytes(bytes(257) + b"ustar\x0000" + bytes(300))
    with pytest.raises(Unsupported, match=r"before 1\.6"):
        read(path)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "a.pt")
    with pytest.raises(Unsupported, match=r"a\.pt: .*TorchScript.*torch\.jit\.load"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"hello, world", "no checkpoint"),
        (b"\x89PNG\r\n\x1a\n", "no checkpoint"),
        (pickle.dumps({"a": 1}), "no checkpoint"),
        (b"PK", "zip archive is damaged"),
        (b"PK\5\6" + bytes(18), "no data.pkl"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(BadParams, match=rf"a\.pt: .*{problem}"):
        read(tmp_path / "a.pt")


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    for name in ("", "missing.pt"):
        with pytest.raises(BadParams, match=str(tmp_path / name)):
            read(tmp_path / name)


def test_other_archives_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    with pytest.raises(Unsupported, match="brainstore import"):
        read(tmp_path / "a.npz")
    (tmp_path / "a.npz").rename(tmp_path / "a.pt")
    with pytest.raises(BadParams, match=r"no data\.pkl"):
        read(tmp_path / "a.pt")


def test_checkpoints_without_a_tensor_are_refused(tmp_path: Path) -> None:
    for value in ({}, {"epoch": 3}, [], 5, None, {"a": {"b": []}}):
        with pytest.raises(BadParams, match=r"a\.pt: .*tensor"):
            read(saved(tmp_path / "a.pt", value))


# Anything at all

FUZZ = settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def checkpoint_bytes() -> bytes:
    stream = io.BytesIO()
    layer = torch.nn.Linear(2, 3)
    torch.save(
        {
            "model": {**layer.state_dict(), "view": layer.weight.detach().t()},
            "numpy": np.arange(3.0),
            "typed": torch.zeros(3, dtype=torch.uint16),
            "n": [1, (2.5, "three"), {4}],
        },
        stream,
    )
    return stream.getvalue()


WHOLE = checkpoint_bytes()
with zipfile.ZipFile(io.BytesIO(WHOLE)) as _archive:
    PICKLE = next(_archive.read(name) for name in _archive.namelist() if name.endswith(".pkl"))
    RECORDS = {
        name.partition("/")[2]: _archive.read(name)
        for name in _archive.namelist()
        if "/data/" in name
    }

edits = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from(["set", "cut", "add"]), st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    for position, change, value in changes:
        at = position % (len(content) + 1)
        kept = {"set": len(value), "cut": len(value) + 1, "add": 0}[change]
        content = content[:at] + (b"" if change == "cut" else value) + content[at + kept :]
    return content


def nothing_but_our_errors(path: Path) -> None:
    with contextlib.suppress(BrainstoreError):
        read(path)
    with contextlib.suppress(BrainstoreError):
        migrate(path)


@FUZZ
@given(edits)
def test_an_edited_archive_is_read_or_refused(tmp_path: Path, changes: Any) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(edited(WHOLE, changes))
    nothing_but_our_errors(path)


@FUZZ
@given(edits)
def test_an_edited_pickle_is_read_or_refused(tmp_path: Path, changes: Any) -> None:
    nothing_but_our_errors(write_archive(tmp_path / "a.pt", edited(PICKLE, changes), RECORDS))


snippets = st.sampled_from(
    [bytes([code]) for code in range(256)]
    + [f"c{name.rpartition('.')[0]}\n{name.rpartition('.')[2]}\n".encode() for name in KNOWN]
    + [b"K\x01", b"X\x01\x00\x00\x000", b"h\x00", b"q\x00", b"\x85R", b"\x86R", b"tR", b")R", b"("]
)


@FUZZ
@given(st.lists(snippets, max_size=40))
def test_any_pickle_is_read_or_refused(tmp_path: Path, parts: list[bytes]) -> None:
    body = b"\x80\x02" + b"".join(parts) + b"."
    nothing_but_our_errors(write_archive(tmp_path / "a.pt", body, RECORDS))


@pytest.mark.soak
def test_every_byte_of_a_checkpoint_may_be_anything(tmp_path: Path) -> None:
    for position in range(len(WHOLE)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, WHOLE[position] ^ 0x20):
            damaged = bytearray(WHOLE)
            damaged[position] = value
            path = tmp_path / "a.pt"
            path.write_bytes(damaged)
            nothing_but_our_errors(path)
