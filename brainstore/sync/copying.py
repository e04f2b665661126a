"""Copying planned versions: under an intent, blobs first, manifests in the order given."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from brainstore import deletion
from brainstore.address import Digest, Name, blob_key, manifest_key
from brainstore.errors import AlreadyExists, Conflict, Corrupt, NotFound, Unsupported
from brainstore.index import Index
from brainstore.journal import save_fact
from brainstore.records import Manifest, Target
from brainstore.storage.base import ABSENT, Stat
from brainstore.sync.plan import Item, Key, batches, body_of, in_parallel, judged, standing
from brainstore.sync.report import Ledger
from brainstore.zoo import Zoo

BATCH_VERSIONS = 32
BATCH_BYTES = 256 * 2**20
BATCH_BLOBS = 4096
ATTEMPTS = 3
_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class _View:
    """A verified blob of the source, as a body for the target."""

    digest: Digest
    view: memoryview

    @property
    def size_bytes(self) -> int:
        return len(self.view)

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, len(self.view), _CHUNK_BYTES):
            yield self.view[start : start + _CHUNK_BYTES]


def send_blob(
    source: Zoo,
    target: Zoo,
    digest: Digest,
    size: int,
    *,
    owner: str,
    present: set[Digest],
    stop: threading.Event,
) -> int:
    """Make a blob of the source part of the target, verified; return how many bytes were sent.

    To be called under an intent of the target that names it; `present` are those seen there
    since. `owner` says in errors whose blob it is. Once `stop` is set, the call soon ends.

    Raises:
        NotFound, Corrupt: the source has not got it, or not with this size and digest; or
            something else stands in its place at the target.
    """
    opened = source.blobs.open({digest: size}, owner=owner, hashed=[digest], stop=stop)
    return target.blobs.put(_View(digest, opened[digest]), present, stop=stop)


class Copying:
    """The versions of one sync on their way to the target."""

    def __init__(
        self, source: Zoo, target: Zoo, there: Index, known: set[Key], ledger: Ledger
    ) -> None:
        """`there` is the target's index; `known` are the versions that the source has."""
        self._source = source
        self._target = target
        self._there = there
        self._known = known
        self._ledger = ledger

    def run(self, items: Sequence[Item]) -> None:
        """Copy what is to be copied, a batch at a time; every item gets an outcome."""
        work = [item for item in items if not self._is_settled(item)]
        self._ledger.expect(len(work), sum(_sizes(work).values()))
        limits = {"most": BATCH_VERSIONS, "most_bytes": BATCH_BYTES, "most_blobs": BATCH_BLOBS}
        for batch in batches(work, **limits):
            if self._ledger.dry_run:
                self._plan(batch)
            else:
                self._copy(batch)

    def _is_settled(self, item: Item) -> bool:
        status = item.standing.status
        if status is None or status == "present":
            return False
        self._ledger.tell(*item.key, status, item.standing.detail)
        return True

    def _plan(self, batch: Sequence[Item]) -> None:
        store, sizes = self._target.store, _sizes(batch)
        digests = [digest for digest in sizes if not self._ledger.is_there(digest)]
        stats = in_parallel(self._target, lambda digest: store.stat(blob_key(digest)), digests)
        self._ledger.plan(sum(sizes[digest] for digest in _missing(digests, sizes, stats)))
        self._ledger.found(digests, sizes)
        for item in batch:
            self._ledger.tell(*item.key, item.standing.status or "copied", self._lacking(item))

    def _copy(self, batch: Sequence[Item]) -> None:
        for _ in range(ATTEMPTS):
            again = self._attempt(batch)
            # Judged before the next intent is stored: see `standing`.
            batch = [item for item in judged(self._target, again) if not self._is_settled(item)]
            if not batch:
                return
        for item in batch:
            self._ledger.tell(*item.key, "failed", "collections keep closing its number there")

    def _attempt(self, batch: Sequence[Item]) -> list[Item]:
        """Copy the batch under one intent; return those that need another one."""
        sizes = _sizes(batch)
        owners = {digest: str(item.version) for item in batch for digest in item.blobs}
        targets = [Target(name=name, version=number) for name, number in (i.key for i in batch)]
        with self._target.committer.protecting(targets, set(sizes)) as present:
            broken = self._send(sizes, owners, present)
            with _cancelling(self._target.store.parallelism) as pool:
                commits = self._commits(pool, batch, broken)
                return [item for item in batch if not commits[item.key].result()]

    def _send(
        self, sizes: Mapping[Digest, int], owners: Mapping[Digest, str], present: set[Digest]
    ) -> dict[Digest, str]:
        """Store what is missing of these blobs; return what is wrong with those that failed."""
        store, digests = self._target.store, list(sizes)
        stats = in_parallel(self._target, lambda digest: store.settle(blob_key(digest)), digests)
        missing = _missing(digests, sizes, stats)
        present.update(set(digests).difference(missing))
        self._ledger.plan(sum(sizes[digest] for digest in missing))
        self._ledger.found(set(digests).difference(missing), sizes)
        stop = threading.Event()
        with _cancelling(store.parallelism, stop) as pool:
            sending = {
                digest: pool.submit(
                    self._send_one, digest, sizes[digest], owners[digest], present, stop
                )
                for digest in missing
            }
            problems = {digest: future.result() for digest, future in sending.items()}
        return {digest: problem for digest, problem in problems.items() if problem}

    def _send_one(
        self, digest: Digest, size: int, owner: str, present: set[Digest], stop: threading.Event
    ) -> str:
        try:
            sent_bytes = send_blob(
                self._source, self._target, digest, size, owner=owner, present=present, stop=stop
            )
        except (Corrupt, NotFound) as error:
            return str(error)
        self._ledger.sent(digest, size, sent_bytes)
        return ""

    def _commits(
        self, pool: ThreadPoolExecutor, batch: Sequence[Item], broken: Mapping[Digest, str]
    ) -> dict[Key, Future[bool]]:
        """Start the commits; each waits for those of its parents and of its own model."""
        commits: dict[Key, Future[bool]] = {}
        last: dict[Name, Future[bool]] = {}
        for item in batch:
            # A pool starts calls in order, so that what one waits for runs already.
            before = [commits[key] for key in item.pin_keys if key in commits]
            before += [last[item.version.name]] if item.version.name in last else []
            commits[item.key] = pool.submit(self._commit, item, broken, before)
            last[item.version.name] = commits[item.key]
        return commits

    def _commit(
        self, item: Item, broken: Mapping[Digest, str], before: Sequence[Future[bool]]
    ) -> bool:
        """Make the version visible; return False if that needs another intent."""
        if not all(future.result() for future in before):
            return False
        if problem := next((broken[d] for d in item.blobs if d in broken), ""):
            self._ledger.tell(*item.key, "failed", problem)
            return True
        try:
            manifest = self._create(item)
        except (NotFound, Corrupt, Unsupported) as error:
            self._ledger.tell(*item.key, "failed", str(error))
            return True
        except (AlreadyExists, Conflict):
            now = standing(self._target, item.version)
            if now.status is not None:
                self._ledger.tell(*item.key, now.status, now.detail)
            return now.status is not None
        problem = self._publish(item, manifest)
        status = item.standing.status or "copied"
        self._ledger.tell(*item.key, status, problem or self._lacking(item))
        return True

    def _create(self, item: Item) -> Manifest:
        body = body_of(self._source, item.version)
        manifest = self._source.registry.versions.decoded(body, *item.key)
        fence = item.standing.fence
        if fence is not None:
            deletion.replace_fence(self._target.registry, fence, body)
        elif item.standing.status is None:
            self._target.store.put(manifest_key(*item.key), body, expect=ABSENT)
        return manifest

    def _publish(self, item: Item, manifest: Manifest) -> str:
        """Make it listed and `latest`, also where a sync that was killed had not come to it."""
        registry, row = self._target.registry, self._there.rows.get(item.key, {})
        try:
            # Before it is listed: what both zoos list alike, no other sync looks at.
            registry.pointers.advance_latest(item.version, manifest.write_id)
            if row.get("digest") == item.version.digest:
                return ""
            if item.standing.fence is not None:
                deletion.finish_restoration(registry, *item.key)
            else:
                registry.journal.record(*save_fact(manifest, item.version.digest))
        except (Conflict, Corrupt) as error:
            return str(error)
        return ""

    def _lacking(self, item: Item) -> str:
        keys = zip(item.pins, item.pin_keys, strict=True)
        missing = [str(pin) for pin, key in keys if key not in self._known]
        return f"the source lacks {', '.join(missing)}, which it names" if missing else ""


def _sizes(items: Sequence[Item]) -> dict[Digest, int]:
    return {digest: size for item in items for digest, size in item.blobs.items()}


def _missing(
    digests: Sequence[Digest], sizes: Mapping[Digest, int], stats: Sequence[Stat | None]
) -> list[Digest]:
    """Return the digests that are not there; something of another size is not it."""
    found = zip(digests, stats, strict=True)
    return [d for d, stat in found if stat is None or stat.size_bytes != sizes[d]]


@contextlib.contextmanager
def _cancelling(threads: int, stop: threading.Event | None = None) -> Iterator[ThreadPoolExecutor]:
    """Give a pool; when something fails inside, what has not begun is not begun.

    `stop` is set then, for what has begun.
    """
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield pool
        except BaseException:
            if stop is not None:
                stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
