"""Evidence that a store decides conditional writes, gathered before it is shared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from brainstore.address import PROBE_PREFIX, new_ulid
from brainstore.errors import AlreadyExists, BrainstoreError, Conflict, Unsupported
from brainstore.storage.base import ABSENT, Expect, Store, Token

_RACERS = 16


def probe(store: Store) -> dict[str, Any]:
    """Return evidence that `store` can be shared by writers: what was tried, and when.

    Writes a few small objects under a random key of `probe/`, and removes them.
    A store that passes may still be wrong; one that fails surely is.

    Raises:
        Unsupported: the store ignores a condition, or lets two writers win. The message
            says at which step, and what was seen.
    """
    for _, problem in tried(store):
        if problem is not None:
            raise problem
    probed_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"create": True, "swap": True, "race": _RACERS, "probed_at": probed_at}


def tried(store: Store) -> Iterator[tuple[str, BrainstoreError | None]]:
    """Yield each ability that sharing needs, and what is wrong with it, or None.

    Each is tried when it is asked for; all that was written is removed at the end.
    """
    with probe_key(store) as key:
        for ability, (place, trial) in _TRIALS.items():
            try:
                trial(store, f"{key}/{place}")
            except BrainstoreError as error:
                yield ability, error
            else:
                yield ability, None


def _probe_create(store: Store, key: str) -> None:
    step = "creating an object that exists"
    store.put(key, b"first", expect=ABSENT)
    _require(_refused(store, key, b"second", ABSENT), step, "the store accepted it")
    _require_body(store, key, b"first", step)


def _probe_swap(store: Store, key: str) -> None:
    stale = store.put(key, b"first", expect=ABSENT)
    step = "a swap from the current state"
    _require(not _refused(store, key, b"second", stale), step, "the store refused it")
    _require_body(store, key, b"second", step)
    step = "a swap from a stale state"
    _require(_refused(store, key, b"third", stale), step, "the store accepted it")
    _require_body(store, key, b"second", step)


def _probe_missing(store: Store, key: str) -> None:
    step = "a swap of a missing object"
    gone = store.put(key, b"first", expect=ABSENT)
    store.delete(key)
    _require(_refused(store, key, b"second", gone), step, "the store accepted it")
    _require(store.get(key) is None, step, "the store created it")


def _probe_race_of_creates(store: Store, key: str) -> None:
    _race(store, key, ABSENT, f"a race of {_RACERS} creates")


def _probe_race_of_swaps(store: Store, key: str) -> None:
    start = store.put(key, b"start", expect=ABSENT)
    _race(store, key, start, f"a race of {_RACERS} swaps")


def _race(store: Store, key: str, expect: Token | Expect, step: str) -> None:
    line = threading.Barrier(_RACERS)

    def run(number: int) -> bool:
        line.wait()
        return not _refused(store, key, b"racer %d" % number, expect)

    with ThreadPoolExecutor(_RACERS) as threads:
        winners = [n for n, won in enumerate(threads.map(run, range(_RACERS))) if won]
    _require(len(winners) == 1, step, f"{len(winners)} of them won, not one")
    _require_body(store, key, b"racer %d" % winners[0], step)


def _refused(store: Store, key: str, body: bytes, expect: Token | Expect) -> bool:
    try:
        store.put(key, body, expect=expect)
    except (AlreadyExists, Conflict):
        return True
    return False


def _require_body(store: Store, key: str, body: bytes, step: str) -> None:
    found = store.get(key)
    seen = "nothing" if found is None else repr(found.body)
    _require(found is not None and found.body == body, step, f"expected {body!r}, found {seen}")


def _require(holds: bool, step: str, seen: str) -> None:
    if not holds:
        raise Unsupported(
            f"This store cannot be shared by several writers; nothing was saved. Tried: {step}. "
            f"Seen: {seen}. Use a local disk, AWS S3, or a server that decides If-None-Match "
            "and If-Match atomically, such as MinIO or SeaweedFS 4.17 and later."
        )


_TRIALS: dict[str, tuple[str, Callable[[Store, str], None]]] = {
    "create": ("create", _probe_create),
    "swap": ("swap", _probe_swap),
    "swap of what is gone": ("missing", _probe_missing),
    "race of creates": ("race-create", _probe_race_of_creates),
    "race of swaps": ("race-swap", _probe_race_of_swaps),
}


@contextmanager
def probe_key(store: Store) -> Iterator[str]:
    """Give a key of `probe/` that nobody else has; what is stored below it is removed."""
    key = f"{PROBE_PREFIX}{new_ulid().lower()}"
    try:
        yield key
    finally:
        # What cannot be removed lies under a random key, where it disturbs nobody.
        with suppress(BrainstoreError):
            for found in list(store.list(f"{key}/")):
                store.delete(found.key)
            _remove_empty_folders(store, key)


def _remove_empty_folders(store: Store, key: str) -> None:
    for folder in (store.path(key), store.path(PROBE_PREFIX.removesuffix("/"))):
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()
