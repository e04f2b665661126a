"""Threads that work for an object, also in a process that was forked since."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class Threads:
    """A few threads, started when they are needed, in each process anew.

    A forked child has none of its parent's threads; a pool from before the fork would
    take work there and never do it.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._start()

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self._count, self._name)
        self._process_id = os.getpid()

    def submit(self, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Return the future of `call(*arguments)`, which some thread does in its turn."""
        if os.getpid() != self._process_id:
            self._start()
        return self._pool.submit(call, *arguments)

    def close(self, *, cancel: bool = False) -> None:
        """Wait for what was submitted in this process; with `cancel`, drop what has not begun."""
        if os.getpid() == self._process_id:
            self._pool.shutdown(cancel_futures=cancel)
