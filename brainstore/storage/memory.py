"""A store in the memory of this process, for tests and for trying things out."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

from brainstore.errors import AlreadyExists, Conflict, Corrupt, NotFound
from brainstore.storage.base import (
    ABSENT,
    ANYTHING,
    Body,
    Expect,
    Object,
    Stat,
    Store,
    Token,
    pieces,
)
from brainstore.storage.disk import token_of


class _Shelf:
    """The objects of all stores of one URL: key to bytes and time of writing."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, float]] = {}


_SHELVES: dict[str, _Shelf] = {}
_SHELVES_LOCK = threading.Lock()


class MemoryStore(Store):
    """Objects that live as long as this process; other processes do not see them.

    Args:
        url: stores of the same URL hold the same objects; without one, nobody else does.
    """

    def __init__(self, url: str | None = None) -> None:
        self.requests = Counter()
        if url is None:
            self.url, self._shelf = "memory://", _Shelf()
            return
        self.url = "memory://" + url.removeprefix("memory://").strip("/")
        with _SHELVES_LOCK:
            self._shelf = _SHELVES.setdefault(self.url, _Shelf())

    def get(self, key: str) -> Object | None:
        found = self._shelf.objects.get(key)
        return None if found is None else Object(found[0], token_of(found[0]))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        found = self._shelf.objects.get(key)
        if found is None:
            raise NotFound(f"{self.url} has no object {key}")
        if len(found[0]) < stop:
            raise Corrupt(
                f"{key} in {self.url} is too short: expected the bytes {start:,} to {stop:,}, "
                f"found {len(found[0]):,} bytes. Run: brainstore fsck"
            )
        return found[0][start:stop]

    def put(self, key: str, body: bytes | Body, *, expect: Token | Expect = ANYTHING) -> Token:
        whole = b"".join(pieces(body))
        with self._shelf.lock:
            self._check(key, whole, expect)
            self._shelf.objects[key] = whole, time.time()
        return token_of(whole)

    def stat(self, key: str) -> Stat | None:
        found = self._shelf.objects.get(key)
        return None if found is None else Stat(key, len(found[0]), found[1])

    def list(self, prefix: str) -> Iterator[Stat]:
        with self._shelf.lock:
            objects = sorted(self._shelf.objects.items())
        for key, (body, modified_at) in objects:
            if key.startswith(prefix):
                yield Stat(key, len(body), modified_at)

    def delete(self, key: str) -> None:
        with self._shelf.lock:
            self._shelf.objects.pop(key, None)

    def _check(self, key: str, body: bytes, expect: Token | Expect) -> None:
        found = self._shelf.objects.get(key)
        if expect is ANYTHING or (expect is ABSENT and (found is None or found[0] == body)):
            return
        if expect is ABSENT:
            raise AlreadyExists(
                f"{key} exists in {self.url}, with other bytes than the {len(body):,} to create; "
                "nothing was written"
            )
        if found is None or token_of(found[0]) != expect:
            raise Conflict(
                f"{key} in {self.url} is {'gone' if found is None else 'in another state'}: "
                f"expected state {str(expect)[:12]}. Load again and retry."
            )
