"""One member of a crowd: does what chance tells it to a zoo, and writes down what it saw.

Run in processes of its own by `chronicle.py`. Its log has two lines of JSON for each
operation, one before it, so that a kill leaves a trace, and one after it.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from itertools import count, cycle
from multiprocessing.synchronize import Event, Semaphore
from tempfile import mkdtemp
from typing import Any

from zoos import Call, Proceed, WrappedStore, params, same

from brainstore import BrainManager, BrainstoreError, Conflict, NotFound, garbage
from brainstore.storage import open_store

OpenZoo = Callable[[], BrainManager]
Write = Callable[[dict[str, Any]], Any]

ZOO, PARTNER = "zoo", "partner"
ALIAS = "prod"
SEEDS = 40
"""So few that saves often meet blobs of other versions, deleted and half collected ones."""

LARGE_LEAF = 2**18
PAUSE_S = 0.05
DOZE_S = 0.3
WEIGHTS = {
    "save": 18,
    "load": 30,
    "resolve": 14,
    "alias": 12,
    "unalias": 2,
    "delete": 13,
    "undelete": 5,
    "list": 4,
    "reopen": 1,
}


def tree_of(seed: int) -> dict[str, Any]:
    """Return the params of a seed; one in eight has a leaf that is a blob of its own."""
    return params(seed, 6 if seed % 8 else LARGE_LEAF)


class Member:
    """Works on one zoo, and remembers which versions it has seen."""

    def __init__(
        self,
        open_zoo: OpenZoo,
        write: Write,
        process: int = 0,
        names: tuple[str, ...] = ("ppo",),
        seed: int = 0,
    ) -> None:
        self.zoo = open_zoo()
        self._open_zoo = open_zoo
        self._write = write
        self._process = process
        self._names = names
        self._chance = random.Random(seed)
        self.known: defaultdict[str, list[int]] = defaultdict(list)
        self._gone: defaultdict[str, list[int]] = defaultdict(list)
        self._pointed: defaultdict[str, int] = defaultdict(int)
        self._numbers = count()

    def act(self) -> None:
        """Do one operation, whichever chance tells."""
        kind = self._chance.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
        name = self._chance.choice(self._names)
        if kind == "reopen":
            self.zoo.close()
            self.zoo = self._open_zoo()
        elif kind == "save":
            self.do(kind, name, f"{self._process}-{next(self._numbers)}")
        elif kind in ("load", "resolve"):
            self.do(kind, name, self._reference(name, kind))
        elif kind in ("unalias", "list"):
            self.do(kind, name)
        elif kind == "alias":
            is_swap = self._chance.random() < 0.8
            self.do(kind, name, self._version(name), self._pointed[name] if is_swap else None)
        elif kind == "delete":
            self.do(kind, name, self._version(name), self._chance.random() < 0.3)
        else:
            gone = self._gone[name][-3:]
            self.do(kind, name, self._chance.choice([*gone, self._version(name)]))

    def _reference(self, name: str, kind: str) -> int | str:
        own = self._version(name) if kind == "load" else "latest"
        return self._chance.choice(["latest", "alias", own])

    def _version(self, name: str) -> int:
        """Return one of the newest versions that it knows of, or the next, nobody's yet."""
        known = self.known[name]
        return self._chance.choice([*known[-8:], max(known, default=0) + 1])

    def do(self, kind: str, name: str, *arguments: Any) -> None:
        """Do it, and write down when it began, when it ended, and what came of it."""
        begun = {"kind": kind, "name": name, "arguments": arguments}
        self._write({**begun, "start": time.monotonic_ns()})
        try:
            value, mark = getattr(self, "_" + kind)(name, *arguments)
            ended = {"outcome": "ok", "value": value, "mark": mark}
        except BrainstoreError as error:
            ended = _failed(error)
        self._write({**ended, "end": time.monotonic_ns()})

    def _save(self, name: str, mark: str) -> tuple[int, str]:
        seed = self._chance.randrange(SEEDS)
        full_name = self.zoo.save(name, tree_of(seed), config={"seed": seed, "mark": mark})
        return self._seen(name, int(full_name.rpartition("_v")[2])), mark

    def _load(self, name: str, ref: int | str) -> tuple[int, str]:
        version = ALIAS if ref == "alias" else ref
        tree, meta = self.zoo.load(name, version, as_numpy=True)
        is_whole = same(tree, tree_of(meta.config["seed"]))
        mark = meta.config["mark"] if is_whole else "other bytes than were saved"
        return self._seen(name, meta.version), mark

    def _resolve(self, name: str, ref: str) -> tuple[int, str]:
        if ref == "latest":
            full_name = self.zoo.get_latest(name)
            return 0 if full_name is None else int(full_name.rpartition("_v")[2]), ""
        self._pointed[name] = 0
        self._pointed[name] = self.zoo.resolve(name, ALIAS).version
        return self._pointed[name], ""

    def _alias(self, name: str, to: int, expected: int | None) -> tuple[None, str]:
        self.zoo.alias(f"{name}:{to}", ALIAS, expected)
        self._pointed[name] = to
        return None, ""

    def _unalias(self, name: str) -> tuple[None, str]:
        self.zoo.unalias(name, ALIAS)
        return None, ""

    def _delete(self, name: str, number: int, force: bool) -> tuple[None, str]:
        self._gone[name].append(number)
        self.zoo.delete(f"{name}:{number}", force=force)
        return None, ""

    def _undelete(self, name: str, number: int) -> tuple[None, str]:
        self.zoo.undelete(f"{name}:{number}")
        return None, ""

    def _list(self, name: str) -> tuple[list[int], str]:
        listed = [each.rpartition("_v") for each in self.zoo.list_models()]
        numbers = [int(number) for owner, _, number in listed if owner == name]
        # What was deleted is worth a look, too.
        self.known[name] = sorted({*numbers, *self._gone[name][-3:]})
        return numbers, ""

    def _seen(self, name: str, number: int) -> int:
        if number not in self.known[name]:
            self.known[name] = sorted([*self.known[name], number])
        return number


