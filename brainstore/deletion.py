"""Deleting a version and bringing it back.

A deletion swaps the manifest for a tombstone that keeps it, so that the number is
never used again and a restoration is exact. The deleter reads the pointers after its
tombstone is stored, the mover of an alias reads the version after its swap: whoever is
second sees the other, and steps back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from brainstore import marker
from brainstore.address import (
    LATEST,
    Alias,
    Digest,
    Name,
    Reference,
    manifest_key,
    new_ulid,
)
from brainstore.blobs import Blobs
from brainstore.errors import BadReference, Conflict, NotFound, ReadOnly, StoreUnavailable
from brainstore.index import Index
from brainstore.intents import announced
from brainstore.journal import deletion_fact, live_fact
from brainstore.records import Manifest, Target, Tombstone, now
from brainstore.registry import Registry, require_digest
from brainstore.storage.base import Token
from brainstore.versions import Stored, Version
from brainstore.zoo import Zoo


def delete(
    zoo: Zoo,
    reference: Reference,
    *,
    why: str = "",
    force: bool = False,
    index: Index | None = None,
) -> Version:
    """Make the version disappear, until `undelete`; return what was deleted.

    Atomic: it is there or not. `latest` moves back to the highest live version if it
    named this one. With `force`, aliases that name the version are removed first. If it is
    deleted already, what a deleter that died may have left undone is done before the
    error.

    Args:
        index: where to look for versions that need this one; read now if not given.

    Raises:
        Conflict: an alias or a frozen expert needs the version, or somebody changed it
            meanwhile; nothing was deleted. With `force`, an alias may be gone all the same.
        NotFound: there is no such version.
        ReadOnly, StoreUnavailable: the store failed. A note says so if it was deleted.
    """
    marker.require(zoo.store)
    registry = zoo.registry
    try:
        version, _ = registry.find(reference)
    except NotFound:
        _finish_deletion(registry, reference, force)
        raise
    _refuse_if_needed(registry, version, force, index)
    stored = registry.versions.stored(version.name, version.version)
    body = stored.live_body if stored else None
    if stored is None or body is None:
        raise Conflict(f"{version} was deleted by somebody else meanwhile")
    with announced(registry, version):
        # First, for we may die: an alias that is not there misleads nobody, one that names
        # what is deleted does.
        for alias in _aliases_naming(registry, version) if force else ():
            _unset(registry, version, alias)
        _bury(registry, version, stored, body, why)
        with _told_deleted(version):
            moved = _aliases_naming(registry, version)
            if force or not moved:
                for alias in moved:
                    _unset(registry, version, alias)
                registry.pointers.retreat_latest(version)
                return version
        _restore_again(zoo, version)
        raise Conflict(f"{moved[0]} moved to {version} while it was deleted; it is back")


def undelete(zoo: Zoo, reference: Reference) -> Version:
    """Bring a deleted version back, byte for byte; return it.

    If it is back already, what a restorer that died may have left undone is done before
    the error.

    Raises:
        BadReference: the reference has no number.
        NotFound: the version was never there, or its blobs have been collected since.
        Conflict: somebody changed it meanwhile.
    """
    marker.require(zoo.store)
    registry, number = zoo.registry, reference.version
    if number is None:
        raise BadReference(
            f"'{reference}': say which version to bring back, such as {reference.name}:3"
        )
    stored = registry.versions.stored(reference.name, number)
    if stored is None:
        raise NotFound(f"{reference.name}:{number} never was in {zoo.url}. See: brainstore log")
    if isinstance(stored.record, Manifest):
        raise Conflict(f"{reference.name}:{number} is not deleted")
    if not stored.record.is_deleted:
        finish_restoration(registry, reference.name, number)
        raise Conflict(f"{reference.name}:{number} is not deleted")
    if stored.record.is_fence:
        raise NotFound(f"{reference.name}:{number} never existed; a collection closed the number")
    assert stored.record.replaced_digest is not None
    require_digest(Version(reference.name, number, stored.record.replaced_digest), reference.digest)
    version = _restore_safely(zoo, stored)
    registry.pointers.advance_latest(version, new_ulid())
    return version


@contextmanager
def _told_deleted(version: Version) -> Iterator[None]:
    """Add to a failure of the store inside that the version is deleted all the same."""
    try:
        yield
    except (StoreUnavailable, ReadOnly) as error:
        error.add_note(
            f"{version} is deleted; should the list or `latest` still name it, delete it again"
        )
        raise


def _finish_deletion(registry: Registry, reference: Reference, force: bool) -> None:
    """Do what the deleter of a deleted version may have left undone. Safe to repeat."""
    number = reference.version or registry.resolve(reference).version
    stored = registry.versions.stored(reference.name, number)
    tombstone = stored.record if stored else None
    if not isinstance(tombstone, Tombstone) or not tombstone.is_deleted:
        return
    if tombstone.replaced_digest is None:
        return
    version = Version(reference.name, number, tombstone.replaced_digest)
    registry.journal.record(*deletion_fact(tombstone))
    for alias in _aliases_naming(registry, version) if force else ():
        _unset(registry, version, alias)
    registry.pointers.retreat_latest(version)


def replace_fence(registry: Registry, fence: Stored, body: bytes) -> None:
    """Put the manifest in `body` where a collection has closed its number.

    As a tombstone that is lifted: a save that the fence was to stop must find no plain
    manifest there, which it would pass. `finish_restoration` makes it listed.

    Raises:
        Conflict: somebody changed the fence meanwhile; nothing was done.
    """
    name, number = fence.record.name, fence.record.version
    manifest = registry.versions.decoded(body, name, number)
    assert isinstance(fence.record, Tombstone)
    after = msgspec.structs.replace(
        fence.record,
        write_id=new_ulid(),
        generation=fence.record.generation + 1,
        at=now(),
        by=registry.by,
        why="",
        replaced_write_id=manifest.write_id,
        replaced_digest=Digest.of(body),
        record=msgspec.Raw(body),
    )
    _swap(registry, fence, after)


def finish_restoration(registry: Registry, name: Name, number: int) -> None:
    """Make a version that lives listed, and `latest` if it is. Safe to repeat."""
    stored = registry.versions.stored(name, number)
    found = registry.versions.opened(name, number, stored) if stored else None
    if stored is not None and found is not None:
        version, manifest = found
        # In this order, for a sync takes what is listed for finished.
        registry.pointers.advance_latest(version, new_ulid())
        registry.journal.record(*live_fact(stored.record, manifest, version.digest))


def _refuse_if_needed(
    registry: Registry, version: Version, force: bool, index: Index | None
) -> None:
    # Also when forced: what cannot be read is known before anything is done.
    aliases = _aliases_naming(registry, version)
    if force:
        return
    if aliases:
        raise Conflict(
            f"{version} is named by {', '.join(aliases)}. Move or remove the alias first, or "
            "force the deletion"
        )
    rows = (index or registry.journal.index()).rows
    users = [
        f"{name}:{n}" for (name, n), row in rows.items() if str(version) in row.get("experts", ())
    ]
    if users:
        raise Conflict(f"{version} is a frozen expert of {', '.join(users)}. Force it if you must")


def _aliases_naming(registry: Registry, version: Version) -> list[Alias]:
    pointers = registry.pointers.all_of(version.name)
    return [p.ref for p in pointers if p.version == version.version and p.ref != LATEST]


def _bury(registry: Registry, version: Version, stored: Stored, body: bytes, why: str) -> None:
    """Put a tombstone in the version's place."""
    before = stored.record
    tombstone = Tombstone(
        name=version.name,
        version=version.version,
        write_id=new_ulid(),
        generation=before.generation + 1 if isinstance(before, Tombstone) else 1,
        at=now(),
        by=registry.by,
        why=why,
        replaced_write_id=next(iter(before.write_ids)),
        replaced_digest=version.digest,
        record=msgspec.Raw(body),
    )
    _swap(registry, stored, tombstone)
    with _told_deleted(version):
        registry.journal.record(*deletion_fact(tombstone))


