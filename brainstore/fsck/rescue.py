"""Fetching from another zoo what is missing here, or cannot be read.

Everything that is fetched has a digest that this zoo names already: the other zoo is only
where the bytes come from. As in a save, blobs are stored before the manifest that needs
them, and all of it under an intent, so that a collection leaves it alone.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec

from brainstore.address import (
    Digest,
    blob_key,
    damaged_record_key,
    manifest_key,
    new_ulid,
    parse_blob_key,
)
from brainstore.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    NotFound,
    NoZoo,
    Unsupported,
)
from brainstore.fsck.findings import Course, Finding, Progress, Step
from brainstore.fsck.repair import WHY
from brainstore.fsck.survey import Key, Survey, digests_pinned, digests_told, each
from brainstore.index import Index
from brainstore.records import Manifest, Target, Tombstone, now
from brainstore.storage.base import ABSENT, Object
from brainstore.sync.copying import send_blob
from brainstore.zoo import Zoo

BATCH_BLOBS = 4096


class _Stays(Exception):  # no error: it is told as a part of the finding
    """What is damaged is left as it is; the message says why."""


@dataclass(frozen=True)
class Rescue:
    """What another zoo can give to this one."""

    zoo: Zoo
    source: Zoo
    progress: Progress | None = None

    def fetched(self, findings: Sequence[Finding], seen: Survey) -> list[Finding]:
        """Return the findings; those of missing blobs are repaired as far as that goes."""
        sizes, users = seen.sizes(), seen.users()
        gone = {parse_blob_key(each.where) for each in findings if each.kind == "blob-missing"}
        wanted = sorted(digest for digest in gone if digest in sizes)
        problems: dict[str, str] = {}
        for start in range(0, len(wanted), BATCH_BLOBS):
            batch = {digest: sizes[digest] for digest in wanted[start : start + BATCH_BLOBS]}
            owners = {digest: users[digest][0] for digest in batch}
            with self.zoo.committer.protecting([], set(batch)) as present:
                failed = self._send(batch, owners, present)
            problems |= {blob_key(digest): failed.get(digest, "") for digest in batch}
        return [self._told(finding, problems) for finding in findings]

    def _told(self, finding: Finding, problems: Mapping[str, str]) -> Finding:
        if finding.kind != "blob-missing" or finding.where not in problems:
            return finding
        if problem := problems[finding.where]:
            return replace(finding, text=f"{finding.text}. Not fetched: {problem}")
        text = f"was missing; fetched from {self.source.url}"
        return replace(finding, text=text, repaired=True)

    def _send(
        self, sizes: Mapping[Digest, int], owners: Mapping[Digest, str], present: set[Digest]
    ) -> dict[Digest, str]:
        """Store what is missing of these blobs; return what is wrong with those that failed."""
        missing = self._missing(sizes)
        present.update(sizes.keys() - set(missing))
        stop, problems = threading.Event(), dict[Digest, str]()
        total_bytes = sum(sizes[digest] for digest in missing)
        step = Step("fetched", 0, len(missing), total_bytes=total_bytes)
        course = Course(step, self.progress)

        def send(digest: Digest) -> None:
            try:
                send_blob(
                    self.source, self.zoo, digest, sizes[digest], owner=owners[digest],
                    present=present, stop=stop,
                )  # fmt: skip
            except (NotFound, Corrupt) as error:
                problems[digest] = str(error)
            course.go_on(size_bytes=sizes[digest])

        try:
            each(self.zoo, send, missing, course)
        except BaseException:
            stop.set()
            raise
        return problems

    def _missing(self, sizes: Mapping[Digest, int]) -> list[Digest]:
        digests = sorted(sizes)
        stats = each(self.zoo, lambda digest: self.zoo.store.settle(blob_key(digest)), digests)
        found = zip(digests, stats, strict=True)
        return [d for d, stat in found if stat is None or stat.size_bytes != sizes[d]]

    def put_back(self, seen: Survey) -> dict[str, str]:
        """Put back the records that cannot be read; return why not, by key, for the others.

        One whose digest nothing here tells, or not with one voice, stays as it is. What this
        zoo knows to have been deleted comes back deleted. The place of a record is never
        empty: the damaged bytes, which are kept in `damaged/`, are replaced by a swap.
        """
        index = self._index()
        notes: dict[str, str] = {}
        for key in sorted(seen.damaged):
            try:
                self._put_back(key, seen, index)
            except (_Stays, NotFound, Corrupt, Unsupported, Conflict) as reason:
                notes[manifest_key(*key)] = str(reason)
        return notes

    def _index(self) -> Index | None:
        try:
            return self.zoo.registry.journal.index()
        except (Corrupt, Unsupported, NoZoo):
            return None

    def _put_back(self, key: Key, seen: Survey, index: Index | None) -> None:
        damaged = self.zoo.store.get(manifest_key(*key))
        digest = _digest_told(key, seen, index)
        if damaged is None or self._is_right(key, digest):
            return
        generation = _generation_told(key, digest, seen, index)
        body = self._body_elsewhere(key, digest)
        manifest = self.zoo.registry.versions.decoded(body, *key)
        record = self._record(manifest, body, generation)
        # What a deleted version needs may have been collected, here and there.
        needed = {} if generation % 2 else manifest.blobs
        # What is replaced was read before the intent: who slept past it swaps nothing.
        targets = [Target(name=key[0], version=key[1])]
        with self.zoo.committer.protecting(targets, set(needed)) as present:
            problems = self._send(needed, dict.fromkeys(needed, f"{key[0]}:{key[1]}"), present)
            if not problems:
                self._swap(key, damaged, record)
        if problems:
            raise _Stays(next(iter(problems.values())))

    def _is_right(self, key: Key, digest: Digest) -> bool:
        with suppress(Corrupt):
            stored = self.zoo.registry.versions.stored(*key)
            return stored is not None and Digest.of(stored.kept_body) == digest
        return False

    def _body_elsewhere(self, key: Key, digest: Digest) -> bytes:
        stored = self.source.registry.versions.stored(*key)
        if stored is None or stored.digest is None:
            raise _Stays(f"{self.source.url} has no {key[0]}:{key[1]}")
        record = stored.record
        body = bytes(record.record) if isinstance(record, Tombstone) else stored.body
        if Digest.of(body) != digest:
            raise _Stays(
                f"{key[0]}:{key[1]} is {Digest.of(body).short}… in {self.source.url}, and "
                f"{digest.short}… is wanted"
            )
        return body

    def _record(self, manifest: Manifest, body: bytes, generation: int) -> bytes:
        """Return what stands at the key of a version that was deleted and restored so often."""
        if generation == 0:
            return body
        return Tombstone(
            name=manifest.name,
            version=manifest.version,
            write_id=new_ulid(),
            generation=generation,
            at=now(),
            by=self.zoo.registry.by,
            why=WHY,
            replaced_write_id=manifest.write_id,
            replaced_digest=Digest.of(body),
            record=msgspec.Raw(body),
        ).encode()

    def _swap(self, key: Key, damaged: Object, record: bytes) -> None:
        place = manifest_key(*key)
        with suppress(AlreadyExists):
            self.zoo.store.put(damaged_record_key(place, damaged.body), damaged.body, expect=ABSENT)
        self.zoo.store.put(place, record, expect=damaged.token)


def _digest_told(key: Key, seen: Survey, index: Index | None) -> Digest:
    """Return the digest of the version, as the index and the pointers tell it.

    Other versions that name it must not disagree; alone they do not suffice, for they may
    come from a zoo in which this number is another version.
    """
    told = digests_told(key, seen, index or Index())
    if not told:
        raise _Stays("neither the index nor a pointer tells its digest")
    pins = digests_pinned(key, seen)
    if len(told | pins) > 1:
        shown = " and as ".join(sorted(digest.short for digest in told | pins))
        raise _Stays(f"its digest is told as {shown}")
    return told.pop()


def _generation_told(key: Key, digest: Digest, seen: Survey, index: Index | None) -> int:
    """Return how often the version was deleted and restored, or 2 where that is not known.

    As a version that was restored once, it is no plain manifest: a save that a collection
    has given up would pass that one by, and may have been given up at this very number.

    Raises:
        _Stays: nothing tells whether it is deleted.
    """
    generation = index.tombstones.get(key, 0) if index else 0
    if index and (generation or key in index.rows):
        return generation
    named = {(name, p.version, p.digest) for (name, _), p in seen.pointers.items()}
    if index is None and (*key, digest) not in named:
        raise _Stays("the index cannot be read, and nothing else tells whether it was deleted")
    return 2
