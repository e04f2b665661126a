"""Giving up an intent: whoever it belongs to can commit nothing under it from then on.

Its writer may only sleep. So the number at which it would commit is taken from it: by a
fence, a tombstone around nothing, or by changing the state that it would replace.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from brainstore.address import MAX_VERSION, Name, manifest_key, new_ulid
from brainstore.errors import AlreadyExists, Conflict
from brainstore.intents import NUMBERS_PER_INTENT
from brainstore.records import Intent, Manifest, Tombstone, now
from brainstore.registry import Registry
from brainstore.storage.base import ABSENT
from brainstore.versions import Stored

WHY = "closed by a collection: the save that could have taken it is too old"


def give_up(registry: Registry, intent: Intent) -> None:
    """Make sure that nothing is committed under the intent any more.

    What has been committed under it before is a version like others, and stays.

    Raises:
        Corrupt: a record in the way cannot be read.
    """
    for target in intent.targets:
        if intent.exact:
            _close_exactly(registry, target.name, target.version)
        else:
            _close_from(registry, target.name, target.version, intent.write_id)


def _close_from(registry: Registry, name: Name, first: int, write_id: str) -> None:
    """Fence a save off, which tries one number after the other.

    It may be past any number that was ever taken: what is deleted now was a manifest when
    the save looked. But never past a fence, where there was nothing before.
    """
    for number in range(first, min(first + NUMBERS_PER_INTENT, MAX_VERSION + 1)):
        found = _fenced_or_found(registry, name, number)
        if found is None or found.digest is None or write_id in found.record.write_ids:
            return  # closed here, or here before; or it has committed, which it does once


def _close_exactly(registry: Registry, name: Name, number: int) -> None:
    """Fence off who tries one number, and may replace the tombstone that was read there."""
    while True:
        found = _fenced_or_found(registry, name, number)
        if found is None or isinstance(found.record, Manifest) or not found.record.is_deleted:
            return
        anew = msgspec.structs.replace(found.record, write_id=new_ulid())
        with suppress(Conflict):
            registry.store.put(manifest_key(name, number), anew.encode(), expect=found.token)
            return


def _fenced_or_found(registry: Registry, name: Name, number: int) -> Stored | None:
    """Return what stands at the number, or None once it is fenced by us."""
    found = registry.versions.stored(name, number)
    if found is not None:
        return found
    fence = Tombstone(
        name=name, version=number, write_id=new_ulid(), generation=1, at=now(), by=registry.by,
        why=WHY,
    )  # fmt: skip
    try:
        registry.store.put(manifest_key(name, number), fence.encode(), expect=ABSENT)
    except AlreadyExists:
        return registry.versions.stored(name, number)
    return None
