"""Who saved, judged, deleted, restored and moved what, told by the records themselves.

Manifests tell of saves, tombstones of the last deletion or restoration as well as of the
save before it, pointers of their last 32 moves, reports of themselves, the policy of its
last 32 changes. Nothing is written for this, and the index is not needed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from brainstore import settings
from brainstore.address import (
    LATEST,
    MODELS_PREFIX,
    POLICY_KEY,
    Alias,
    Name,
    Reference,
    parse_manifest_key,
    parse_pointer_key,
    parse_report_key,
    report_key,
)
from brainstore.errors import BadReference, Corrupt, StoreUnavailable, Unsupported
from brainstore.factory.reports import decoded, require_pin
from brainstore.quality import Gate, QualityReport
from brainstore.records import Manifest, Move, Pointer, Policy, Tombstone, now
from brainstore.registry import Registry
from brainstore.storage.base import Stat
from brainstore.versions import Version


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that somebody did.

    Attributes:
        at: when, in UTC, as RFC 3339.
        by: who, as `user@host`; empty where no record tells.
        what: "saved", "reported s3 passed" (by a station, or "failed"), "deleted", "restored",
            "moved 1 → 2" (an alias, or `latest` backwards), "promoted 1 → 2" (through a
            gate), "removed" (an alias), "set policy 3", "closed" (a number, by a collection)
            or "unreadable" (a damaged record, as old as its object).
        ref: the version or alias that it was done to, such as ppo_swarm:3; or the policy.
        why: the reason that was given, or what is wrong with the record.
        from_version, to_version: of a move: from where to where; None is nowhere.
        gate: of a move that a policy guards: by which policy and which reports.
    """

    at: str
    by: str
    what: str
    ref: str
    why: str = ""
    from_version: int | None = None
    to_version: int | None = None
    gate: Gate | None = None

    @property
    def grounds(self) -> str:
        """The reason that was given, and the gate."""
        return "; ".join(str(each) for each in (self.why, self.gate) if each)

    def __str__(self) -> str:
        why = f" ({self.grounds})" if self.grounds else ""
        return f"{self.at}  {self.by or '?'}  {self.ref} {self.what}{why}"


def history(registry: Registry, name: Name | None) -> list[Happening]:
    """Return what happened to a model, or to all of them, oldest first.

    Of a version that was deleted several times, only the last deletion or restoration is
    known. Records that are damaged are told of as such; `fsck` says more.

    Raises:
        NotFound: there was never such a model.
        StoreUnavailable: the store does not answer.
    """
    entries = registry.store.list(f"{MODELS_PREFIX}{name}/" if name else MODELS_PREFIX)
    reads = [read for entry in entries if (read := _read(registry, name, entry))]
    if name and not reads:
        registry.resolve(Reference(name, alias=Alias(LATEST)))
    with ThreadPoolExecutor(registry.store.parallelism) as pool:
        found = [happening for told in pool.map(lambda read: read(), reads) for happening in told]
    found += [] if name else _of_policy(registry)
    # Keys come in the order of their names, and the sort keeps it among equal times; only a
    # version is saved before anything else can happen to it.
    return sorted(found, key=lambda each: (each.at, each.what != "saved"))


Read = Callable[[], list[Happening]]


def _read(registry: Registry, name: Name | None, entry: Stat) -> Read | None:
    """Return how to read what the object tells, or None if it tells nothing of the model."""
    try:
        of_version, of_pointer = parse_manifest_key(entry.key), parse_pointer_key(entry.key)
        of_report = parse_report_key(entry.key)
    except BadReference:
        return None  # somebody else's object; fsck names it
    if of_version and name in (None, of_version[0]):
        ref = f"{of_version[0]}:{of_version[1]}"
        return partial(_told, partial(_of_version, registry, *of_version), ref, entry)
    if of_pointer and name in (None, of_pointer[0]):
        ref = f"{of_pointer[0]}:{of_pointer[1]}"
        return partial(_told, partial(_of_pointer, registry, *of_pointer), ref, entry)
    if of_report and name in (None, of_report[0]):
        ref = f"{of_report[0]}:{of_report[1]}"
        return partial(_told, partial(_of_report, registry, *of_report), ref, entry)
    return None


