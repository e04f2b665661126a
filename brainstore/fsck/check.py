"""One look at a whole zoo, or at one model: at everything but the bytes of blobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

from brainstore import marker
from brainstore.address import (
    GC_STATE_KEY,
    LATEST,
    MARKER_KEY,
    MODELS_PREFIX,
    SNAPSHOT_KEY,
    Alias,
    Digest,
    Name,
    Reference,
    blob_key,
    parse_blob_key,
    parse_manifest_key,
    parse_pointer_key,
    parse_report_key,
)
from brainstore.errors import Corrupt, NoZoo, Unsupported
from brainstore.fsck.comparison import index_findings, latest_findings, pointer_findings
from brainstore.fsck.findings import Course, Finding, Progress, Step
from brainstore.fsck.permissions import Permissions, permissions_of
from brainstore.fsck.quality import policy_findings, report_findings
from brainstore.fsck.remains import (
    age_s,
    intent_findings,
    leftover_findings,
    orphan_findings,
    stray_findings,
    under_way,
)
from brainstore.fsck.survey import Key, Survey, each, listing, stat_of, survey
from brainstore.fsck.unfinished import changing, half_made, is_of
from brainstore.records import GcState
from brainstore.storage.base import Stat
from brainstore.zoo import Zoo

STUCK_COLLECTION_S = 3600.0
SECOND_LOOK_S = 0.3
SHOWN_USERS = 8


class Check:
    """One look. `run` returns the findings; the rest says what they were found in.

    Attributes:
        survey: the records; with `leaves`, the forms of all leaves.
        blobs: the sizes of the blobs that were listed, or that the one model names.
        is_zoo: False where there is no zoo, or one of a newer format: nothing is to be
            judged there, nor mended.
        unfinished: what is not as it should be, and somebody may be at right now. No finding.
        permissions: what we may not read there.
    """

    def __init__(
        self, zoo: Zoo, name: Name | None, *, leaves: bool, progress: Progress | None = None
    ) -> None:
        self.zoo = zoo
        self.name = name
        self.survey = Survey()
        self.blobs: dict[Digest, int] = {}
        self.is_zoo = True
        self.unfinished: list[Finding] = []
        self.permissions = Permissions()
        self._leaves = leaves
        self._progress = progress
        self._records: list[str] = []
        self._reports: list[str] = []
        self._other: list[Stat] = []

    def run(self) -> list[Finding]:
        """Return what is not as it should be.

        Raises:
            NotFound: there is no model of this name.
        """
        self.permissions = permissions_of(self.zoo)
        if self.permissions.is_blind:
            return self.permissions.findings
        self._list()
        has_objects = bool(self._records or self._other or self.blobs)
        if not (self._records or self._reports or self.blobs or self.name):
            found = [*half_made(self.zoo, [stat.key for stat in self._other])]
            if found:
                self.is_zoo = False
                return found
        found = [*_marker(self.zoo, has_objects)]
        if any(each.kind == "newer" for each in found) or (found and not has_objects):
            self.is_zoo = False
            return found
        self.survey = survey(
            self.zoo, self.name, keys=self._records, leaves=self._leaves, progress=self._progress
        )
        if self.name is not None:
            self._stat_blobs()
        found += [*self.permissions.findings, *self._found()]
        self._require_model(found)
        return found

    def _found(self) -> Iterator[Finding]:
        yield from _links(self.zoo)
        yield from _collector(self.zoo)
        yield from policy_findings(self.zoo)
        yield from self.survey.findings
        yield from self._blob_findings()
        yield from self._pointers_and_index()
        yield from report_findings(self.zoo, self.survey, self._reports)
        yield from intent_findings(self.zoo)
        if self.name is None:
            yield from orphan_findings(self.zoo, self.blobs, self.survey, self._records)
            yield from leftover_findings(self.zoo)
        yield from stray_findings(self._other)

    def _list(self) -> None:
        """List the zoo: blobs with their sizes, and what may be the keys of records."""
        for stat in listing(self.zoo, f"{MODELS_PREFIX}{self.name}/" if self.name else ""):
            if digest := parse_blob_key(stat.key):
                self.blobs[digest] = stat.size_bytes
            elif parse_manifest_key(stat.key) or parse_pointer_key(stat.key):
                self._records.append(stat.key)
            elif parse_report_key(stat.key):
                self._reports.append(stat.key)
            else:
                self._other.append(stat)

    def _require_model(self, found: list[Finding]) -> None:
        seen = self.survey
        is_known = seen.versions or seen.damaged or seen.pointers or seen.damaged_pointers
        if self.name and not (is_known or any(each.kind == "index" for each in found)):
            self.zoo.registry.resolve(Reference(self.name, alias=Alias(LATEST)))

    def _stat_blobs(self) -> None:
        wanted = [*self.survey.users()]
        course = Course(Step("blobs", 0, len(wanted)))
        for stat in each(
            self.zoo, lambda digest: stat_of(self.zoo, blob_key(digest)), wanted, course
        ):
            if stat and (digest := parse_blob_key(stat.key)):
                self.blobs[digest] = stat.size_bytes

    def _blob_findings(self) -> list[Finding]:
        suspects: dict[tuple[Digest, int], list[Key]] = {}
        for key, seen in sorted(self.survey.versions.items(), key=lambda item: item[0]):
            for digest, size in seen.blobs.items():
                if self.blobs.get(digest) != size:
                    suspects.setdefault((digest, size), []).append(key)
        found = each(self.zoo, lambda suspect: self._blob_finding(*suspect), [*suspects.items()])
        return [finding for finding in found if finding is not None]

    def _blob_finding(self, wanted: tuple[Digest, int], users: list[Key]) -> Finding | None:
        # Listed before the manifests were read: it may be new, or its versions deleted.
        digest, size = wanted
        stat = stat_of(self.zoo, blob_key(digest))
        if stat is not None and stat.size_bytes == size:
            self.blobs[digest] = size
            return None
        names = [f"{name}:{number}" for name, number in users if _is_live(self.zoo, (name, number))]
        if not names:
            return None
        if stat is None:
            return missing_blob(digest, size, names)
        self.blobs[digest] = stat.size_bytes
        text = f"has {stat.size_bytes:,} bytes; {_some(names)} expect {size:,}. {_FETCH}"
        return Finding("blob-size", blob_key(digest), text, size_bytes=stat.size_bytes)

    def _pointers_and_index(self) -> list[Finding]:
        found = self._compared()
        if not found:
            return []
        # Somebody may have been at work between one read and the next.
        time.sleep(SECOND_LOOK_S)
        self.survey = survey(self.zoo, self.name, leaves=self._leaves, progress=self._progress)
        again = self._compared()
        # Texts tell versions: of a pointer that moves on, it is never the same one twice.
        return [finding for finding in found if finding in again]

    def _compared(self) -> list[Finding]:
        # In this order: a save removes its intent once it is in the index.
        models = changing(self.zoo)
        found = self._disagreements(under_way(self.zoo, self.survey))
        self.unfinished = [each for each in found if is_of(each, models)]
        return [each for each in found if each not in self.unfinished]

    def _disagreements(self, running: set[Key]) -> list[Finding]:
        pointers = [*pointer_findings(self.survey), *latest_findings(self.survey, running)]
        try:
            index = self.zoo.registry.journal.index()
        except Unsupported as error:
            return [*pointers, Finding("newer", SNAPSHOT_KEY, str(error))]
        except (Corrupt, NoZoo) as error:
            return [*pointers, Finding("index", SNAPSHOT_KEY, str(error))]
        return [*pointers, *index_findings(self.survey, index, self.name, running)]


_FETCH = "Fetch it from a zoo that has it: brainstore fsck --repair --from OTHER_ZOO"


def missing_blob(digest: Digest, size_bytes: int, users: list[str]) -> Finding:
    """Return the finding that a blob is gone which these versions need."""
    text = f"is missing, {size_bytes:,} bytes; needed by {_some(users)}. {_FETCH}"
    return Finding("blob-missing", blob_key(digest), text, size_bytes=size_bytes)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_USERS} more" if names[SHOWN_USERS:] else ""
    return ", ".join(names[:SHOWN_USERS]) + more


def _marker(zoo: Zoo, has_objects: bool) -> Iterator[Finding]:
    try:
        marker.require(zoo.store)
    except NoZoo as error:
        text = "is missing. Run: brainstore fsck --repair" if has_objects else str(error)
        yield Finding("marker", MARKER_KEY, text)
    except Unsupported as error:
        yield Finding("newer", MARKER_KEY, str(error))
    except Corrupt as error:
        yield Finding("marker", MARKER_KEY, f"{error}. Remove it, then: brainstore fsck --repair")


def _links(zoo: Zoo) -> Iterator[Finding]:
    for key in zoo.store.links():
        text = "is a symbolic link, which nothing follows. Put what it stands for in its place"
        yield Finding("link", key, text)


def _collector(zoo: Zoo) -> Iterator[Finding]:
    try:
        found = zoo.store.get(GC_STATE_KEY)
        if found is None:
            yield Finding("gc", GC_STATE_KEY, "is missing. Run: brainstore fsck --repair")
            return
        state = GcState.decode(found.body, GC_STATE_KEY)
    except (Corrupt, Unsupported) as error:
        text = f"{error}. When no collection runs, remove it, then: brainstore fsck --repair"
        yield Finding("gc", GC_STATE_KEY, text)
        return
    stat = zoo.store.stat(GC_STATE_KEY)
    if stat and state.state != "idle" and age_s(stat) > STUCK_COLLECTION_S:
        text = f"a collection has been {state.state} for {age_s(stat) / 3600:.0f} h; has its "
        text += f"process died? {_way_on(zoo, state)}"
        yield Finding("gc", GC_STATE_KEY, text)


def _way_on(zoo: Zoo, state: GcState) -> str:
    # On disk a lock, which the kernel frees, proves that a collector is dead.
    if state.state == "deleting" and zoo.store.path(GC_STATE_KEY) is None:
        return "If it has, for an hour: brainstore gc --yes --take-over"
    return "If so, the next one goes on by itself: brainstore gc --yes"


def _is_live(zoo: Zoo, key: Key) -> bool:
    with suppress(Corrupt, Unsupported):
        return zoo.registry.versions.live(*key) is not None
    return False
