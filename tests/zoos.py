"""Stores that record, fail or die on the way, and a reader that trusts no code under test."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from brainstore import BrainManager
from brainstore.storage.base import ABSENT, ANYTHING, Body, Expect, Object, Stat, Store, Token
from brainstore.storage.memory import MemoryStore

WRITES = ("put", "delete")


@dataclass(frozen=True)
class Call:
    """One call of a store: its number, method and key; `expect` of a put."""

    number: int
    method: str
    key: str
    expect: str = ""

    @property
    def room(self) -> str:
        """What the key is for: manifest, pointer, intent, fact, blob, gc, snapshot, marker."""
        rooms = {"intents/": "intent", "journal/": "fact", "blobs/": "blob", "gc/": "gc"}
        for prefix, room in rooms.items():
            if self.key.startswith(prefix):
                return room
        if self.key.startswith("models/"):
            return "pointer" if "/refs/" in self.key else "manifest"
        return {"registry.json": "snapshot", "brainstore.json": "marker"}.get(self.key, "probe")

    @property
    def step(self) -> str:
        return f"{self.method} {self.room}"


Proceed = Callable[[], Any]


class WrappedStore(Store):
    """`inner`, with every call recorded in `calls`, and given to `around` if that is set.

    `around(call, proceed)` returns what the call returns; `proceed()` does it.
    """

    def __init__(
        self, inner: Store, around: Callable[[Call, Proceed], Any] | None = None, **shown: Any
    ) -> None:
        self.inner = inner
        self.around = around
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self.url = inner.url
        self.parallelism = inner.parallelism
        self.is_remote = shown.get("is_remote", inner.is_remote)
        self.requests = inner.requests

    def steps(self, method: str | None = None) -> list[str]:
        return [call.step for call in self.calls if method in (None, call.method)]

    def _do(self, method: str, key: str, proceed: Proceed, expect: object = "") -> Any:
        kind = {"": "", ABSENT: "absent", ANYTHING: "anything"}.get(expect, "token")  # type: ignore[call-overload]
        with self._lock:
            call = Call(len(self.calls), method, key, kind)
            self.calls.append(call)
        return proceed() if self.around is None else self.around(call, proceed)

    def get(self, key: str) -> Object | None:
        return self._do("get", key, lambda: self.inner.get(key))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        return self._do("get_range", key, lambda: self.inner.get_range(key, start, stop))

    def put(self, key: str, body: bytes | Body, *, expect: Token | Expect = ANYTHING) -> Token:
        return self._do("put", key, lambda: self.inner.put(key, body, expect=expect), expect)

    def stat(self, key: str) -> Stat | None:
        return self._do("stat", key, lambda: self.inner.stat(key))

    def settle(self, key: str) -> Stat | None:
        return self._do("settle", key, lambda: self.inner.settle(key))

    def list(self, prefix: str) -> Iterator[Stat]:
        return iter(self._do("list", prefix, lambda: list(self.inner.list(prefix))))

    def links(self) -> Sequence[str]:
        return self.inner.links()

    def delete(self, key: str) -> None:
        self._do("delete", key, lambda: self.inner.delete(key))

    def leftovers(self) -> Iterator[Stat]:
        return iter(self._do("leftovers", "", lambda: list(self.inner.leftovers())))

    def discard(self, leftover: Stat) -> None:
        self._do("discard", leftover.key, lambda: self.inner.discard(leftover))

    def path(self, key: str) -> Path | None:
        return self.inner.path(key)

    def open(self, key: str) -> int | None:
        return self.inner.open(key)

    def close(self) -> None:
        self.inner.close()


class Crash(BaseException):
    """The world has stopped; nothing is caught that is not caught for a power cut too."""


class CrashingStore(WrappedStore):
    """Stops the world at its `at`-th call, before or after that call takes effect.

    From then on every call stops too, also those of threads.
    """

    def __init__(self, inner: Store, at: int, *, after: bool) -> None:
        super().__init__(inner, self._maybe_crash)
        self.at, self.after, self.has_crashed = at, after, False
        # A body that is stored may be read through this store, too.
        self._crash_lock = threading.RLock()

    def _maybe_crash(self, call: Call, proceed: Proceed) -> Any:
        # One call at a time, so that no call takes effect once the world has stopped.
        with self._crash_lock:
            if self.has_crashed:
                raise Crash
            if call.number != self.at:
                return proceed()
            self.has_crashed = True
            if self.after:
                proceed()
            raise Crash(f"{'after' if self.after else 'before'} {call}")


def crash(inner: Store, work: Callable[[BrainManager], object], at: int, *, after: bool) -> bool:
    """Do the work and stop the world at its `at`-th call; return whether it came so far."""
    store = CrashingStore(inner, at, after=after)
    manager = BrainManager(store)
    with contextlib.suppress(Crash):
        work(manager)
        finish(manager)
    manager.close()
    return store.has_crashed


def memory_copy(store: MemoryStore) -> MemoryStore:
    """Return another store with the same objects."""
    copy = MemoryStore()
    copy._shelf.objects.update(store._shelf.objects)
    return copy


def params(seed: int, size: int = 6) -> dict[str, Any]:
    """Return a small tree that differs for each seed."""
    values = np.arange(size, dtype=np.float32) + np.float32(seed)
    return {"dense": {"kernel": values.reshape(2, -1), "bias": np.float32([seed, -seed])}}


def same(tree: Any, other: Any) -> bool:
    if isinstance(tree, dict):
        return tree.keys() == other.keys() and all(same(tree[key], other[key]) for key in tree)
    return tree.dtype == other.dtype and tree.tobytes() == other.tobytes()


@contextlib.contextmanager
def opened(where: Any, **options: Any) -> Iterator[BrainManager]:
    with BrainManager(where, **options) as zoo:
        yield zoo


def finish(zoo: BrainManager) -> None:
    """Return once what runs in the background is done; the manager stays usable."""
    committer = zoo.zoo.committer
    committer.close()
    committer._pool = type(committer._pool)(4, "brainstore-commit")


def objects(zoo: BrainManager) -> dict[str, bytes]:
    """Return all that the zoo's store holds, by key, once nothing runs in the background."""
    finish(zoo)
    store = zoo.zoo.store
    return {
        stat.key: found.body
        for stat in store.list("")
        if (found := store.get(stat.key)) is not None
    }


