"""Why a blob is in a zoo: what names it, or since when nothing does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from brainstore import marker
from brainstore.address import (
    BLOBS_PREFIX,
    GC_STATE_KEY,
    INTENTS_PREFIX,
    Digest,
    blob_key,
    parse_blob_key,
    parse_digest_prefix,
    parse_intent_key,
)
from brainstore.errors import BadReference, Corrupt, NotFound, Unsupported
from brainstore.garbage.collector import DAY_S, store_time
from brainstore.garbage.live import Key, buried_body, require_record, versions
from brainstore.records import GcState, Intent, Manifest
from brainstore.storage.base import Stat
from brainstore.zoo import Zoo


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that names a blob, or may. `by`: version, deleted, intent, or unreadable.

    `where`: which one. `what`: what the blob is to it, such as params: dense_0/kernel.
    """

    by: str
    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Why:
    """A blob, what keeps it, and what follows.

    Attributes:
        digest: of the blob, which may hold the leaf that was asked for.
        size_bytes: None if the zoo does not hold it.
        age_s: since it was stored, in seconds; None if it is not there.
        reasons: what names it; what cannot be read may name it too, and is told.
        verdict: one sentence on what becomes of it.
    """

    digest: Digest
    size_bytes: int | None
    age_s: float | None
    reasons: tuple[Reason, ...]
    verdict: str


def why(zoo: Zoo, digest: str) -> Why:
    """Return what keeps a blob; `digest` is that of the blob, or of a leaf in it.

    Eight hex digits or more will do. Reads every record of the zoo.

    Raises:
        BadReference: it is no digest, or several blobs begin like that.
        NotFound: neither the zoo nor a record of it knows such a blob.
    """
    marker.require(zoo.store)
    wanted = parse_digest_prefix(digest)
    now = store_time(zoo.store, may_write=False)
    named = [reason for reasons in _asked(zoo, wanted, now) for reason in reasons]
    held = _held(zoo, wanted)
    blobs = sorted({blob for blob, _ in named if blob} | set(held))
    if not blobs:
        raise NotFound(
            f"{zoo.url}: no blob and no leaf begins with blake3:{wanted[:16]}. The digest of a "
            "version is that of its manifest, which is never collected: brainstore show"
        )
    if len(blobs) > 1:
        shown = ", ".join(f"{blob.short}…" for blob in blobs[:5])
        raise BadReference(f"digest {digest!r}: {len(blobs)} blobs begin like that: {shown}")
    blob, stat = blobs[0], held.get(blobs[0]) or zoo.store.stat(blob_key(blobs[0]))
    age_s = None if stat is None else max(0.0, now - stat.modified_at)
    reasons = tuple(dict.fromkeys(reason for _, reason in named))
    return Why(
        digest=blob,
        size_bytes=None if stat is None else stat.size_bytes,
        age_s=age_s,
        reasons=reasons,
        verdict=_verdict(reasons, age_s, is_condemned=blob in _condemned(zoo)),
    )


Named = tuple[Digest | None, Reason]
"""A blob, or None where a record cannot be read, and what names it."""


def _asked(zoo: Zoo, wanted: str, now: float) -> Iterator[list[Named]]:
    listed = list(versions(zoo))
    yield from zoo.in_parallel(lambda each: _of_version(zoo, *each, wanted, now), listed)
    for stat in zoo.store.list(INTENTS_PREFIX):
        yield _of_intent(zoo, stat, wanted)


def _of_version(zoo: Zoo, stat: Stat, key: Key, wanted: str, now: float) -> list[Named]:
    place = f"{key[0]}:{key[1]}"
    try:
        stored = require_record(zoo, key)
        body = stored.live_body
        is_live = body is not None
        if body is None:
            body = buried_body(stored, stat, deleted_before=now - DAY_S)
        if body is None:
            return []
        manifest = zoo.registry.versions.decoded(body, *key)
    except (Corrupt, Unsupported) as error:
        return [(None, Reason("unreadable", place, str(error)))]
    by = "version" if is_live else "deleted"
    return [(blob, Reason(by, place, what)) for blob, what in _uses(manifest, wanted)]


def _uses(manifest: Manifest, wanted: str) -> Iterator[tuple[Digest, str]]:
    """Yield (blob, what it is) for all that is wanted, leaf by leaf."""
    told = set()
    for name, group in manifest.groups.items():
        for leaf in group.leaves:
            is_asked = leaf.digest.hex.startswith(wanted)
            for blob in leaf.blobs():
                if is_asked or blob.hex.startswith(wanted):
                    told.add(blob)
                    yield blob, f"{name}: {leaf.path or 'the whole'}"
    for path, file in manifest.files.items():
        if file.blob.hex.startswith(wanted):
            told.add(file.blob)
            yield file.blob, f"the file {path}"
    for blob in manifest.blobs:
        if blob.hex.startswith(wanted) and blob not in told:
            yield blob, "listed"


def _of_intent(zoo: Zoo, stat: Stat, wanted: str) -> list[Named]:
    found = zoo.store.get(stat.key) if parse_intent_key(stat.key) else None
    if found is None:
        return []
    try:
        intent = Intent.decode(found.body, stat.key)
    except (Corrupt, Unsupported) as error:
        return [(None, Reason("unreadable", stat.key, str(error)))]
    targets = ", ".join(f"{each.name}:{each.version}" for each in intent.targets[:3])
    reason = Reason("intent", stat.key, f"{intent.by} is about to commit {targets}")
    return [(digest, reason) for digest in intent.digests if digest.hex.startswith(wanted)]


def _held(zoo: Zoo, wanted: str) -> dict[Digest, Stat]:
    """Return the blobs in the store whose digests begin like that."""
    listed = zoo.store.list(f"{BLOBS_PREFIX}{wanted[:2]}/")
    found = {digest: stat for stat in listed if (digest := parse_blob_key(stat.key))}
    return {digest: stat for digest, stat in found.items() if digest.hex.startswith(wanted)}


def _condemned(zoo: Zoo) -> tuple[Digest, ...]:
    found = zoo.store.get(GC_STATE_KEY)
    return GcState.decode(found.body, GC_STATE_KEY).condemned if found else ()


def _verdict(reasons: tuple[Reason, ...], age_s: float | None, *, is_condemned: bool) -> str:
    keepers = {reason.where for reason in reasons}
    if age_s is None:
        return "it is missing from the zoo. Run: brainstore fsck"
    if any(reason.by == "unreadable" for reason in reasons):
        return "it stays: what cannot be read may name it. Run: brainstore fsck"
    if is_condemned and not keepers:
        return "a collection is about to remove it"
    if keepers:
        return f"it stays: {len(keepers)} record{'s name' if len(keepers) > 1 else ' names'} it"
    if age_s < DAY_S:
        return "nothing names it; a collection removes it once it is a day old"
    return "nothing names it; it goes with the next: brainstore gc --yes"
