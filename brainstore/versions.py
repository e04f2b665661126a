"""What stands at the key of a version: a manifest, or a tombstone around one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from brainstore import notebook
from brainstore.address import (
    MODELS_PREFIX,
    Digest,
    Name,
    full_name,
    manifest_key,
    parse_manifest_key,
)
from brainstore.cache import Cache
from brainstore.errors import Corrupt, ReadOnly, StoreUnavailable
from brainstore.records import Manifest, Tombstone, decode_version
from brainstore.storage.base import Store, Token


@dataclass(frozen=True, slots=True)
class Version:
    """One version, pinned: the digest is that of its manifest."""

    name: Name
    version: int
    digest: Digest

    @property
    def full_name(self) -> str:
        return full_name(self.name, self.version)

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"

    def _repr_html_(self) -> str:
        return notebook.table(str(self), (), [("digest", self.digest)])


@dataclass(frozen=True, slots=True)
class Stored:
    """What stands at a manifest's key: a manifest, or a tombstone around one, or a fence."""

    record: Manifest | Tombstone
    body: bytes
    token: Token

    @property
    def live_body(self) -> bytes | None:
        """The bytes of the manifest, exactly as first stored, or None if it is deleted.

        Raises Corrupt as `kept_body` does.
        """
        if isinstance(self.record, Manifest):
            return self.body
        return None if self.record.is_deleted else self.kept_body

    @property
    def kept_body(self) -> bytes:
        """The bytes of the manifest, deleted or not; there is none in a fence.

        Raises Corrupt if the tombstone keeps another one than it tells of.
        """
        if isinstance(self.record, Manifest):
            return self.body
        body, expected = bytes(self.record.record), self.record.replaced_digest
        if Digest.of(body) != expected:
            raise Corrupt(
                f"{manifest_key(self.record.name, self.record.version)}: the tombstone keeps a "
                f"manifest that hashes to {Digest.of(body).short}…, expected {expected}. "
                f"Run: brainstore fsck {self.record.name}"
            )
        return body

    @property
    def digest(self) -> Digest | None:
        """That of the manifest, deleted or not; None for a fence."""
        record = self.record
        return Digest.of(self.body) if isinstance(record, Manifest) else record.replaced_digest


class Versions:
    """The versions of one zoo, read and checked."""

    def __init__(self, store: Store, cache: Cache | None) -> None:
        self._store = store
        self._cache = cache if store.is_remote else None

    def stored(self, name: Name, number: int) -> Stored | None:
        """Return what stands at the version's key, checked to belong there, or None.

        Raises:
            Corrupt: the record is damaged, or belongs to another version.
        """
        key = manifest_key(name, number)
        found = self._store.get(key)
        if found is None:
            return None
        record = decode_version(found.body, f"{self._store.url}/{key}")
        self._require_place(record, name, number)
        return Stored(record, found.body, found.token)

    def opened(self, name: Name, number: int, stored: Stored) -> tuple[Version, Manifest] | None:
        """Return the version and its manifest, or None if it is deleted."""
        body = stored.live_body
        if body is None:
            return None
        digest = Digest.of(body)
        manifest = self.decoded(body, name, number)
        if self._cache is not None:
            # What is not kept is read again; the store is what counts.
            with suppress(ReadOnly, StoreUnavailable):
                self._cache.write(digest, body)
        return Version(name, number, digest), manifest

    def live(self, name: Name, number: int) -> Version | None:
        """Return the version, or None when it is deleted or never was."""
        found = self.stored(name, number)
        body = found.live_body if found else None
        return None if body is None else Version(name, number, Digest.of(body))

    def is_live(self, version: Version) -> bool:
        """True when the version stands, undeleted, with this digest."""
        return self.live(version.name, version.version) == version

    def numbers(self, name: Name) -> list[int]:
        """Return every number that was ever taken, lowest first, from the keys alone."""
        listed = self._store.list(f"{MODELS_PREFIX}{name}/")
        keys = [parsed for entry in listed if (parsed := parse_manifest_key(entry.key))]
        return sorted(number for owner, number in keys if owner == name)

    def highest_live(self, name: Name) -> Version | None:
        """Return the live version with the highest number."""
        candidates = (self.live(name, number) for number in reversed(self.numbers(name)))
        return next((version for version in candidates if version is not None), None)

    def cached(self, version: Version) -> Manifest | None:
        """Return the manifest with this digest if it is on this machine."""
        body = None
        if self._cache is not None:
            with suppress(ReadOnly, StoreUnavailable):
                body = self._cache.read(version.digest)
        if body is None:
            return None
        record = decode_version(body, f"the cached manifest {version.digest.short}…")
        fits = (record.name, record.version) == (version.name, version.version)
        return record if fits and isinstance(record, Manifest) else None

    def decoded(self, body: bytes, name: Name, number: int) -> Manifest:
        """Return the manifest in `body`, checked to be that of `name:number`."""
        where = f"{self._store.url}/{manifest_key(name, number)}"
        record = decode_version(body, where)
        self._require_place(record, name, number)
        if not isinstance(record, Manifest):
            raise Corrupt(
                f"{where}: a tombstone stands where a manifest must be. Run: brainstore fsck"
            )
        return record

    def _require_place(self, record: Manifest | Tombstone, name: Name, number: int) -> None:
        if (record.name, record.version) != (name, number):
            raise Corrupt(
                f"{self._store.url}/{manifest_key(name, number)} holds the record of "
                f"{record.name}:{record.version}. Run: brainstore fsck"
            )
