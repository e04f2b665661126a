"""What a store lets us do, and how fast: tried on objects that are removed again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TYPE_CHECKING

from brainstore import settings
from brainstore.address import PROBE_PREFIX
from brainstore.cli import render
from brainstore.cli.codes import OTHER
from brainstore.cli.diagnosis import BAD, NOTE, OK, Check, problem, safely
from brainstore.errors import ReadOnly, Unsupported
from brainstore.storage.probe import probe_key, tried

if TYPE_CHECKING:
    from brainstore.records import Marker
    from brainstore.storage.base import Store

TOLERATED_SKEW_S = 60.0
"""Clocks may differ by this; ages of intents and of garbage count by the hour."""

ROUNDS = 7
SMALL_BYTES = 1024
FIRST_BYTES = 2**20
LARGE_BYTES = 8 * 2**20
RANGES = 4
PATIENCE_S = 0.8
"""What each of the two kinds of measurements may take; a slow store gives fewer figures."""


class Trials:
    """The trials of one store. `found` is the marker of its zoo, or None."""

    def __init__(self, store: Store, found: Marker | None, *, quick: bool, probe: bool) -> None:
        self._store = store
        self._found = found
        self._quick = quick
        self._probe = probe
        self._may_write = True

    def run(self) -> Iterator[Check]:
        """Yield what was found. One that fails does not stop the others."""
        if self._store.is_remote and settings.is_offline():
            yield Check(
                NOTE, "trials", "offline: the store was not tried", "unset BRAINSTORE_OFFLINE"
            )
            return
        root = self._store.path("")
        if root is not None and not root.exists() and not self._probe:
            yield Check(NOTE, "trials", "the folder does not exist, so it was not tried", _TRY)
            return
        yield from safely("credentials", self._credentials)
        yield from safely("abilities", self._abilities)
        yield from safely("clock", self._clock)
        if not self._quick:
            yield from safely("speed", self._speed)

    def _credentials(self) -> Iterator[Check]:
        found = self._store.access()
        shown = [found.pop("identity", "")] + [f"{key} {value}" for key, value in found.items()]
        who = ", ".join(filter(None, shown))
        next(self._store.list(PROBE_PREFIX), None)
        try:
            self._write_and_read()
        except (ReadOnly, Unsupported) as error:
            self._may_write = False
            fix = "to write there, ask for the right to; reading needs nothing"
            yield Check(NOTE, "credentials", f"{who}: may list and read, not write. {error}", fix)
        else:
            text = "may list, read, write and delete"
            yield Check(OK, "credentials", f"{who}: {text}" if who else text)

    def _write_and_read(self) -> None:
        with probe_key(self._store) as key:
            self._store.put(f"{key}/credentials", b"?")
            self._store.get(f"{key}/credentials")
            self._store.delete(f"{key}/credentials")

    def _abilities(self) -> Iterator[Check]:
        if self._found is not None and not self._probe:
            yield Check(OK, "abilities", self._seen())
        elif not self._may_write:
            yield Check(NOTE, "abilities", "not tried: we may not write there", _TRY)
        else:
            for ability, error in tried(self._store):
                what = f"ability {ability}"
                yield problem(what, error) if error else Check(OK, what, "decided by the store")

    def _seen(self) -> str:
        assert self._found is not None
        evidence = dict(self._found.store)
        at = render.when(evidence.pop("probed_at", "")) or "an unknown time"
        told = ", ".join(
            key if value is True else f"{key} of {value}" for key, value in evidence.items()
        )
        return f"{told}; seen at {at} UTC"

    def _clock(self) -> Iterator[Check]:
        if not self._may_write:
            yield Check(NOTE, "clock", "not compared: we may not write there", _TRY)
            return
        skew_s = self._skew_s()
        if abs(skew_s) <= TOLERATED_SKEW_S:
            yield Check(OK, "clock", f"within {max(1, round(abs(skew_s)))} s of the store's")
            return
        text = f"{abs(skew_s):,.0f} s {'behind' if skew_s > 0 else 'ahead of'} that of the store"
        fix = "set the clock of this machine, or the server's: timedatectl set-ntp true"
        yield Check(BAD, "clock", text, fix, OTHER)

    def _skew_s(self) -> float:
        """Return by how many seconds the store's clock is ahead of ours."""
        with probe_key(self._store) as key:
            before = time.time()
            self._store.put(f"{key}/clock", b"?")
            between = (before + time.time()) / 2
            stat = self._store.stat(f"{key}/clock")
        return stat.modified_at - between if stat else 0.0

    def _speed(self) -> Iterator[Check]:
        if not self._may_write:
            yield Check(NOTE, "speed", "not measured: we may not write there", _TRY)
            return
        with probe_key(self._store) as key:
            puts, gets = self._round_trips(f"{key}/small")
            up, down, size = self._throughput(f"{key}/large")
        text = (
            f"put {1000 * puts:.1f} ms, get {1000 * gets:.1f} ms (median, {SMALL_BYTES:,} bytes); "
        )
        text += f"{render.size(up)}/s up, {render.size(down)}/s down ({render.size(size)})"
        yield Check(OK, "speed", text)

    def _round_trips(self, key: str) -> tuple[float, float]:
        """Return the medians of small puts and gets, in seconds."""
        puts: list[float] = []
        gets: list[float] = []
        for number in range(ROUNDS):
            name, body = f"{key}-{number}", os.urandom(SMALL_BYTES)
            puts.append(_spent_s(self._store.put, name, body))
            gets.append(_spent_s(self._store.get, name))
            if sum(puts) + sum(gets) > PATIENCE_S:
                break
        return median(puts), median(gets)

    def _throughput(self, key: str) -> tuple[float, float, int]:
        """Return bytes a second up and down, and of how many bytes."""
        size = FIRST_BYTES
        up_s = _spent_s(self._store.put, key, os.urandom(size))
        down_s = self._ranges_s(key, size)
        if (up_s + down_s) * LARGE_BYTES / FIRST_BYTES < PATIENCE_S:
            size = LARGE_BYTES
            up_s = _spent_s(self._store.put, key, os.urandom(size))
            down_s = self._ranges_s(key, size)
        return size / up_s, size / down_s, size

    def _ranges_s(self, key: str, size: int) -> float:
        part = size // RANGES
        starts: Sequence[int] = range(0, size, part)
        with ThreadPoolExecutor(RANGES) as pool:
            fetch = self._store.get_range
            return _spent_s(lambda: list(pool.map(lambda x: fetch(key, x, x + part), starts)))


_TRY = "brainstore doctor --probe, where you may write"


def _spent_s(call: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    call(*arguments)
    return max(time.perf_counter() - started, 1e-9)