def _restore_safely(zoo: Zoo, stored: Stored) -> Version:
    """Restore it, under an intent, if its blobs are there; `stored` was read before."""
    record = stored.record
    assert isinstance(record, Tombstone)
    manifest = zoo.registry.versions.decoded(stored.kept_body, record.name, record.version)
    target = Target(name=record.name, version=record.version)
    with zoo.committer.protecting([target], set(manifest.blobs)):
        _require_blobs(zoo.blobs, manifest, zoo.url)
        return _restore(zoo.registry, stored)


def _restore(registry: Registry, stored: Stored) -> Version:
    """Mark the tombstone as lifted; return the version that is back."""
    before = stored.record
    assert isinstance(before, Tombstone)
    after = msgspec.structs.replace(
        before,
        write_id=new_ulid(),
        generation=before.generation + 1,
        at=now(),
        by=registry.by,
        why="",
    )
    token = _swap(registry, stored, after)
    found = registry.versions.opened(
        before.name, before.version, Stored(after, after.encode(), token)
    )
    assert found is not None
    version, manifest = found
    registry.journal.record(*live_fact(after, manifest, version.digest))
    return version


def _restore_again(zoo: Zoo, version: Version) -> None:
    """Take a deletion back. As an `undelete`, for a collection may have come in between."""
    stored = zoo.registry.versions.stored(version.name, version.version)
    if stored is not None and stored.live_body is None:
        _restore_safely(zoo, stored)
        # Another deleter may have moved `latest` below it meanwhile.
        zoo.registry.pointers.advance_latest(version, new_ulid())


def _unset(registry: Registry, version: Version, alias: Alias) -> None:
    """Remove an alias of a version that goes, unless it names another one by now."""
    why = f"{version} was deleted"
    with suppress(Conflict):
        registry.pointers.move_alias(version.name, alias, None, expected=version.version, why=why)


def _swap(registry: Registry, stored: Stored, after: Tombstone) -> Token:
    key = manifest_key(after.name, after.version)
    try:
        return registry.store.put(key, after.encode(), expect=stored.token)
    except Conflict:
        found = registry.versions.stored(after.name, after.version)
        if found is not None and found.record.write_id == after.write_id:
            return found.token  # our swap was accepted, and its reply was lost
        raise Conflict(
            f"{after.name}:{after.version} was changed by somebody else meanwhile, and is as they "
            "left it. Look again"
        ) from None


def _require_blobs(blobs: Blobs, manifest: Manifest, url: str) -> None:
    if missing := blobs.missing(list(manifest.blobs)):
        raise NotFound(
            f"{manifest.name}:{manifest.version} cannot come back: {len(missing)} of its "
            f"{len(manifest.blobs)} blobs are gone from {url}, the first is {missing[0].short}…"
        )
