"""The folder store when disks fail, processes die and folders vanish."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_contract import LATER, Pieces

from brainstore.errors import (
    AlreadyExists,
    BadReference,
    Conflict,
    Corrupt,
    NotFound,
    ReadOnly,
    StoreUnavailable,
    Unsupported,
)
from brainstore.storage import disk, locks
from brainstore.storage.base import ABSENT, ANYTHING, Stat
from brainstore.storage.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "zoo")


def failing(number: int) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    return fail


def leftovers(store: LocalStore) -> list[Path]:
    return list(store.root.rglob(f"{disk.LEFTOVER_PREFIX}*"))


def swap_token(store: LocalStore) -> str:
    return store.put(LATER, b"before")


@pytest.mark.parametrize("kind", ["overwrite", "create", "swap"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stores_nothing_and_says_so(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    expect = {"overwrite": ANYTHING, "create": ABSENT, "swap": swap_token(store)}[kind]
    key = "models/m/v1/manifest.json" if kind == "create" else LATER
    monkeypatch.setattr(os, "write", failing(number))
    with pytest.raises(StoreUnavailable, match="disk full") as caught:
        store.put(key, b"ours", expect=expect)
    assert not caught.value.outcome_unknown
    assert [(found.key, found.size_bytes) for found in store.list("")] == [(LATER, 6)]
    assert leftovers(store) == []


def test_a_disk_that_fills_up_midway_stores_nothing(store: LocalStore) -> None:
    program = f"""
import resource, sys
from brainstore.storage import open_store
from brainstore.storage.base import ABSENT
from brainstore.errors import StoreUnavailable
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    open_store({store.url!r}).put("blobs/00/b", bytes(1 << 20), expect=ABSENT)
except StoreUnavailable as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert "blobs/00/b" in ran.stdout
    assert list(store.list("")) == []
    assert leftovers(store) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_we_may_not_write_is_read_only(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store.put(LATER, b"before")
    monkeypatch.setattr(os, "open", _open_for_reading_only(number))
    for expect in (ANYTHING, store.get(LATER).token):
        with pytest.raises(ReadOnly, match=r"latest\.json"):
            store.put(LATER, b"ours", expect=expect)
    with pytest.raises(ReadOnly):
        store.put("blobs/00/b", b"ours", expect=ABSENT)
    monkeypatch.setattr(os, "unlink", failing(number))
    with pytest.raises(ReadOnly):
        store.delete(LATER)
    assert store.get(LATER).body == b"before"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_write_whose_unfinished_name_cannot_be_removed_has_happened(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing(number))
        token = store.put("blobs/00/b", b"ours", expect=ABSENT)
    assert store.get("blobs/00/b").token == token
    assert [store.discard(leftover) for leftover in store.leftovers()] == [None]
    assert leftovers(store) == []


def _open_for_reading_only(number: int) -> Callable[..., object]:
    real = os.open

    def open_if_read(path: object, flags: int, *arguments: object, **keywords: Any) -> object:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *arguments, **keywords)

    return open_if_read


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission_is_read_only(store: LocalStore) -> None:
    store.put(LATER, b"before")
    store.root.chmod(0o555)
    with pytest.raises(ReadOnly):
        store.put("blobs/00/b", b"ours", expect=ABSENT)
    store.root.chmod(0o755)


def test_a_file_we_may_not_read_is_unavailable(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "open_below", failing(errno.EACCES))
    with pytest.raises(StoreUnavailable, match="who may read"):
        store.get(LATER)


