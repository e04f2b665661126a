"""The kernel's locks of folders, against all threads and processes of a machine.

The kernel takes a lock from a process that dies. Where there is no flock (Windows), nobody
holds any.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brainstore.errors import Conflict, StoreUnavailable, Unsupported
from brainstore.storage import disk

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # who needs it asks first

ARE_THERE = fcntl is not None

_TIMEOUT_S = 60.0


@contextmanager
def waited_for(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder.

    Raises:
        StoreUnavailable: somebody else has held it for a minute.
        Unsupported: the filesystem has no locks.
    """
    if not ARE_THERE:
        yield
        return
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        with _opened(folder) as descriptor:
            _wait(descriptor, folder, deadline)
            # The folder may have been removed and made anew while we waited.
            if disk.is_still_at(descriptor, folder):
                yield
                return


@contextmanager
def had_at_once(folder: Path) -> Iterator[bool]:
    """Hold the lock of the folder; gives whether there are locks at all.

    Raises:
        Conflict: somebody else holds it.
        Unsupported: the filesystem has no locks.
    """
    if not ARE_THERE:
        yield False
        return
    with _opened(folder) as descriptor:
        try:
            _lock(descriptor, folder)
        except BlockingIOError:
            raise Conflict(
                f"Another process holds the lock of {folder}: it is at the same work. Wait for it"
            ) from None
        yield True


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        # Not left to close: a child forked meanwhile has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _wait(descriptor: int, folder: Path, deadline: float) -> None:
    while True:
        try:
            _lock(descriptor, folder)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"Another process has held the lock of {folder} for over "
                    f"{_TIMEOUT_S:.0f} s. Is it stopped? End it, then try again."
                ) from None
            time.sleep(random.uniform(0.0002, 0.002))


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise Unsupported(
            f"{folder} lies on a filesystem without locks ({error.strerror}), so several "
            "writers cannot share it. Use a local disk or an S3 server."
        ) from error
