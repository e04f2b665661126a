"""A crowd at work on two zoos, and what its logs say: histories for `promises.py`."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event, Semaphore
from pathlib import Path
from typing import Any

from crowd import PARTNER, ZOO, Member, main
from linearizable import Operation
from zoos import opened

from brainstore.storage import open_store
from brainstore.storage.base import Store

Where = tuple[str, dict[str, Any]]

NAMES = ("ppo", "swarm/left", "swarm/right")
PATIENCE_S = 120
EXPECTED = ("ok", "NotFound", "Conflict", "blob gone")
UNKNOWN = "StoreUnavailable"

PROCESSES = multiprocessing.get_context("forkserver")
"""From a server that has imported what takes long, and has done nothing with it."""

PROCESSES.set_forkserver_preload(["pytest", "jax", "s3fs", "numpy"])


@dataclass
class Crowd:
    """Processes at work on a zoo and its partner, each with a log in `folder`."""

    zoo: Where
    partner: Where
    folder: Path
    seconds: float
    operations: int = 0
    expiry_s: float = 0
    doze: float = 0
    """How often a process sleeps before a step of its store."""

    def run(self, works: list[str], kills: int = 0) -> None:
        """Let one process do each of the works, until the time is over or enough is done.

        Now and then, one that mixes is killed, and another one takes its place.
        """
        ready = PROCESSES.Semaphore(0)
        members = [self._member(*each, ready) for each in enumerate(works + ["mix"] * kills)]
        try:
            for process, _ in members:
                process.start()
            for _ in members:
                assert ready.acquire(timeout=PATIENCE_S)
            for _, go in members[: len(works)]:
                go.set()
            for kill in range(kills):
                self._replace(members[works.index("mix") + kill], members[len(works) + kill])
            for process, _ in members:
                process.join()
            ends = sorted(process.exitcode or 0 for process, _ in members)
            assert ends == [-signal.SIGKILL] * kills + [0] * len(works)
        finally:
            for process, _ in members:
                process.kill()

    def _member(self, number: int, work: str, ready: Semaphore) -> tuple[BaseProcess, Event]:
        log = str(self._log(number))
        task = {ZOO: self.zoo, PARTNER: self.partner, "folder": str(self.folder), "log": log}
        task |= {"work": work, "process": number, "seed": number, "names": NAMES}
        few = self.operations if work == "mix" else self.operations // 3
        task |= {"seconds": self.seconds, "operations": few}
        # A collection takes many steps, and is to meet many saves.
        doze = self.doze / 8 if work == "collect" else self.doze
        task |= {"expiry_s": self.expiry_s, "doze": doze}
        go = PROCESSES.Event()
        return PROCESSES.Process(target=main, args=(task, ready, go)), go

    def _replace(self, old: tuple[BaseProcess, Event], new: tuple[BaseProcess, Event]) -> None:
        time.sleep(self.seconds / 10)
        old[0].kill()
        new[1].set()

    def _log(self, number: int) -> Path:
        return self.folder / f"{number}.log"

    def look(self) -> None:
        """Look at everything once more, in this process, now that all others have ended."""
        url, options = self.zoo
        with (
            self._log(999).open("a") as file,
            opened(open_store(url, options), cache=self.folder) as zoo,
        ):
            observer = Member(lambda: zoo, lambda line: print(json.dumps(line), file=file))
            for name in NAMES:
                for kind, ref in (("resolve", "latest"), ("resolve", "alias"), ("load", "latest")):
                    observer.do(kind, name, ref)
                observer.do("list", name)
                for number in observer.known[name]:
                    observer.do("load", name, number)


@dataclass(frozen=True)
class Chronicle:
    """What the logs of a crowd say, by the name of the model.

    `surprises` are outcomes that nobody should see; `fences` are the numbers that a
    collector has closed.
    """

    histories: dict[str, list[Operation]]
    surprises: list[str]
    fences: dict[str, list[int]]

    @classmethod
    def of(cls, folder: Path, store: Store) -> Chronicle:
        """Read the logs; the records in `store` tell what has become of unfinished saves."""
        surprises: list[str] = []
        histories: dict[str, list[Operation]] = {name: [] for name in NAMES}
        for log in sorted(folder.glob("*.log")):
            # A line that a kill cut short is an operation that did not return.
            lines = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
            surprises += [text for line in lines for text in line.get("surprises", ())]
            for name, operation in operations(lines, int(log.stem)):
                histories[name].append(operation)
        written = _written(store)
        for name in NAMES:
            histories[name] = list(_settled(histories[name], written.get(name, {}), surprises))
        return cls(histories, surprises, _fences(store))

    @property
    def operations(self) -> int:
        return sum(map(len, self.histories.values()))


def operations(lines: Sequence[dict[str, Any]], process: int) -> Iterator[tuple[str, Operation]]:
    """Yield what the log of one process tells: the name of the model, and the operation."""
    calls = [line for line in lines if "kind" in line]
    returns = [line for line in lines if "outcome" in line]
    for number, call in enumerate(calls):
        begun = Operation(
            call["kind"],
            tuple(call["arguments"]),
            outcome=None,
            start=call["start"],
            process=process,
        )
        yield call["name"], _returned(begun, *returns[number : number + 1])


def _returned(begun: Operation, ended: dict[str, Any] | None = None) -> Operation:
    if ended is None or ended["outcome"] == UNKNOWN:
        return begun
    fields = {name: ended.get(name) for name in ("outcome", "value", "mark", "end")}
    return replace(begun, **fields)


def _settled(
    history: list[Operation], written: dict[str, int], surprises: list[str]
) -> Iterator[Operation]:
    """Yield the history, where a save that did not return has done what the records say."""
    for each in history:
        number = written.get(each.arguments[0]) if each.kind == "save" else None
        if each.outcome is None and each.kind == "save":
            if number is not None:
                yield replace(each, outcome="ok", value=number)
        elif each.outcome is not None or each.kind in ("alias", "unalias", "delete", "undelete"):
            yield each
        if each.outcome not in (None, *EXPECTED):
            surprises.append(str(each))
        if each.kind == "save" and each.outcome is not None and number != each.value:
            surprises.append(f"{each}, and the records say {number}")


def _written(store: Store) -> dict[str, dict[str, int]]:
    """Return {mark of the save: number} of each model, from the records, deleted or not."""
    found: dict[str, dict[str, int]] = {name: {} for name in NAMES}
    for name, number, record in _records(store):
        if record is not None:
            found[name][record["meta"]["config"]["mark"]] = number
    return found


def _fences(store: Store) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    for name, number, record in _records(store):
        if record is None:
            found[name].append(number)
    return found


def _records(store: Store) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
    for stat in store.list("models/"):
        key = re.fullmatch(r"models/(.+)/v(\d+)/manifest\.json", stat.key)
        found = store.get(stat.key) if key else None
        if key and found:
            record = json.loads(found.body)
            yield key[1], int(key[2]), record.get("record") if "record" in record else record
