"""Writers that sleep past their intents, while collections take them for dead.

Each sleeps at a call of its store; meanwhile somebody else does what would be fatal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from zoos import Call, Proceed, WrappedStore, finish, opened, params, read_raw, same

from brainstore import BrainManager, Conflict, NotFound
from brainstore.fsck import fsck
from brainstore.garbage import collect
from brainstore.storage.memory import MemoryStore
from brainstore.sync import sync


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def awake(store: MemoryStore) -> Iterator[BrainManager]:
    """Who works while the other sleeps; ppo:1 is there."""
    with opened(store) as manager:
        manager.save("ppo", params(1))
        finish(manager)
        yield manager


class Sleeper:
    """A manager that falls asleep at the `nth` call that is `step`, once."""

    def __init__(
        self, store: MemoryStore, step: str, meanwhile: Callable[[], object], nth: int = 1
    ) -> None:
        self._step, self._meanwhile, self._left = step, meanwhile, nth
        self._store = WrappedStore(store, self._around)
        self.has_slept = False

    def __enter__(self) -> BrainManager:
        self._manager = BrainManager(self._store)
        return self._manager

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def _around(self, call: Call, proceed: Proceed) -> Any:
        if call.step == self._step and not self.has_slept:
            self._left -= 1
            if not self._left:
                self.has_slept = True
                self._meanwhile()
        return proceed()


def collect_all(zoo: BrainManager) -> None:
    collect(zoo.zoo, dry_run=False, older_than_s=0, expiry_s=0)


def assert_whole(store: MemoryStore, versions: dict[int, int]) -> None:
    """Versions {number: seed} of ppo are live and load, others are not; nothing is wrong."""
    found = read_raw(store)
    assert found.problems == []
    with opened(store) as zoo:
        assert {number for _, number in found.live} == set(versions)
        assert zoo.list_models() == [f"ppo_v{number}" for number in sorted(versions)]
        for number, seed in versions.items():
            assert same(zoo.load("ppo", number, as_numpy=True, verify=True)[0], params(seed))
        assert fsck(zoo.zoo) == []


def test_a_save_that_slept_too_long_stores_its_blobs_again(
    store: MemoryStore, awake: BrainManager
) -> None:
    def meanwhile() -> None:
        collect_all(awake)
        assert len(list(store.list("blobs/"))) == 1

    sleeper = Sleeper(store, "put manifest", meanwhile)
    with sleeper as zoo:
        # Number 2 is closed, and it begins again.
        assert zoo.save("ppo", params(2)) == "ppo_v3"
    assert sleeper.has_slept
    assert_whole(store, {1: 1, 3: 2})


def test_a_save_that_slept_within_its_time_is_spared(
    store: MemoryStore, awake: BrainManager
) -> None:
    def meanwhile() -> None:
        collect(awake.zoo, dry_run=False, older_than_s=0)

    with Sleeper(store, "put manifest", meanwhile) as zoo:
        assert zoo.save("ppo", params(2)) == "ppo_v2"
    assert_whole(store, {1: 1, 2: 2})


def test_a_save_that_slept_past_a_version_that_was_deleted_meanwhile_is_fenced_off(
    store: MemoryStore, awake: BrainManager
) -> None:
    # It finds number 2 taken, by a manifest, and falls asleep before it tries number 3.
    def meanwhile() -> None:
        awake.delete("ppo:2")
        finish(awake)
        collect_all(awake)

    sleeper = Sleeper(store, "put manifest", meanwhile, nth=2)
    with sleeper as zoo:
        zoo.zoo.registry.pointers.latest("ppo")  # type: ignore[arg-type]  # as of version 1
        awake.save("ppo", params(2))
        finish(awake)
        assert zoo.save("ppo", params(3)) == "ppo_v4"
    assert sleeper.has_slept
    assert_whole(store, {1: 1, 4: 3})


def source_with(*seeds: int) -> BrainManager:
    source = BrainManager(MemoryStore())
    for seed in seeds:
        source.save("ppo", params(seed))
    return source


def test_a_sync_that_slept_too_long_copies_the_blobs_again(store: MemoryStore) -> None:
    with opened(store) as awake, source_with(1, 2) as source:
        awake.init()
        sleeper = Sleeper(store, "put manifest", lambda: collect_all(awake))
        with sleeper as zoo:
            report = sync(source.zoo, zoo.zoo)
        assert sleeper.has_slept
        assert [outcome.status for outcome in report.outcomes] == ["copied", "copied"]
        # Over a fence, what was copied is a tombstone that is lifted, around the same bytes.
        assert read_raw(store).restored
        assert awake.resolve("ppo:1") == source.resolve("ppo:1")
    assert_whole(store, {1: 1, 2: 2})


def test_a_sync_does_not_replace_a_fence_that_a_collection_has_changed(
    store: MemoryStore,
) -> None:
    def meanwhile() -> None:
        before = read_fence(store)
        collect_all(awake)
        assert read_fence(store)["write_id"] != before["write_id"]

    with opened(store) as awake, source_with(1) as source:
        awake.init()
        # The first sleep leaves a fence, the second is before it is replaced.
        with Sleeper(store, "put manifest", lambda: collect_all(awake)) as zoo:
            second = Sleeper(store, "put manifest", meanwhile, nth=1)
            first_around = zoo.zoo.store.around

            def around(call: Call, proceed: Proceed) -> Any:
                if call.step == "put manifest" and call.expect == "token":
                    return second._around(call, proceed)
                return first_around(call, proceed)

            zoo.zoo.store.around = around
            sync(source.zoo, zoo.zoo)
        assert second.has_slept
    assert_whole(store, {1: 1})


def read_fence(store: MemoryStore) -> dict[str, Any]:
    found = store.get("models/ppo/v1/manifest.json")
    assert found
    fence: dict[str, Any] = json.loads(found.body)
    assert fence["record"] is None
    return fence


def test_a_save_does_not_walk_past_what_a_sync_has_put_over_its_fence(
    store: MemoryStore, awake: BrainManager
) -> None:
    def meanwhile() -> None:
        collect_all(awake)
        assert read_raw(store).deleted == {("ppo", 2)}
        sync(source.zoo, awake.zoo, ["ppo:2"])
        finish(awake)

    with source_with(1, 5) as source, Sleeper(store, "put manifest", meanwhile) as zoo:
        assert zoo.save("ppo", params(2)) == "ppo_v3"
    assert_whole(store, {1: 1, 2: 5, 3: 2})


def test_a_restoration_that_slept_too_long_does_not_bring_back_what_is_gone(
    store: MemoryStore, awake: BrainManager
) -> None:
    awake.save("ppo", params(2))
    awake.delete("ppo:2")
    finish(awake)
    sleeper = Sleeper(store, "put manifest", lambda: collect_all(awake))
    with sleeper as zoo, pytest.raises(Conflict, match="changed by somebody else"):
        zoo.undelete("ppo:2")
    assert sleeper.has_slept
    assert_whole(store, {1: 1})


def test_a_deleter_that_steps_back_too_late_does_not_bring_back_what_is_gone(
    store: MemoryStore, awake: BrainManager
) -> None:
    awake.save("ppo", params(2))
    finish(awake)

    # It has looked for aliases and found none; then one comes, after its tombstone.
    def meanwhile() -> None:
        key = "models/ppo/refs/prod.json"
        store._shelf.objects[key] = store._shelf.objects["elsewhere"]
        # The first gives up the deleter's intent, and so changes the tombstone.
        collect_all(awake)
        collect_all(awake)

    with opened(MemoryStore()) as other:
        for seed in (1, 2):
            other.save("ppo", params(seed))
        other.alias("ppo:2", "prod")
        prod = other.zoo.store.get("models/ppo/refs/prod.json")
        version = other.resolve("ppo:2")
    assert prod
    body = prod.body.replace(version.digest.encode(), awake.resolve("ppo:2").digest.encode())
    store._shelf.objects["elsewhere"] = body, 0.0
    sleeper = Sleeper(store, "put fact", meanwhile)
    with sleeper as zoo, pytest.raises(NotFound, match="cannot come back"):
        zoo.delete("ppo:2")
    assert sleeper.has_slept
    assert read_raw(store).deleted == {("ppo", 2)}
