"""All records of a zoo, read afresh: what exists, whatever the index says, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from brainstore.address import (
    LATEST,
    MODELS_PREFIX,
    Alias,
    Digest,
    Name,
    manifest_key,
    parse_manifest_key,
    parse_pointer_key,
    pointer_key,
)
from brainstore.errors import BadReference, Corrupt, Unsupported
from brainstore.fsck.findings import Course, Finding, Progress, Step
from brainstore.groups import PARAMS
from brainstore.index import Index, Row
from brainstore.meta import BrainMeta
from brainstore.pytree.structure import count_leaves
from brainstore.records import AliasRow, Group, Manifest, Pointer, Tombstone
from brainstore.storage.base import Stat
from brainstore.versions import Stored
from brainstore.zoo import Zoo

Key = tuple[Name, int]
LeafForm = tuple[str, str, tuple[int, ...]]
"""Entry, dtype and shape of a leaf, as a manifest tells them."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Seen:
    """The record of one version. `digest` is None while it is deleted.

    `blobs` are those of a live version, `kept` those of a deleted one; `pins` are the
    versions that it names, with their digests.
    """

    digest: Digest | None
    write_ids: set[str | None]
    generation: int = 0
    is_fence: bool = False
    row: Row = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    leaves: dict[Digest, set[LeafForm]] = field(default_factory=dict)
    kept: frozenset[Digest] = frozenset()
    pins: tuple[tuple[Key, Digest], ...] = ()


@dataclass
class Survey:
    """What was found: readable records, and the keys of those that are not, or are replaced."""

    versions: dict[Key, Seen] = field(default_factory=dict)
    pointers: dict[tuple[Name, Alias], Pointer] = field(default_factory=dict)
    damaged: set[Key] = field(default_factory=set)
    damaged_pointers: set[tuple[Name, Alias]] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def index(self) -> Index:
        """Return the index as the records tell it. Fences are not in it: nothing was there."""
        return Index(
            rows={key: seen.row for key, seen in self.versions.items() if seen.digest},
            aliases={
                key: AliasRow(version=pointer.version, generation=pointer.generation)
                for key, pointer in self.pointers.items()
                if key[1] != LATEST
            },
            tombstones={
                key: seen.generation
                for key, seen in self.versions.items()
                if seen.generation and not seen.is_fence
            },
        )

    def named(self) -> set[Digest]:
        """Return the blobs that any version names, live or deleted."""
        return {digest for seen in self.versions.values() for digest in (*seen.blobs, *seen.kept)}

    def sizes(self) -> dict[Digest, int]:
        """Return the blobs that live versions need, with the sizes that they tell."""
        return {
            digest: size for seen in self.versions.values() for digest, size in seen.blobs.items()
        }

    def users(self) -> dict[Digest, list[str]]:
        """Return the live versions that need each blob."""
        users: dict[Digest, list[str]] = {}
        for (name, number), seen in sorted(self.versions.items(), key=lambda item: item[0]):
            for digest in seen.blobs:
                users.setdefault(digest, []).append(f"{name}:{number}")
        return users


