"""What a sync has to do: which versions, in which order, and how each stands at the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from brainstore.address import LATEST, Digest, Name, Reference
from brainstore.errors import BadReference, Corrupt, NotFound, Unsupported
from brainstore.index import Index
from brainstore.records import Manifest, Tombstone
from brainstore.sync.report import Outcome, Status
from brainstore.versions import Stored, Version
from brainstore.zoo import Zoo

Key = tuple[Name, int]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Standing:
    """How a version stands at the target; with no status it is to be created there.

    Where a collection has closed its number, `fence` is what is to be replaced.
    """

    status: Status | None
    detail: str = ""
    fence: Stored | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A version to be copied: what of its manifest is needed to plan."""

    version: Version
    pins: tuple[Version, ...]
    blobs: Mapping[Digest, int]
    standing: Standing = Standing(None)

    @property
    def key(self) -> Key:
        return self.version.name, self.version.version

    @property
    def pin_keys(self) -> list[Key]:
        return [(pin.name, pin.version) for pin in self.pins]


@dataclass
class Wanted:
    """The versions that the references name, and those deleted at the source among them."""

    live: set[Key] = field(default_factory=set)
    deleted: set[Key] = field(default_factory=set)
    whole: set[Name] = field(default_factory=set)

    @property
    def names(self) -> list[Name]:
        return sorted(self.whole | {name for name, _ in self.live | self.deleted})


def wanted(source: Zoo, refs: Sequence[str], index: Index, *, deleted: bool) -> Wanted:
    """Return what `refs` name in the source; without any, everything.

    `name` alone is every version of the model. With `deleted`, a deleted version may
    be named too.

    Raises:
        NotFound: a model, version or alias is not there.
        BadReference: a reference does not parse, or names a subtree or another zoo.
    """
    if isinstance(refs, str):
        raise BadReference(f"refs: expected a list of references; did you mean [{refs!r}]?")
    gone = {key for key, generation in index.tombstones.items() if generation % 2}
    if not refs:
        names = {name for name, _ in {*index.rows, *gone, *index.aliases}}
        return Wanted(set(index.rows), gone if deleted else set(), names)
    found = Wanted()
    for ref in refs:
        reference = source.own_reference(ref)
        if reference.subtree:
            raise BadReference(f"'{reference}': whole versions are copied; drop '#' and the rest")
        if _is_whole_model(str(ref), reference):
            _want_model(found, source, reference, index, gone if deleted else set())
        elif deleted and (reference.name, reference.version) in gone:
            found.deleted.add((reference.name, reference.version or 0))
        else:
            version = source.registry.resolve(reference)
            found.live.add((version.name, version.version))
    return found


def _is_whole_model(ref: str, reference: Reference) -> bool:
    # `name` and `name:latest` parse alike, and here they are not.
    return reference.alias == LATEST and ":" not in ref.rpartition("::")[2]


def _want_model(
    found: Wanted, source: Zoo, reference: Reference, index: Index, gone: set[Key]
) -> None:
    deleted = {key for key in gone if key[0] == reference.name}
    live = set(index.versions(reference.name))
    if not live and not deleted:
        # Says which names are near; or finds a version that the index does not have yet.
        version = source.registry.resolve(reference)
        live = {(version.name, version.version)}
    found.live |= live
    found.deleted |= deleted
    found.whole.add(reference.name)


def gather(
    source: Zoo, keys: Iterable[Key], settled: Mapping[Key, Digest]
) -> tuple[dict[Key, Item], list[Outcome]]:
    """Return these versions and all that they pin, as far as the source has them.

    Versions in `settled` are not looked at. Those that cannot be read are outcomes.
    """
    items: dict[Key, Item] = {}
    failed: list[Outcome] = []
    seen: set[Key] = set(settled)
    frontier = set(keys) - seen
    asked = set(frontier)
    while frontier:
        seen |= frontier
        pins: list[Version] = []
        for found in in_parallel(source, lambda key: item_at(source, key), sorted(frontier)):
            if isinstance(found, Item):
                items[found.key] = found
                pins += found.pins
            elif found.status != "skipped" or (found.name, found.version) in asked:
                failed.append(found)
        frontier = {(pin.name, pin.version) for pin in pins} - seen
    return items, failed


