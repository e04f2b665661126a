"""A process killed at any system call: nothing acknowledged is lost, and work goes on.

Only the calls that change the zoo's folder count. Whatever else a process does, reading,
waiting, taking memory, leaves the disk as it was: to be killed there is to be killed at the
next call that changes something. What that leaves does not depend on fsync either, for the
kernel lives on; see test_power_loss.py for a machine that does not.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aftermath import broken, has, problems, unfinished
from killed import WORK, Death, Killed, collect_all, make_zoos
from system_calls import needs_proc
from traced import ALIKE, CHANGING, Tracing, changes, most_in_a_thread, needs_strace
from zoos import opened, params, read_raw

from brainstore import commit
from brainstore.storage.local import LocalStore

pytestmark = needs_proc

SAMPLE = {"first save": 24, "save of several blobs": 12, "sync": 12}
"""In the short form, one in so many deaths is tried; otherwise one in 8."""

Tally = Callable[..., None]


@pytest.fixture(scope="module")
def killed() -> Iterator[Killed]:
    with Killed() as program:
        yield program


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoos")
    make_zoos(folder)
    return folder


def die(killed: Killed, zoos: Path, folder: Path, work: str, **how: Any) -> tuple[Death, list[str]]:
    """Kill the work on a copy of the zoo; return what is wrong after that, which is nothing."""
    zoo = folder / "zoo"
    shutil.copytree(zoos / "zoo", zoo)
    WORK[work].prepare(zoo)
    death = killed.run(work, zoo, zoos / "source", **how)
    return death, after(work, zoo, zoos / "source", death)


def after(work: str, zoo: Path, source: Path, death: Death) -> list[str]:
    """Return what is wrong after the death, and when the work is done again."""
    task, copy = WORK[work], zoo.with_name("copy")
    found = broken(zoo, task.holds) if death.has_returned else []
    if zoo.exists():
        shutil.copytree(zoo, copy)
    if work != "fsck --repair":  # what it had not come to is damaged still
        found += problems(zoo, task.before)
    found += unfinished(copy, lambda manager: task.do(manager, source), task.holds)
    if work == "fsck --repair":
        found += problems(copy, task.before)
    for folder in (zoo, copy):
        shutil.rmtree(folder, ignore_errors=True)
    return found


def sweep(killed: Killed, zoos: Path, folder: Path, work: str, stride: int) -> int:
    """Kill the work at every `stride`-th call that changes something; return how often."""
    for at in itertools.count(1, stride):
        death, found = die(killed, zoos, folder, work, at=at)
        assert (work, at, found) == (work, at, [])
        if not death.was_killed:
            return (at - 1) // stride
    raise AssertionError("there is no end to it")


@pytest.mark.parametrize("work", WORK)
def test_a_process_killed_at_a_call_has_lost_nothing(
    killed: Killed, zoos: Path, tmp_path: Path, work: str
) -> None:
    assert sweep(killed, zoos, tmp_path, work, SAMPLE.get(work, 8)) > 0


@pytest.mark.soak
@pytest.mark.parametrize("work", WORK)
def test_a_process_killed_at_every_call_has_lost_nothing(
    killed: Killed, zoos: Path, tmp_path: Path, work: str, tally: Tally
) -> None:
    deaths = sweep(killed, zoos, tmp_path, work, 1)
    assert deaths > 5
    tally("kill -9 at every call that changes a zoo on disk", cases=deaths, lost=0)


def trace(
    killed: Killed, zoos: Path, folder: Path, work: str, log: Path, calls: str = CHANGING
) -> Death:
    """Have strace tell what the work calls, which then lives."""
    tracing = Tracing(calls)
    death, found = die(
        killed, zoos, folder, work, traced=lambda process: tracing.attached(process, log)
    )
    assert found == []
    return death


@needs_strace
@pytest.mark.parametrize("work", ["save of several blobs", "delete", "sync", "gc"])
def test_no_call_that_changes_a_zoo_escapes_from_being_watched(
    killed: Killed, zoos: Path, tmp_path: Path, work: str
) -> None:
    log = tmp_path / "log"
    death = trace(killed, zoos, tmp_path, work, log)
    seen = Counter(ALIKE.get(name, name) for name, _ in death.calls)
    assert changes(log, tmp_path / "zoo") == seen
    assert seen["fsync"] > 5


def stride(work: str, call: str) -> int:
    """Return which part of these calls is tried: of those that change nothing, a small one."""
    each = 2 if call in CHANGING.split(",") else 60
    each *= 5 if call in ("fsync", "flock", "openat") else 1
    # Probes of a store are many and alike; a repair takes its time to look twice.
    return each * {"first save": 4, "fsck --repair": 4}.get(work, 1)


@needs_strace
@pytest.mark.soak
@pytest.mark.parametrize("work", WORK)
def test_a_process_killed_by_strace_at_a_system_call_has_lost_nothing(
    killed: Killed, zoos: Path, tmp_path: Path, work: str, tally: Tally
) -> None:
    log, deaths = tmp_path / "log", 0
    trace(killed, zoos, tmp_path, work, log, "%file,%desc")
    for call, count in most_in_a_thread(log).items():
        for when in range(1, count + 1, stride(work, call)):
            tracing = Tracing(call, f"{call}:signal=KILL:when={when}")
            death, found = die(
                killed, zoos, tmp_path, work,
                traced=lambda process, tracing=tracing: tracing.attached(process, log),
            )  # fmt: skip
            assert (work, call, when, found) == (work, call, when, [])
            deaths += death.was_killed
    assert deaths > 5
    tally("kill -9 by strace, at system calls on files", cases=deaths, lost=0)


def test_a_save_of_what_a_dead_collection_had_condemned_does_not_wait(
    killed: Killed, zoos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "COLLECTION_WAIT_S", 0.0)
    for at in itertools.count(1, 3):
        zoo = tmp_path / str(at)
        shutil.copytree(zoos / "zoo", zoo)
        death = killed.run("gc", zoo, zoos / "source", at=at)
        with opened(zoo) as manager:
            # Of ppo:2, which is deleted.
            saved = manager.save("ppo", params(2))
            assert has(manager, saved, 2)
            collect_all(manager, zoo)
            assert has(manager, saved, 2)
        assert read_raw(LocalStore(zoo)).problems == []
        if not death.was_killed:
            break
    assert at > 10
