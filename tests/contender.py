"""One of several processes that work on the same zoo at once; run by `test_contention.py`.

Reads what to do as JSON from its argument, says `ready`, begins when a line comes in, and
prints one JSON value: what it did.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storm import storm
from zoos import params, same

from brainstore import BrainManager, BrainstoreError, Conflict, NotFound
from brainstore.errors import AlreadyExists
from brainstore.storage import open_store
from brainstore.storage.base import ABSENT


def save(zoo: BrainManager, name: str, first: int, count: int) -> list[str]:
    return [
        zoo.save(name, params(seed), config={"seed": seed}) for seed in range(first, first + count)
    ]


def increment(zoo: BrainManager, key: str, count: int) -> int:
    """Add one to the number at `key`, `count` times, each by compare-and-swap."""
    lost = 0
    while count:
        found = zoo.zoo.store.get(key)
        number = int(found.body.split()[0]) if found else 0
        # A writer's own text, so that another's equal number is not taken for ours.
        body = f"{number + 1} {count} {id(zoo)} {lost}".encode()
        try:
            zoo.zoo.store.put(key, body, expect=found.token if found else ABSENT)
            count -= 1
        except (Conflict, AlreadyExists):
            lost += 1
    return lost


def chain(zoo: BrainManager, name: str, alias: str, to: int, by_gate: bool = False) -> list[int]:
    """Move the alias up one version at a time, until it names `to`; return the own moves."""
    moved, move = [], zoo.promote if by_gate else zoo.alias
    while True:
        at = zoo.aliases(name).get(alias, 0)
        if at == to:
            return moved
        try:
            move(f"{name}:{at + 1}", alias, expected=at)
            moved.append(at + 1)
        except Conflict:
            continue


def create(zoo: BrainManager, name: str) -> str:
    return zoo.save(name, params(1))


def watch(zoo: BrainManager, name: str, until: int) -> dict[str, Any]:
    """Load `latest` until it is `until`; return what was wrong with what was seen."""
    last, loads, problems = 0, 0, []
    while last < until and not problems:
        try:
            tree, meta = zoo.load(name, as_numpy=True)
        except BrainstoreError as error:
            # Before the first save has moved `latest`, there is none.
            if last or not isinstance(error, NotFound):
                problems.append(repr(error))
            continue
        loads += 1
        if meta.version < last:
            problems.append(f"{meta.version} after {last}")
        if not same(tree, params(meta.config["seed"])):
            problems.append(f"{meta.version} has the wrong params")
        last = meta.version
        time.sleep(0.05)  # leave the processors to the writers
    return {"loads": loads, "last": last, "problems": problems}


WORK: dict[str, Callable[..., Any]] = {
    work.__name__: work for work in (save, increment, chain, create, watch, storm)
}


def main() -> None:
    task = json.loads(sys.argv[1])
    zoo = BrainManager(open_store(task["url"], task["options"]))
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    result = WORK[task["work"]](zoo, **task["arguments"])
    zoo.close()
    print(json.dumps(result), flush=True)  # noqa: T201


def compete(
    where: tuple[str, dict[str, Any]], tasks: list[tuple[str, dict[str, Any]]]
) -> list[Any]:
    """Run each task in a process of its own, all at once; return what they did, in order."""
    command = [sys.executable, "-W", "error", str(Path(__file__))]
    url, options = where
    processes = [
        subprocess.Popen(
            [
                *command,
                json.dumps({"url": url, "options": options, "work": work, "arguments": each}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for work, each in tasks
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [json.loads(process.stdout.readline() or "null") for process in processes]
        assert [process.wait() for process in processes] == [0] * len(processes)
        return results
    finally:
        for process in processes:
            process.kill()
            process.communicate()


if __name__ == "__main__":
    main()