def survey(
    zoo: Zoo,
    name: Name | None = None,
    *,
    keys: Iterable[str] | None = None,
    leaves: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """Return what stands under `models/`, or of one model. Never raises for damage.

    `keys` are those listed already. With `leaves`, the forms of all leaves are kept.
    """
    if keys is None:
        keys = [
            stat.key for stat in listing(zoo, f"{MODELS_PREFIX}{name}/" if name else MODELS_PREFIX)
        ]
    keys = list(keys)
    found = Survey()
    versions = [key for key in map(parse_manifest_key, keys) if key and name in (None, key[0])]
    pointers = [key for key in map(parse_pointer_key, keys) if key and name in (None, key[0])]
    course = Course(Step("records", 0, len(versions) + len(pointers)), progress)
    records = each(zoo, lambda key: _seen(zoo, key, leaves), versions, course)
    for key, record in zip(versions, records, strict=True):
        if isinstance(record, Finding):
            found.damaged.add(key)
            found.findings.append(record)
        elif record is not None:
            found.versions[key] = record[0]
            found.findings += record[1]
    read = each(zoo, lambda place: _pointer(zoo, place), pointers, course)
    for place, pointer in zip(pointers, read, strict=True):
        if isinstance(pointer, Finding):
            found.damaged_pointers.add(place)
            found.findings.append(pointer)
        elif pointer is not None:
            found.pointers[place] = pointer
    _find_replaced(zoo, found)
    return found


def _find_replaced(zoo: Zoo, found: Survey) -> None:
    """Count as damaged what can be read and is another record than everybody tells of.

    Manifests never change. Were the index and `latest` mended to tell of this one, nothing
    would tell of the right one any more, and what that names would be garbage.
    """
    try:
        index = zoo.index()
    except (Corrupt, Unsupported):
        index = Index()
    for key, seen in found.versions.items():
        told = digests_told(key, found, index) if seen.digest else set()
        if told and seen.digest not in told | digests_pinned(key, found):
            found.damaged.add(key)
            text = f"hashes to {seen.digest}, and index or pointers tell of "
            text += f"{' and '.join(sorted(told))}. {_heal_record(key)}"
            found.findings.append(Finding("manifest", manifest_key(*key), text))


def digests_told(key: Key, seen: Survey, index: Index) -> set[Digest]:
    """Return the digests that the index and the pointers tell of a version."""
    told: set[Digest] = set()
    for (name, _), pointer in seen.pointers.items():
        places = [(move.to_version, move.to_digest) for move in pointer.moves]
        for number, digest in (*places, (pointer.version, pointer.digest)):
            if (name, number) == key and digest is not None:
                told.add(digest)
    with suppress(BadReference):
        told.add(Digest(str(index.rows.get(key, {}).get("digest"))))
    return told


def digests_pinned(key: Key, seen: Survey) -> set[Digest]:
    """Return the digests by which other versions name a version."""
    return {digest for each in seen.versions.values() for pin, digest in each.pins if pin == key}


def listing(zoo: Zoo, prefix: str) -> Iterator[Stat]:
    """Yield what can be listed; links, behind which there may be more, are findings."""
    with suppress(Corrupt):
        yield from zoo.store.list(prefix)


def stat_of(zoo: Zoo, key: str) -> Stat | None:
    """Return what the store says of the object; what lies behind a link is not there."""
    try:
        return zoo.store.stat(key)
    except Corrupt:
        return None


def _seen(zoo: Zoo, key: Key, leaves: bool) -> tuple[Seen, list[Finding]] | Finding | None:
    where = manifest_key(*key)
    try:
        stored = zoo.registry.versions.stored(*key)
        return None if stored is None else _read(zoo, key, stored, leaves)
    except Unsupported as error:
        return Finding("newer", where, str(error))
    except (Corrupt, BadReference) as error:
        return Finding("manifest", where, f"{error}. {_heal_record(key)}")


def _heal_record(key: Key) -> str:
    return (
        f"If another zoo has {key[0]}:{key[1]}, put it back from there: "
        "brainstore fsck --repair --from OTHER_ZOO"
    )


def _read(zoo: Zoo, key: Key, stored: Stored, leaves: bool) -> tuple[Seen, list[Finding]]:
    record = stored.record
    generation = record.generation if isinstance(record, Tombstone) else 0
    if isinstance(record, Tombstone) and record.is_fence:
        return Seen(None, record.write_ids, generation, is_fence=True), []
    body = stored.live_body
    if body is None:
        kept = zoo.registry.versions.decoded(stored.kept_body, *key).blobs
        return Seen(None, record.write_ids, generation, kept=frozenset(kept)), []
    manifest = zoo.registry.versions.decoded(body, *key)
    digest = Digest.of(body)
    problems = [Finding("manifest", manifest_key(*key), text) for text in _problems(manifest)]
    forms = _forms(manifest) if leaves else {}
    row, ids = manifest.row(digest), record.write_ids | {manifest.write_id}
    pins = (*manifest.parents, *manifest.frozen_experts.values())
    named = tuple(((pin.name, pin.version), pin.digest) for pin in pins)
    return Seen(
        digest, ids, generation, row=row, blobs=manifest.blobs, leaves=forms, pins=named
    ), problems


def _problems(manifest: Manifest) -> Iterator[str]:
    """Yield what in the manifest disagrees with itself, or is nothing that a save writes."""
    try:
        BrainMeta.of_manifest(manifest)
    except Corrupt as error:
        yield str(error)
    if PARAMS not in manifest.groups:
        yield f"there is no group {PARAMS!r}"
    listed = manifest.blobs
    for group, content in manifest.groups.items():
        yield from _problems_of_structure(group, content)
        for leaf in content.leaves:
            for blob in leaf.blobs():
                if blob not in listed:
                    yield f"leaf {leaf.path!r} of {group} lies in {blob.short}…, not listed in it"
            if leaf.blob and not leaf.pieces and leaf.entry not in ("tensor", leaf.digest):
                yield f"leaf {leaf.path!r} of {group} has another digest than its entry"
    for name, stored in manifest.files.items():
        if listed.get(stored.blob) != stored.size_bytes:
            yield f"file {name!r} is not listed among the blobs, or with another size"


def _problems_of_structure(name: str, group: Group) -> Iterator[str]:
    try:
        places = count_leaves(group.structure)
    except Corrupt as error:
        yield f"{name}: {error}"
    else:
        if places != len(group.leaves):
            listed = len(group.leaves)
            yield f"the structure of {name} has {places:,} leaves, and {listed:,} are listed"


def _forms(manifest: Manifest) -> dict[Digest, set[LeafForm]]:
    forms: dict[Digest, set[LeafForm]] = {}
    for group in manifest.groups.values():
        for leaf in group.leaves:
            for piece in leaf.pieces:
                shape = tuple(stop - start for start, stop in piece.index)
                forms.setdefault(piece.blob, set()).add((piece.entry, leaf.dtype, shape))
            if not leaf.pieces:
                blob = leaf.blob or leaf.digest
                forms.setdefault(blob, set()).add((leaf.entry, leaf.dtype, leaf.shape))
    return forms


def _pointer(zoo: Zoo, place: tuple[Name, Alias]) -> Pointer | Finding | None:
    try:
        found = zoo.registry.pointers.pointer(*place)
    except (Corrupt, Unsupported) as error:
        return Finding("pointer", pointer_key(*place), str(error))
    return found[0] if found else None


def each(
    zoo: Zoo, call: Callable[[T], R], values: Sequence[T], course: Course | None = None
) -> list[R]:
    """Return `call(value)` for each, as many at once as the zoo's store is good for.

    Memory is taken for what is under way and for the results. The first error stops all.
    """
    course = course or Course(Step("records", 0, len(values)))
    results: dict[int, R] = {}
    places = iter(range(len(values)))

    def work() -> None:
        # Shared: whoever is free takes the next.
        for place in places:
            results[place] = call(values[place])
            course.go_on(1)

    threads = max(1, min(zoo.store.parallelism, len(values)))
    with ThreadPoolExecutor(threads, "brainstore-fsck") as pool:
        working = [pool.submit(work) for _ in range(threads)]
        try:
            for done in as_completed(working):
                done.result()
        except BaseException:
            course.stop()
            raise
    return [results[place] for place in range(len(values))]
