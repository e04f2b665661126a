"""The cache of blobs on this machine, for zoos that are far away.

It holds only whole, verified content, named by digest, and the last records seen of
each zoo for work without a network. Processes share it without locks: a file is
filled under a hidden name and renamed, and a file that went missing is fetched again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from brainstore import settings
from brainstore.address import Digest, blob_key, parse_blob_key
from brainstore.errors import BrainstoreError, Corrupt, ReadOnly, StoreUnavailable
from brainstore.storage.disk import open_file

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

ABANDONED_S = 24 * 3600.0
_RESCAN_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Cached:
    """One blob in the cache; `used_at` is in seconds since 1970."""

    digest: Digest
    size_bytes: int
    used_at: float
    path: Path


class Cache:
    """Verified blobs by digest, at most about `max_bytes` of them, least recently used out."""

    def __init__(self, folder: Path | None = None, max_bytes: int | None = None) -> None:
        self.folder = folder or settings.cache_folder()
        self._max_bytes = max_bytes
        self._unscanned_bytes: float = float("inf")

    @property
    def max_bytes(self) -> int:
        return settings.cache_max_bytes() if self._max_bytes is None else self._max_bytes

    def open(self, digest: Digest) -> int | None:
        """Return a descriptor of the blob, open for reading, or None; the caller closes it."""
        try:
            descriptor = open_descriptor(self._path(digest))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(error) from error
        # Another user's cache may be readable only; then its owner keeps the order.
        with contextlib.suppress(OSError):
            os.utime(descriptor)
        return descriptor

    def add(self, digest: Digest, size_bytes: int, fill: Callable[[int], None]) -> int:
        """Make the blob part of the cache and return a descriptor of it.

        `fill` writes the bytes to the descriptor that it is given. The blob appears only
        when it is whole, verified and durable.

        Raises:
            Corrupt: the bytes do not have this digest; nothing was kept.
            StoreUnavailable, ReadOnly: the cache's folder is full or not to be written.
        """
        path = self._path(digest)
        hidden = path.with_name(f".tmp-{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            descriptor = with_descriptors(lambda: os.open(hidden, flags, 0o600))
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._fill(descriptor, hidden, path, digest, size_bytes, fill)
        except BaseException as error:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        try:
            self._make_room(size_bytes)
        except BrainstoreError as error:
            _log.warning("cache %s: cannot make room: %s", self.folder, error)
        return descriptor

    def _fill(
        self,
        descriptor: int,
        hidden: Path,
        path: Path,
        digest: Digest,
        size_bytes: int,
        fill: Callable[[int], None],
    ) -> None:
        os.truncate(descriptor, size_bytes)
        fill(descriptor)
        found = digest_of(descriptor)
        if found != digest:
            raise Corrupt(f"blob {digest.short}… hashes to {found.short}… ({size_bytes:,} bytes)")
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
        os.rename(hidden, path)
        _sync_folder(path.parent)

    def read(self, digest: Digest) -> bytes | None:
        """Return the bytes of a small blob, such as a manifest, if they are here and intact."""
        descriptor = self.open(digest)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb") as stream:
            body = stream.read()
        if Digest.of(body) == digest:
            return body
        _log.warning("cache %s: %s… is damaged; dropped", self.folder, digest.short)
        self.drop(digest)
        return None

    def write(self, digest: Digest, body: bytes) -> None:
        """Keep a small blob. Errors as for `add`."""
        if self._path(digest).exists():
            return
        os.close(self.add(digest, len(body), lambda to: _write_all(to, body)))

    def drop(self, digest: Digest) -> None:
        """Forget the blob; maps of it stay valid."""
        try:
            self._path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise self._failed(error) from error

    def ls(self) -> list[Cached]:
        """Return what the cache holds, least recently used first."""
        return sorted(self._scan(), key=lambda cached: cached.used_at)

    def prune(self, max_bytes: int | None = None) -> list[Cached]:
        """Remove the least recently used blobs beyond `max_bytes`; return what went.

        Leftovers of killed downloads go too, once they are a day old.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        held = self.ls()
        total = sum(cached.size_bytes for cached in held)
        removed = []
        for cached in held:
            if total <= limit:
                break
            self.drop(cached.digest)
            removed.append(cached)
            total -= cached.size_bytes
        self._remove_abandoned()
        self._unscanned_bytes = 0
        return removed

    def verify(self) -> list[Cached]:
        """Hash every blob again; remove and return those that are damaged."""
        damaged = []
        for cached in self._scan():
            descriptor = self.open(cached.digest)
            if descriptor is None:
                continue
            try:
                intact = digest_of(descriptor) == cached.digest
            finally:
                os.close(descriptor)
            if not intact:
                self.drop(cached.digest)
                damaged.append(cached)
        return damaged

    def zoo_folder(self, identity: str) -> Path:
        """Return where the last records seen of this zoo are kept."""
        return self.folder / "zoos" / blake3(identity.encode()).hexdigest()[:16]

    def _path(self, digest: Digest) -> Path:
        return self.folder / blob_key(digest)

    def _scan(self) -> Iterator[Cached]:
        for path in (self.folder / "blobs").glob("??/*"):
            digest = parse_blob_key(path.relative_to(self.folder).as_posix())
            if digest is not None:
                with contextlib.suppress(FileNotFoundError):  # another process pruned it
                    found = path.stat()
                    yield Cached(digest, found.st_size, found.st_mtime, path)

    def _make_room(self, added_bytes: int) -> None:
        # Scanning is the price of having no index; pay it once per 2% of growth.
        self._unscanned_bytes += added_bytes
        if self._unscanned_bytes > self.max_bytes * _RESCAN_SHARE:
            removed = self.prune()
            if removed:
                _log.info("cache %s: removed %d blobs to make room", self.folder, len(removed))

    def _remove_abandoned(self) -> None:
        for path in (self.folder / "blobs").glob("??/.tmp-*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()

    def _failed(self, error: OSError) -> ReadOnly | StoreUnavailable:
        if isinstance(error, PermissionError):
            return ReadOnly(
                f"cache {self.folder}: {error.strerror}. Choose another folder: BRAINSTORE_CACHE"
            )
        return StoreUnavailable(
            f"cache {self.folder}: {error.strerror or error}. Make room (brainstore cache prune), "
            "or choose another folder: BRAINSTORE_CACHE"
        )


def _write_all(descriptor: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[os.write(descriptor, view) :]


def open_descriptor(path: Path) -> int:
    """Return a descriptor of an ordinary file, open for reading. Raises OSError."""
    return with_descriptors(lambda: open_file(path))


def with_descriptors(call: Callable[[], Result]) -> Result:
    """Return what `call` returns; out of descriptors, try again with as many as are allowed.

    Raises:
        StoreUnavailable: this process may have no more of them.
    """
    try:
        return call()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # Also when another thread has done so meanwhile: then there are more now.
    _raise_limit()
    try:
        return call()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise StoreUnavailable(
            f"{error.strerror}: each large array that is mapped from a zoo keeps one file "
            "open. Let go of some, or allow more: ulimit -n"
        ) from error


def _raise_limit() -> None:
    """Raise the soft limit of open files to the hard one."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def digest_of(descriptor: int) -> Digest:
    """Return the digest of an open file."""
    hasher = blake3(max_threads=blake3.AUTO)
    if os.fstat(descriptor).st_size:
        # A map has a descriptor of its own.
        mapping = with_descriptors(lambda: mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        with mapping as mapped:
            hasher.update(mapped)
    return Digest("blake3:" + hasher.hexdigest())


def _sync_folder(folder: Path) -> None:
    descriptor = with_descriptors(lambda: os.open(folder, os.O_RDONLY))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
