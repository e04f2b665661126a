"""Durable files and folders on POSIX: what `LocalStore` is made of."""

from __future__ import annotations

import errno
import os
import stat as file_type
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from brainstore.storage.base import Body, Stat, Token, pieces, size_bytes
from brainstore.storage.compare import Comparison

LEFTOVER_PREFIX = ".tmp-"
ABSENT_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

_CHUNK_BYTES = 1 << 20
# Opening a pipe waits for its writer otherwise.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


def token_of(body: bytes | Body) -> Token:
    hasher = blake3()
    for piece in pieces(body):
        hasher.update(piece)
    return Token(hasher.hexdigest())


def write_all(descriptor: int, body: bytes | Body) -> Token:
    """Write all of `body`, and return its token."""
    hasher = blake3()
    for piece in pieces(body):
        rest = piece.cast("B")
        hasher.update(rest)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    return Token(hasher.hexdigest())


def open_file(file: Path) -> int:
    """Return a descriptor of an ordinary file, open for reading.

    Raises:
        FileNotFoundError: there is none, but perhaps a pipe or a device, which has no end.
    """
    descriptor = os.open(file, os.O_RDONLY | _AT_ONCE)
    if file_type.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "it is no ordinary file", str(file))


def read_file(file: Path) -> bytes:
    with os.fdopen(open_file(file), "rb") as opened:
        return opened.read()


def read_range(file: Path, start: int, stop: int) -> bytes | None:
    """Return the bytes [start, stop), or None when the file ends before `stop`."""
    with os.fdopen(open_file(file), "rb", buffering=0) as opened:
        if os.fstat(opened.fileno()).st_size < stop:
            return None
        opened.seek(start)
        body = bytearray(stop - start)
        rest = memoryview(body)
        while rest and (length := opened.readinto(rest)):
            rest = rest[length:]
    return None if rest else bytes(body)


def holds(descriptor: int, body: bytes | Body) -> bool:
    """Return whether the open file has exactly the bytes of `body`."""
    if os.fstat(descriptor).st_size != size_bytes(body):
        return False
    comparison = Comparison(body)
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        if not comparison.feed(chunk):
            return False
    return comparison.finish()


def fsync_file(descriptor: int) -> None:
    """Return once the file is on the disk. Never repeat a failed call: its pages are gone."""
    if sys.platform == "darwin":
        import fcntl

        # There, fsync leaves the bytes in the drive's own cache.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def fsync_folder(folder: Path) -> None:
    """Return once the names in `folder` are on the disk."""
    if os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fsync_file(descriptor)
    except OSError as error:
        # Some network and FUSE filesystems know no such thing as syncing a folder.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def make_root(root: Path) -> None:
    """Make `root` and the folders above it that are missing, durably."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    # The lowest that is there, too: who made it may not have come to the line that makes it
    # last. It may also be another user's, whose parent is not ours to read.
    there = missing[-1].parent if missing else root
    with suppress(PermissionError):
        fsync_folder(there.parent)
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir()
        fsync_folder(folder.parent)


def is_still_at(descriptor: int, folder: Path) -> bool:
    """Return whether the open folder is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False


def walk(folder: Path, prefix: str) -> Iterator[Stat]:
    """Yield the files below `folder` in the order of their keys, which start with `prefix`."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(LEFTOVER_PREFIX)]
    except ABSENT_ERRORS:
        return
    for entry in sorted(entries, key=_sort_key):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            yield from _stat_entry(entry, prefix)


def _sort_key(entry: os.DirEntry[str]) -> str:
    # As a part of a key: `a-b` comes before `a/b`.
    return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name


def _stat_entry(entry: os.DirEntry[str], prefix: str) -> Iterator[Stat]:
    try:
        found = entry.stat()
    except FileNotFoundError:
        return
    if file_type.S_ISREG(found.st_mode):
        yield Stat(prefix + entry.name, found.st_size, found.st_mtime)


def walk_leftovers(folder: Path, prefix: str) -> Iterator[Stat]:
    """Yield the unfinished files below `folder`; links are neither followed nor counted."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except ABSENT_ERRORS:
        return
    for entry in entries:
        is_unfinished = entry.name.startswith(LEFTOVER_PREFIX)
        if is_unfinished and entry.is_file(follow_symlinks=False):
            yield from _stat_entry(entry, prefix)
        elif not is_unfinished and entry.is_dir(follow_symlinks=False):
            yield from walk_leftovers(folder / entry.name, f"{prefix}{entry.name}/")
