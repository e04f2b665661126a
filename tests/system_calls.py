"""The system calls that change a folder, or put its changes in order, as Python makes them.

`watched` stands between a program and these calls; nothing else in the package changes a
disk. That this is true, `strace` tells: see test_kill.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BY_DESCRIPTOR = ("write", "pwrite", "fsync", "fdatasync", "truncate", "ftruncate", "fchmod")
BY_PATH = ("unlink", "remove", "rmdir", "mkdir", "chmod", "symlink")
BY_TWO_PATHS = ("link", "rename", "replace")

Proceed = Callable[..., Any]

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="/proc, which tells what a descriptor is, is missing"
)


@dataclass(frozen=True)
class Call:
    """One call that is about to happen: its name in `os`, and the place that it changes."""

    name: str
    path: Path
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.path.name}"


@contextlib.contextmanager
def watched(roots: list[Path], around: Callable[[Call, Proceed], Any]) -> Iterator[None]:
    """Inside, what would change one of `roots` is given to `around(call, proceed)` instead.

    It returns what the call is to return; `proceed()` does it, `proceed(…)` with other
    arguments. Opening counts when it may
    create, and so does taking or leaving a lock.
    """
    places = tuple(os.path.realpath(root) for root in roots)

    def patched(function: Any, place: Callable[..., str | None]) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            def proceed(*others: Any) -> Any:
                return function(*(others or arguments), **options)

            path = place(*arguments)
            if path is None or not any(
                path == root or path.startswith(f"{root}/") for root in places
            ):
                return proceed()
            return around(Call(function.__name__, Path(path), arguments), proceed)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", patched(os.open, _created))
        patch.setattr(fcntl, "flock", patched(fcntl.flock, _opened))
        for name in BY_DESCRIPTOR:
            patch.setattr(os, name, patched(getattr(os, name), _opened))
        for name in BY_PATH:
            patch.setattr(os, name, patched(getattr(os, name), _named))
        for name in BY_TWO_PATHS:
            patch.setattr(os, name, patched(getattr(os, name), _second))
        yield


def _created(path: Any, flags: int, *_: Any) -> str | None:
    return _real(path) if flags & os.O_CREAT else None


def _opened(descriptor: Any, *_: Any) -> str | None:
    if not isinstance(descriptor, int):
        return _real(descriptor)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")
    except OSError:
        return None  # let the call itself say what is wrong with it


def _named(path: Any, *_: Any) -> str:
    return _real(path)


def _second(_: Any, path: Any) -> str:
    return _real(path)


def _real(path: Any) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)
