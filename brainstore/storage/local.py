"""A zoo in a folder of a local disk: atomic by link, rename and lock, durable by fsync.

Files that are not finished are called `.tmp-…`; no reader sees them.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat as file_type
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from brainstore.address import BLOBS_PREFIX, MODELS_PREFIX
from brainstore.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    NotFound,
    StoreUnavailable,
    Unsupported,
)
from brainstore.storage import disk, locks
from brainstore.storage.base import (
    ABSENT,
    ANYTHING,
    Body,
    Expect,
    Object,
    Stat,
    Store,
    Token,
    size_bytes,
)
from brainstore.storage.disk_errors import FULL, explanation

_ATTEMPTS = 16
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class LocalStore(Store):
    """A folder, made by the first write.

    A token is the BLAKE3 digest of the bytes. Creating is `link`, which fails when
    the name is taken; whatever replaces or removes a file holds the lock of its
    folder meanwhile, so a swap sees a state and replaces that very state. No record
    reaches the disk, or goes, before those that its writer has read are there: one who was
    killed may have left them visible, but not durable.
    """

    parallelism = 4

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(Path(root).expanduser()))
        self.url = str(self.root)
        self.requests = Counter()
        # Folders known to survive a power cut.
        self._durable: set[Path] = set()
        # Of records that were read since the last write.
        self._read_from: set[Path] = set()
        self._settling = threading.Lock()

    def get(self, key: str) -> Object | None:
        file = self._file(key)
        with self._explained("read", key):
            try:
                body = self._read(key)
            except disk.ABSENT_ERRORS:
                return None
        if key.startswith(MODELS_PREFIX):
            self._read_from.add(file.parent)
        return Object(body, disk.token_of(body))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        with self._explained("read", key):
            try:
                descriptor = disk.open_below(self.root, self._names(key))
                body = disk.read_range(descriptor, start, stop)
            except disk.ABSENT_ERRORS:
                raise NotFound(f"{self.url} has no object {key}") from None
        if body is None:
            raise Corrupt(
                f"{key} in {self.url} is too short: it ends before the bytes {start:,} to "
                f"{stop:,}. Run: brainstore fsck"
            )
        return body

    def put(self, key: str, body: bytes | Body, *, expect: Token | Expect = ANYTHING) -> Token:
        file = self._file(key)
        with self._explained("write", key):
            self._settle_what_was_read(key)
            if expect is ABSENT:
                return self._create(key, file, body)
            if expect is ANYTHING:
                return self._overwrite(key, file, body)
            return self._swap(key, file, body, str(expect))

    def stat(self, key: str) -> Stat | None:
        with self._explained("read", key):
            try:
                found = disk.stat_below(self.root, self._names(key))
            except disk.ABSENT_ERRORS:
                return None
        return _stat(key, found) if file_type.S_ISREG(found.st_mode) else None

    def settle(self, key: str) -> Stat | None:
        file = self._file(key)
        with self._explained("read", key):
            try:
                descriptor = disk.open_below(self.root, self._names(key))
            except disk.ABSENT_ERRORS:
                return None
            try:
                self._make_durable(key, file, descriptor)
                return _stat(key, os.fstat(descriptor))
            finally:
                os.close(descriptor)

    def list(self, prefix: str) -> Iterator[Stat]:
        names = self._names(prefix.removesuffix("/")) if prefix else ()
        with self._explained("list", prefix):
            yield from disk.walk(self.root, names, prefix)

    def links(self) -> Sequence[str]:
        with self._explained("list", ""):
            return disk.links_below(self.root)

    def delete(self, key: str) -> None:
        self.delete_all([key])

    def delete_all(self, keys: Sequence[str]) -> None:
        by_folder: dict[Path, list[Path]] = {}
        for key in keys:
            file = self._file(key)
            by_folder.setdefault(file.parent, []).append(file)
        with self._explained("delete", keys[0] if keys else ""):
            for key in keys:
                self._settle_what_was_read(key)
            for folder, files in by_folder.items():
                with suppress(*disk.ABSENT_ERRORS), self._locked(folder):
                    self._unlink(folder, files)

    def _unlink(self, folder: Path, files: Sequence[Path]) -> None:
        for file in files:
            with suppress(FileNotFoundError):
                os.unlink(file)
        # Also when they were gone: who removed them may not have come to this line.
        disk.fsync_folder(folder)

    def leftovers(self) -> Iterator[Stat]:
        with self._explained("list", ""):
            yield from disk.walk_leftovers(self.root, "")

    def discard(self, leftover: Stat) -> None:
        folder, _, name = leftover.key.rpartition("/")
        file = (self._file(folder) if folder else self.root) / name
        if not name.startswith(disk.LEFTOVER_PREFIX) or "\0" in name:
            super().discard(leftover)
        with self._explained("delete", leftover.key), suppress(*disk.ABSENT_ERRORS):
            self._refuse_to_leave(file.parent)
            if not file_type.S_ISREG(os.lstat(file).st_mode):
                super().discard(leftover)
            os.unlink(file)

    @contextmanager
    def sole(self, prefix: str) -> Iterator[bool]:
        folder = self._file(prefix.removesuffix("/"))
        with self._explained("write", prefix):
            self._make_folder(folder)
            self._refuse_to_leave(folder)
        with locks.had_at_once(folder) as is_sole:
            yield is_sole

    def access(self) -> dict[str, str]:
        return {"identity": disk.user()}

    def path(self, key: str) -> Path | None:
        return self._file(key) if key else self.root

    def open(self, key: str) -> int | None:
        try:
            return disk.open_below(self.root, self._names(key))
        except disk.LinkFound as error:
            what = f"Cannot read {key} in {self.url}"
            raise explanation(error, what, is_write=False) from error

    def _read(self, key: str) -> bytes:
        descriptor = disk.open_below(self.root, self._names(key))
        return disk.read_file(descriptor, f"{self.url}/{key}")

    def _file(self, key: str) -> Path:
        return self.root.joinpath(*self._names(key))

    def _names(self, key: str) -> tuple[str, ...]:
        segments = tuple(key.split("/"))
        ill_formed = any(s in ("", ".", "..") for s in segments) or "\0" in key
        if ill_formed or any(s.startswith(disk.LEFTOVER_PREFIX) for s in segments):
            raise NotFound(
                f"{key!r} is no key of {self.url}: expected names joined by '/', "
                f"without '.', '..' and '{disk.LEFTOVER_PREFIX}…'"
            )
        return segments

    def _create(self, key: str, file: Path, body: bytes | Body) -> Token:
        for _ in range(_ATTEMPTS):
            with self._folder_may_vanish():
                token = self._find_equal(key, file, body) or self._link(key, file, body)
                if token is not None:
                    return token
        raise self._restless(file)

    def _find_equal(self, key: str, file: Path, body: bytes | Body) -> Token | None:
        """Return the token when `body` is there, durably; None when nothing is there."""
        try:
            descriptor = disk.open_below(self.root, self._names(key))
        except FileNotFoundError:
            return None
        try:
            if not disk.holds(descriptor, body):
                raise AlreadyExists(
                    f"{key} exists in {self.url}, with other bytes than the "
                    f"{size_bytes(body):,} to create; nothing was written"
                )
            self._make_durable(key, file, descriptor)
        finally:
            os.close(descriptor)
        return disk.token_of(body)

    def _make_durable(self, key: str, file: Path, descriptor: int) -> None:
        # The writer may have died between making it visible and making it durable.
        disk.fsync_file(descriptor)
        self._make_folder(file.parent)
        self._make_name_durable(key, file.parent)

    def _link(self, key: str, file: Path, body: bytes | Body) -> Token | None:
        """Return the token, or None when somebody else created the file first."""
        self._make_folder(file.parent)
        with self._temporary(key, file, body) as (temporary, token):
            try:
                os.link(temporary, file)
            except FileExistsError:
                return None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise Unsupported(
                    f"{self.url} lies on a filesystem without hard links ({error.strerror}), "
                    "which creating without overwriting needs. Use another disk."
                ) from error
        self._make_name_durable(key, file.parent)
        return token

    def _overwrite(self, key: str, file: Path, body: bytes | Body) -> Token:
        for _ in range(_ATTEMPTS):
            with self._folder_may_vanish():
                self._make_folder(file.parent)
                with self._locked(file.parent):
                    return self._replace(key, file, body)
        raise self._restless(file)

    def _swap(self, key: str, file: Path, body: bytes | Body, expect: str) -> Token:
        if not locks.ARE_THERE:
            raise Unsupported(
                f"{self.url}: this platform has no flock, so {key} cannot be replaced safely "
                "among several writers. Use Linux, macOS or an S3 server."
            )
        try:
            with self._locked(file.parent):
                found = disk.token_of(self._read(key))
                if found != expect:
                    raise Conflict(
                        f"{key} in {self.url} was changed by another writer: expected state "
                        f"{expect[:12]}, found {found[:12]}. Load it again and retry."
                    )
                # Who made the folder may not have come to the line that makes it last.
                self._make_folder(file.parent)
                return self._replace(key, file, body)
        except disk.ABSENT_ERRORS:
            raise Conflict(
                f"{key} in {self.url} is gone: expected state {expect[:12]}. Load again and retry."
            ) from None

    def _replace(self, key: str, file: Path, body: bytes | Body) -> Token:
        with self._temporary(key, file, body) as (temporary, token):
            os.replace(temporary, file)
        self._make_name_durable(key, file.parent)
        return token

    @contextmanager
    def _temporary(self, key: str, file: Path, body: bytes | Body) -> Iterator[tuple[Path, Token]]:
        """Give a file beside `file` that has `body`, durably; its name is gone afterwards."""
        temporary = file.with_name(
            f"{disk.LEFTOVER_PREFIX}{os.getpid()}-{secrets.token_hex(8)}",
        )
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            mode = 0o444 if key.startswith(BLOBS_PREFIX) else 0o666
            descriptor = os.open(temporary, flags, mode)
            try:
                token = disk.write_all(descriptor, body)
                self._check_length(key, descriptor, body)
                disk.fsync_file(descriptor)
            finally:
                os.close(descriptor)
            yield temporary, token
        finally:
            # The write has its own outcome, which a name that stays must not hide: nobody sees
            # it, and a collection removes it.
            with suppress(OSError):
                os.unlink(temporary)

    def _check_length(self, key: str, descriptor: int, body: bytes | Body) -> None:
        found = os.fstat(descriptor).st_size
        if found != size_bytes(body):
            raise Corrupt(
                f"{key}: expected {size_bytes(body):,} bytes, found {found:,} in the file "
                f"written to {self.url}; nothing was stored. Save again."
            )

    def _make_folder(self, folder: Path) -> None:
        """Make sure that `folder` exists and survives a power cut."""
        if folder in self._durable:
            return
        if folder == self.root:
            disk.make_root(folder)
        else:
            self._make_folder(folder.parent)
            with suppress(FileExistsError):
                os.mkdir(folder)
            self._refuse_to_leave(folder)
            # Also when it was there: who made it may not have come to this line.
            disk.fsync_folder(folder.parent)
        self._durable.add(folder)

    def _refuse_to_leave(self, folder: Path) -> None:
        disk.require_no_links(self.root, folder.relative_to(self.root).parts)

    def _settle_what_was_read(self, key: str) -> None:
        if key.startswith(BLOBS_PREFIX):
            return  # a blob says nothing of any record
        # Whoever finds nothing to do here may rely on it: not before another thread has done it.
        with self._settling:
            for folder in list(self._read_from):
                self._read_from.discard(folder)
                with suppress(*disk.ABSENT_ERRORS):
                    disk.fsync_folder(folder)
                    self._make_folder(folder)

    def _make_name_durable(self, key: str, folder: Path) -> None:
        try:
            disk.fsync_folder(folder)
        except OSError as error:
            is_full = error.errno in FULL
            raise StoreUnavailable(
                f"{key} is visible in {self.url} but may not survive a power cut: {folder} "
                f"could not be synced: {'disk full' if is_full else 'the disk failed'} "
                f"({error.strerror}). {'Free some space' if is_full else 'Check the disk'}, then "
                "save again.",
                outcome_unknown=True,
            ) from error

    @contextmanager
    def _folder_may_vanish(self) -> Iterator[None]:
        """Forget which folders exist when somebody removes one that was empty."""
        try:
            yield
        except FileNotFoundError:
            self._durable.clear()

    def _restless(self, file: Path) -> StoreUnavailable:
        return StoreUnavailable(
            f"{file}, or its folder, came and went {_ATTEMPTS} times while it was to be "
            "written. Who else is removing things there? Try again."
        )

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold the lock of the folder against whoever else would replace or remove in it."""
        self._refuse_to_leave(folder)
        with locks.waited_for(folder):
            yield

    @contextmanager
    def _explained(self, action: str, key: str) -> Iterator[None]:
        """Turn failures of the operating system into errors that say what to do."""
        try:
            yield
        except OSError as error:
            what = f"Cannot {action} {key or 'the keys'} in {self.url}"
            is_write = action in ("write", "delete")
            raise explanation(error, what, is_write=is_write) from error


def _stat(key: str, found: os.stat_result) -> Stat:
    return Stat(key, found.st_size, found.st_mtime)
