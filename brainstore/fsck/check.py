"""The checks, one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from brainstore import marker
from brainstore.address import (
    BLOBS_PREFIX,
    DAMAGED_PREFIX,
    GC_STATE_KEY,
    INTENTS_PREFIX,
    LATEST,
    MARKER_KEY,
    MODELS_PREFIX,
    POLICY_KEY,
    PROBE_PREFIX,
    SNAPSHOT_KEY,
    Alias,
    Digest,
    Name,
    Reference,
    blob_key,
    intent_key,
    parse_blob_key,
    parse_fact_key,
    parse_intent_key,
    parse_manifest_key,
    parse_pointer_key,
    parse_report_key,
    pointer_key,
)
from brainstore.errors import (
    Corrupt,
    NoZoo,
    Unsupported,
)
from brainstore.fsck.content import Content
from brainstore.fsck.quality import policy_findings, report_findings
from brainstore.fsck.repair import mend
from brainstore.fsck.survey import Finding, Key, Survey, each, survey
from brainstore.fsck.unfinished import changing, without_changing
from brainstore.index import Index, Row
from brainstore.records import GcState, Intent
from brainstore.storage.base import Stat
from brainstore.zoo import Zoo

STALE_INTENT_S = 24 * 3600.0
STUCK_COLLECTION_S = 3600.0
SECOND_LOOK_S = 0.3
SHOWN_USERS = 8


def fsck(
    zoo: Zoo, *, name: str | None = None, deep: bool = False, repair: bool = False
) -> list[Finding]:
    """Return everything that is not as it should be; nothing, for a healthy zoo.

    Costs a listing and a read of every record; never more memory than the records take
    and 48 MiB.

    Args:
        name: look at the versions of this model only.
        deep: read all blobs, hash them, and compare their headers with the manifests.
        repair: mend what follows from the records: marker, collector's state, pointers
            that cannot be read, `latest`, versions whose saver died, and the index. With
            `deep`, a blob of other bytes than its name says is moved to `damaged/`:
            nothing loads it anyway, and only so can a save or a pull store it again.
            Manifests and blobs are never rewritten or removed.

    Raises:
        NotFound: there is no model of this name.
        StoreUnavailable, ReadOnly: the store failed; damage raises nothing.
    """
    check = _Check(zoo, None if name is None else Name(name), deep)
    findings = check.run()
    if check.name and not (findings or check.survey.versions):
        zoo.registry.resolve(Reference(check.name, alias=Alias(LATEST)))
    if repair and any(not finding.is_harmless for finding in findings):
        mend(zoo, findings, check.survey)
        check = _Check(zoo, check.name, deep)
        left = {(finding.kind, finding.where) for finding in check.run()}
        findings = [
            replace(each, repaired=(each.kind, each.where) not in left) for each in findings
        ]
    if deep and check.is_zoo:
        blobs = (
            check.blobs
            if name is None
            else {d: check.blobs[d] for d in check.users if d in check.blobs}
        )
        findings += Content(zoo, blobs, check.survey, repair=repair).findings()
    return findings


class _Check:
    """One look at everything but the blobs' bytes."""

    def __init__(self, zoo: Zoo, name: Name | None, deep: bool) -> None:
        self.zoo = zoo
        self.name = name
        self.survey = Survey()
        self.blobs: dict[Digest, int] = {}
        self.users: dict[Digest, list[str]] = {}
        self.is_zoo = True
        self._deep = deep
        self._other: list[Stat] = []
        self._reports: list[str] = []

    def run(self) -> list[Finding]:
        records = self._listed()
        has_objects = bool(records or self._other or self.blobs)
        found = [*_marker(self.zoo, has_objects)]
        if any(each.kind == "newer" for each in found) or (found and not has_objects):
            self.is_zoo = False
            return found
        self.survey = survey(self.zoo, self.name, keys=records, leaves=self._deep)
        self.users = self.survey.users()
        if self.name is not None:
            self._stat_blobs()
        return [
            *found,
            *_collector(self.zoo),
            *policy_findings(self.zoo),
            *self.survey.findings,
            *self._missing_blobs(),
            *self._pointers_and_index(),
            *report_findings(self.zoo, self.survey, self._reports),
            *_stale_intents(self.zoo),
            *self._strays(),
        ]

    def _listed(self) -> list[str]:
        """List the zoo; return the keys of records, and keep the blobs' sizes."""
        prefix = f"{MODELS_PREFIX}{self.name}/" if self.name else ""
        records = []
        for stat in self.zoo.store.list(prefix):
            if digest := parse_blob_key(stat.key):
                self.blobs[digest] = stat.size_bytes
            elif parse_manifest_key(stat.key) or parse_pointer_key(stat.key):
                records.append(stat.key)
            elif parse_report_key(stat.key):
                self._reports.append(stat.key)
            else:
                self._other.append(stat)
        return records

    def _stat_blobs(self) -> None:
        store = self.zoo.store
        for stat in each(self.zoo, lambda d: store.stat(blob_key(d)), list(self.users)):
            if stat and (digest := parse_blob_key(stat.key)):
                self.blobs[digest] = stat.size_bytes

    def _missing_blobs(self) -> list[Finding]:
        suspects: dict[tuple[Digest, int], list[Key]] = {}
        for key, seen in sorted(self.survey.versions.items(), key=lambda item: item[0]):
            for digest, size in seen.blobs.items():
                if self.blobs.get(digest) != size:
                    suspects.setdefault((digest, size), []).append(key)
        found = each(self.zoo, lambda suspect: self._blob_finding(*suspect), [*suspects.items()])
        return [finding for finding in found if finding is not None]

    def _blob_finding(self, wanted: tuple[Digest, int], users: list[Key]) -> Finding | None:
        # Listed before the manifests were read: it may be new, or its versions deleted.
        (digest, size), key = wanted, blob_key(wanted[0])
        stat = self.zoo.store.stat(key)
        if stat is not None and stat.size_bytes == size:
            self.blobs[digest] = size
            return None
        names = [f"{name}:{number}" for name, number in users if _is_live(self.zoo, (name, number))]
        if not names:
            return None
        need = ", ".join(names[:SHOWN_USERS]) + (" and more" if names[SHOWN_USERS:] else "")
        heal = f"Copy it from another zoo: brainstore pull OTHER_ZOO {names[0]}"
        if stat is None:
            return Finding("blob-missing", key, f"is missing; needed by {need}. {heal}")
        text = f"has {stat.size_bytes:,} bytes; {need} expect {size:,}. {_ASIDE}{heal}"
        return Finding("blob-size", key, text)

    def _pointers_and_index(self) -> list[Finding]:
        found = self._compared()
        if not found:
            return []
        # Somebody may have been at work between one read and the next.
        time.sleep(SECOND_LOOK_S)
        self.survey = survey(self.zoo, self.name, leaves=self._deep)
        again = {(finding.kind, finding.where): finding for finding in self._compared()}
        return [again[key] for key in ((f.kind, f.where) for f in found) if key in again]

    def _compared(self) -> list[Finding]:
        # In this order: a save removes its intent once it is in the index.
        models = changing(self.zoo)
        return without_changing(self._disagreements(_under_way(self.zoo, self.survey)), models)

    def _disagreements(self, under_way: set[Key]) -> list[Finding]:
        pointers = [*_pointers(self.survey), *_latest(self.survey, under_way)]
        try:
            index = self.zoo.registry.journal.index()
        except Unsupported as error:
            return [*pointers, Finding("newer", SNAPSHOT_KEY, str(error))]
        except (Corrupt, NoZoo) as error:
            return [*pointers, Finding("index", SNAPSHOT_KEY, str(error))]
        return [*pointers, *_index(self.survey, index, self.name, under_way)]

    def _strays(self) -> Iterator[Finding]:
        for stat in self._other:
            if text := _stray_text(stat.key):
                # A name of a file may be bytes that are no text.
                where = stat.key.encode(errors="backslashreplace").decode()
                yield Finding("stray", where, text)


