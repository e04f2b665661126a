"""Keeping the last versions: what `gc` deletes before it collects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from collecting import three_versions
from zoos import (
    Call,
    Proceed,
    WrappedStore,
    finish,
    opened,
    params,
)

from brainstore import BrainManager
from brainstore.errors import BadParams, StoreUnavailable
from brainstore.storage.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def zoo(store: MemoryStore) -> Iterator[BrainManager]:
    with three_versions(store) as manager:
        yield manager


def test_all_but_the_last_versions_are_deleted_and_can_come_back(zoo: BrainManager) -> None:
    zoo.save("other", params(1))
    done = zoo.gc(dry_run=False, keep_last=1)
    assert [str(version) for version in done.deleted] == ["ppo:1"]
    assert zoo.list_models() == ["other_v1", "ppo_v3"]
    assert done.blobs == ()
    zoo.undelete("ppo:1")


def test_what_an_alias_names_is_kept(zoo: BrainManager) -> None:
    zoo.alias("ppo:1", "prod")
    done = zoo.gc(dry_run=False, keep_last=1)
    assert done.deleted == ()
    assert [(str(version), reason) for version, reason in done.kept] == [
        ("ppo:1", "ppo:prod names it")
    ]


def test_what_an_alias_named_before_is_kept_when_asked_for(zoo: BrainManager) -> None:
    zoo.alias("ppo:1", "prod")
    zoo.alias("ppo:3", "prod")
    assert zoo.gc(keep_last=1, keep_alias=["prod"]).deleted == ()
    assert [str(each) for each in zoo.gc(keep_last=1).deleted] == ["ppo:1"]


def test_experts_of_what_stays_are_kept_and_users_go_before_their_experts(
    store: MemoryStore,
) -> None:
    with opened(store) as zoo:
        zoo.save("expert", params(1))
        zoo.save("expert", params(2))
        zoo.save("expert", params(3))
        for expert in (1, 2):
            tree = {"own": params(9), "expert": params(expert)}
            zoo.save("fused", tree, frozen_experts={"expert": f"expert:{expert}"})
        done = zoo.gc(dry_run=False, keep_last=1)
        assert [str(version) for version in done.deleted] == ["fused:1", "expert:1"]
        (kept, reason) = done.kept[0]
        assert (str(kept), reason) == ("expert:2", "it is a frozen expert of fused:2")


def test_deleting_many_reads_the_index_a_few_times(store: MemoryStore) -> None:
    def reads(versions: int) -> int:
        with opened(WrappedStore(MemoryStore())) as zoo:
            for seed in range(versions):
                zoo.save("ppo", params(seed))
            finish(zoo)
            before = len(zoo.zoo.store.calls)
            assert len(zoo.gc(dry_run=False, keep_last=1).deleted) == versions - 1
            calls = zoo.zoo.store.calls[before:]
            return sum(call.key == "registry.json" and call.method == "get" for call in calls)

    assert reads(4) == reads(12)


def test_an_expert_that_somebody_uses_meanwhile_is_kept(store: MemoryStore) -> None:
    """Of those that wait for their turn, after the index was read again."""
    users: list[str] = []

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == "put manifest" and not users:
            with opened(store) as other:
                tree = {"own": params(9), "expert": params(2)}
                users.append(other.save("fused", tree, frozen_experts={"expert": "expert:2"}))
        return proceed()

    with opened(store) as zoo:
        for seed in (1, 2, 3):
            zoo.save("expert", params(seed))
    with pytest.MonkeyPatch.context() as patch, opened(WrappedStore(store, around)) as zoo:
        patch.setattr("brainstore.garbage.retention._PER_INDEX", 1)
        done = zoo.gc(dry_run=False, keep_last=1)
    assert users
    assert [str(version) for version in done.deleted] == ["expert:1"]
    assert "fused:1" in done.kept[0][1]


@pytest.mark.parametrize(("step", "count"), [("put manifest", 1), ("list blob", 2)])
def test_what_was_deleted_before_a_failure_is_said(
    zoo: BrainManager, store: MemoryStore, step: str, count: int
) -> None:
    zoo.save("ppo", params(4))
    buried: list[str] = []

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == step and len(buried) == count:
            raise StoreUnavailable("the network is gone.")
        if call.step == "put manifest":
            buried.append(call.key)
        return proceed()

    with opened(WrappedStore(store, around)) as other:
        with pytest.raises(StoreUnavailable) as caught:
            other.gc(dry_run=False, keep_last=1)
        assert f"{count} versions were deleted before" in caught.value.__notes__[-1]


def test_with_an_age_young_versions_stay(zoo: BrainManager) -> None:
    done = zoo.gc(keep_last=1, older_than=3600)
    assert done.deleted == ()
    assert done.kept[0][1] == "it was saved too lately"


def test_senseless_demands_are_refused(zoo: BrainManager) -> None:
    with pytest.raises(BadParams, match="keep_last"):
        zoo.gc(keep_last=0)
    with pytest.raises(BadParams, match="keep_alias"):
        zoo.gc(keep_alias=["prod"])


@pytest.mark.parametrize("age", [-1.0, float("nan")])
def test_an_age_that_is_none_is_refused(zoo: BrainManager, age: float) -> None:
    with pytest.raises(BadParams, match="older_than"):
        zoo.gc(older_than=age)
