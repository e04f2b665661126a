"""What `fsck` does, and in which order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from brainstore import marker
from brainstore.address import Digest, Name, parse_blob_key
from brainstore.errors import BadParams
from brainstore.fsck.check import Check
from brainstore.fsck.content import Content
from brainstore.fsck.findings import Finding, Progress
from brainstore.fsck.repair import mend
from brainstore.fsck.rescue import Rescue
from brainstore.sync.run import refuse_same_place
from brainstore.zoo import Zoo


def fsck(
    zoo: Zoo,
    *,
    name: str | None = None,
    quick: bool = False,
    repair: bool = False,
    source: Zoo | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Return everything that is not as it should be; nothing, for a healthy zoo.

    Costs a listing, a read of every record and, unless `quick`, of every blob; never more
    memory than the records take and 48 MiB. `is_damage` tells a finding that is wrong still
    from one that is harmless, or was repaired.

    Args:
        name: look at the versions of this model only.
        quick: do not read blobs; what is missing, or has another size, is found all the same.
        repair: mend what follows from the records: marker, collector's state, pointers
            that cannot be read, `latest`, versions whose saver died, the index, and blobs
            that may be written. A blob of other bytes than its name says is moved to
            `damaged/`: nothing loads it anyway, and only so can it be stored again.
            Nothing else is rewritten or removed.
        source: another zoo, for `repair` to fetch from, verified by digest, what is missing
            here or was moved aside. A manifest that cannot be read is put back if the index,
            a pointer or another version says its digest and that zoo has those bytes.
        progress: called with each step, from several threads, one at a time.

    Raises:
        NotFound: there is no model of this name, or `source` is no zoo.
        BadParams: `source` is this very zoo, or nothing is to be repaired from it.
        StoreUnavailable, ReadOnly: a store failed; damage raises nothing.
    """
    if source is not None:
        if not repair:
            raise BadParams("source: is for repair=True; without it nothing is fetched")
        marker.require(source.store)
        refuse_same_place(source, zoo)
    work = _Work(zoo, None if name is None else Name(name), quick, source, progress)
    return work.repaired() if repair else work.checked()


class _Work:
    """One run: looks, and what is done between them."""

    def __init__(
        self,
        zoo: Zoo,
        name: Name | None,
        quick: bool,
        source: Zoo | None,
        progress: Progress | None,
    ) -> None:
        self._zoo = zoo
        self._name = name
        self._quick = quick
        self._progress = progress
        self._rescue = Rescue(zoo, source, progress) if source else None

    def checked(self) -> list[Finding]:
        check, found = self._look()
        return found if self._quick else _merged(found, self._read(check, set(check.blobs)))

    def repaired(self) -> list[Finding]:
        check, before = self._look()
        if not check.is_zoo or check.permissions.is_blind:
            return before
        check, found = self._mended(check, before)
        # Who is in a hurry has only those read that are about to be moved.
        suspects = {d for each in found if each.kind == "blob-size" and (d := _digest_of(each))}
        content = self._read(check, suspects if self._quick else set(check.blobs), repair=True)
        found = _merged(found, content)
        return self._rescue.fetched(found, check.survey) if self._rescue else found

    def _look(self) -> tuple[Check, list[Finding]]:
        check = Check(self._zoo, self._name, leaves=not self._quick, progress=self._progress)
        return check, check.run()

    def _mended(self, check: Check, before: list[Finding]) -> tuple[Check, list[Finding]]:
        """Mend what follows from the records; return the look after, and all findings."""
        notes: dict[str, str] = {}
        after = before
        if self._rescue and check.survey.damaged:
            notes = self._rescue.put_back(check.survey)
            check, after = self._look()
        is_wrong = any(finding.is_damage or finding.kind == "writable" for finding in after)
        if is_wrong or check.unfinished:
            check.permissions.close_blobs()
            # Mending is safe beside those who may be at it, and they may be dead.
            mend(self._zoo, [*after, *check.unfinished], check.survey)
            check, after = self._look()
        return check, [_noted(each, notes) for each in _compared(before, after)]

    def _read(
        self, check: Check, digests: Collection[Digest], *, repair: bool = False
    ) -> list[Finding]:
        if not check.is_zoo or check.permissions.is_blind:
            return []
        wanted = set(digests) - check.permissions.unreadable
        if self._name is not None:
            wanted &= check.survey.named()
        sizes = {digest: check.blobs[digest] for digest in wanted}
        return Content(
            self._zoo, sizes, check.survey, repair=repair, progress=self._progress
        ).findings()


def _compared(before: list[Finding], after: list[Finding]) -> list[Finding]:
    """Return what was found before, as it is after a repair, and what has come up since.

    What is wrong no more was repaired. What was harmless and is gone was somebody else's.
    """
    left: dict[tuple[str, str], list[Finding]] = {}
    for each in after:
        left.setdefault((each.kind, each.where), []).append(each)
    now, found = set(left), list[Finding]()
    for each in before:
        key = (each.kind, each.where)
        if key in now:
            found += left.pop(key, [])
        elif not each.is_harmless or each.kind == "writable":
            found.append(replace(each, repaired=True))
    return found + [each for group in left.values() for each in group]


def _merged(found: list[Finding], content: list[Finding]) -> list[Finding]:
    """Return both; of a blob that was read and is damaged, its size says nothing more."""
    damaged = {each.where for each in content if each.kind == "blob-damaged"}
    kept = [each for each in found if each.kind != "blob-size" or each.where not in damaged]
    return kept + content


def _noted(finding: Finding, notes: dict[str, str]) -> Finding:
    note = notes.get(finding.where)
    if note is None or finding.repaired or finding.kind != "manifest":
        return finding
    return replace(finding, text=f"{finding.text}. Not put back: {note}")


def _digest_of(finding: Finding) -> Digest | None:
    return parse_blob_key(finding.where)
