"""Blobs by digest: stored once, fetched in parallel, verified, and mapped.

Reading never copies a blob on disk: it is mapped, and the map is handed out. A blob
of a remote zoo is first fetched, in ranges, into the cache, and mapped from there.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from brainstore import settings
from brainstore.address import Digest, blob_key
from brainstore.cache import Cache, with_descriptors
from brainstore.errors import AlreadyExists, BadParams, Corrupt, NotFound, StoreUnavailable
from brainstore.storage.base import ABSENT, Body, Store
from brainstore.threads import Budget, Threads

_log = logging.getLogger(__name__)

RANGE_BYTES = 8 * 2**20
RANGES_AT_ONCE = 6
IN_FLIGHT_BYTES = 24 * 2**20
ASK_FIRST_BYTES = 2**20


class Blob(Body, Protocol):
    """A body whose digest is known, or computed when first asked for."""

    @property
    def digest(self) -> Digest: ...


class FileBlob:
    """A file on this machine, or bytes, to be stored as they are."""

    def __init__(self, source: Path | bytes) -> None:
        """Hash it, in pieces and not as a map: somebody may truncate the file meanwhile.

        Raises:
            BadParams: the file cannot be read.
        """
        self._source = source
        self.size_bytes, hasher = 0, blake3()
        for piece in self:
            self.size_bytes += len(piece)
            hasher.update(piece)
        self.digest = Digest("blake3:" + hasher.hexdigest())

    def __iter__(self) -> Iterator[memoryview]:
        if isinstance(self._source, bytes):
            yield memoryview(self._source)
            return
        try:
            with open(self._source, "rb") as stream:
                while chunk := stream.read(RANGE_BYTES):
                    yield memoryview(chunk)
        except OSError as error:
            # Not the store's failure, for which it would be taken otherwise.
            raise BadParams(f"{self._source} cannot be read: {error.strerror}") from error


class _Stopped(Exception):  # no error: nobody waits for this any more
    """Whoever wanted the bytes has gone, by an error or by Ctrl-C."""


class _Checked:
    """A blob on its way out: its pieces, which must still have the digest that names them."""

    def __init__(self, blob: Blob, stop: threading.Event) -> None:
        """Once `stop` is set, there are no more pieces, and nothing is stored."""
        self._blob = blob
        self._stop = stop
        self.size_bytes = blob.size_bytes

    def __iter__(self) -> Iterator[memoryview]:
        hasher = blake3()
        for piece in _in_chunks(self._blob):
            if self._stop.is_set():
                raise _Stopped
            hasher.update(piece)
            yield piece
        # The store has not made the object visible yet: it waits for the last piece.
        if hasher.hexdigest() != self._blob.digest.hex:
            raise BadParams(
                f"the content of blob {self._blob.digest.short}… changed while it was saved; it "
                "was not stored. Do not write to arrays or files until the save has returned"
            )


def _in_chunks(blob: Blob) -> Iterator[memoryview]:
    for piece in blob:
        rest = piece.cast("B")
        for start in range(0, len(rest), RANGE_BYTES):
            yield rest[start : start + RANGE_BYTES]


class Blobs:
    """The blobs of one zoo. All methods may be called from many threads."""

    def __init__(self, store: Store, cache: Cache | None = None) -> None:
        """`cache` is needed for a store that is remote, and not used for others."""
        self._store = store
        self._cache = cache
        self._ranges = Threads(RANGES_AT_ONCE, "brainstore-range")
        self._budget = Budget(IN_FLIGHT_BYTES)

    def upload(self, blobs: Sequence[Blob]) -> Upload:
        """Return an upload of what is missing of `blobs`."""
        return Upload(self, blobs, self._store.parallelism)

    def put(self, blob: Blob, present: set[Digest], *, stop: threading.Event | None = None) -> int:
        """Make the blob part of the zoo, durably; return how many bytes had to be sent.

        `present` holds what the store is known to have, and learns of this one. Several
        threads share a budget of memory for what is on its way. Once `stop` is set, the
        call soon ends with an error.
        """
        digest, size = blob.digest, blob.size_bytes
        if digest in present:
            return 0
        key = blob_key(digest)
        # Asking costs a round trip, sending a small blob that is there costs no more.
        if size > ASK_FIRST_BYTES or not self._store.is_remote:
            found = self._store.settle(key)
            if found is not None and found.size_bytes == size:
                present.add(digest)
                return 0
        with self._budget.borrowed(size if self._store.is_remote else 0):
            try:
                self._store.put(key, _Checked(blob, stop or threading.Event()), expect=ABSENT)
            except AlreadyExists as error:
                raise Corrupt(
                    f"blob {digest.short}… is in {self._store.url}, but not with its {size:,} "
                    "bytes. Move it out of the way: brainstore fsck --repair"
                ) from error
        present.add(digest)
        return size

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Return those that the store does not hold, learned now."""
        with ThreadPoolExecutor(self._store.parallelism) as pool:
            found = pool.map(lambda digest: self._store.settle(blob_key(digest)), digests)
            return [digest for digest, stat in zip(digests, found, strict=True) if stat is None]

    def open(
        self,
        wanted: Mapping[Digest, int],
        *,
        owner: str,
        hashed: Collection[Digest],
        stop: threading.Event | None = None,
    ) -> dict[Digest, memoryview]:
        """Return read-only views of whole blobs: `wanted` maps digests to sizes in bytes.

        A view of a blob on disk, or in the cache, is a map of the file, not a copy. What
        is fetched is always verified; of what is here, those in `hashed`. `owner` says
        in errors whose blobs they are. Once `stop` is set, the call soon ends with an error.

        Raises:
            Corrupt: a blob has the wrong size or digest.
            NotFound: a blob is gone.
            StoreUnavailable: the store does not answer, or BRAINSTORE_OFFLINE is set and
                the cache lacks some.
        """
        if self._store.is_remote and self._cache is not None:
            fetch = _Fetch(self._store, self._cache, self._ranges, owner, hashed, stop)
            return fetch.all(wanted)
        return {
            digest: self._open_here(digest, size, owner, digest in hashed)
            for digest, size in wanted.items()
        }

    def close(self) -> None:
        self._ranges.close(cancel=True)

    def _open_here(self, digest: Digest, size: int, owner: str, verify: bool) -> memoryview:
        view = _view_here(self._store, blob_key(digest))
        if view is None:
            raise _gone(digest, owner, self._store.url)
        _check(view, digest, size, owner, self._store.url, verify)
        return view