def _told(read: Read, ref: str, entry: Stat) -> list[Happening]:
    try:
        return read()
    except (Corrupt, Unsupported) as error:
        at = datetime.fromtimestamp(entry.modified_at, UTC).isoformat(timespec="milliseconds")
        return [Happening(at.replace("+00:00", "Z"), "", "unreadable", ref, str(error))]


def _of_version(registry: Registry, name: Name, number: int) -> list[Happening]:
    stored = registry.versions.stored(name, number)
    if stored is None:
        return []
    record, ref = stored.record, f"{name}:{number}"
    if isinstance(record, Manifest):
        return _saved(record)
    if record.is_fence:
        return [Happening(record.at, record.by, "closed", ref, record.why)]
    return [*_told_inside(registry, record), _of_tombstone(record, ref)]


def _told_inside(registry: Registry, record: Tombstone) -> list[Happening]:
    try:
        body = bytes(record.record)
        return _saved(registry.versions.decoded(body, record.name, record.version))
    except (Corrupt, Unsupported) as error:
        ref = f"{record.name}:{record.version}"
        return [Happening(record.at, "", "unreadable", ref, str(error))]


def _saved(manifest: Manifest) -> list[Happening]:
    ref = f"{manifest.name}:{manifest.version}"
    saved = Happening(manifest.created_at, manifest.by, "saved", ref)
    if manifest.report is None:
        return [saved]
    return [saved, _reported(manifest.created_at, manifest.by, ref, manifest.report)]


def _reported(at: str, by: str, ref: str, report: QualityReport) -> Happening:
    checks = ", ".join(map(str, report.checks)) or "no checks"
    return Happening(at, by, f"reported {report.station} {report.verdict}", ref, checks)


def _of_report(registry: Registry, name: Name, number: int, ulid: str) -> list[Happening]:
    key, url = report_key(name, number, ulid), registry.store.url
    found = registry.store.get(key)
    if found is None:
        return []
    record = decoded(found.body, key, url)
    stored = registry.versions.stored(name, number)
    if stored is None or stored.digest is None:
        raise Corrupt(f"{url}/{key} reports on a version that never was. Run: brainstore fsck")
    require_pin(url, record, Version(name, number, stored.digest))
    return [_reported(record.at, record.by, f"{name}:{number}", record.report)]


def _of_policy(registry: Registry) -> list[Happening]:
    try:
        found = registry.store.get(POLICY_KEY)
        policy = Policy.decode(found.body, POLICY_KEY) if found else None
    except (Corrupt, Unsupported) as error:
        return [Happening(now(), "", "unreadable", "policy", str(error))]
    except StoreUnavailable:
        if not settings.is_offline():
            raise
        return []  # the cache remembers what it read, but not that there was nothing
    return [
        Happening(each.at, each.by, f"set policy {each.generation}", "policy", each.why)
        for each in (policy.changes if policy else ())
    ]


def _of_tombstone(record: Tombstone, ref: str) -> Happening:
    what = "deleted" if record.is_deleted else "restored"
    return Happening(record.at, record.by, what, ref, record.why)


def _of_pointer(registry: Registry, name: Name, alias: Alias) -> list[Happening]:
    found = registry.pointers.pointer(name, alias)
    if found is None:
        return []
    return [_moved(found[0], move) for move in found[0].moves if _tells(alias, move)]


def _tells(alias: Alias, move: Move) -> bool:
    """Every save moves `latest` on; only its moves back are news."""
    return alias != LATEST or (move.to_version or 0) < (move.from_version or 0)


def _moved(pointer: Pointer, move: Move) -> Happening:
    to, gate = move.to_version, move.gate
    verb = "promoted" if gate and not gate.is_forced else "moved"
    return Happening(
        at=move.at,
        by=move.by,
        what="removed" if to is None else f"{verb} {move.from_version or 'nothing'} → {to}",
        ref=f"{pointer.name}:{pointer.ref}",
        why=move.why,
        from_version=move.from_version,
        to_version=to,
        gate=gate,
    )
