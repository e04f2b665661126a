"""What the permissions of a zoo in a folder do not let us read, write, or keep read-only."""

from __future__ import annotations

import os
import stat as file_type
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from brainstore.address import (
    BLOBS_PREFIX,
    GC_STATE_KEY,
    MARKER_KEY,
    POLICY_KEY,
    SNAPSHOT_KEY,
    Digest,
    parse_blob_key,
    parse_fact_key,
    parse_intent_key,
    parse_manifest_key,
    parse_pointer_key,
    parse_report_key,
)
from brainstore.errors import StoreUnavailable
from brainstore.fsck.findings import Finding
from brainstore.storage.disk import LEFTOVER_PREFIX
from brainstore.zoo import Zoo

_WRITE_BITS = 0o222


@dataclass
class Permissions:
    """What stands in the way. `unreadable` are blobs; `writable` are the files of blobs.

    `is_blind` is set where folders or records cannot be read: then the rest cannot be judged.
    """

    findings: list[Finding] = field(default_factory=list)
    unreadable: set[Digest] = field(default_factory=set)
    writable: list[Path] = field(default_factory=list)
    writable_bytes: int = 0
    is_blind: bool = False

    def close_blobs(self) -> None:
        """Take from blobs the permission to be written, where they are ours."""
        for path in self.writable:
            # Where we may not, the finding stays, and says so.
            with suppress(OSError):
                path.chmod(file_type.S_IMODE(path.lstat().st_mode) & ~_WRITE_BITS)


def permissions_of(zoo: Zoo) -> Permissions:
    """Return what of the folder's permissions is amiss; nothing, for other stores.

    Whether folders may be written counts only where the zoo's own may: who is to read it
    only is right as he is.

    Raises:
        StoreUnavailable: the disk failed.
    """
    found, root = Permissions(), zoo.store.path("")
    if root is not None and root.is_dir():
        try:
            _look(found, root, "", must_write=os.access(root, os.W_OK | os.X_OK))
        except OSError as error:
            raise StoreUnavailable(
                f"Cannot list {zoo.url}: {error.strerror or error}. Check the disk, try again."
            ) from error
    if found.writable:
        blobs = "a blob" if len(found.writable) == 1 else f"{len(found.writable):,} blobs"
        text = f"{blobs} may be written; loads map them, so they never are to be. "
        text += "Run: brainstore fsck --repair"
        count, size = len(found.writable), found.writable_bytes
        found.findings.append(Finding("writable", BLOBS_PREFIX, text, count=count, size_bytes=size))
    return found


def _look(found: Permissions, folder: Path, prefix: str, *, must_write: bool) -> None:
    where = prefix or str(folder)
    if not os.access(folder, os.R_OK | os.X_OK):
        text = f"we may not list this folder, {_told(folder)}. Nothing else was checked"
        found.findings.append(Finding("permissions", where, text))
        found.is_blind = True
        return
    if must_write and not os.access(folder, os.W_OK):
        text = f"we may not write into this folder, {_told(folder)}: saves will fail. {_MEND}"
        found.findings.append(Finding("permissions", where, text))
    for entry in _entries(folder):
        key = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            _look(found, folder / entry.name, key + "/", must_write=must_write)
        elif entry.is_file(follow_symlinks=False):
            _look_at_file(found, folder / entry.name, key)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith(LEFTOVER_PREFIX):
                yield entry


def _look_at_file(found: Permissions, path: Path, key: str) -> None:
    digest = parse_blob_key(key)
    if digest is None and not _is_record(key):
        return
    if not os.access(path, os.R_OK):
        if not path.exists():
            return
        text = f"we may not read it, {_told(path)}. {_MEND}"
        found.findings.append(Finding("permissions", key, text))
        if digest is None:
            found.is_blind = True
        else:
            found.unreadable.add(digest)
    if digest is not None:
        with suppress(FileNotFoundError):
            stat = path.lstat()
            if file_type.S_ISREG(stat.st_mode) and stat.st_mode & _WRITE_BITS:
                found.writable.append(path)
                found.writable_bytes += stat.st_size


def _is_record(key: str) -> bool:
    parsers = (
        parse_manifest_key, parse_pointer_key, parse_report_key, parse_fact_key, parse_intent_key,
    )  # fmt: skip
    is_single = key in (MARKER_KEY, SNAPSHOT_KEY, GC_STATE_KEY, POLICY_KEY)
    return is_single or any(parse(key) is not None for parse in parsers)


_MEND = "Ask its owner, or change its mode"


def _told(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError as error:
        return f"{error.strerror}"
    return f"mode {file_type.S_IMODE(stat.st_mode):04o}, owner {stat.st_uid}"
