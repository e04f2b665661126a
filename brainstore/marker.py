"""Making a folder or a bucket a zoo, and telling whether it is one.

Three objects are created, in this order: the empty snapshot, the format marker, the
state of the collector. A crash in between is mended by creating again. Whoever reads
the last of them needs not look for the others, which saves every save a request.
"""

from __future__ import annotations

import time

import msgspec

from brainstore.address import GC_STATE_KEY, MARKER_KEY, SNAPSHOT_KEY, new_ulid
from brainstore.errors import AlreadyExists, NoZoo, Unsupported
from brainstore.records import GcState, Marker, Snapshot, now
from brainstore.storage.base import ABSENT, Store
from brainstore.storage.probe import probe


def create(store: Store) -> Marker:
    """Make `store` a zoo, and return its marker; one that is a zoo already stays as it is.

    The store is probed first: it must decide conditional writes, or only one process
    may be declared to write it.

    Raises:
        Unsupported: the store ignores conditional writes, the zoo is of a newer format, or
            the original brain manager's tree lies there.
    """
    generation = int(time.time())
    if store.get(MARKER_KEY) is None:
        generation = 0
        if found := store.get(SNAPSHOT_KEY):
            refuse_original(found.body, store.url)
        evidence = probe(store)
        _create(store, SNAPSHOT_KEY, Snapshot(folded_at=now()).encode_readable())
        marker = Marker(zoo_id=new_ulid(), created_at=now(), store=evidence)
        _create(store, MARKER_KEY, marker.encode_readable())
    # Lost from a zoo, it comes back in a generation that no writer has seen: what one
    # knows from before is void.
    _create(store, GC_STATE_KEY, GcState(generation=generation).encode_readable())
    return require(store)


def _create(store: Store, key: str, body: bytes) -> None:
    try:
        store.put(key, body, expect=ABSENT)
    except AlreadyExists:
        # Somebody else creates the same zoo; theirs is as good.
        return


def refuse_original(body: bytes, url: str) -> None:
    """Raise Unsupported if `body` is the `registry.json` of the original brain manager.

    It is under the same name as the snapshot, and must neither be taken for a damaged one
    nor be replaced by a rebuilt one.
    """
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    if isinstance(found, dict) and "models" in found and "format" not in found:
        raise Unsupported(
            f"{url} holds models of the original brain manager, and is no zoo; nothing was "
            f"changed there. Import them into one: brainstore --zoo NEW_ZOO import {url}"
        )


def require(store: Store) -> Marker:
    """Return the marker of the zoo.

    Raises:
        NoZoo: there is none.
        Unsupported: the zoo is of a newer format.
    """
    found = store.get(MARKER_KEY)
    if found is None:
        raise NoZoo(
            f"{store.url}: there is no zoo here ({MARKER_KEY} is missing). Check the place, or "
            f"create one: brainstore --zoo {store.url} init"
        )
    return Marker.decode(found.body, f"{store.url}/{MARKER_KEY}")
