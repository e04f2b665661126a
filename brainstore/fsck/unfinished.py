"""What somebody may be at right now, or was at when he died: no damage, and soon mended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from brainstore.address import (
    GC_STATE_KEY,
    MARKER_KEY,
    PROBE_PREFIX,
    SNAPSHOT_KEY,
    Name,
    parse_pointer_key,
)
from brainstore.errors import Corrupt, Unsupported
from brainstore.fsck.findings import Finding
from brainstore.fsck.remains import FRESH_INTENT_S, age_s, intents
from brainstore.records import Snapshot
from brainstore.zoo import Zoo


def half_made(zoo: Zoo, keys: Iterable[str]) -> Iterator[Finding]:
    """Yield that somebody was making the zoo and has not come to the end, if these are its keys.

    Nothing is in it yet: its last object is made before the first save goes on.
    """
    found = set(keys)
    has_other = any(key not in _FIRST and not key.startswith(PROBE_PREFIX) for key in found)
    if not found or has_other or GC_STATE_KEY in found or not _is_blank(zoo):
        return
    text = "a zoo was being made here, or is right now. The next save makes it, or: brainstore init"
    yield Finding("leftover", MARKER_KEY, text, count=len(found))


_FIRST = (SNAPSHOT_KEY, MARKER_KEY)


def _is_blank(zoo: Zoo) -> bool:
    """Return whether the snapshot is the one that a zoo begins with, or is not there."""
    found = zoo.store.get(SNAPSHOT_KEY)
    try:
        return found is None or not Snapshot.decode(found.body, SNAPSHOT_KEY).models
    except (Corrupt, Unsupported):
        return False


def changing(zoo: Zoo) -> set[Name]:
    """Return the models of which somebody deletes, restores or syncs a version, or moves an alias.

    Who has died there is taken for alive for as long as others wait before they finish it.
    """
    found: set[Name] = set()
    for stat, intent in intents(zoo):
        if intent is not None and intent.exact and age_s(stat) < FRESH_INTENT_S:
            found |= {target.name for target in intent.targets}
    return found


def is_of(finding: Finding, models: set[Name]) -> bool:
    """True where the records of one of these disagree with each other, or with the index."""
    return finding.kind in ("index", "pointer", "latest") and _model(finding) in models


def _model(finding: Finding) -> str:
    place = parse_pointer_key(finding.where)
    return place[0] if place else finding.where.rpartition(":")[0]
