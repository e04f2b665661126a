"""A disk that loses power: what may be on it then, of what was not synced.

`recorded` writes down what a program does to a folder, call by call. `Disk` replays a part
of that, and tells the states that a power cut may leave, as POSIX has it and no more:

- the bytes of a file are on the disk once the file was synced; before, any of them may be;
- a name is, once its folder was synced; before, each change of a name may be or not, alone;
- a rename is one change: never are both names gone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from system_calls import Call, Proceed, watched

HIDDEN = ".tmp-"
BLOCK = 512
FOLDER = -1
"""In place of the number of a file."""

State = dict[str, bytes | None]
"""Every file by its path, with its bytes; None for a folder."""


@dataclass(frozen=True)
class Event:
    """One thing that has happened: what, to which file, under which name.

    create, link, unlink             `path`, and `file` is its number
    mkdir, rmdir                     `path`, of a folder
    rename                           from `source` to `path`
    write, truncate                  `body` at `offset` of `file`; the file ends at `offset`
    sync                             of `file`, or of the folder `path`
    said                             `path` is what was acknowledged
    """

    kind: str
    path: str = ""
    file: int = FOLDER
    offset: int = 0
    body: bytes = b""
    source: str = ""


class PowerCut(BaseException):
    """The program is killed; nothing is caught that is not caught then, too."""


class Recorder:
    """Writes down what happens below `root`, in the order in which it happened."""

    def __init__(self, root: Path, stop_at: int | None = None) -> None:
        """The program is killed before the event number `stop_at`."""
        self.events: list[Event] = []
        self.stop_at = stop_at
        self._root = root
        self._lock = threading.Lock()
        self._files = _numbered(state_of(root))
        self._numbers = itertools.count(len(self._files))

    def say(self, text: str) -> None:
        with self._lock:
            self.events.append(Event("said", text))

    def __call__(self, call: Call, proceed: Proceed) -> Any:
        if call.name == "flock":
            return proceed()
        # One call at a time: the order in which they are written down is the real one.
        with self._lock:
            if self.stop_at is not None and len(self.events) >= self.stop_at:
                raise PowerCut
            path = os.path.relpath(call.path, self._root)
            existed = os.path.lexists(call.path)
            at = _position(call)
            result = proceed()
            self.events += self._events(call, path, existed, at, result)
            return result

    def _events(
        self, call: Call, path: str, existed: bool, at: int, result: Any
    ) -> Iterator[Event]:
        name, arguments = call.name, call.arguments
        if name == "open":
            if not existed:
                yield Event("create", path, self._named(path, next(self._numbers)))
        elif name in ("write", "pwrite"):
            body = bytes(memoryview(arguments[1]).cast("B")[:result])
            yield Event("write", path, self._files[path], at, body)
        elif name in ("truncate", "ftruncate"):
            yield Event("truncate", path, self._files[path], arguments[1])
        elif name in ("fsync", "fdatasync"):
            yield Event("sync", path, self._files.get(path, FOLDER))
        elif name == "link":
            source = os.path.relpath(arguments[0], self._root)
            yield Event("link", path, self._named(path, self._files[source]))
        elif name in ("rename", "replace"):
            source = os.path.relpath(arguments[0], self._root)
            yield Event("rename", path, self._named(path, self._files.pop(source)), source=source)
        elif name in ("unlink", "remove"):
            yield Event("unlink", path, self._files.pop(path))
        elif name in ("mkdir", "rmdir"):
            yield Event(name, path)
        else:
            assert name in ("chmod", "fchmod"), f"the disk knows no {name}"

    def _named(self, path: str, file: int) -> int:
        self._files[path] = file
        return file


def _position(call: Call) -> int:
    if call.name == "pwrite":
        return int(call.arguments[2])
    return os.lseek(call.arguments[0], 0, os.SEEK_CUR) if call.name == "write" else 0


def _numbered(state: State) -> dict[str, int]:
    """Return the numbers of the files that are there before anything happens."""
    files = sorted(path for path, body in state.items() if body is not None)
    return {path: number for number, path in enumerate(files)}


@contextlib.contextmanager
def recorded(root: Path, stop_at: int | None = None) -> Iterator[Recorder]:
    """Inside, everything that happens below `root` is written down."""
    recorder = Recorder(root, stop_at)
    with watched([root], recorder):
        yield recorder


def state_of(root: Path) -> State:
    """Return what is below `root` now."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def write_state(state: State, root: Path) -> None:
    """Make `root`, which is not there, what `state` says."""
    root.mkdir()
    for path, body in sorted(state.items()):
        if body is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(body)


