"""Anything that people do with a zoo, done for a while whatever fails, and what came of it.

Run in threads and in processes by `test_faulty_network.py`. An operation may fail; what it
returned, and what it said when it failed, must be true.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from zoos import Found, params, same

from brainstore import BrainManager, BrainstoreError, Conflict, GateFailed, NotFound, commit
from brainstore.errors import StoreUnavailable
from brainstore.garbage import collect, collector, turn
from brainstore.storage.base import Store

NAMES = ("ppo", "ppo/sub")
MIB = 1 << 20
THREADS = 4
EVERY_LARGE = 40
"""One save in so many is of a blob that goes in parts."""


@dataclass
class Log:
    """What one worker did. `saves`: [seed, full name or None, what the error said]."""

    saves: list[list[Any]] = field(default_factory=list)
    operations: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def tree(seed: int) -> dict[str, Any]:
    """Return the params of a seed: small, but now and then too large for one request."""
    if seed % EVERY_LARGE == EVERY_LARGE - 1:
        return {"large": np.arange(seed, seed + 17 * MIB // 4, dtype=np.float32)}
    return params(seed)


class Worker:
    """Does things by its own seed; the seeds of its saves are nobody else's."""

    def __init__(self, zoo: BrainManager, seed: int, mirror: BrainManager | None = None) -> None:
        self.zoo, self.mirror = zoo, mirror
        self.log = Log()
        self._chance = random.Random(seed)
        self._next = 1_000 * seed
        self._work: dict[Callable[[], object], int] = {
            self.save: 8,
            self.load: 6,
            self.look: 2,
            self.move: 2,
            self.delete: 1,
            self.undelete: 1,
            self.fold: 1,
        }
        if mirror is not None:
            self._work[self.copy] = 1

    def collecting(self) -> Worker:
        """Return the worker itself, which collects from now on; there may be one such only."""
        self._work[self.collect] = 4
        return self

    def step(self) -> None:
        """Do one thing, and write down what came of it."""
        (work,) = self._chance.choices(list(self._work), list(self._work.values()))
        began = time.monotonic()
        self.log.operations += 1
        try:
            work()
        except (NotFound, Conflict, GateFailed) as error:
            self._judge(error)
        except StoreUnavailable as error:
            self.log.failed += 1
            self._judge(error)
        except BrainstoreError as error:
            self.log.wrong.append(f"{work.__name__}: {error!r}")
        self.log.slowest_s = max(self.log.slowest_s, time.monotonic() - began)

    def _judge(self, error: BrainstoreError) -> None:
        if isinstance(error, StoreUnavailable) and self.zoo.zoo.url not in str(error):
            known = self.mirror is not None and self.mirror.zoo.url in str(error)
            if not known:
                self.log.wrong.append(f"names no store: {error!r}")

    def save(self) -> None:
        seed, self._next = self._next, self._next + 1
        entry = [seed, None, ""]
        self.log.saves.append(entry)
        try:
            entry[1] = self.zoo.save(self._name(), tree(seed), config={"seed": seed})
        except BrainstoreError as error:
            entry[2] = "\n".join(error.__notes__)
            raise

    def load(self) -> None:
        if self._chance.random() < 0.5:
            assert self.zoo.zoo.cache is not None
            self.zoo.zoo.cache.prune(0)
        found, meta = self.zoo.load(self._reference(), as_numpy=True)
        if not same(found, tree(meta.config["seed"])):
            self.log.wrong.append(f"{meta.full_name} was loaded with the wrong params")

    def look(self) -> None:
        rows = self.zoo.table(self._name())
        numbers = [row["version"] for row in rows]
        if numbers != sorted(set(numbers)):
            self.log.wrong.append(f"the list has {numbers}")

    def move(self) -> None:
        self.zoo.alias(self._reference(), "prod")

    def delete(self) -> None:
        self.zoo.delete(self._reference(), force=self._chance.random() < 0.5)

    def undelete(self) -> None:
        self.zoo.undelete(f"{self._name()}:{self._chance.randrange(1, 9)}")

    def fold(self) -> None:
        self.zoo.zoo.registry.journal.fold()

    def collect(self) -> None:
        # At once, so that saves under way are taken for dead and start again.
        ages = {"older_than_s": 0.0, "expiry_s": 0.0}
        collect(self.zoo.zoo, dry_run=False, take_over=True, **ages)

    def copy(self) -> None:
        assert self.mirror is not None
        self.zoo.push(self.mirror, [self._reference()])

    def _name(self) -> str:
        return self._chance.choice(NAMES)

    def _reference(self) -> str:
        return f"{self._name()}:{self._chance.choice(['latest', self._chance.randrange(1, 9)])}"


IMPATIENT = {(collector, "LATE_S"): 2.0, (turn, "LATE_S"): 2.0, (commit, "COLLECTION_WAIT_S"): 5.0}
"""What waits for late requests, shortened to what they are late here: 1.5 s at most."""


def storm(
    zoo: BrainManager, seed: int, seconds: float, *, collects: bool = False
) -> list[dict[str, Any]]:
    """Let some threads do things until `seconds` have passed; return their logs."""
    for (module, constant), shorter in IMPATIENT.items():
        setattr(module, constant, shorter)
    workers = [Worker(zoo, THREADS * seed + n) for n in range(THREADS)]
    if collects:
        workers[0].collecting()
    until = time.monotonic() + seconds

    def work(worker: Worker) -> None:
        while not worker.log.operations or time.monotonic() < until:
            worker.step()

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, workers))
    return [asdict(worker.log) for worker in workers]


@dataclass
class Tally:
    """What became of the saves: `lost` ones must not be."""

    returned: int = 0
    landed: int = 0
    nothing: int = 0
    unknown: int = 0
    lost: int = 0
    lies: list[str] = field(default_factory=list)


def judge(saves: list[list[Any]], found: Found, store: Store) -> Tally:
    """Hold what saves returned and said against what is in the store."""
    standing = {seed: place for place, seed in _seeds(found, store)}
    tally = Tally()
    for seed, name, note in saves:
        place = standing.get(seed)
        if name is not None:
            tally.returned += 1
            tally.lost += place != _place(name)
        elif "is committed" in note:
            tally.landed += 1
            tally.lost += place is None
        elif "nothing was committed" in note:
            tally.nothing += 1
            if place is not None:
                tally.lies.append(f"{place} holds {seed}, of which a save said: {note}")
        elif "not known" in note:
            tally.unknown += 1
        else:
            tally.lies.append(f"a save of {seed} said nothing: {note!r}")
    return tally


def _place(full_name: str) -> tuple[str, int]:
    name, number = full_name.rsplit("_v", 1)
    return name, int(number)


def _seeds(found: Found, store: Store) -> list[tuple[tuple[str, int], int]]:
    """Return the seed of every version, deleted or not; none may be there twice."""
    seeds = [(place, record["meta"]["config"]["seed"]) for place, record in found.live.items()]
    for name, number in found.deleted:
        body = store.get(f"models/{name}/v{number}/manifest.json").body
        record = json.loads(body)["record"]
        if record is not None:  # a fence
            seeds.append(((name, number), record["meta"]["config"]["seed"]))
    assert len({seed for _, seed in seeds}) == len(seeds), sorted(seeds)
    return seeds


def in_numbers(problems: list[str]) -> list[str]:
    """Return the problems of a copy: of versions that were chosen, numbers are left out."""
    return [each for each in problems if not re.search("numbers were skipped", each)]
