"""No room, no right to write, no right any more: what fails says so, and nothing half is seen."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bad_disk import BadDisk
from zoos import Found, finish, opened, params, read_raw, same

from brainstore import BrainManager, BrainstoreError, Conflict, NotFound
from brainstore.errors import ReadOnly, StoreUnavailable
from brainstore.fsck import Finding, fsck
from brainstore.garbage import collect
from brainstore.storage.base import Store
from brainstore.storage.local import LocalStore
from brainstore.zoo import Zoo

AT_ONCE: dict[str, Any] = {"older_than_s": 0.0, "expiry_s": 0.0}
MOST_CALLS = 120


def checked(zoo: Zoo) -> list[Finding]:
    """Return what is wrong with a zoo in which nobody works."""
    return [finding for finding in fsck(zoo) if not finding.is_harmless]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ppo:1 to ppo:3, of which 2 is deleted, and `prod` on 1."""
    folder = tmp_path_factory.mktemp("template") / "zoo"
    with opened(folder) as zoo:
        for seed in (1, 2, 3):
            zoo.save("ppo", params(seed))
        zoo.alias("ppo:1", "prod")
        zoo.delete("ppo:2")
    return folder


WORK: dict[str, Callable[[BrainManager], object]] = {
    "save": lambda zoo: zoo.save("ppo", params(4)),
    "save of another": lambda zoo: zoo.save("team/other", params(4), aliases=["prod"]),
    "alias": lambda zoo: zoo.alias("ppo:3", "prod"),
    "unalias": lambda zoo: zoo.unalias("ppo", "prod"),
    "delete": lambda zoo: zoo.delete("ppo:3"),
    "undelete": lambda zoo: zoo.undelete("ppo:2"),
    "collect": lambda zoo: collect(zoo.zoo, dry_run=False, keep_last=1, **AT_ONCE),
}


def attempt(folder: Path, work: str, disk: BadDisk) -> BrainstoreError | None:
    """Do the work on the disk; return the error, once nothing runs in the background."""
    error, before = None, set(threading.enumerate())
    with opened(folder) as zoo, disk.mounted():
        try:
            WORK[work](zoo)
        except BrainstoreError as raised:
            error = raised
        finish(zoo)
        # A save that failed does not wait for the uploads that it has called off.
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("brainstore-put"):
                thread.join()
    return error


def assert_told(error: BrainstoreError | None, found: Found, place: tuple[str, int]) -> str:
    """What the note on a save says is so; return what it says has become of the save."""
    if error is None:
        assert place in found.live
        return "returned"
    note = "\n".join(error.__notes__)
    for said, is_there in {"is committed": True, "nothing was committed": False}.items():
        if said in note:
            assert (place in found.live) == is_there, note
            return said
    assert "not known" in note
    return "not known"


def assert_deletion_told(error: BrainstoreError, is_gone: bool) -> None:
    told = "ppo:3 is deleted" in "\n".join(getattr(error, "__notes__", []))
    assert is_gone or not told
    assert told or not is_gone or getattr(error, "outcome_unknown", False), repr(error)


def assert_goes_on(folder: Path, *, collections: int = 1) -> None:
    """What was there loads, the next save works, and a collection leaves only what is named."""
    found = read_raw(LocalStore(folder))
    assert found.problems == []
    with opened(folder) as zoo:
        for (name, number), record in found.live.items():
            tree, _ = zoo.load(name, number, as_numpy=True, verify=True)
            assert record["version"] < 4 or same(tree, params(4))
        for _ in range(collections):
            collect(zoo.zoo, dry_run=False, **AT_ONCE)
        assert_nothing_left(zoo.zoo.store, folder)
        number = int(zoo.save("ppo", params(9)).rpartition("v")[2])
        assert zoo.get_latest("ppo") == f"ppo_v{number}"
        assert same(zoo.load("ppo", as_numpy=True)[0], params(9))
        # What stopped half way is finished when it is done again.
        for again in ("delete", "undelete", "alias", "unalias"):
            with suppress(NotFound, Conflict):
                WORK[again](zoo)
        if ("team/other", "prod") in found.pointers:
            zoo.alias("team/other:1", "prod")
        assert checked(zoo.zoo) == []
    assert read_raw(LocalStore(folder)).problems == []


def assert_nothing_left(store: Store, folder: Path) -> None:
    """Only what versions name is left, and nothing that unfinished work has put there."""
    live = read_raw(store).live.values()
    named = {digest for record in live for digest in record["blobs"]}
    assert {"blake3:" + stat.key.rpartition("/")[2] for stat in store.list("blobs/")} == named
    assert list(store.list("intents/")) == []
    assert list(folder.rglob(".tmp-*")) == []


def check(template: Path, disk: BadDisk, work: str) -> bool:
    """Do the work on a bad disk; return whether it was met."""
    folder = disk.folder
    shutil.copytree(template, folder)
    error = attempt(folder, work, disk)
    if error is not None:
        assert isinstance(error, StoreUnavailable | ReadOnly), repr(error)
        assert re.search(TOLD[disk.code], str(error)), repr(error)
    if work.startswith("save"):
        place = ("ppo", 4) if work == "save" else ("team/other", 1)
        assert_told(error, read_raw(LocalStore(folder)), place)
    if work == "delete" and error is not None:
        assert_deletion_told(error, ("ppo", 3) in read_raw(LocalStore(folder)).deleted)
    # Who is taken for dead while deleting or restoring gives the version a new time of grace.
    assert_goes_on(folder, collections=2 if work in ("delete", "undelete") else 1)
    shutil.rmtree(folder)
    return disk.was_met


