"""A disk below one folder that is full, read-only or broken, from a certain call on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TAKES_SPACE = ("open", "write", "mkdir", "link", "replace", "fsync")
CHANGES = (*TAKES_SPACE, "unlink")


class BadDisk:
    """From the `at`-th call on, or only then, what changes files in `folder` fails."""

    def __init__(self, folder: Path, code: int, at: int, *, for_ever: bool = True) -> None:
        self.folder, self.code, self._at, self._for_ever = folder, code, at, for_ever
        self._calls, self._lock = 0, threading.Lock()
        self._changing = TAKES_SPACE if code == errno.ENOSPC else CHANGES

    @property
    def was_met(self) -> bool:
        return self._calls > self._at

    @contextmanager
    def mounted(self) -> Iterator[BadDisk]:
        with pytest.MonkeyPatch.context() as patch:
            for name in self._changing:
                patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
            yield self

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **options: Any) -> Any:
            if self._concerns(name, first, *rest) and self._fails():
                raise OSError(self.code, os.strerror(self.code), str(first))
            return real(first, *rest, **options)

        return call

    def _concerns(self, name: str, first: Any, *rest: Any) -> bool:
        if name == "open" and not rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
        # What has a descriptor is the store's: nobody else writes by one in these tests.
        return isinstance(first, int) or os.fspath(first).startswith(str(self.folder))

    def _fails(self) -> bool:
        with self._lock:
            number, self._calls = self._calls, self._calls + 1
        return number == self._at or (self._for_ever and number > self._at)
