"""Threads that work for an object, and the memory that they share."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
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


class Budget:
    """An amount of memory that threads borrow and give back."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def borrowed(self, amount: int) -> Iterator[None]:
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()
