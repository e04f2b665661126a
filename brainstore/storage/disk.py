"""Durable files and folders on POSIX: what `LocalStore` is made of."""

from __future__ import annotations

import errno
import getpass
import os
import stat as file_type
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from brainstore.storage.base import Body, Stat, Token, pieces, require_gettable, size_bytes
from brainstore.storage.compare import Comparison

LEFTOVER_PREFIX = ".tmp-"
ABSENT_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

_CHUNK_BYTES = 1 << 20
# Opening a pipe waits for its writer otherwise.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0)
_TO_PASS = getattr(os, "O_PATH", os.O_RDONLY)
_HAS_PLACES = os.open in os.supports_dir_fd  # not on Windows
# Deeper than any key: a name of 128 characters has 64 segments at most.
_MAX_DEPTH = 100


class LinkFound(OSError):
    """A symbolic link stands below the folder of a zoo, where nothing follows one."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ELOOP, "it is a symbolic link", str(path))


def user() -> str:
    """Return whom the kernel takes us for."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        name = "a user without a name"
    return f"{name} (uid {os.geteuid()})" if hasattr(os, "geteuid") else name


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


def open_folder(root: Path, names: Sequence[str]) -> int:
    """Return a descriptor of a folder below `root`, good for opening what is in it.

    Each name is opened in the folder before it: a link is not followed, even one that
    somebody puts there meanwhile. `root` itself, and what is above it, may be links.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        LinkFound: it lies behind a link.
    """
    folder = os.open(root, _TO_PASS | _FOLDER)
    for depth, name in enumerate(names):
        above = folder
        try:
            folder = os.open(name, _TO_PASS | _FOLDER | _NO_LINK, dir_fd=above)
        except OSError as error:
            _refuse_link(error, name, above, root.joinpath(*names[: depth + 1]))
            raise
        finally:
            os.close(above)
    return folder


def open_below(root: Path, names: Sequence[str]) -> int:
    """Return a descriptor of an ordinary file below `root`, open for reading.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        LinkFound: it is a link, or lies behind one.
    """
    if not _HAS_PLACES:
        return open_file(_without_links(root, names))
    folder = open_folder(root, names[:-1])
    try:
        descriptor = os.open(names[-1], os.O_RDONLY | _AT_ONCE | _NO_LINK, dir_fd=folder)
    except OSError as error:
        _refuse_link(error, names[-1], folder, root.joinpath(*names))
        raise
    finally:
        os.close(folder)
    return _ordinary(descriptor, names[-1])


def stat_below(root: Path, names: Sequence[str]) -> os.stat_result:
    """Return what there is to say of a file below `root`. Errors as for `open_below`."""
    if not _HAS_PLACES:
        return os.stat(_without_links(root, names))
    folder = open_folder(root, names[:-1])
    try:
        found = os.stat(names[-1], dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(folder)
    if file_type.S_ISLNK(found.st_mode):
        raise LinkFound(root.joinpath(*names))
    return found


def require_no_links(root: Path, names: Sequence[str]) -> None:
    """Raise as `open_folder` does unless there is such a folder, behind no link."""
    if _HAS_PLACES:
        os.close(open_folder(root, names))
    else:
        _without_links(root, names)


def _refuse_link(error: OSError, name: str, folder: int, path: Path) -> None:
    # Systems differ in what they say of a link that they were told not to follow.
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if file_type.S_ISLNK(found.st_mode):
            raise LinkFound(path) from error


def _without_links(root: Path, names: Sequence[str]) -> Path:
    path = root
    for name in names:
        path = path / name
        if path.is_symlink():
            raise LinkFound(path)
    return path


def open_file(file: Path) -> int:
    """Return a descriptor of an ordinary file, open for reading; links are followed.

    Raises:
        FileNotFoundError: there is none, but perhaps a pipe or a device, which has no end.
    """
    return _ordinary(os.open(file, os.O_RDONLY | _AT_ONCE), str(file))


def _ordinary(descriptor: int, name: str) -> int:
    if file_type.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "it is no ordinary file", name)


def read_file(descriptor: int, what: str) -> bytes:
    """Return all bytes of the open file, and close it; `what` names it in errors.

    Raises:
        Corrupt: it is larger than any record.
    """
    with os.fdopen(descriptor, "rb") as opened:
        require_gettable(what, os.fstat(descriptor).st_size)
        return opened.read()


def read_range(descriptor: int, start: int, stop: int) -> bytes | None:
    """Return the bytes [start, stop), or None when the file ends before `stop`; close it."""
    with os.fdopen(descriptor, "rb", buffering=0) as opened:
        if os.fstat(descriptor).st_size < stop:
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


def walk(root: Path, names: Sequence[str], prefix: str) -> Iterator[Stat]:
    """Yield the files below a folder in the order of their keys, which start with `prefix`.

    Raises:
        LinkFound: there is a link among them, or on the way; all others were yielded.
    """
    try:
        require_no_links(root, names)
    except ABSENT_ERRORS:
        return
    links: list[str] = []
    yield from _walk(root.joinpath(*names), prefix, links)
    if links:
        raise LinkFound(root / links[0])


def links_below(root: Path) -> list[str]:
    """Return the keys at which a link stands."""
    links: list[str] = []
    deque(_walk(root, "", links), maxlen=0)
    return links


def _walk(folder: Path, prefix: str, links: list[str]) -> Iterator[Stat]:
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(LEFTOVER_PREFIX)]
    except ABSENT_ERRORS:
        return
    for entry in sorted(entries, key=_sort_key):
        if entry.is_symlink():
            links.append(prefix + entry.name)
        elif not entry.is_dir(follow_symlinks=False):
            yield from _stat_entry(entry, prefix)
        elif prefix.count("/") < _MAX_DEPTH:
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", links)


def _sort_key(entry: os.DirEntry[str]) -> str:
    # As a part of a key: `a-b` comes before `a/b`.
    return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name


def _stat_entry(entry: os.DirEntry[str], prefix: str) -> Iterator[Stat]:
    try:
        found = entry.stat(follow_symlinks=False)
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
        elif is_unfinished or prefix.count("/") >= _MAX_DEPTH:
            continue
        elif entry.is_dir(follow_symlinks=False):
            yield from walk_leftovers(folder / entry.name, f"{prefix}{entry.name}/")