def item_at(zoo: Zoo, key: Key) -> Item | Outcome:
    """Return the live version, or why it cannot be copied."""
    try:
        stored = zoo.registry.versions.stored(*key)
        body = stored.live_body if stored else None
        if body is None:
            return Outcome(*key, "skipped", f"it is not in {zoo.url} any more")
        manifest = zoo.registry.versions.decoded(body, *key)
    except (Corrupt, Unsupported) as error:
        return Outcome(*key, "failed", str(error))
    if any(size < 0 for size in manifest.blobs.values()):
        return Outcome(*key, "failed", f"the manifest in {zoo.url} lists a blob of negative size")
    return Item(Version(*key, Digest.of(body)), pins_of(manifest), manifest.blobs)


def pins_of(manifest: Manifest) -> tuple[Version, ...]:
    """Return the versions that this one was made from or contains."""
    pins = (*manifest.parents, *manifest.frozen_experts.values())
    return tuple(dict.fromkeys(Version(pin.name, pin.version, pin.digest) for pin in pins))


def in_order(items: Mapping[Key, Item]) -> list[Item]:
    """Return the items in the order of names and numbers, but parents before children."""
    ordered: dict[Key, Item] = {}
    for key in sorted(items):
        _add_with_parents(key, items, ordered)
    return list(ordered.values())


def _add_with_parents(key: Key, items: Mapping[Key, Item], ordered: dict[Key, Item]) -> None:
    # Not recursive: a lineage may be thousands of versions long. A hostile manifest may
    # even pin itself, so what is open is not opened again.
    path, opened = [key], set[Key]()
    while path:
        last = path[-1]
        if last in ordered or last not in items:
            path.pop()
        elif last in opened:
            ordered[last] = items[path.pop()]
        else:
            opened.add(last)
            path += [pin for pin in reversed(items[last].pin_keys) if pin not in opened]


def judged(target: Zoo, items: Sequence[Item]) -> list[Item]:
    """Return the items, each with how it stands at the target now."""
    standings = in_parallel(target, lambda item: standing(target, item.version), items)
    return [replace(item, standing=each) for item, each in zip(items, standings, strict=True)]


def standing(target: Zoo, version: Version) -> Standing:
    """Return how the version stands at the target now.

    Where a collection has closed the number, the fence was
    read before the intent that will protect the copy: a collection that gives up that
    intent changes the fence, so a copy that slept too long does not replace it.
    """
    try:
        stored = target.registry.versions.stored(version.name, version.version)
        body = stored.live_body if stored else None
    except Corrupt as error:
        return Standing("failed", f"its place at the target is damaged: {error}")
    except Unsupported as error:
        return Standing("failed", str(error))
    if stored is None:
        return Standing(None)
    if body is None:
        return _buried(stored, version)
    found = Digest.of(body)
    if found == version.digest:
        return Standing("present")
    shown = f"the manifest is {found.short}… there, and {version.digest.short}… here"
    advice = "both zoos gave out this number; save one of the two again, under another name"
    return Standing("conflict", f"{shown}: {advice}")


def _buried(stored: Stored, version: Version) -> Standing:
    tombstone = stored.record
    assert isinstance(tombstone, Tombstone)
    if tombstone.is_fence:
        return Standing(None, fence=stored)
    if tombstone.replaced_digest == version.digest:
        why = f" ({tombstone.why})" if tombstone.why else ""
        return Standing("skipped", f"deleted there at {tombstone.at} by {tombstone.by}{why}")
    return Standing("conflict", f"another version had the number {version} there, now deleted")


def body_of(source: Zoo, version: Version) -> bytes:
    """Return the manifest's bytes, verbatim.

    Raises:
        NotFound, Corrupt: it has been deleted meanwhile, or damaged.
    """
    stored = source.registry.versions.stored(version.name, version.version)
    body = stored.live_body if stored else None
    if body is None:
        raise NotFound(f"{version} was deleted from {source.url} meanwhile")
    if Digest.of(body) != version.digest:
        raise Corrupt(f"{version} was changed in {source.url} meanwhile; manifests never are")
    return body


def batches(
    items: Iterable[Item], *, most: int, most_bytes: int, most_blobs: int
) -> Iterator[list[Item]]:
    """Yield the items in order, in lists of a bounded size; at least one in each."""
    batch: list[Item] = []
    blobs: dict[Digest, int] = {}
    for item in items:
        together = {**blobs, **item.blobs}
        too_many = len(batch) >= most or len(together) > most_blobs
        if batch and (too_many or sum(together.values()) > most_bytes):
            yield batch
            batch, together = [], dict(item.blobs)
        batch.append(item)
        blobs = together
    if batch:
        yield batch


def in_parallel(zoo: Zoo, call: Callable[[T], R], values: Sequence[T]) -> list[R]:
    """Return `call(value)` for each, as many at once as the zoo's store is good for."""
    return zoo.in_parallel(call, values)