_ASIDE = "Run: brainstore fsck --deep --repair, which moves it aside. "


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


def _collector(zoo: Zoo) -> Iterator[Finding]:
    found = zoo.store.get(GC_STATE_KEY)
    if found is None:
        yield Finding("gc", GC_STATE_KEY, "is missing. Run: brainstore fsck --repair")
        return
    try:
        state = GcState.decode(found.body, GC_STATE_KEY)
    except (Corrupt, Unsupported) as error:
        text = f"{error}. When no collection runs, remove it, then: brainstore fsck --repair"
        yield Finding("gc", GC_STATE_KEY, text)
        return
    stat = zoo.store.stat(GC_STATE_KEY)
    if stat and state.state != "idle" and _age_s(stat) > STUCK_COLLECTION_S:
        hours = _age_s(stat) / 3600
        text = f"a collection has been {state.state} for {hours:.0f} h; has its process died?"
        yield Finding("gc", GC_STATE_KEY, text)


def _age_s(stat: Stat) -> float:
    return time.time() - stat.modified_at


def _is_live(zoo: Zoo, key: Key) -> bool:
    with suppress(Corrupt, Unsupported):
        return zoo.registry.versions.live(*key) is not None
    return False


def _intents(zoo: Zoo) -> Iterator[tuple[Stat, Intent | None]]:
    """Yield every intent; None for one that cannot be read."""
    for stat in zoo.store.list(INTENTS_PREFIX):
        if parse_intent_key(stat.key) is None:
            yield stat, None
            continue
        found = zoo.store.get(stat.key)
        if found is not None:
            try:
                yield stat, Intent.decode(found.body, stat.key)
            except (Corrupt, Unsupported):
                yield stat, None


