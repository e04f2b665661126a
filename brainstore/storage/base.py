"""The contract that every store keeps: seven calls on flat keys.

A store is a map from keys to immutable-until-replaced objects. Keys are relative
paths made by `brainstore.address`; they use `/` on every platform. All methods may
be called from many threads at once, and other processes work on the same store.

Three promises carry the whole protocol:

* an object appears whole or not at all, to every reader;
* a `put` that returned is durable, and every later `get`, `stat` and `list`,
  anywhere, sees it or what replaced it;
* `put` with `ABSENT` or a token is decided by the store atomically: of many that
  race, at most one wins.

Failures are errors of `brainstore.errors` that name the store and the key:
StoreUnavailable when the store cannot be reached, does not answer in time, is
full, or does not accept our credentials; ReadOnly when it refuses a write;
Unsupported when it cannot decide conditional writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, NewType, Protocol

from brainstore.errors import BadReference, Corrupt

Token = NewType("Token", str)
"""Identifies one state of one object; equal tokens mean equal bytes."""


class Expect(Enum):
    """What `put` may find at its key, when not a particular state."""

    ANYTHING = "anything"
    NOTHING = "nothing"


MAX_GET_BYTES: Final = 2**29
"""What `get` returns at most: the index of a million versions."""

ANYTHING: Final = Expect.ANYTHING
ABSENT: Final = Expect.NOTHING


class Body(Protocol):
    """Bytes to store, in pieces, so that no copy of the whole is ever made.

    May be iterated again, and gives the same bytes each time.
    """

    @property
    def size_bytes(self) -> int: ...

    def __iter__(self) -> Iterator[memoryview]: ...


@dataclass(frozen=True, slots=True)
class Object:
    """The bytes of an object, and the token of that state."""

    body: bytes
    token: Token


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says of an object. `modified_at`: seconds since 1970, the store's clock."""

    key: str
    size_bytes: int
    modified_at: float


class Store(ABC):
    """A folder or a bucket. See the module for what all methods promise."""

    url: str
    """How messages and references name this store."""

    parallelism: int = 4
    """How many calls at once are worth making."""

    is_remote: bool = False
    """True when reading twice costs twice: such blobs are kept in the local cache."""

    requests: Counter[str]
    """Requests sent so far, by kind; retries count. Local stores leave it empty."""

    @abstractmethod
    def get(self, key: str) -> Object | None:
        """Return the object, or None when there is none. Retried; for small objects.

        Raises:
            Corrupt: it is larger than MAX_GET_BYTES, as no record is.
        """

    @abstractmethod
    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return exactly the bytes [start, stop). Retried.

        Raises:
            NotFound: there is no object.
            Corrupt: the object ends before `stop`.
        """

    @abstractmethod
    def put(self, key: str, body: bytes | Body, *, expect: Token | Expect = ANYTHING) -> Token:
        """Store `body` under `key`, whole, and return the token of the new state.

        Durable once it returns. `expect` is what must be there: ANYTHING (the last
        writer wins), ABSENT (create only), or the token of the state to replace.

        A lost reply is settled by reading the object back: our bytes there mean
        success. Other bytes mean AlreadyExists or Conflict, although our write may
        have been accepted and then replaced by its successor: who must know looks for
        a write id in what stands there now.

        Raises:
            AlreadyExists: `expect` was ABSENT, and an object with other bytes is there.
                (One with the same bytes counts as ours.)
            Conflict: `expect` was a token, and the object is gone or in another state.
            StoreUnavailable: as for every call; `outcome_unknown` is set when the write
                was sent and reading back failed too.
            ReadOnly, Unsupported: nothing was written.
        """

    @abstractmethod
    def stat(self, key: str) -> Stat | None:
        """Return size and age of the object, or None when there is none. Retried."""

    def settle(self, key: str) -> Stat | None:
        """Return `stat(key)` once the object is durable, whoever stored it.

        On disk another writer's object can be visible before its folder is synced.
        """
        return self.stat(key)

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Stat]:
        """Yield every object whose key starts with `prefix`, in the order of their keys.

        `prefix` is "" or ends with "/". Objects that come or go meanwhile may or may
        not be seen; all others are. Leftovers of unfinished writes are never shown.

        Raises:
            Corrupt: something stands there that may hide objects, such as a symbolic link;
                all that can be seen was yielded before.
        """

    def links(self) -> Sequence[str]:
        """Return the keys at which a symbolic link stands; nothing behind one is read."""
        return ()

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; fine when there is none. Durable once it returns."""

    def leftovers(self) -> Iterator[Stat]:
        """Yield what unfinished writes have left in the store, invisible to `list`.

        A write that is still under way has some, too: only `modified_at`, when it was last
        seen to go on or else when it began, tells it from one whose writer is dead. Sizes
        are 0 where asking would cost a request each. Only `discard` understands the keys.
        """
        return iter(())

    def discard(self, leftover: Stat) -> None:
        """Remove a leftover; fine when it is gone, or has become an object, which stays.

        A writer that was alive after all begins its write again.

        Raises:
            BadReference: it is no leftover of this store; nothing was removed.
        """
        raise BadReference(f"{leftover.key!r} is no leftover of {self.url}; nothing was removed")

    def delete_all(self, keys: Sequence[str]) -> None:
        """Remove these objects; each request is sent once, so that none comes late.

        Raises:
            StoreUnavailable: some may not have been removed. With `outcome_unknown`, a
                reply was lost: the request may still be on its way.
        """
        for key in keys:
            self.delete(key)

    def sole(self, prefix: str) -> AbstractContextManager[bool]:
        """Inside, whether it is certain that nobody else is inside, anywhere.

        Where it is True, the kernel says so, and lets the next one in when a process dies.
        A store that has no such thing gives False. `prefix` has only folders in it.

        Raises:
            Conflict: somebody else is inside.
        """
        return nullcontext(False)

    def path(self, key: str) -> Path | None:
        """Return where the object lies as an ordinary file, if this store keeps files.

        The key "" is the folder of them all.
        """
        return None

    def access(self) -> dict[str, str]:
        """Return as whom and by which way we get in, for people to read; never a secret."""
        return {}

    def open(self, key: str) -> int | None:
        """Return a descriptor of the object's file, open for reading; the caller closes it.

        None if this store keeps no files.

        Raises:
            OSError: as it came: FileNotFoundError or NotADirectoryError if there is no object.
            Corrupt: a link stands in its place, or on the way.
        """
        return None

    @property
    def identity(self) -> str:
        """What tells this store from every other, where equal URLs may mean two servers."""
        return self.url

    def close(self) -> None:  # noqa: B027  # most stores hold nothing
        """Let go of connections. The store must not be used afterwards."""


def pieces(body: bytes | Body) -> Iterable[memoryview]:
    return [memoryview(body)] if isinstance(body, bytes) else body


def size_bytes(body: bytes | Body) -> int:
    return len(body) if isinstance(body, bytes) else body.size_bytes


def require_gettable(what: str, size_bytes: int) -> None:
    """Raise Corrupt if an object is so large that `get` is not meant for it."""
    if size_bytes > MAX_GET_BYTES:
        raise Corrupt(
            f"{what} has {size_bytes:,} bytes; no record has more than {MAX_GET_BYTES:,}. "
            "Run: brainstore fsck"
        )
