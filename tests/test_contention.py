"""Real processes at once on one zoo: no number twice, no move lost, no half version seen."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chronicle import NAMES, Chronicle, Crowd, operations
from conftest import S3Place
from contender import compete
from crowd import Member, tree_of
from promises import problems
from zoos import Call, Proceed, WrappedStore, params, read_raw, same

from brainstore import BrainManager, NotFound
from brainstore.cache import Cache
from brainstore.fsck import Finding, fsck
from brainstore.storage import open_store
from brainstore.storage.memory import MemoryStore

Where = tuple[str, dict[str, Any]]
PLACES = ["disk", pytest.param("s3", marks=pytest.mark.s3)]


@pytest.fixture(params=PLACES)
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Where:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path / "cache"))
    if request.param == "disk":
        return str(tmp_path / "zoo"), {}
    place: S3Place = request.getfixturevalue("s3_place")
    return place.url, place.storage_options


def manager(where: Where, tmp_path: Path) -> BrainManager:
    return BrainManager(where[0], storage_options=where[1], cache=Cache(tmp_path / "fresh"))


def test_eight_writers_of_one_name_get_every_number_once_while_a_reader_watches(
    where: Where, tmp_path: Path
) -> None:
    writers, saves = 8, 25
    total = writers * saves
    with manager(where, tmp_path) as zoo:
        zoo.init()
    tasks = [
        ("save", {"name": "ppo", "first": 1000 * writer, "count": saves})
        for writer in range(writers)
    ]
    *saved, seen = compete(where, [*tasks, ("watch", {"name": "ppo", "until": total})])

    assert seen["problems"] == []
    assert (seen["loads"] > 0, seen["last"]) == (True, total)
    names = [name for own in saved for name in own]
    assert sorted(names) == sorted(f"ppo_v{number}" for number in range(1, total + 1))
    seeds = {
        name: 1000 * writer + number
        for writer, own in enumerate(saved)
        for number, name in enumerate(own)
    }
    with manager(where, tmp_path) as zoo:
        assert zoo.list_models() == [f"ppo_v{number}" for number in range(1, total + 1)]
        assert zoo.get_latest("ppo") == f"ppo_v{total}"
        assert [row["config"]["seed"] for row in zoo.table("ppo")] == [
            seeds[f"ppo_v{number}"] for number in range(1, total + 1)
        ]
        for name, seed in seeds.items():
            assert same(zoo.load(name, as_numpy=True)[0], params(seed))
        zoo.zoo.registry.journal.fold()
        assert len(zoo.list_models()) == total
    store = open_store(*where)
    assert read_raw(store).problems == []
    store.close()


def test_ten_increments_by_each_of_five_processes_make_fifty(where: Where) -> None:
    key = "models/ppo/refs/latest.json"
    compete(where, [("increment", {"key": key, "count": 10})] * 5)
    store = open_store(*where)
    assert store.get(key).body.split()[0] == b"50"
    store.close()


def test_an_alias_moved_with_expected_loses_no_move(where: Where, tmp_path: Path) -> None:
    last = 20
    with manager(where, tmp_path) as zoo:
        for seed in range(last):
            zoo.save("ppo", params(seed))
    movers = compete(where, [("chain", {"name": "ppo", "alias": "prod", "to": last})] * 4)
    moves = sorted(move for own in movers for move in own)
    assert moves == list(range(1, last + 1))
    store = open_store(*where)
    pointer = read_raw(store).pointers["ppo", "prod"]
    store.close()
    assert (pointer["version"], pointer["generation"]) == (last, last)
    assert [move["to"] for move in pointer["moves"]] == list(range(1, last + 1))
    assert [move["from"] for move in pointer["moves"]] == [None, *range(1, last)]
    with manager(where, tmp_path) as zoo:
        assert zoo.zoo.index().aliases_of("ppo") == {"prod": last}


def test_processes_that_create_the_same_zoo_at_once_share_it(where: Where, tmp_path: Path) -> None:
    names = ["one", "two", "same", "same"]
    made = compete(where, [("create", {"name": name}) for name in names])
    assert sorted(made) == ["one_v1", "same_v1", "same_v2", "two_v1"]
    with manager(where, tmp_path) as zoo:
        assert zoo.list_models() == sorted(made)
        for name in made:
            zoo.load(name, as_numpy=True)
    store = open_store(*where)
    assert read_raw(store).problems == []
    assert list(store.list("probe/")) == []
    store.close()


def harmful(zoo: BrainManager, *, repair: bool = False) -> list[Finding]:
    """Return what is wrong with the zoo, every blob hashed."""
    return [each for each in fsck(zoo.zoo, repair=repair) if each.is_damage]


def partner(tmp_path: Path) -> Where:
    return str(tmp_path / "partner"), {}


def assert_mended(where: Where, tmp_path: Path) -> None:
    """What killed processes have left half done is finished by repeating it, or by a repair."""
    with manager(where, tmp_path) as zoo:
        for name in NAMES:
            for alias, number in zoo.aliases(name).items():
                if alias != "latest" and zoo.zoo.registry.versions.live(name, number) is None:
                    with pytest.raises(NotFound):
                        zoo.delete(f"{name}:{number}", force=True)
        assert harmful(zoo, repair=True) == []


def assert_synced(where: Where, there: Where, tmp_path: Path) -> None:
    """A last sync has nothing to complain of, and both zoos have the same bytes."""
    with manager(where, tmp_path) as zoo, manager(there, tmp_path) as other:
        report = zoo.push(other)
        assert report.conflicts + report.failed == []
        assert set(zoo.list_models()) <= set(other.list_models())
        for full_name in other.list_models():
            found = other.resolve(full_name)
            stored = zoo.zoo.registry.versions.stored(found.name, found.version)
            assert stored.digest == found.digest
            tree, meta = other.load(full_name, as_numpy=True)
            assert same(tree, tree_of(meta.config["seed"]))
        assert harmful(other) == []


def assert_explained(crowd: Crowd, *, kills: int) -> Chronicle:
    """All that the processes saw is explained, nothing is lost, and the zoo is whole."""
    store = open_store(*crowd.zoo)
    chronicle = Chronicle.of(crowd.folder, store)
    assert chronicle.surprises == []
    for name, history in chronicle.histories.items():
        assert problems(history, chronicle.fences[name]) == []
    if kills:
        assert_mended(crowd.zoo, crowd.folder)
    with manager(crowd.zoo, crowd.folder) as zoo:
        assert harmful(zoo) == []
    assert read_raw(store).problems == []
    store.close()
    assert_synced(crowd.zoo, crowd.partner, crowd.folder)
    return chronicle


def work(crowd: Crowd, works: list[str], *, kills: int = 0) -> Chronicle:
    for place in (crowd.zoo, crowd.partner):
        with manager(place, crowd.folder) as zoo:
            zoo.init()
    crowd.run(works, kills)
    crowd.look()
    return assert_explained(crowd, kills=kills)


class Shared(BrainManager):
    """A manager that stays open when one of its users closes it."""

    def close(self) -> None:
        pass


def act_often(member: Member) -> None:
    for _ in range(40):
        member.act()


def test_threads_that_share_a_manager_see_one_zoo() -> None:
    chance = random.Random(1)

    def doze(call: Call, proceed: Proceed) -> Any:
        time.sleep(chance.uniform(0, 0.002))
        return proceed()

    zoo, logs = Shared(WrappedStore(MemoryStore(), doze)), [[], [], [], []]
    zoo.init()
    members = [Member(lambda: zoo, log.append, n, seed=n) for n, log in enumerate(logs)]
    with ThreadPoolExecutor(len(members)) as pool:
        list(pool.map(act_often, members))
    zoo.zoo.close()
    history = [each for n, log in enumerate(logs) for _, each in operations(log, n)]
    assert problems(history) == []
    assert {each.outcome for each in history} == {"ok", "NotFound", "Conflict"}


def test_four_processes_at_everything_see_one_zoo(where: Where, tmp_path: Path) -> None:
    crowd = Crowd(where, partner(tmp_path), tmp_path, 60, operations=24, doze=0.02)
    chronicle = work(crowd, ["mix", "mix", "carry", "collect"])
    assert chronicle.operations >= 2 * 24


@pytest.mark.soak
@pytest.mark.parametrize(("expiry_s", "doze", "kills"), [(2.0, 0.0, 6), (0.0, 0.05, 0)])
def test_sixteen_processes_at_everything_see_one_zoo(
    where: Where,
    tmp_path: Path,
    soak_s: float,
    tally: Callable[..., None],
    expiry_s: float,
    doze: float,
    kills: int,
) -> None:
    crowd = Crowd(where, partner(tmp_path), tmp_path, soak_s / 2, expiry_s=expiry_s, doze=doze)
    chronicle = work(crowd, ["mix"] * 12 + ["collect", "carry"] * 2, kills=kills)
    place = "in a bucket" if where[1] else "on disk"
    how = "some killed" if kills else "some taken for dead"
    tally(
        f"16 processes {place}, {how}",
        cases=len(chronicle.histories),
        operations=chronicle.operations,
        faults=kills + sum(map(len, chronicle.fences.values())),
        lost=0,
    )
