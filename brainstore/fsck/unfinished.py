"""What somebody may be changing right now, or was when he died: no damage, and soon mended."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from brainstore.address import (
    INTENTS_PREFIX,
    Name,
    parse_intent_key,
    parse_pointer_key,
)
from brainstore.errors import Corrupt, Unsupported
from brainstore.fsck.survey import Finding
from brainstore.intents import ABANDONED_S
from brainstore.records import Intent
from brainstore.zoo import Zoo


def changing(zoo: Zoo) -> set[Name]:
    """Return the models of which somebody deletes, restores or syncs a version, or moves an alias.

    Who has died there is taken for alive for as long as others wait before they finish it.
    """
    found: set[Name] = set()
    for stat in zoo.store.list(INTENTS_PREFIX):
        is_fresh = time.time() - stat.modified_at < ABANDONED_S
        stored = zoo.store.get(stat.key) if is_fresh and parse_intent_key(stat.key) else None
        if stored is not None:
            with suppress(Corrupt, Unsupported):
                intent = Intent.decode(stored.body, stat.key)
                found |= {target.name for target in intent.targets if intent.exact}
    return found


def without_changing(findings: Iterable[Finding], models: set[Name]) -> list[Finding]:
    """Leave out where the records of these models disagree with each other, or the index."""
    return [
        finding
        for finding in findings
        if finding.kind not in ("index", "pointer", "latest") or _model(finding) not in models
    ]


def _model(finding: Finding) -> str:
    place = parse_pointer_key(finding.where)
    return place[0] if place else finding.where.rpartition(":")[0]
