"""Intents: what a save, sync, restoration, deletion or move is about, stored before it.

They serve two readers. A collector spares the blobs that they name. And whoever folds the
journal finds by them what was done and not told, for who did it died in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from brainstore.address import INTENTS_PREFIX, Digest, intent_key, new_ulid, parse_intent_key
from brainstore.errors import (
    Conflict,
    Corrupt,
    NotFound,
    ReadOnly,
    StoreUnavailable,
    Unsupported,
)
from brainstore.journal import deletion_fact, live_fact
from brainstore.records import Intent, Manifest, Target, Tombstone, now
from brainstore.registry import Registry
from brainstore.versions import Version

_log = logging.getLogger(__name__)

NUMBERS_PER_INTENT = 8
"""A writer that lost as many numbers in a row goes on under a new intent."""

ABANDONED_S = 3600.0
"""An intent older than this belongs to a save that died, or that no longer matters here."""


def put_intent(
    registry: Registry,
    write_id: str,
    targets: Iterable[Target],
    digests: Iterable[Digest],
    *,
    exact: bool = False,
) -> None:
    """Store an intent. A collection that begins from now on leaves its digests alone."""
    intent = Intent(
        write_id=write_id,
        created_at=now(),
        by=registry.by,
        targets=tuple(targets),
        digests=tuple(sorted(digests)),
        exact=exact,
    )
    registry.store.put(intent_key(write_id), intent.encode())


@contextmanager
def announced(registry: Registry, version: Version) -> Iterator[None]:
    """Inside, the version is deleted: should we die there, others finish what was begun.

    The intent stays when the store fails inside; a refusal has left nothing to finish.
    """
    write_id = new_ulid()
    target = Target(name=version.name, version=version.version)
    put_intent(registry, write_id, [target], [], exact=True)
    try:
        yield
    except (Conflict, NotFound):
        _drop_intent(registry, write_id)
        raise
    _drop_intent(registry, write_id)


def _drop_intent(registry: Registry, write_id: str) -> None:
    """Remove an intent of what is done; should that fail, a collection will."""
    try:
        remove_intent(registry, write_id)
    except (StoreUnavailable, ReadOnly) as error:
        _log.info("left for a collection: %s", error)


def remove_intent(registry: Registry, write_id: str) -> None:
    registry.store.delete(intent_key(write_id))


def finish_abandoned(
    registry: Registry,
    older_than_s: float = ABANDONED_S,
    judged: set[str] | None = None,
) -> list[str]:
    """Publish versions whose saver died after the commit; return their names.

    Looks for the write id of each old intent among the manifests from its target up. What a
    sync, a deletion, a restoration or a move has done and not told is told, too. An intent
    whose save never committed stays, for the collector to judge; `judged` learns of it,
    and those that it knows are passed over.
    """
    judged = set() if judged is None else judged
    finished: list[str] = []
    for entry in registry.store.list(INTENTS_PREFIX):
        if time.time() - entry.modified_at < older_than_s or entry.key in judged:
            continue
        if parse_intent_key(entry.key) is None:
            continue  # somebody else's object; fsck names it
        judged.add(entry.key)
        try:
            _finish(registry, entry.key, finished)
        except (Corrupt, Unsupported) as error:
            # One damaged record must not keep the others from being finished.
            _log.warning("%s", error)
    return finished


def _finish(registry: Registry, key: str, finished: list[str]) -> None:
    stored = registry.store.get(key)
    if stored is None:
        return
    intent = Intent.decode(stored.body, key)
    if intent.write_id != parse_intent_key(key):
        raise Corrupt(f"{key} holds the intent {intent.write_id!r:.40}. Run: brainstore fsck")
    is_done = [_publish(registry, intent, target, finished) for target in intent.targets]
    if intent.exact:
        for name in {target.name for target in intent.targets}:
            registry.pointers.record_all_again(name)
    # An exact one that protects nothing has no other use.
    if any(is_done) or (intent.exact and not intent.digests):
        remove_intent(registry, intent.write_id)


def _publish(registry: Registry, intent: Intent, target: Target, finished: list[str]) -> bool:
    """Publish what was committed under the intent; return whether it is of no more use."""
    tried = 1 if intent.exact else NUMBERS_PER_INTENT
    for number in range(target.version, target.version + tried):
        stored = registry.versions.stored(target.name, number)
        if stored is None:
            return False
        found = registry.versions.opened(target.name, number, stored)
        if found is not None and (intent.exact or found[1].write_id == intent.write_id):
            version, manifest = found
            registry.journal.record(*live_fact(stored.record, manifest, version.digest))
            registry.pointers.advance_latest(version, intent.write_id)
            finished.append(str(version))
            # A sync may be on its way to another version still.
            return not intent.exact
        if found is None and intent.exact:
            _publish_deletion(registry, stored.record)
    return False


def _publish_deletion(registry: Registry, record: Manifest | Tombstone) -> None:
    assert isinstance(record, Tombstone)
    if record.replaced_digest is not None:
        registry.journal.record(*deletion_fact(record))
        registry.pointers.retreat_latest(
            Version(record.name, record.version, record.replaced_digest)
        )
