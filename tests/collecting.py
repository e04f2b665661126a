"""Zoos with garbage in them, and collections that take it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zoos import (
    finish,
    opened,
    params,
)

from brainstore import BrainManager
from brainstore.address import GC_STATE_KEY, blob_key, intent_key, new_ulid
from brainstore.garbage import Collection, collect
from brainstore.records import GcState, Intent, Target
from brainstore.storage.base import Store


def collected(zoo: BrainManager, **options: Any) -> Collection:
    """Collect at once, whatever is old enough for that."""
    return collect(zoo.zoo, **{"dry_run": False, "older_than_s": 0, **options})


def blobs(store: Store) -> set[str]:
    return {stat.key for stat in store.list("blobs/")}


def blobs_of(zoo: BrainManager, ref: str) -> set[str]:
    return {blob_key(digest) for digest in zoo.manifest(ref).blobs}


def state(store: Store) -> GcState:
    found = store.get(GC_STATE_KEY)
    assert found is not None
    return GcState.decode(found.body, GC_STATE_KEY)


def put_intent(zoo: BrainManager, digests: Any, version: int = 9, **fields: Any) -> str:
    """Leave an intent as a save that died would."""
    write_id = new_ulid()
    target = Target(name=fields.pop("name", "ppo"), version=version)
    intent = Intent(
        write_id=write_id, created_at="", by="ada", targets=(target,), digests=tuple(digests),
        **fields,
    )  # fmt: skip
    zoo.zoo.store.put(intent_key(write_id), intent.encode())
    return write_id


@contextmanager
def three_versions(store: Store) -> Iterator[BrainManager]:
    """Give a zoo with ppo:1 to 3, of which 2 is deleted; nothing runs any more."""
    with opened(store) as manager:
        for seed in (1, 2, 3):
            manager.save("ppo", params(seed))
        manager.delete("ppo:2")
        finish(manager)
        yield manager
