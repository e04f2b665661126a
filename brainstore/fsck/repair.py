"""What `fsck --repair` mends: everything that follows from the records, and nothing else.

Blobs and manifests are never rewritten. A blob whose bytes are not those of its name
is moved aside, because while it stands there, no save and no sync can store it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from brainstore import marker
from brainstore.address import (
    GC_STATE_KEY,
    JOURNAL_PREFIX,
    LATEST,
    SNAPSHOT_KEY,
    Alias,
    Digest,
    Name,
    blob_key,
    damaged_key,
    new_ulid,
    parse_fact_key,
    parse_pointer_key,
    pointer_key,
)
from brainstore.errors import AlreadyExists, Conflict, Corrupt, NotFound, Unsupported
from brainstore.fsck.findings import Finding
from brainstore.fsck.survey import Survey, each, survey
from brainstore.index import Index
from brainstore.intents import finish_abandoned
from brainstore.records import GcState, Pointer, Snapshot
from brainstore.storage.base import ABSENT, Expect, Store, Token
from brainstore.versions import Version
from brainstore.zoo import Zoo

ATTEMPTS = 16
RANGE_BYTES = 8 * 2**20
WHY = "fsck --repair"


def mend(zoo: Zoo, findings: Iterable[Finding], seen: Survey) -> None:
    """Mend what can be; what cannot stays to be found by the next look."""
    findings = list(findings)
    kinds = {finding.kind for finding in findings}
    known = known_index(zoo)
    # Of a format to come, or the original's.
    is_strange = any(f.kind == "newer" and f.where == SNAPSHOT_KEY for f in findings)
    has_any = seen.versions or seen.pointers or zoo.store.get(SNAPSHOT_KEY)
    if kinds & {"marker", "gc"} and has_any and not is_strange:
        _tried(lambda: create_missing(zoo))
    _tried(lambda: finish_abandoned(zoo.registry))
    places = {place for f in findings if f.kind in ("pointer", "latest")
              if (place := parse_pointer_key(f.where))}  # fmt: skip
    for name, alias in sorted(places):
        if alias == LATEST:
            _tried(lambda name=name: mend_latest(zoo, name))  # type: ignore[misc]  # bound now
        elif (name, alias) in seen.damaged_pointers:
            _tried(lambda name=name, alias=alias: mend_alias(zoo, name, alias, known))  # type: ignore[misc]  # bound now
    if (places or "index" in kinds) and not is_strange:
        _tried(lambda: rebuild_index(zoo))


def _tried(call: Callable[[], object]) -> None:
    with suppress(Conflict, Corrupt, NotFound, Unsupported):
        call()


def create_missing(zoo: Zoo) -> None:
    """Create the marker and the collector's state, where they are missing."""
    # A generation that nobody has seen: what a writer knows from one before is void.
    state = GcState(generation=int(time.time()))
    _created(zoo.store, GC_STATE_KEY, state.encode_readable())
    marker.create(zoo.store)


def _created(store: Store, key: str, body: bytes) -> bool:
    try:
        store.put(key, body, expect=ABSENT)
    except AlreadyExists:
        return False
    return True


def rebuild_index(zoo: Zoo) -> None:
    """Make the index what the records say. Safe while others save, delete and fold.

    Rows of versions whose record cannot be read stay as the index has them.

    Raises:
        Conflict: others folded the journal all the time; nothing was changed.
    """
    store = zoo.store
    for _ in range(ATTEMPTS):
        found = store.get(SNAPSHOT_KEY)
        # Whatever a fact tells was stored before it: the survey, made after, sees it too.
        facts = [stat.key for stat in store.list(JOURNAL_PREFIX) if parse_fact_key(stat.key)]
        known = known_index(zoo)
        seen = survey(zoo)
        index = seen.index()
        _keep_unreadable(index, known, seen)
        try:
            zoo.registry.journal.replace(index, found.token if found else ABSENT)
        except (Conflict, AlreadyExists):
            continue
        each(zoo, store.delete, facts)
        return
    raise Conflict(f"{zoo.url}: others keep folding the journal; repair again later")


def known_index(zoo: Zoo) -> Index:
    """Return the index as it is, as far as it can be read."""
    try:
        return zoo.index()
    except (Corrupt, Unsupported):
        pass
    try:
        found = zoo.store.get(SNAPSHOT_KEY)
        return Index.of(Snapshot.decode(found.body, SNAPSHOT_KEY)) if found else Index()
    except (Corrupt, Unsupported):
        return Index()


def _keep_unreadable(index: Index, known: Index, seen: Survey) -> None:
    for key in seen.damaged:
        if key in known.rows:
            index.rows[key] = known.rows[key]
        if key in known.tombstones:
            index.tombstones[key] = known.tombstones[key]
    for place in seen.damaged_pointers:
        if place in known.aliases:
            index.aliases[place] = known.aliases[place]