def _stale_intents(zoo: Zoo) -> Iterator[Finding]:
    for stat, intent in _intents(zoo):
        if intent is None or intent_key(intent.write_id) != stat.key:
            yield Finding("intent", stat.key, "cannot be read; a collection will judge it")
        elif _age_s(stat) > STALE_INTENT_S:
            names = ", ".join(f"{each.name}:{each.version}" for each in intent.targets[:3])
            text = f"a save or sync of {names} died {_age_s(stat) / 3600:.0f} h ago; gc removes it"
            yield Finding("intent", stat.key, text)


def _under_way(zoo: Zoo, seen: Survey) -> set[Key]:
    """Return the versions that a save or sync may be publishing right now."""
    fresh = [i for stat, i in _intents(zoo) if i and _age_s(stat) < STUCK_COLLECTION_S]
    ids = {intent.write_id for intent in fresh}
    targets = {(target.name, target.version) for intent in fresh for target in intent.targets}
    return {key for key, each in seen.versions.items() if key in targets or each.write_ids & ids}


def _pointers(seen: Survey) -> Iterator[Finding]:
    """Yield pointers that name what is not there, or is something else."""
    for (name, alias), pointer in sorted(seen.pointers.items(), key=lambda item: item[0]):
        key = (name, pointer.version or 0)
        if pointer.version is None or key in seen.damaged:
            continue
        version = seen.versions.get(key)
        if version is None or version.digest is None:
            text = (
                f"names {name}:{pointer.version}, which {'is deleted' if version else 'never was'}"
            )
        elif version.digest != pointer.digest:
            text = f"names another manifest than that of {name}:{pointer.version}"
        else:
            continue
        mend = (
            "brainstore fsck --repair" if alias == LATEST else f"brainstore alias {name}:… {alias}"
        )
        yield Finding("pointer", pointer_key(name, alias), f"{text}. Mend it: {mend}")


