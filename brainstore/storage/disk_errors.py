"""Failures of the operating system as errors that say what to do."""

from __future__ import annotations

import errno

from brainstore.errors import BrainstoreError, Corrupt, ReadOnly, StoreUnavailable
from brainstore.storage.disk import LinkFound

FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def explanation(error: OSError, what: str, *, is_write: bool) -> BrainstoreError:
    """Return the error to raise; `what` is what could not be done, and where."""
    if isinstance(error, LinkFound):
        return Corrupt(
            f"{what}: {error.filename} is a symbolic link, and none below the folder of a zoo "
            "is followed. Put what it stands for in its place, or remove it"
        )
    if error.errno in FULL:
        return StoreUnavailable(
            f"{what}: disk full ({error.strerror}); nothing was stored. Free some space, then "
            "try again"
        )
    if error.errno in _FORBIDDEN and is_write:
        return ReadOnly(
            f"{what}: {error.strerror}. Check who may write there, and whether the disk is "
            "mounted read-only."
        )
    if error.errno in _FORBIDDEN:
        return StoreUnavailable(f"{what}: {error.strerror}. Check who may read there.")
    return StoreUnavailable(f"{what}: {error.strerror or error}. Check the disk, try again.")