_MANIFEST = re.compile(r"models/(?P<name>.+)/v(?P<number>\d+)/manifest\.json")


@dataclass
class Found:
    """A zoo as read from raw JSON: what each version and each pointer says."""

    live: dict[tuple[str, int], dict[str, Any]]
    deleted: set[tuple[str, int]]
    restored: set[tuple[str, int]]
    pointers: dict[tuple[str, str], dict[str, Any]]
    problems: list[str]


def read_raw(store: Store) -> Found:
    """Read a zoo with `json` and `blake3` alone, and check what the design promises.

    Every manifest is whole JSON under its own key, every blob that it lists is there
    with its digest and size, and every pointer names a manifest by its digest.
    """
    objects = {stat.key: store.get(stat.key).body for stat in store.list("")}
    found = Found({}, set(), set(), {}, [])
    digests: dict[tuple[str, int], str] = {}
    for key, body in objects.items():
        if match := _MANIFEST.fullmatch(key):
            _read_version(found, digests, objects, match, body)
    for key, body in objects.items():
        if "/refs/" in key:
            _read_pointer(found, digests, key, json.loads(body))
    _check_numbers(found)
    return found


def _read_version(
    found: Found, digests: dict[Any, str], objects: dict[str, bytes], match: Any, body: bytes
) -> None:
    place = match["name"], int(match["number"])
    record = json.loads(body)
    if (record["name"], record["version"]) != place:
        found.problems.append(f"{place} holds {record['name']}:{record['version']}")
    if record["kind"] == "tombstone" and record["generation"] % 2:
        found.deleted.add(place)
        return
    if record["kind"] == "tombstone":
        body = body[body.index(b'"record":') + 9 : -1]
        record = json.loads(body)
        found.restored.add(place)
    found.live[place] = record
    digests[place] = "blake3:" + blake3(body).hexdigest()
    for digest, size in record["blobs"].items():
        content = objects.get(f"blobs/{digest[7:9]}/{digest[7:]}")
        if content is None:
            found.problems.append(f"{place}: blob {digest} is missing")
        elif len(content) != size or "blake3:" + blake3(content).hexdigest() != digest:
            found.problems.append(f"{place}: blob {digest} is damaged")


def _read_pointer(found: Found, digests: dict[Any, str], key: str, record: dict[str, Any]) -> None:
    name, alias = record["name"], record["ref"]
    if key != f"models/{name}/refs/{alias}.json":
        found.problems.append(f"{key} holds {name}:{alias}")
    found.pointers[name, alias] = record
    if record["version"] is None:
        return
    place = name, record["version"]
    if place in found.live and digests[place] != record["digest"]:
        found.problems.append(f"{key} names another digest than that of {place}")
    if place not in found.live and place not in found.deleted:
        found.problems.append(f"{key} names {place}, which never was")


def _check_numbers(found: Found) -> None:
    taken: dict[str, set[int]] = {}
    for name, number in [*found.live, *found.deleted]:
        taken.setdefault(name, set()).add(number)
    for name, numbers in taken.items():
        if numbers != set(range(1, max(numbers) + 1)):
            found.problems.append(f"{name}: numbers were skipped in {sorted(numbers)}")