def _latest(seen: Survey, under_way: set[Key]) -> Iterator[Finding]:
    taken: dict[Name, list[Key]] = {}
    for key, version in seen.versions.items():
        if not version.is_fence and key not in under_way:
            taken.setdefault(key[0], []).append(key)
    for name, keys in sorted(taken.items()):
        pointer = seen.pointers.get((name, Alias(LATEST)))
        live = max((number for _, number in keys if seen.versions[name, number].digest), default=0)
        newest = max(number for _, number in keys)
        where = pointer_key(name, Alias(LATEST))
        if pointer is None:
            if (name, Alias(LATEST)) not in seen.damaged_pointers:
                yield Finding("latest", where, "is missing. Run: brainstore fsck --repair")
        elif (pointer.version or 0) < live or pointer.newest < newest:
            text = f"names version {pointer.version or 'none'} and knows {pointer.newest} as the "
            text += f"newest, but {live or 'none'} is the highest live one and {newest} was taken"
            yield Finding("latest", where, f"{text}. Run: brainstore fsck --repair")


def _index(seen: Survey, index: Index, name: Name | None, under_way: set[Key]) -> Iterator[Finding]:
    """Yield what the index lacks, has too much, or tells otherwise than the records."""
    expected = seen.index()
    told = {*index.rows, *index.tombstones, *expected.rows, *expected.tombstones} - seen.damaged
    for key in sorted(key for key in told if name in (None, key[0])):
        text = _row_problem(key, expected, index, under_way)
        fence = key in seen.versions and seen.versions[key].is_fence
        tombstone = index.tombstones.get(key, 0)
        if not text and not fence and tombstone != expected.tombstones.get(key, 0):
            text = "its deletion is told otherwise in the index"
        if text:
            yield Finding("index", f"{key[0]}:{key[1]}", f"{text}. Run: brainstore fsck --repair")
    for place, row in sorted(expected.aliases.items()):
        known = index.aliases.get(place)
        if known != row and (known or row.version):
            text = "the alias points elsewhere in the index. Run: brainstore fsck --repair"
            yield Finding("index", f"{place[0]}:{place[1]}", text)
    for place in sorted(set(index.aliases) - set(expected.aliases) - seen.damaged_pointers):
        if name in (None, place[0]):
            text = "the index knows an alias that has no pointer. Run: brainstore fsck --repair"
            yield Finding("index", f"{place[0]}:{place[1]}", text)


def _row_problem(key: Key, expected: Index, index: Index, under_way: set[Key]) -> str:
    right, found = expected.rows.get(key), index.rows.get(key)
    if right is None:
        return "is in the index, and is deleted or never was" if found is not None else ""
    if found is None:
        return "" if key in under_way else "is not in the index, so nobody sees it listed"
    if differing := _differing(right, found):
        return f"the index tells another {', '.join(differing)}"
    return ""


def _differing(right: Row, found: Row) -> list[str]:
    # Another brainstore may keep more or fewer fields in a row; that is no damage.
    common = {"digest", *(right.keys() & found.keys())}
    return sorted(field for field in common if right.get(field) != found.get(field))


def _stray_text(key: str) -> str:
    """Return what to say of a key that is no record and no blob; nothing if it has a place."""
    if key in (MARKER_KEY, SNAPSHOT_KEY, GC_STATE_KEY, POLICY_KEY) or key.startswith(
        INTENTS_PREFIX
    ):
        return ""
    if parse_fact_key(key) is not None:
        return ""
    if key.startswith(DAMAGED_PREFIX):
        return "a damaged blob that a repair moved here; remove it when it is not needed"
    if key.startswith(PROBE_PREFIX):
        return "left by a probe of the store; may be removed"
    if key.startswith(BLOBS_PREFIX):
        return "lies among the blobs, but is not named like one"
    return "is nothing of brainstore's, and is left alone"