class Upload:
    """Blobs on their way into a zoo: hashing runs ahead, so that it hides behind writing."""

    def __init__(self, blobs: Blobs, bodies: Sequence[Blob], parallelism: int) -> None:
        self.sent_bytes = 0
        self._blobs = blobs
        self._bodies = bodies
        self._hashers = ThreadPoolExecutor(2, "brainstore-hash")
        self._writers = ThreadPoolExecutor(parallelism, "brainstore-put")
        self._writes: list[Future[int]] = []
        self._stop = threading.Event()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        # What still runs is of no use now, and the process cannot end before it does.
        self._stop.set()
        self._hashers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=False, cancel_futures=True)

    def start(self, present: set[Digest]) -> dict[Digest, int]:
        """Return {digest: size_bytes} of all; each is being stored from then on."""
        hashing = {self._hashers.submit(_digest_of_blob, body): body for body in self._bodies}
        sizes: dict[Digest, int] = {}
        for future in as_completed(hashing):
            digest, body = future.result(), hashing[future]
            if digest not in sizes:
                sizes[digest] = body.size_bytes
                self._submit(body, present)
        return sizes

    def _submit(self, body: Blob, present: set[Digest]) -> None:
        self._writes.append(self._writers.submit(self._blobs.put, body, present, stop=self._stop))

    def wait(self) -> None:
        """Return once all are stored; the first error wins."""
        while self._writes:
            self.sent_bytes += self._writes[-1].result()
            self._writes.pop()

    def again(self, digests: set[Digest], present: set[Digest]) -> None:
        """Learn anew whether these are there, store what is not, and wait."""
        for body in self._bodies:
            if body.digest in digests:
                self._submit(body, present)
        self.wait()


def _digest_of_blob(blob: Blob) -> Digest:
    return blob.digest


