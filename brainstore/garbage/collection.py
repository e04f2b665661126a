"""What a collection did, or would do."""

from __future__ import annotations

from dataclasses import dataclass

from brainstore.address import Digest
from brainstore.versions import Version


@dataclass(frozen=True, slots=True)
class Garbage:
    """A blob that nothing names."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Collection:
    """What one collection did; of a dry run, what it would do.

    Attributes:
        dry_run: nothing was changed.
        deleted: versions beyond `keep_last`. Their blobs stay for the grace period.
        kept: of those beyond `keep_last`, (version, what keeps it).
        blobs: the garbage; removed, unless it was a dry run.
        leftovers: (key, size in bytes) of what killed writers left half-written.
        intents: keys of the intents of dead saves, syncs, deletions and moves; given up.
        live_blobs, live_bytes: what stays.
    """

    dry_run: bool
    deleted: tuple[Version, ...]
    kept: tuple[tuple[Version, str], ...]
    blobs: tuple[Garbage, ...]
    leftovers: tuple[tuple[str, int], ...]
    intents: tuple[str, ...]
    live_blobs: int
    live_bytes: int

    @property
    def size_bytes(self) -> int:
        """What the garbage takes, leftovers too."""
        return sum(b.size_bytes for b in self.blobs) + sum(size for _, size in self.leftovers)