def test_a_failed_fsync_is_not_repeated_on_the_same_file(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    store.put(LATER, b"before")
    monkeypatch.setattr(disk, "fsync_file", fail)
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        store.put(LATER, b"ours")
    assert len(calls) == 1
    assert store.get(LATER).body == b"before"
    assert leftovers(store) == []


def test_a_folder_that_cannot_be_synced_leaves_the_outcome_unknown(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(LATER, b"before")
    monkeypatch.setattr(disk, "fsync_folder", failing(errno.EIO))
    with pytest.raises(StoreUnavailable, match="power cut") as caught:
        store.put(LATER, b"ours")
    assert caught.value.outcome_unknown


def test_ctrl_c_leaves_nothing(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", press)
    with pytest.raises(KeyboardInterrupt):
        store.put(LATER, b"ours", expect=ABSENT)
    assert list(store.list("")) == []
    assert leftovers(store) == []


def test_a_body_of_the_wrong_length_is_not_stored(store: LocalStore) -> None:
    class Short(Pieces):
        size_bytes = 5

    with pytest.raises(Corrupt, match="expected 5 bytes, found 3"):
        store.put("blobs/00/b", Short((b"abc",)), expect=ABSENT)
    assert list(store.list("")) == []
    assert leftovers(store) == []


SYSTEM_CALLS = ["mkdir", "open", "write", "fsync", "link", "replace", "unlink", "close"]


# Python 3.12 and JAX warn of threads at a fork; the child here takes no lock of theirs.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")
@pytest.mark.parametrize("kind", ["overwrite", "create", "swap"])
def test_a_killed_writer_leaves_the_old_state_or_the_new(store: LocalStore, kind: str) -> None:
    """One process after another dies at its first, second, third … call of the system."""
    before = None if kind == "create" else b"before"
    for step in range(1, 100):
        store.delete(LATER)
        if before is not None:
            store.put(LATER, before)
        ended = _put_and_die(store, kind, step)
        found = store.get(LATER)
        assert (found and found.body) in (before, b"ours")
        assert [entry.key for entry in store.list("")] == ([LATER] if found else [])
        if ended == 0:
            assert found.body == b"ours"
            assert step > 8
            return
        assert ended == -signal.SIGKILL
    raise AssertionError("the writer made more calls than the test expects")


def _put_and_die(store: LocalStore, kind: str, step: int) -> int:
    """Put in a forked child that kills itself before its system call number `step`."""
    expect = {"overwrite": ANYTHING, "create": ABSENT}.get(kind)
    if expect is None:
        expect = store.get(LATER).token
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _die_at(step)
            LocalStore(store.root).put(LATER, b"ours", expect=expect)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_at(step: int) -> None:
    calls = iter(range(1, 1_000))

    def deadly(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        return call

    for name in SYSTEM_CALLS:
        setattr(os, name, deadly(getattr(os, name)))


def test_a_killed_writer_gives_its_lock_back(store: LocalStore) -> None:
    token = store.put(LATER, b"before")
    program = f"""
import os, signal
from brainstore.storage import open_store
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
open_store({store.url!r}).put({LATER!r}, b"theirs", expect={token!r})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    store.put(LATER, b"ours", expect=token)
    assert store.get(LATER).body == b"ours"
    assert len(leftovers(store)) == 1
    assert [found.key for found in store.list("")] == [LATER]


def test_a_lock_that_is_never_given_back_is_reported(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = store.put(LATER, b"before")
    monkeypatch.setattr(locks, "_TIMEOUT_S", 0.05)
    folder = os.open((store.root / LATER).parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(StoreUnavailable, match="Is it stopped"):
        store.put(LATER, b"ours", expect=token)
    os.close(folder)


def test_a_platform_without_flock_cannot_swap(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = store.put(LATER, b"before")
    monkeypatch.setattr(locks, "ARE_THERE", False)
    store.put("blobs/00/b", b"1", expect=ABSENT)
    store.put(LATER, b"between")
    store.delete("blobs/00/b")
    with pytest.raises(Unsupported, match="flock"):
        store.put(LATER, b"ours", expect=token)


def test_a_disk_without_hard_links_cannot_create(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    with pytest.raises(Unsupported, match="hard links"):
        store.put(LATER, b"ours", expect=ABSENT)
    assert leftovers(store) == []


@pytest.mark.parametrize("expect", [ABSENT, ANYTHING])
def test_a_folder_that_vanishes_is_made_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, expect: object
) -> None:
    real, vanished = os.open, []

    def open_too_late(path: Path, flags: int, *arguments: object, **keywords: Any) -> object:
        if flags & os.O_CREAT and len(vanished) < 5:
            vanished.append(path)
            path.parent.rmdir()
            path.parent.parent.rmdir()
        return real(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", open_too_late)
    store.put("blobs/00/b", b"ours", expect=expect)
    assert store.get("blobs/00/b").body == b"ours"
    assert len(vanished) == 5


def test_every_name_on_the_way_is_synced(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = disk.fsync_folder

    def note(folder: Path) -> None:
        synced.append(folder)
        real(folder)

    monkeypatch.setattr(disk, "fsync_folder", note)
    store.put("blobs/00/b", b"1", expect=ABSENT)
    root = store.root
    # The first was there, but whoever made it may have died before it was synced.
    made = [root.parent, root, root / "blobs", root / "blobs" / "00"]
    assert synced == [root.parent.parent, *made]


def test_no_record_is_stored_before_those_that_its_writer_has_read(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "models/ppo/v1/manifest.json"
    store.put(key, b"of one who may have died before its folder was synced", expect=ABSENT)
    reader = LocalStore(store.root)
    reader.put("blobs/00/b", b"", expect=ABSENT)
    reader.get(key)
    synced: list[Path] = []
    monkeypatch.setattr(disk, "fsync_folder", synced.append)
    reader.put("blobs/00/c", b"", expect=ABSENT)
    folder = (store.root / key).parent
    assert folder not in synced  # a blob says nothing of any record
    reader.put("journal/a", b"")
    assert synced.index(folder) < synced.index(store.root / "journal")
    assert folder.parent in synced
    synced.clear()
    reader.put("journal/b", b"")
    assert folder not in synced
    reader.get(key)
    reader.delete("journal/b")
    assert folder in synced


def test_a_swap_syncs_the_folders_that_another_writer_made(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = store.put(LATER, b"1", expect=ABSENT)
    synced: list[Path] = []
    monkeypatch.setattr(disk, "fsync_folder", synced.append)
    LocalStore(store.root).put(LATER, b"2", expect=token)
    folder = (store.root / LATER).parent
    assert {folder, *folder.parents} - {*store.root.parent.parents} == {*synced}


def test_reusing_a_blob_syncs_it_for_its_writer(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "blobs" / "00").mkdir(parents=True)
    (store.root / "blobs" / "00" / "b").write_bytes(b"same")
    files, folders = [], []
    monkeypatch.setattr(disk, "fsync_file", files.append)
    monkeypatch.setattr(disk, "fsync_folder", folders.append)
    store.put("blobs/00/b", b"same", expect=ABSENT)
    assert len(files) == 1
    assert store.root / "blobs" / "00" in folders
    files.clear()
    assert store.settle("blobs/00/b").size_bytes == 4
    assert len(files) == 1


def test_blobs_are_read_only_files(store: LocalStore) -> None:
    store.put("blobs/00/b", b"1", expect=ABSENT)
    store.put(LATER, b"1")
    assert stat.S_IMODE(os.stat(store.path("blobs/00/b")).st_mode) & 0o222 == 0
    assert stat.S_IMODE(os.stat(store.path(LATER)).st_mode) & 0o200


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../outside", "a/../../outside", "a//b", "a/.", "a\0b", ".tmp-1", "a/"],
)
def test_no_key_leads_out_of_the_zoo(store: LocalStore, key: str) -> None:
    for call in (
        lambda: store.get(key),
        lambda: store.put(key, b"1"),
        lambda: store.delete(key),
        lambda: store.stat(key),
    ):
        with pytest.raises(NotFound, match="no key"):
            call()


def test_a_create_and_a_swap_of_one_key_do_not_both_win(store: LocalStore) -> None:
    token = store.put(LATER, b"before")
    with pytest.raises(AlreadyExists):
        store.put(LATER, b"new", expect=ABSENT)
    store.put(LATER, b"swapped", expect=token)
    store.delete(LATER)
    store.put(LATER, b"new", expect=ABSENT)
    with pytest.raises(Conflict):
        store.put(LATER, b"late", expect=token)


@pytest.mark.parametrize("expect", [ANYTHING, ABSENT])
def test_a_write_whose_leftover_is_discarded_begins_again(
    store: LocalStore, expect: object
) -> None:
    discarded: list[str] = []

    class Body:
        size_bytes = 2

        def __iter__(self) -> Iterator[memoryview]:
            yield memoryview(b"1")
            for leftover in [] if discarded else store.leftovers():
                store.discard(leftover)
                discarded.append(leftover.key)
            yield memoryview(b"2")

    store.put("blobs/00/b", Body(), expect=expect)
    assert len(discarded) == 1
    assert store.get("blobs/00/b").body == b"12"
    assert leftovers(store) == []


def test_leftovers_are_files_of_the_zoo_and_nothing_that_a_link_leads_to(
    store: LocalStore, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".tmp-theirs").write_bytes(b"1")
    store.root.mkdir()
    (store.root / "models").symlink_to(outside)
    (store.root / ".tmp-link").symlink_to(outside / ".tmp-theirs")
    (store.root / ".tmp-folder").mkdir()
    (store.root / ".tmp-folder" / ".tmp-1").write_bytes(b"1")
    assert list(store.leftovers()) == []
    with pytest.raises(Corrupt, match="symbolic link"):
        store.discard(Stat("models/.tmp-theirs", 1, 0.0))
    for key in (".tmp-link", ".tmp-folder", "blobs/.tmp-1\0"):
        with pytest.raises(BadReference):
            store.discard(Stat(key, 1, 0.0))
    assert (outside / ".tmp-theirs").exists()