def mend_latest(zoo: Zoo, name: Name) -> None:
    """Make `latest` name the highest live version, and know the highest number.

    Does nothing while a higher version cannot be read, or was replaced: it may be the latest. Safe
    while others save and delete.

    Raises:
        Conflict: `latest` kept moving.
    """
    for _ in range(ATTEMPTS):
        zoo.registry.pointers.forget_latest(name)
        pointer, expect = _pointer_to_mend(zoo, name, Alias(LATEST))
        seen = survey(zoo, name)
        live = max((key for key, each in seen.versions.items() if each.digest), default=None)
        if any(live is None or key >= live for key in seen.damaged):
            return
        numbers = [number for (_, number), each in seen.versions.items() if not each.is_fence]
        newest = max([pointer.newest, *numbers])
        to = Version(*live, seen.versions[live].digest) if live else None  # type: ignore[arg-type]  # it is live
        if _swapped(zoo, pointer, expect, to, newest) and _is_still_right(zoo, to):
            return
    raise Conflict(f"{name}:{LATEST} keeps moving; repair again later")


def _is_still_right(zoo: Zoo, to: Version | None) -> bool:
    # As any mover: a deleter reads the pointer after its tombstone, we the version after
    # our swap.
    return to is None or zoo.registry.versions.is_live(to)


def mend_alias(zoo: Zoo, name: Name, alias: Alias, known: Index) -> None:
    """Write a pointer that cannot be read anew, as the index knows it.

    Its past is lost. Does nothing if the index does not know it, or the version is gone.
    """
    row = known.aliases.get((name, alias))
    if row is None:
        return
    to = zoo.registry.versions.live(name, row.version) if row.version else None
    if row.version and to is None:
        return
    pointer, expect = _pointer_to_mend(zoo, name, alias)
    if pointer.generation == 0:
        blank = Pointer(
            name=name, ref=alias, version=None, digest=None, generation=row.generation,
            write_id=new_ulid(),
        )  # fmt: skip
        _swapped(zoo, blank, expect, to, 0)


def _pointer_to_mend(zoo: Zoo, name: Name, alias: Alias) -> tuple[Pointer, Token | Expect]:
    """Return the pointer, or a blank one where it cannot be read, and what to replace."""
    found = zoo.store.get(pointer_key(name, alias))
    blank = Pointer(
        name=name, ref=alias, version=None, digest=None, generation=0, write_id=new_ulid()
    )
    if found is None:
        return blank, ABSENT
    try:
        pointer = Pointer.decode(found.body, pointer_key(name, alias))
    except Corrupt:
        return blank, found.token
    return (pointer if (pointer.name, pointer.ref) == (name, alias) else blank), found.token


def _swapped(
    zoo: Zoo, pointer: Pointer, expect: Token | Expect, to: Version | None, newest: int
) -> bool:
    number, digest = (to.version, to.digest) if to else (None, None)
    if pointer.generation and (pointer.version, pointer.digest, pointer.newest) == (
        number, digest, newest,
    ):  # fmt: skip
        return True
    by = zoo.registry.by
    moved = pointer.moved(number, digest, newest=newest, by=by, why=WHY, write_id=new_ulid())
    key = pointer_key(pointer.name, pointer.ref)
    try:
        zoo.store.put(key, moved.encode_readable(), expect=expect)
    except (Conflict, AlreadyExists):
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Copy:
    """The bytes of an object, read from its store while they are stored again."""

    store: Store
    key: str
    size_bytes: int

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, self.size_bytes, RANGE_BYTES):
            stop = min(start + RANGE_BYTES, self.size_bytes)
            yield memoryview(self.store.get_range(self.key, start, stop))


def set_aside(zoo: Zoo, digest: Digest, size_bytes: int) -> None:
    """Move a damaged blob to `damaged/`, bytes and all; maps of it stay valid.

    Not to be called for a blob that somebody may have mended meanwhile: hash it just
    before.

    Raises:
        NotFound: it is gone by now.
    """
    body = _Copy(zoo.store, blob_key(digest), size_bytes)
    # Where an earlier damage of it was kept, that one stays, and this one is dropped.
    with suppress(AlreadyExists):
        zoo.store.put(damaged_key(digest), body, expect=ABSENT)
    # Before it goes, for we may die; and after, for who has looked in between.
    _void_knowledge(zoo)
    zoo.store.delete(blob_key(digest))
    _void_knowledge(zoo)


def _void_knowledge(zoo: Zoo) -> None:
    """Begin a new generation, so that no writer relies on blobs that it saw before.

    While a collection is under way there is no need: who learned anything before it, or
    during it, learns it anew.
    """
    while True:
        found = zoo.store.get(GC_STATE_KEY)
        state = GcState.decode(found.body, GC_STATE_KEY) if found else None
        if found is None or state is None or state.state != "idle":
            return
        after = GcState(generation=state.generation + 1, write_id=new_ulid())
        with suppress(Conflict):
            zoo.store.put(GC_STATE_KEY, after.encode_readable(), expect=found.token)
            return