@dataclass
class _File:
    """The bytes of a file: as a running system sees them, and as they are on the disk."""

    body: bytearray = field(default_factory=bytearray)
    synced: bytes = b""

    def variants(self) -> list[bytes]:
        """Return what may be found of it after a power cut, the whole file first."""
        body, length = bytes(self.body), len(self.body)
        if body == self.synced:
            return [body]
        torn = body[: length // 2]
        zeroed = bytes(length)
        block = min(BLOCK, -(-length // 2))
        hole = bytes(block) + body[block:]
        tail = body[: length - block] + bytes(block)
        return list(dict.fromkeys([body, self.synced, torn, zeroed, hole, tail]))


@dataclass(frozen=True)
class _Change:
    """A change of names that is not on the disk: in one folder, all of it or nothing."""

    folder: str
    names: dict[str, int | None]

    @property
    def is_visible(self) -> bool:
        return any(not name.startswith(HIDDEN) for name in self.names)


class Disk:
    """A disk below a running system, which replays events and loses power when it is asked."""

    def __init__(self, before: State) -> None:
        """`before` is there and synced."""
        self._files: dict[int, _File] = {}
        self._synced: dict[str, dict[str, int]] = {"": {}}
        self._pending: list[_Change] = []
        self.said: list[str] = []
        numbers = _numbered(before)
        for path, body in sorted(before.items()):
            folder, name = os.path.split(path)
            self._synced[folder][name] = numbers.get(path, FOLDER)
            if body is None:
                self._synced[path] = {}
            else:
                self._files[numbers[path]] = _File(bytearray(body), body)

    def replay(self, event: Event) -> None:
        folder, name = os.path.split(event.path)
        if event.kind in ("create", "link"):
            self._files.setdefault(event.file, _File())
            self._change(folder, {name: event.file})
        elif event.kind == "mkdir":
            self._synced[event.path] = {}
            self._change(folder, {name: FOLDER})
        elif event.kind in ("unlink", "rmdir"):
            self._change(folder, {name: None})
        elif event.kind == "rename":
            was_in, was = os.path.split(event.source)
            assert was_in == folder, "the disk knows no rename from one folder to another"
            self._change(folder, {was: None, name: event.file})
        elif event.kind == "write":
            body = self._files[event.file].body
            body[event.offset : event.offset + len(event.body)] = event.body
        elif event.kind == "truncate":
            file = self._files[event.file]
            file.body = file.body[: event.offset].ljust(event.offset, b"\0")
        elif event.kind == "sync":
            self._sync(event)
        else:
            self.said.append(event.path)

    def _change(self, folder: str, names: dict[str, int | None]) -> None:
        self._pending.append(_Change(folder, names))

    def _sync(self, event: Event) -> None:
        if event.file != FOLDER:
            file = self._files[event.file]
            file.synced = bytes(file.body)
            return
        place = "" if event.path == "." else event.path
        here = [change for change in self._pending if change.folder == place]
        for change in here:
            _apply(self._synced, change)
        # What was in a folder that is gone went with it.
        gone = {name for change in here for name in change.names} - self._synced[place].keys()
        done = {place, *(os.path.join(place, name) for name in gone)}
        self._pending = [change for change in self._pending if change.folder not in done]

    def states(self, at_most: int, chance: random.Random) -> Iterator[State]:
        """Yield what a power cut may leave now: all of it, or as many as `at_most` by chance."""
        # What becomes of files that no reader sees makes no difference.
        choices: list[Sequence[Any]] = [
            (True, False) if change.is_visible else (True,) for change in self._pending
        ]
        dirty = {number: self._files[number].variants() for number in self._visible()}
        dirty = {number: found for number, found in dirty.items() if len(found) > 1}
        choices += dirty.values()
        total = 1
        for each in choices:
            total *= len(each)
        if total <= at_most:
            picks: Any = itertools.product(*choices)
        else:
            picks = ([chance.choice(each) for each in choices] for _ in range(at_most))
        for pick in picks:
            kept, bodies = pick[: len(self._pending)], pick[len(self._pending) :]
            yield self._state(kept, dict(zip(dirty, bodies, strict=True)))

    def _visible(self) -> set[int]:
        names = [*self._synced.values(), *(change.names for change in self._pending)]
        found = [(name, number) for each in names for name, number in each.items()]
        return {n for name, n in found if n not in (None, FOLDER) and not name.startswith(HIDDEN)}

    def _state(self, kept: Sequence[bool], bodies: dict[int, bytes]) -> State:
        folders = {folder: dict(names) for folder, names in self._synced.items()}
        for change in itertools.compress(self._pending, kept):
            _apply(folders, change)
        state: State = {}
        self._list(folders, "", bodies, state)
        return state

    def _list(
        self, folders: dict[str, dict[str, int]], folder: str, bodies: dict[int, bytes],
        state: State,
    ) -> None:  # fmt: skip
        for name, number in folders[folder].items():
            path = os.path.join(folder, name)
            if number == FOLDER:
                state[path] = None
                self._list(folders, path, bodies, state)
            elif not name.startswith(HIDDEN):
                state[path] = bodies.get(number, self._files[number].synced)


def _apply(folders: dict[str, dict[str, int]], change: _Change) -> None:
    for name, number in change.names.items():
        if number is None:
            folders[change.folder].pop(name, None)
        else:
            folders[change.folder][name] = number


def cuts(
    before: State, events: Sequence[Event], at_most: int, seed: int = 0
) -> Iterator[tuple[State, list[str]]]:
    """Yield every different state that a power cut at any moment may leave.

    With it comes what had been acknowledged by then. At each moment, `at_most` states are
    looked at, all of them if there are no more.
    """
    disk, chance, seen = Disk(before), random.Random(seed), set()
    for event in [Event("said", ""), *events]:
        disk.replay(event)
        for state in disk.states(at_most, chance):
            mark = (frozenset(state.items()), len(disk.said))
            if mark not in seen:
                seen.add(mark)
                yield state, disk.said[1:]


# Programs that sync less than they must; each loses something


def without_syncing_files(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.kind != "sync" or event.file == FOLDER]


def without_syncing_folders(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.kind != "sync" or event.file != FOLDER]


def naming_before_syncing(events: Sequence[Event]) -> list[Event]:
    """Sync each file only after it got its name."""
    late: list[Event] = []
    waiting: dict[int, Event] = {}
    for event in events:
        if event.kind == "sync" and event.file != FOLDER:
            waiting[event.file] = event
            continue
        late.append(event)
        if event.kind in ("link", "rename") and event.file in waiting:
            late.append(waiting.pop(event.file))
    return late


MUTANTS: dict[str, Callable[[Sequence[Event]], list[Event]]] = {
    "without syncing files": without_syncing_files,
    "without syncing folders": without_syncing_folders,
    "naming before syncing": naming_before_syncing,
}
