"""What crashes have left in a zoo, and what is nobody's: all of it harmless, but for one kind.

An intent that cannot be read may protect anything, so that nothing is collected while it
is here: that is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from brainstore.address import (
    BLOBS_PREFIX,
    DAMAGED_PREFIX,
    GC_STATE_KEY,
    INTENTS_PREFIX,
    MARKER_KEY,
    MODELS_PREFIX,
    POLICY_KEY,
    PROBE_PREFIX,
    SNAPSHOT_KEY,
    Digest,
    parse_fact_key,
    parse_intent_key,
    parse_manifest_key,
)
from brainstore.errors import Corrupt, ReadOnly, StoreUnavailable, Unsupported
from brainstore.fsck.findings import Finding
from brainstore.fsck.survey import Key, Survey, listing, survey
from brainstore.records import Intent
from brainstore.storage.base import Stat
from brainstore.zoo import Zoo

STALE_INTENT_S = 24 * 3600.0
FRESH_INTENT_S = 3600.0

_GC = "Once a day old, they are removed by: brainstore gc --yes"


def age_s(stat: Stat) -> float:
    return time.time() - stat.modified_at


def intents(zoo: Zoo) -> Iterator[tuple[Stat, Intent | None]]:
    """Yield every intent; None for one that cannot be read, or is another's."""
    for stat in listing(zoo, INTENTS_PREFIX):
        write_id = parse_intent_key(stat.key)
        found = zoo.store.get(stat.key) if write_id else None
        if found is not None:
            intent = None
            with suppress(Corrupt, Unsupported):
                intent = Intent.decode(found.body, stat.key)
            yield stat, intent if intent and intent.write_id == write_id else None


def intent_findings(zoo: Zoo) -> Iterator[Finding]:
    """Yield the intents that cannot be read, and those whose saves are dead."""
    for stat, intent in intents(zoo):
        if intent is None:
            text = "cannot be read, and may protect anything: nothing is collected while it is "
            text += "here. Remove it by hand once no save or sync from the time of "
            text += f"{_when(stat)} can be running"
            yield Finding("intent", stat.key, text)
        elif age_s(stat) > STALE_INTENT_S:
            names = ", ".join(f"{each.name}:{each.version}" for each in intent.targets[:3])
            text = f"a save or sync of {names or 'blobs'} died {age_s(stat) / 3600:.0f} h ago. "
            yield Finding("intent-expired", stat.key, f"{text}Resolve it: brainstore gc --yes")


def _when(stat: Stat) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(stat.modified_at))


def under_way(zoo: Zoo, seen: Survey) -> set[Key]:
    """Return the versions that a save or sync may be publishing right now."""
    fresh = [intent for stat, intent in intents(zoo) if intent and age_s(stat) < FRESH_INTENT_S]
    ids = {intent.write_id for intent in fresh}
    targets = {(target.name, target.version) for intent in fresh for target in intent.targets}
    return {key for key, each in seen.versions.items() if key in targets or each.write_ids & ids}


def orphan_findings(
    zoo: Zoo, blobs: Mapping[Digest, int], seen: Survey, listed: Iterable[str]
) -> Iterator[Finding]:
    """Yield one finding for all blobs that no version, tombstone or intent names.

    Where one of those cannot be read, nobody can tell.

    Args:
        blobs: the sizes of those that were listed, before `seen` was read.
        listed: the keys of the records that were listed with them.
    """
    left = set() if seen.damaged else blobs.keys() - seen.named()
    if left:
        # In this order: a commit moves what protects its blobs from intent to manifest.
        found = [intent for _, intent in intents(zoo)]
        newer = _newer(zoo, set(listed))
        named = {digest for intent in found if intent for digest in intent.digests}
        left = set() if None in found or newer.damaged else left - named - newer.named()
    if not left:
        return
    total = sum(blobs[digest] for digest in left)
    blobs_of = "a blob" if len(left) == 1 else f"{len(left):,} blobs"
    text = f"{blobs_of} of {total:,} bytes that no version, tombstone or intent names: "
    text += f"of saves that died or are under way, or garbage. {_GC}"
    yield Finding("orphan", BLOBS_PREFIX, text, count=len(left), size_bytes=total)


def _newer(zoo: Zoo, listed: set[str]) -> Survey:
    """Return what was committed since the records were listed."""
    keys = [stat.key for stat in listing(zoo, MODELS_PREFIX) if stat.key not in listed]
    return survey(zoo, keys=[key for key in keys if parse_manifest_key(key)])


def leftover_findings(zoo: Zoo) -> Iterator[Finding]:
    """Yield one finding for all that unfinished writes have left."""
    try:
        left = sorted(zoo.store.leftovers(), key=lambda stat: stat.modified_at)
    except (StoreUnavailable, ReadOnly, Unsupported) as error:
        # To list uploads is a right of its own, and not every server can.
        yield Finding("leftover", BLOBS_PREFIX, f"unfinished writes cannot be listed: {error}")
        return
    if left:
        total, hours = sum(stat.size_bytes for stat in left), age_s(left[0]) / 3600
        more = f"this and {len(left) - 1:,} more were" if left[1:] else "was"
        text = f"{more} left by writes that died, or are under way; the oldest {hours:.0f} h ago"
        text += f", {total:,} bytes" if total else ""
        yield Finding("leftover", left[0].key, f"{text}. {_GC}", count=len(left), size_bytes=total)


def stray_findings(stats: Iterable[Stat]) -> Iterator[Finding]:
    """Yield those of these objects, which are no blobs and no records, that have no place."""
    for stat in stats:
        if text := _stray_text(stat.key):
            yield Finding("stray", stat.key, text, size_bytes=stat.size_bytes)


def _stray_text(key: str) -> str:
    """Return what to say of a key that is no record and no blob; nothing if it has a place."""
    if key in (MARKER_KEY, SNAPSHOT_KEY, GC_STATE_KEY, POLICY_KEY):
        return ""
    if parse_fact_key(key) is not None or parse_intent_key(key) is not None:
        return ""
    if key.startswith(DAMAGED_PREFIX):
        return "what a repair found damaged and moved here; remove it when it is not needed"
    if key.startswith(PROBE_PREFIX):
        return "left by a probe of the store; may be removed"
    if key.startswith(BLOBS_PREFIX):
        return "lies among the blobs, but is not named like one"
    return "is nothing of brainstore's, and is left alone"
