"""Which version a reference means.

A model's number is found through its pointers alone; the index is for listing, for
near names in errors, and for references by digest without a number.
"""

from __future__ import annotations

import difflib

from brainstore.address import LATEST, Alias, Digest, Name, Reference
from brainstore.cache import Cache
from brainstore.errors import BadReference, Corrupt, NotFound
from brainstore.journal import Journal
from brainstore.pointers import Pointers, current
from brainstore.records import Manifest, Pointer, Tombstone
from brainstore.storage.base import Store
from brainstore.versions import Version, Versions


class Registry:
    """Versions, pointers and index of one zoo, and the way from a reference to a version."""

    def __init__(self, store: Store, cache: Cache | None, by: str) -> None:
        """`by` names the person and machine in every record that is written."""
        self.store = store
        self.by = by
        self.journal = Journal(store)
        self.versions = Versions(store, cache)
        self.pointers = Pointers(store, self.journal, self.versions, by)

    def resolve(self, reference: Reference) -> Version:
        """Return the version that `reference` names, without reading its manifest if it can.

        Raises:
            NotFound: the model, version or alias does not exist; near names are offered.
            Corrupt: a record is damaged.
        """
        if reference.version is not None:
            return self.find(reference)[0]
        if reference.alias is not None:
            return self._by_alias(reference.name, reference.alias, reference.back, reference.digest)
        return self._by_digest(reference)

    def find(self, reference: Reference, *, from_cache: bool = False) -> tuple[Version, Manifest]:
        """Return the version that `reference` names, and its manifest. Errors as `resolve`.

        With `from_cache`, a manifest that is pinned by its whole digest and on this machine
        costs no request: it is the right one, wherever it was read from.
        """
        if reference.version is None:
            return self._followed(reference)
        if from_cache and reference.digest is not None and len(reference.digest) == 64:
            digest = Digest("blake3:" + reference.digest)
            version = Version(reference.name, reference.version, digest)
            if (cached := self.versions.cached(version)) is not None:
                return version, cached
        version, manifest = self.by_number(reference.name, reference.version)
        require_digest(version, reference.digest)
        return version, manifest

    def _followed(self, reference: Reference) -> tuple[Version, Manifest]:
        """Return what a reference without a number names, also while that is being replaced."""
        version = self.resolve(reference)
        while True:
            try:
                return version, self.manifest(version)
            except NotFound:
                # Deleted since the pointer was read, which may lead elsewhere by now.
                gone, version = version, self.resolve(reference)
                if version == gone:
                    raise

    def may_have(self, reference: Reference) -> bool:
        """False when nothing stands where `resolve` would look; costs one read, no index."""
        if reference.version is not None:
            return self.versions.stored(reference.name, reference.version) is not None
        if reference.alias is not None:
            return self.pointers.pointer(reference.name, reference.alias) is not None
        return True

    def manifest(self, version: Version) -> Manifest:
        """Return the manifest with this digest.

        Raises:
            NotFound: the version does not exist (any more).
            Corrupt: another manifest stands in its place.
        """
        if (manifest := self.versions.cached(version)) is not None:
            return manifest
        found, manifest = self.by_number(version.name, version.version)
        if found != version:
            raise Corrupt(
                f"{version} has the manifest {found.digest.short}… in {self.store.url}, and a "
                f"record names {version.digest.short}…. Run: brainstore fsck {version.name}"
            )
        return manifest

    def by_number(self, name: Name, number: int) -> tuple[Version, Manifest]:
        """Return version `number` and its manifest, in one read. Errors as `resolve`."""
        stored = self.versions.stored(name, number)
        if stored is None:
            raise self._missing(name, number)
        found = self.versions.opened(name, number, stored)
        if found is None:
            assert isinstance(stored.record, Tombstone)
            raise NotFound(deleted_text(stored.record, self.store.url))
        return found

    def _by_alias(self, name: Name, alias: Alias, back: int, digest: str | None) -> Version:
        found = self.pointers.pointer(name, alias)
        if found is None or (found[0].version is None and not back):
            raise self._missing(name, alias)
        pointer = found[0]
        version = current(pointer) if not back else self._before(pointer, back)
        require_digest(version, digest)
        return version

    def _before(self, pointer: Pointer, back: int) -> Version:
        # One that only gave its version a gate led from nowhere.
        moves = [move for move in pointer.moves if move.from_version != move.to_version]
        number = moves[-back].from_version if back <= len(moves) else None
        if number is None:
            raise NotFound(
                f"{pointer.name}:{pointer.ref}~{back}: the alias has no such past; its last moves, "
                f"{len(moves)} of them, are kept. See: brainstore log {pointer.name}"
            )
        return self.by_number(pointer.name, number)[0]

    def _by_digest(self, reference: Reference) -> Version:
        prefix = f"blake3:{reference.digest}"
        rows = self.journal.index().rows
        found = [
            Version(name, number, Digest(row["digest"]))
            for (name, number), row in rows.items()
            if name == reference.name and str(row.get("digest")).startswith(prefix)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(map(str, found))
            raise BadReference(f"'{reference}' fits {names}; give more digits of the digest")
        raise NotFound(f"'{reference}': no version in {self.store.url} has this digest")

    def _missing(self, name: Name, wanted: int | Alias) -> NotFound:
        """Return the error for a version or alias that is not there, with near names."""
        try:
            index = self.journal.index(rows=False)
        except Corrupt as error:
            return NotFound(f"{name}:{wanted} is not in {self.store.url}. Besides, {error}")
        numbers = [number for _, number in index.versions(name)]
        if not numbers:
            near = difflib.get_close_matches(name, index.names(), 3, 0.5)
            hint = f"Did you mean {' or '.join(near)}?" if near else "See: brainstore ls"
            return NotFound(f"model {str(name)!r} is not in {self.store.url}. {hint}")
        if isinstance(wanted, int):
            return NotFound(
                f"{name}:{wanted} does not exist in {self.store.url}; the model has "
                f"{_spans(numbers)}"
            )
        if wanted == LATEST:
            return NotFound(
                f"{name} has {_spans(numbers)} in {self.store.url}, but no `latest`: its first "
                f"save is under way, or died. Name a version, or run: brainstore fsck --repair"
            )
        aliases = [LATEST, *index.aliases_of(name)]
        near = difflib.get_close_matches(wanted, aliases, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        return NotFound(
            f"{name} has no alias {str(wanted)!r} in {self.store.url}. {hint}"
            f"It has {', '.join(aliases)}, and {_spans(numbers)}"
        )


def deleted_text(tombstone: Tombstone, url: str) -> str:
    """Return what to tell somebody who asked for a deleted version."""
    shown = f"{tombstone.name}:{tombstone.version}"
    if tombstone.is_fence:
        return f"{shown} does not exist in {url}; the number was closed by a collection"
    why = f" ({tombstone.why})" if tombstone.why else ""
    return (
        f"{shown} was deleted from {url} at {tombstone.at} by {tombstone.by}{why}. "
        f"Bring it back: brainstore undelete {shown}"
    )


def require_digest(version: Version, prefix: str | None) -> None:
    """Raise NotFound unless the digest of `version` begins like that."""
    if prefix is not None and not version.digest.hex.startswith(prefix):
        raise NotFound(
            f"{version} has the manifest {version.digest.short}…; the one that was asked for, "
            f"blake3:{prefix[:8]}…, is another. Drop the digest, or look in another zoo"
        )


def _spans(numbers: list[int]) -> str:
    """Return `versions 1, 2 and 5 to 9` for sorted numbers."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    texts = [" to ".join(map(str, span)) for span in spans[-6:]]
    word = "version" if len(numbers) == 1 else "versions"
    return f"{word} {', '.join(texts)}"