class _Fetch:
    """One call to open blobs of a remote zoo."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        ranges: Threads,
        owner: str,
        hashed: Collection[Digest],
        stop: threading.Event | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._ranges = ranges
        self._owner = owner
        self._hashed = hashed
        self._asked = stop
        self._stop = threading.Event()

    def all(self, wanted: Mapping[Digest, int]) -> dict[Digest, memoryview]:
        views = {digest: self._from_cache(digest, size) for digest, size in wanted.items()}
        lacking = [digest for digest, view in views.items() if view is None]
        if lacking and settings.is_offline():
            total = sum(wanted[digest] for digest in lacking)
            raise StoreUnavailable(
                f"{self._owner}: BRAINSTORE_OFFLINE is set, and the cache lacks {len(lacking)} of "
                f"{len(wanted)} blobs ({total:,} bytes; the first is {lacking[0].short}…). "
                "Load it once while online, or unset the variable"
            )
        with ThreadPoolExecutor(max(1, min(len(lacking), 8)), "brainstore-fetch") as pool:
            try:
                fetched = pool.map(lambda digest: self._fetched(digest, wanted[digest]), lacking)
                views.update(zip(lacking, fetched, strict=True))
            finally:
                # After an error or Ctrl-C nobody waits for the others.
                self._stop.set()
        return {digest: view for digest, view in views.items() if view is not None}

    def _from_cache(self, digest: Digest, size: int) -> memoryview | None:
        descriptor = self._cache.open(digest)
        if descriptor is None:
            return None
        view, where = _map(descriptor), str(self._cache.folder)
        try:
            _check(view, digest, size, self._owner, where, digest in self._hashed)
        except Corrupt:
            _log.warning(
                "cache %s: blob %s… of %s is damaged; dropped, and fetched again",
                *(where, digest.short, self._owner),
            )
            self._cache.drop(digest)
            return None
        return view

    def _fetched(self, digest: Digest, size: int) -> memoryview:
        try:
            descriptor = self._cache.add(digest, size, lambda to: self._fill(to, digest, size))
        except Corrupt as error:
            raise Corrupt(
                f"{self._store.url}: {error}, of {self._owner}. Nothing was kept. "
                "Run: brainstore fsck"
            ) from error
        except NotFound as error:
            raise _gone(digest, self._owner, self._store.url) from error
        return _map(descriptor)

    @property
    def _is_stopped(self) -> bool:
        return self._stop.is_set() or (self._asked is not None and self._asked.is_set())

    def _fill(self, descriptor: int, digest: Digest, size: int) -> None:
        """Fetch the blob into the file, several ranges at once, until one of them fails."""
        key, failed = blob_key(digest), threading.Event()
        # Shared: whoever is free takes the next. Not all are handed out at once, since how
        # many there are is what a manifest says.
        starts = iter(range(0, size, RANGE_BYTES))

        def copy() -> None:
            for start in starts:
                if failed.is_set() or self._is_stopped:
                    raise _Stopped
                try:
                    chunk = self._store.get_range(key, start, min(start + RANGE_BYTES, size))
                    _write_all(descriptor, chunk, start)
                except BaseException:
                    failed.set()
                    raise

        # All have ended when this does: none may write to a descriptor that is closed by then.
        copies = [self._ranges.submit(copy) for _ in range(RANGES_AT_ONCE)]
        problems = [error for each in copies if (error := each.exception())]
        if problems:
            raise next((each for each in problems if not isinstance(each, _Stopped)), problems[0])


def _gone(digest: Digest, owner: str, where: str) -> NotFound:
    return NotFound(
        f"blob {digest.short}… of {owner} is missing from {where}. Run: brainstore fsck"
    )


def _write_all(descriptor: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _view_here(store: Store, key: str) -> memoryview | None:
    try:
        descriptor = with_descriptors(lambda: store.open(key))
        if descriptor is not None:
            return _map(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreUnavailable(f"{store.url}/{key}: cannot be read ({error.strerror})") from error
    found = store.get(key)
    return None if found is None else memoryview(found.body)


def _map(descriptor: int) -> memoryview:
    """Return a read-only map of the file, and close its descriptor."""
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            return memoryview(b"")
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
        return memoryview(_mmap(descriptor, size))
    finally:
        os.close(descriptor)


def _mmap(descriptor: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, trackfd=False)
    # Before 3.13, a map keeps a descriptor of its own for as long as it lives.
    return with_descriptors(lambda: mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))


def _check(
    view: memoryview, digest: Digest, size: int, owner: str, where: str, verify: bool
) -> None:
    if len(view) != size:
        raise Corrupt(
            f"blob {digest.short}… of {owner} has {len(view):,} bytes in {where}; "
            f"expected {size:,}. Run: brainstore fsck"
        )
    if verify:
        found = Digest("blake3:" + blake3(view, max_threads=blake3.AUTO).hexdigest())
        if found != digest:
            raise Corrupt(
                f"blob {digest.short}… of {owner} hashes to {found.short}… "
                f"({size:,} bytes, in {where}). Run: brainstore fsck"
            )
