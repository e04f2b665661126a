"""What a sync says of itself: an outcome for each version, and each step on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from brainstore.address import Digest, Name

Status = Literal["copied", "present", "skipped", "conflict", "deleted", "moved", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one version (or, with the status moved, of an alias of it).

    copied    it was copied
    present   it was there already, with the same bytes
    skipped   it was deleted at the target, and stays so
    conflict  the target has other bytes, another alias, or needs what was to be deleted
    deleted   it was deleted, as it is at the source
    moved     an alias names it now, or names nothing if the version is 0
    failed    it cannot be read at the source, or its place at the target is damaged
    """

    name: Name
    version: int
    status: Status
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a sync is. Bytes count when they are at the target, sent or found there."""

    done_bytes: int
    total_bytes: int
    done_versions: int
    total_versions: int
    text: str


@dataclass(frozen=True)
class SyncReport:
    """What a sync did, or would do. `planned_bytes` were missing, `sent_bytes` were sent.

    `quality_reports` counts those filed after a save that were copied, or would be; those
    that came with one travel in its manifest.
    """

    outcomes: list[Outcome]
    sent_bytes: int = 0
    planned_bytes: int = 0
    dry_run: bool = False
    quality_reports: int = 0

    @property
    def copied(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.status == "copied"]

    @property
    def conflicts(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.status == "conflict"]

    @property
    def failed(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.status == "failed"]


class Ledger:
    """What was done so far. May be used from many threads."""

    def __init__(self, *, dry_run: bool, progress: Callable[[Step], None] | None) -> None:
        self.outcomes: list[Outcome] = []
        self.dry_run = dry_run
        self._progress = progress
        self._lock = threading.RLock()
        self._sent_bytes = self._planned_bytes = self._quality_reports = 0
        self._there: set[Digest] = set()
        self._there_bytes = self._total_bytes = self._total_versions = 0

    def report(self) -> SyncReport:
        return SyncReport(
            list(self.outcomes),
            self._sent_bytes,
            self._planned_bytes,
            self.dry_run,
            self._quality_reports,
        )

    def expect(self, versions: int, total_bytes: int) -> None:
        """Take note of how much there is to do from now on."""
        self._total_versions = len(self.outcomes) + versions
        self._total_bytes = total_bytes

    def there(self, keys: Iterable[tuple[Name, int]]) -> list[tuple[Name, int]]:
        """Return those of the versions that the target has by now, or would have."""
        statuses = {(each.name, each.version): each.status for each in self.outcomes}
        return [key for key in keys if statuses.get(key) in ("copied", "present")]

    def plan(self, size_bytes: int) -> None:
        """Take note of bytes that the target lacks."""
        self._planned_bytes += size_bytes

    def is_there(self, digest: Digest) -> bool:
        return digest in self._there

    def found(self, digests: Iterable[Digest], sizes: Mapping[Digest, int]) -> None:
        """Take note of blobs that are at the target."""
        with self._lock:
            new = set(digests) - self._there
            self._there |= new
            self._there_bytes += sum(sizes[digest] for digest in new)

    def sent(self, digest: Digest, size_bytes: int, sent_bytes: int) -> None:
        with self._lock:
            self._sent_bytes += sent_bytes
            self.found([digest], {digest: size_bytes})
            self._step(f"blob {digest.short}…")

    def reported(self) -> None:
        """Take note of a quality report that is at the target now, or would be."""
        with self._lock:
            self._quality_reports += 1
            self._step("quality report")

    def tell(self, name: Name, version: int, status: Status, detail: str = "") -> None:
        with self._lock:
            self.outcomes.append(Outcome(name, version, status, detail))
            self._step(f"{name}:{version} {status}")

    def _step(self, text: str) -> None:
        if self._progress is not None:
            done = min(len(self.outcomes), self._total_versions)
            self._progress(
                Step(self._there_bytes, self._total_bytes, done, self._total_versions, text)
            )
