"""Quality reports: filed with a save or after it, never changed, read in the order of filing.

A report that comes with the save is part of the manifest. A later one is an object of its
own below the version, created once, that pins the manifest's digest: it says nothing of
any other content. What cannot be read, or pins something else, is an error and not passed
over, because it may be the newest, and the one that failed.
"""

from __future__ import annotations

from msgspec.structs import replace

from brainstore.address import (
    Reference,
    parse_report_key,
    report_key,
    reports_prefix,
    ulid_after,
)
from brainstore.errors import AlreadyExists, Conflict, Corrupt, NotFound
from brainstore.provenance import author
from brainstore.quality import QualityReport
from brainstore.records import Manifest, StoredReport, now
from brainstore.storage.base import ABSENT
from brainstore.versions import Version
from brainstore.zoo import Zoo

ATTEMPTS = 16


def identified(report: QualityReport, after: str = "") -> QualityReport:
    """Return the report with an id of its own, and with who and when where it lacks them.

    The id sorts after `after`.
    """
    return replace(report, id=ulid_after(after), by=report.by or author(), at=report.at or now())


def add_report(zoo: Zoo, reference: Reference, report: QualityReport) -> QualityReport:
    """File a report on a version; return it as it is filed.

    Atomic and durable once it returns. A report on a version that is deleted meanwhile
    stays with it, and is there again when it comes back.

    Raises:
        NotFound: there is no such version; nothing was stored.
        Conflict: others filed reports at the same moment, again and again.
    """
    version = zoo.registry.resolve(reference)
    # An alias, or a manifest in the cache, does not tell whether it is there by now.
    if not zoo.registry.versions.is_live(version):
        zoo.registry.by_number(version.name, version.version)
        raise NotFound(f"{version}@{version.digest.short}… is not in {zoo.url} any more")
    for _ in range(ATTEMPTS):
        # By the ids that are there, and not by clocks: the last that was filed is the newest.
        filed = identified(report, max(_ids(zoo, version), default=""))
        try:
            zoo.store.put(*_object(zoo, version, filed), expect=ABSENT)
        except AlreadyExists:
            continue  # another report was filed at the same moment
        return filed
    raise Conflict(f"{version}: others kept filing reports; ours was not stored. Try again")


def _object(zoo: Zoo, version: Version, filed: QualityReport) -> tuple[str, bytes]:
    record = StoredReport(
        name=version.name,
        version=version.version,
        digest=version.digest,
        at=now(),
        by=zoo.registry.by,
        report=filed,
    )
    return report_key(version.name, version.version, filed.id), record.encode_readable()


def _ids(zoo: Zoo, version: Version) -> list[str]:
    """Return the ids of the reports that were filed after the save, in their order."""
    stats = zoo.store.list(reports_prefix(version.name, version.version))
    return [parsed[2] for stat in stats if (parsed := parse_report_key(stat.key))]


def reports_on(zoo: Zoo, version: Version, manifest: Manifest) -> list[QualityReport]:
    """Return all reports on a version in the order of filing: first the save's own.

    Raises:
        Corrupt: a report is damaged, or pins another manifest.
    """
    own = [manifest.report] if manifest.report else []
    return [*own, *(found.report for found in stored_reports(zoo, version))]


def stored_reports(zoo: Zoo, version: Version) -> list[StoredReport]:
    """Return the reports that were filed after the save. Errors as for `reports_on`."""
    keys = [report_key(version.name, version.version, ulid) for ulid in _ids(zoo, version)]
    found = zoo.in_parallel(lambda key: read_report(zoo, key), keys)
    records = [record for record in found if record is not None]
    for record in records:
        require_pin(zoo.url, record, version)
    return records


def read_report(zoo: Zoo, key: str) -> StoredReport | None:
    """Return the report under this key, checked to belong there; None if there is none.

    Raises:
        Corrupt: it is damaged, or belongs elsewhere.
    """
    found = zoo.store.get(key)
    return None if found is None else decoded(found.body, key, zoo.url)


def decoded(body: bytes, key: str, url: str) -> StoredReport:
    """Return the report in `body`, checked to belong under `key`. Errors as `read_report`."""
    record = StoredReport.decode(body, f"{url}/{key}")
    if (record.name, record.version, record.report.id) != parse_report_key(key):
        raise Corrupt(
            f"{url}/{key} holds report {record.report.id or 'without id'} on {record.name}:"
            f"{record.version}. Run: brainstore fsck"
        )
    return record


def require_pin(url: str, record: StoredReport, version: Version) -> None:
    """Raise Corrupt unless the report is about exactly this manifest."""
    if record.digest != version.digest:
        key = report_key(record.name, record.version, record.report.id)
        raise Corrupt(
            f"{url}/{key} reports on the manifest {record.digest.short}…, and {version} has "
            f"{version.digest.short}…. It was carried there; remove it by hand"
        )