def _failed(error: BrainstoreError) -> dict[str, Any]:
    """Return what came of it; a blob that is gone belongs to a version, which was found."""
    outcome, text = type(error).__name__, str(error)
    gone = re.match(r"blob \S+ of \S+:(\d+) is missing", text)
    if isinstance(error, NotFound) and gone:
        return {"outcome": "blob gone", "value": int(gone[1])}
    return {"outcome": outcome, "text": text}


def open_place(task: dict[str, Any], which: str = ZOO) -> BrainManager:
    """Open the zoo or its partner, with a cache of its own, through a store that may doze."""
    url, options = task[which]
    store, chance = open_store(url, options), random.Random(task["seed"])

    def doze(call: Call, proceed: Proceed) -> Any:
        # Between two steps, where others come in between, most is to be seen.
        if chance.random() < task["doze"]:
            time.sleep(chance.uniform(0, DOZE_S))
        return proceed()

    if task["doze"]:
        store = WrappedStore(store, doze)
    return BrainManager(store, cache=mkdtemp(dir=task["folder"]))


def mix(task: dict[str, Any], write: Write) -> Generator[None]:
    """Do whatever chance tells."""
    import jax  # noqa: F401  # which a save imports, and which takes long

    names = tuple(task["names"])
    member = Member(lambda: open_place(task), write, task["process"], names, task["seed"])
    try:
        member.zoo.list_models()
        yield
        while True:
            yield member.act()
    finally:
        member.zoo.close()


def carry(task: dict[str, Any], write: Write) -> Generator[None]:
    """Push all that is new to the other zoo."""
    with open_place(task) as zoo, open_place(task, PARTNER) as partner:
        zoo.list_models()
        yield
        while True:
            report = zoo.push(partner)
            surprises = [str(each) for each in report.conflicts]
            yield write({"copied": len(report.copied), "surprises": surprises})
            time.sleep(PAUSE_S)


def collect(task: dict[str, Any], write: Write) -> Generator[None]:
    """Collect garbage without any grace, beside everybody else's collections."""
    with open_place(task) as zoo, open_place(task, PARTNER) as partner:
        zoo.list_models()
        yield
        for each in cycle((zoo, zoo, partner)):
            removed = given_up = 0
            with suppress(Conflict):
                done = garbage.collect(
                    each.zoo, dry_run=False, older_than_s=0, expiry_s=task["expiry_s"]
                )
                removed, given_up = len(done.blobs), len(done.intents)
            yield write({"removed": removed, "given_up": given_up})
            time.sleep(PAUSE_S)


WORK = {work.__name__: work for work in (mix, carry, collect)}
"""What a process does, step by step; it is ready to begin after the first step."""


def main(task: dict[str, Any], ready: Semaphore, go: Event) -> None:
    """Do the task, once the word is given."""
    warnings.simplefilter("error")
    log = os.open(task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(line: dict[str, Any]) -> None:
        os.write(log, json.dumps(line).encode() + b"\n")

    with closing(WORK[task["work"]](task, write)) as work:
        next(work)
        ready.release()
        go.wait()
        until = time.monotonic() + task["seconds"]
        for number, _ in enumerate(work, 1):
            if number == task["operations"] or time.monotonic() > until:
                break
