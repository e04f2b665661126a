"""No room, no right to write, no right any more: what fails says so, and nothing half is seen."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from zoos import Found, finish, opened, params, read_raw, same

from brainstore import BrainManager, BrainstoreError, Conflict, NotFound
from brainstore.errors import StoreUnavailable
from brainstore.fsck import Finding, fsck
from brainstore.garbage import collect
from brainstore.storage.base import Store
from brainstore.storage.local import LocalStore
from brainstore.zoo import Zoo

AT_ONCE: dict[str, Any] = {"older_than_s": 0.0, "expiry_s": 0.0}
MOST_CALLS = 120

TAKES_SPACE = ("open", "write", "mkdir", "link", "replace", "fsync")
CHANGES = (*TAKES_SPACE, "unlink")


class BadDisk:
    """From the `at`-th call on, or only then, what changes files below `root` fails."""

    def __init__(self, root: Path, code: int, at: int, *, for_ever: bool = True) -> None:
        self._root, self._code, self._at, self._for_ever = str(root), code, at, for_ever
        self._calls, self._lock = 0, threading.Lock()
        self._changing = TAKES_SPACE if code == errno.ENOSPC else CHANGES

    @property
    def was_met(self) -> bool:
        return self._calls > self._at

    @contextmanager
    def mounted(self) -> Iterator[BadDisk]:
        with pytest.MonkeyPatch.context() as patch:
            for name in self._changing:
                patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
            yield self

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **options: Any) -> Any:
            if self._concerns(name, first, *rest) and self._fails():
                raise OSError(self._code, os.strerror(self._code), str(first))
            return real(first, *rest, **options)

        return call

    def _concerns(self, name: str, first: Any, *rest: Any) -> bool:
        if name == "open" and not rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
        # What has a descriptor is the store's: nobody else writes by one in these tests.
        return isinstance(first, int) or os.fspath(first).startswith(self._root)

    def _fails(self) -> bool:
        with self._lock:
            number, self._calls = self._calls, self._calls + 1
        return number == self._at or (self._for_ever and number > self._at)


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
    error = None
    with opened(folder) as zoo, disk.mounted():
        try:
            WORK[work](zoo)
        except BrainstoreError as raised:
            error = raised
        finish(zoo)
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


def check_full(template: Path, folder: Path, work: str, at: int, *, for_ever: bool) -> bool:
    """Let the disk be full from the `at`-th call on; return whether it came so far."""
    shutil.copytree(template, folder)
    disk = BadDisk(folder, errno.ENOSPC, at, for_ever=for_ever)
    error = attempt(folder, work, disk)
    if error is not None:
        assert isinstance(error, StoreUnavailable), repr(error)
        assert "disk full" in str(error), repr(error)
    if work.startswith("save"):
        place = ("ppo", 4) if work == "save" else ("team/other", 1)
        assert_told(error, read_raw(LocalStore(folder)), place)
    # Who is taken for dead while restoring gives the deleted version a new time of grace.
    assert_goes_on(folder, collections=2 if work == "undelete" else 1)
    shutil.rmtree(folder)
    return disk.was_met


def sweep(template: Path, folder: Path, work: str, *, step: int, for_ever: bool) -> int:
    """Let the disk be full from each `step`-th call on; return how many times it was."""
    for at in range(0, MOST_CALLS, step):
        if not check_full(template, folder, work, at, for_ever=for_ever):
            return at // step
    raise AssertionError("the work never ends")


@pytest.mark.parametrize("work", WORK)
def test_a_full_disk_is_told_and_leaves_nothing_that_a_collection_does_not_remove(
    template: Path, tmp_path: Path, work: str
) -> None:
    step = 2 if work == "save" else 7
    assert sweep(template, tmp_path / "zoo", work, step=step, for_ever=True) > 1


@pytest.mark.soak
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("work", WORK)
def test_a_disk_that_is_full_at_any_call_loses_nothing(
    template: Path, tmp_path: Path, work: str, *, for_ever: bool, tally: Callable[..., None]
) -> None:
    cases = sweep(template, tmp_path / "zoo", work, step=1, for_ever=for_ever)
    assert cases > 2
    tally(f"a disk full {'from' if for_ever else 'at'} any call of: {work}", cases=cases, lost=0)