TOLD = {
    errno.ENOSPC: "disk full",
    errno.EROFS: "Read-only file system",
    errno.EIO: "Input/output error",
}


def sweep(
    template: Path, folder: Path, work: str, code: int, *, step: int = 1, for_ever: bool = True
) -> int:
    """Let the disk go bad at each `step`-th call; return how many times it did."""
    for at in range(0, MOST_CALLS, step):
        if not check(template, BadDisk(folder, code, at, for_ever=for_ever), work):
            return at // step
    raise AssertionError("the work never ends")


@pytest.mark.parametrize("work", WORK)
def test_a_full_disk_is_told_and_leaves_nothing_that_a_collection_does_not_remove(
    template: Path, tmp_path: Path, work: str
) -> None:
    step = {"save": 4, "delete": 3}.get(work, 9)
    assert sweep(template, tmp_path / "zoo", work, errno.ENOSPC, step=step) > 1


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO], ids=["read-only", "broken"])
def test_a_disk_that_goes_bad_in_a_save_is_told_truly(
    template: Path, tmp_path: Path, code: int
) -> None:
    assert sweep(template, tmp_path / "zoo", "save", code, step=6) > 1


@pytest.mark.soak
@pytest.mark.parametrize("code", TOLD, ids=["full", "read-only", "broken"])
def test_a_disk_that_goes_bad_at_any_call_loses_nothing(
    template: Path, tmp_path: Path, code: int, tally: Callable[..., None]
) -> None:
    cases = 0
    for work in WORK:
        step = 1 if work == "save" else 3
        for for_ever in (False, True):
            folder = tmp_path / "zoo"
            cases += sweep(template, folder, work, code, step=step, for_ever=for_ever)
    assert cases > 4 * len(WORK)
    tally(f"a disk that says: {os.strerror(code)}, once or for ever", cases=cases, lost=0)


# A disk that really is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 256 KiB; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("a filesystem cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("free_pages", range(9))
def test_a_save_on_a_disk_with_little_space_is_whole_or_nothing(
    template: Path, small_disk: Path, free_pages: int
) -> None:
    folder = small_disk / "zoo"
    shutil.copytree(template, folder)
    fill(small_disk / "filler", but=free_pages * os.sysconf("SC_PAGESIZE"))
    error = None
    with opened(folder) as zoo:
        try:
            zoo.save("ppo", params(4))
        except StoreUnavailable as raised:
            error = raised
            assert "disk full" in str(error)
    (small_disk / "filler").unlink()
    assert error or free_pages > 1
    assert_told(error, read_raw(LocalStore(folder)), ("ppo", 4))
    assert_goes_on(folder)


def fill(file: Path, *, but: int) -> None:
    """Take all the space of the disk but that many bytes."""
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(4096)):
            continue
    found = os.statvfs(file)
    assert found.f_bavail == 0
    os.truncate(file, file.stat().st_size - but)


# The same, by failing the system calls of a real process

SAVER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from zoos import params
from brainstore import BrainManager, BrainstoreError
with BrainManager(sys.argv[1]) as zoo:
    try:
        said = zoo.save("ppo", params(4))
    except BrainstoreError as error:
        said = "\\n".join([str(error), *error.__notes__])
# Not by a call that is made to fail.
os.writev(1, [said.encode()])
"""
CALLS = ["write", "mkdir", "link", "fsync", "rename"]


def failing(zoo: Path, call: str, when: int) -> tuple[bool, str]:
    """Save in a process whose `when`-th such call, and all after it, find the disk full.

    Returns whether it came so far, and what the save said.
    """
    log = zoo.parent / "strace.log"
    done = subprocess.run(
        [
            "strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}",
            "-e", f"inject={call}:error=ENOSPC:when={when}+",
            sys.executable, "-c", SAVER, str(zoo), str(Path(__file__).parent),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return "INJECTED" in log.read_text(), done.stdout


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which makes system calls fail, is missing"
)


def check_failing(template: Path, zoo: Path, call: str, when: int) -> bool:
    shutil.copytree(template, zoo)
    was_met, said = failing(zoo, call, when)
    found = read_raw(LocalStore(zoo))
    is_there = ("ppo", 4) in found.live
    assert is_there or "nothing was committed" in said or "not known" in said, said
    assert not is_there or said == "ppo_v4" or "is committed" in said or "not known" in said, said
    assert said == "ppo_v4" or "disk full" in said, said
    assert_goes_on(zoo)
    shutil.rmtree(zoo)
    return was_met


@needs_strace
def test_a_process_whose_disk_is_full_says_what_has_become_of_its_save(
    template: Path, tmp_path: Path
) -> None:
    assert check_failing(template, tmp_path / "zoo", "rename", 1)


@needs_strace
@pytest.mark.soak
@pytest.mark.parametrize("call", CALLS)
def test_a_process_whose_disk_is_full_from_any_system_call_on_tells_the_truth(
    template: Path, tmp_path: Path, call: str, tally: Callable[..., None]
) -> None:
    when = 1
    while when < 30 and check_failing(template, tmp_path / "zoo", call, when):
        when += 1
    assert when > 1
    tally(f"a real process whose {call} finds the disk full", cases=when - 1, lost=0)
