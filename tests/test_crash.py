"""Stopping the world anywhere: what is left is whole, and the next save goes on from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from zoos import crash, memory_copy, opened, params, read_raw, same

from brainstore import BrainManager, Conflict, NotFound
from brainstore.intents import finish_abandoned
from brainstore.storage.base import Store
from brainstore.storage.memory import MemoryStore

MOST_CALLS = 60


@pytest.fixture(scope="module")
def three_versions() -> MemoryStore:
    """ppo:1 to ppo:3, of which 2 is deleted, `prod` on 1, and a fact not yet folded."""
    store = MemoryStore()
    with opened(store) as zoo:
        for seed in (1, 2, 3):
            zoo.save("ppo", params(seed))
        zoo.alias("ppo:1", "prod")
        zoo.delete("ppo:2")
        fold, zoo.zoo.committer.tidy = zoo.zoo.committer.tidy, lambda: None
        zoo.alias("ppo:3", "candidate")
        zoo.zoo.committer.tidy = fold
    return store


WORK: dict[str, Callable[[BrainManager], object]] = {
    "save": lambda zoo: zoo.save("ppo", params(4)),
    "save of what is there": lambda zoo: zoo.save("ppo", params(3)),
    "save of another": lambda zoo: zoo.save("team/other", params(4), aliases=["prod"]),
    "alias": lambda zoo: zoo.alias("ppo:3", "prod", expected=1),
    "move": lambda zoo: zoo.alias("ppo:3", "prod"),
    "new alias": lambda zoo: zoo.alias("ppo:3", "best"),
    "unalias": lambda zoo: zoo.unalias("ppo", "prod"),
    "delete newest": lambda zoo: zoo.delete("ppo:3", force=True),
    "delete aliased": lambda zoo: zoo.delete("ppo:1", force=True),
    "undelete": lambda zoo: zoo.undelete("ppo:2"),
    "fold": lambda zoo: zoo.zoo.registry.journal.fold(),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("work", WORK)
def test_the_world_stops_at_any_call(
    three_versions: MemoryStore, work: str, *, after: bool
) -> None:
    crashes = 0
    for at in range(MOST_CALLS):
        store = memory_copy(three_versions)
        if not crash(store, WORK[work], at, after=after):
            break
        crashes += 1
        assert_goes_on(store, acknowledged={("ppo", 1): 1, ("ppo", 3): 3})
    assert 2 < crashes < MOST_CALLS


def test_the_world_stops_while_a_zoo_is_made() -> None:
    for after in (False, True):
        crashes = 0
        for at in range(400):
            store = MemoryStore()
            if not crash(store, lambda zoo: zoo.save("ppo", params(1)), at, after=after):
                break
            crashes += 1
            # Racing probes are many and alike.
            if at < 30 or at > 90:
                assert_goes_on(store, acknowledged={})
        assert 10 < crashes < 400


def assert_goes_on(store: Store, acknowledged: dict[tuple[str, int], int]) -> None:
    """Every reader finds only whole versions; the next save is the next version and `latest`."""
    found = read_raw(store)
    assert found.problems == []
    with opened(store) as zoo:
        for name in zoo.list_models():
            model, number = name.rsplit("_v", 1)
            # A deletion that stopped half way may still be listed, and is seen to be deleted.
            if (model, int(number)) in found.deleted:
                with pytest.raises(NotFound, match="undelete"):
                    zoo.load(name)
                continue
            tree, _ = zoo.load(name, as_numpy=True, verify=True)
            seed = acknowledged.get((model, int(number)))
            assert seed is None or same(tree, params(seed))
        for (model, number), seed in acknowledged.items():
            if (model, number) not in found.deleted:
                assert same(zoo.load(model, number, as_numpy=True)[0], params(seed))
        zoo.zoo.registry.journal.fold()
        finish_abandoned(zoo.zoo.registry, older_than_s=-1)
        zoo.zoo.registry.journal.fold()
        taken = [n for model, n in [*found.live, *found.deleted] if model == "ppo"]
        assert zoo.save("ppo", params(77)) == f"ppo_v{max(taken, default=0) + 1}"
        assert zoo.get_latest("ppo") == f"ppo_v{max(taken, default=0) + 1}"
        assert same(zoo.load("ppo", as_numpy=True)[0], params(77))
        # What was committed is listed by now, whoever had to publish it. A restoration is
        # listed when it is done again, see below.
        listed = zoo.list_models()
        committed = set(found.live) - found.restored
        assert {f"{model}_v{number}" for model, number in committed} <= set(listed)
        assert all(zoo.table())
    assert read_raw(store).problems == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_what_stopped_half_way_is_finished_by_doing_it_again(
    three_versions: MemoryStore, *, after: bool
) -> None:
    for work in ("move", "new alias", "unalias", "delete newest", "delete aliased", "undelete"):
        expected = memory_copy(three_versions)
        with opened(expected) as zoo:
            WORK[work](zoo)
            names, table = zoo.list_models(), zoo.table()
        for at in range(MOST_CALLS):
            store = memory_copy(three_versions)
            if not crash(store, WORK[work], at, after=after):
                break
            with opened(store) as zoo:
                with contextlib.suppress(Conflict, NotFound):
                    WORK[work](zoo)
                assert (work, at, zoo.list_models()) == (work, at, names)
                assert zoo.table() == table
                assert zoo.get_latest("ppo") == names[-1]
                zoo.load("ppo", as_numpy=True)
