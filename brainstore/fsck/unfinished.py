"""What somebody may be changing right now, or was when he died: no damage, and soon mended."""

from __future__ import annotations

from collections.abc import Iterable

from brainstore.address import Name, parse_pointer_key
from brainstore.fsck.findings import Finding
from brainstore.fsck.remains import FRESH_INTENT_S, age_s, intents
from brainstore.zoo import Zoo


def changing(zoo: Zoo) -> set[Name]:
    """Return the models of which somebody deletes, restores or syncs a version, or moves an alias.

    Who has died there is taken for alive for as long as others wait before they finish it.
    """
    found: set[Name] = set()
    for stat, intent in intents(zoo):
        if intent is not None and intent.exact and age_s(stat) < FRESH_INTENT_S:
            found |= {target.name for target in intent.targets}
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
