"""Checking what promotions rely on: the reports on versions, and the policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from brainstore.address import POLICY_KEY
from brainstore.errors import Corrupt, Unsupported
from brainstore.factory.policy import in_force
from brainstore.factory.reports import read_report
from brainstore.fsck.findings import Finding
from brainstore.fsck.survey import Survey, each
from brainstore.zoo import Zoo

_HEAL = "Nothing is promoted past it; remove this object by hand"


def policy_findings(zoo: Zoo) -> Iterator[Finding]:
    """Yield a finding if there is a policy and it cannot be read."""
    try:
        in_force(zoo)
    except (Corrupt, Unsupported) as error:
        text = f"{error}. Nothing is promoted; remove it by hand, and set it again"
        yield Finding("policy", POLICY_KEY, text)


def report_findings(zoo: Zoo, seen: Survey, keys: Sequence[str]) -> list[Finding]:
    """Return a finding for each report that cannot be read, or is about other content."""
    found = each(zoo, lambda key: _finding(zoo, seen, key), keys)
    return [finding for finding in found if finding is not None]


def _finding(zoo: Zoo, seen: Survey, key: str) -> Finding | None:
    try:
        record = read_report(zoo, key)
    except (Corrupt, Unsupported) as error:
        return Finding("report", key, f"{error}. {_HEAL}")
    if record is None:
        return None
    place = (record.name, record.version)
    owner = seen.versions.get(place)
    if owner is None:
        text = f"reports on a version that never was. {_HEAL}"
        return None if place in seen.damaged else Finding("report", key, text)
    if owner.digest in (None, record.digest):
        return None
    text = (
        f"reports on the manifest {record.digest.short}…, and that of {record.name}:"
        f"{record.version} is {owner.digest.short}…. {_HEAL}"
    )
    return Finding("report", key, text)
