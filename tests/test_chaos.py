"""Many threads do anything at once, while the store settles some of its replies wrongly.

A conditional write that took effect may be reported as lost to somebody else: that is what
it looks like when a successor replaced it before it could be read back. Whatever happens,
the zoo must end up whole, and what a call returned must be true.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from zoos import Call, Proceed, WrappedStore, finish, opened, params, read_raw, same

from brainstore import AlreadyExists, BrainManager, Conflict, NotFound
from brainstore.address import full_name
from brainstore.cache import Cache
from brainstore.fsck import fsck
from brainstore.storage.base import Store
from brainstore.storage.local import LocalStore
from brainstore.storage.memory import MemoryStore

THREADS, STEPS = 4, 12
NAMES = ("ppo", "ppo", "ppo/sub")
WORK = ("save",) * 5 + ("delete", "undelete", "alias", "unalias", "load", "table", "fold")


class Meddler:
    """Delays some calls, and reports some conditional writes that took effect as lost."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, call: Call, proceed: Proceed) -> Any:
        with self._lock:
            delay, fate = self._random.random(), self._random.random()
        if delay < 0.3:
            time.sleep(delay / 100)
        result = proceed()
        if fate < 0.06 and call.room in ("manifest", "pointer", "snapshot"):
            if call.expect == "absent":
                raise AlreadyExists("so it seems")
            if call.expect == "token":
                raise Conflict("so it seems")
        return result


def act(zoo: BrainManager, chance: random.Random, saved: dict[str, int]) -> None:
    """Do something; `saved` learns the seed of each version that a save returned."""
    name, number = chance.choice(NAMES), chance.randrange(1, 6)
    match chance.choice(WORK):
        case "save":
            seed = chance.randrange(5)
            full = zoo.save(name, params(seed))
            assert full not in saved
            saved[full] = seed
        case "delete":
            zoo.delete(f"{name}:{chance.choice(['latest', number])}", force=chance.random() < 0.5)
        case "undelete":
            zoo.undelete(f"{name}:{number}")
        case "alias":
            zoo.alias(f"{name}:{number}", "prod")
        case "unalias":
            zoo.unalias(name, "prod")
        case "load":
            zoo.load(name, as_numpy=True)
        case "table":
            zoo.table()
        case "fold":
            zoo.zoo.registry.journal.fold()


def run(store: WrappedStore, seed: int, **options: Any) -> dict[str, int]:
    """Let several threads of two managers work; return what their saves returned."""
    saved: dict[str, int] = {}
    with opened(store, **options) as one, opened(store, **options) as two:
        one.init()
        store.around = Meddler(seed)

        def work(thread: int) -> None:
            chance = random.Random(f"{seed} {thread}")
            for _ in range(STEPS):
                with suppress(NotFound, Conflict):
                    act((one, two)[thread % 2], chance, saved)

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(work, range(THREADS)))
        store.around = None
        finish(one)
        finish(two)
    return saved


def assert_true(store: WrappedStore, saved: dict[str, int], **options: Any) -> None:
    found = read_raw(store.inner)
    assert found.problems == []
    assert set(saved) == {full_name(*key) for key in (*found.live, *found.deleted)}
    with opened(store, **options) as zoo:
        assert [finding for finding in fsck(zoo.zoo) if not finding.is_harmless] == []
        assert set(zoo.list_models()) == {full_name(*key) for key in found.live}
        for name, number in found.live:
            highest = max(other for owner, other in found.live if owner == name)
            assert zoo.get_latest(name) == full_name(name, highest)
            tree, _ = zoo.load(name, number, as_numpy=True, verify=True)
            assert same(tree, params(saved[full_name(name, number)]))


def store_of(kind: str, folder: Path) -> tuple[Store, dict[str, Any]]:
    if kind == "disk":
        return LocalStore(folder / "zoo"), {}
    return MemoryStore(), {"cache": Cache(folder / "cache")} if kind == "remote" else {}


SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 60))]


@pytest.mark.parametrize("kind", ["memory", "remote", "disk"])
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_done_at_once_ends_well(
    seed: int, kind: str, tmp_path: Path, tally: Callable[..., None]
) -> None:
    inner, options = store_of(kind, tmp_path)
    store = WrappedStore(inner, is_remote=kind == "remote")
    saved = run(store, seed, **options)
    assert_true(store, saved, **options)
    tally("threads at everything, replies settled wrongly", cases=1, operations=THREADS * STEPS)
