"""Which blobs something names: the live set, and who is in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from brainstore.address import MODELS_PREFIX, Digest, Name, parse_manifest_key
from brainstore.errors import Corrupt, Unsupported
from brainstore.records import Manifest, Tombstone
from brainstore.storage.base import Stat
from brainstore.versions import Stored
from brainstore.zoo import Zoo

Key = tuple[Name, int]


def blobs_of(manifest: Manifest) -> set[Digest]:
    """Return every blob that the manifest names, listed or not."""
    leaves = (leaf for group in manifest.groups.values() for leaf in group.leaves)
    named = {digest for leaf in leaves for digest in leaf.blobs()}
    return named.union(manifest.blobs, (file.blob for file in manifest.files.values()))


class LiveSet:
    """The blobs that versions name, as of the last `read`; it only grows.

    A version that was seen live is not read again: should it be deleted meanwhile, its
    blobs count as live until the next collection.
    """

    def __init__(
        self, zoo: Zoo, *, deleted_before: float, but: frozenset[Key] = frozenset()
    ) -> None:
        """What was deleted before that time, by the store's clock, and `but`, does not count."""
        self.blobs: set[Digest] = set()
        self._zoo = zoo
        self._deleted_before = deleted_before
        self._but = but
        self._seen: set[str] = set()
        self._adding = threading.Lock()
        self._indexed = _indexed(zoo)

    def read(self) -> None:
        """Add what versions name that are live now, or were deleted too lately.

        Raises:
            Corrupt, Unsupported: a record cannot be read, so what it names is not known.
        """
        found = list(self._zoo.store.list(MODELS_PREFIX))
        self._require_all({key for stat in found if (key := parse_manifest_key(stat.key))})
        listed = [stat for stat in found if self._is_new(stat)]
        self._zoo.in_parallel(self._add, listed)

    def _is_new(self, stat: Stat) -> bool:
        key = parse_manifest_key(stat.key)
        return key is not None and key not in self._but and stat.key not in self._seen

    def _add(self, stat: Stat) -> None:
        named = self._named(stat)
        if named is not None:
            with self._adding:
                self.blobs |= named
                self._seen.add(stat.key)

    def _named(self, stat: Stat) -> set[Digest] | None:
        """Return what the version names, or None if it is deleted and out of its grace."""
        key = parse_manifest_key(stat.key)
        assert key is not None
        stored = require_record(self._zoo, key)
        self._require_indexed(key, stored)
        body = stored.live_body
        if body is None:
            body = buried_body(stored, stat, self._deleted_before)
        return None if body is None else blobs_of(self._zoo.registry.versions.decoded(body, *key))

    def _require_all(self, found: set[Key]) -> None:
        """Raise Corrupt if the record of a version is missing that the index knows."""
        for name, number in self._indexed.keys() - found:
            raise Corrupt(
                f"{self._zoo.url}: the index knows {name}:{number}, and its record is missing; "
                f"records are never removed. Run: brainstore fsck {name}"
            )

    def _require_indexed(self, key: Key, stored: Stored) -> None:
        """Raise Corrupt if this is not the record that the index was told of.

        What that one named, before it was changed or replaced, would be taken for garbage.
        """
        expected = self._indexed.get(key, stored.digest)
        if expected != stored.digest:
            raise Corrupt(
                f"{self._zoo.url}: the record of {key[0]}:{key[1]} hashes to {stored.digest}, and "
                f"the index names {expected!s:.80}. Run: brainstore fsck {key[0]}"
            )


def _indexed(zoo: Zoo) -> dict[Key, object]:
    """Return the digest that each live version has by the index, as far as that can be read."""
    try:
        rows = zoo.index().rows
    except (Corrupt, Unsupported):
        return {}
    return {key: row["digest"] for key, row in rows.items() if "digest" in row}


def buried_body(stored: Stored, stat: Stat, deleted_before: float) -> bytes | None:
    """Return the manifest of a deleted version that can still come back, else None."""
    record = stored.record
    assert isinstance(record, Tombstone)
    if record.is_fence or stat.modified_at <= deleted_before:
        return None
    return stored.kept_body


def require_record(zoo: Zoo, key: Key) -> Stored:
    """Return what stands at the key of a version that was listed.

    Raises:
        Corrupt: it vanished, which records never do.
    """
    stored = zoo.registry.versions.stored(*key)
    if stored is None:
        raise Corrupt(
            f"{zoo.url}: the record of {key[0]}:{key[1]} vanished while it was read; records are "
            "never removed. Run: brainstore fsck"
        )
    return stored


def versions(zoo: Zoo) -> Iterator[tuple[Stat, Key]]:
    """Yield every version that ever was, with the state of its record."""
    for stat in zoo.store.list(MODELS_PREFIX):
        if key := parse_manifest_key(stat.key):
            yield stat, key
