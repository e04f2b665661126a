"""What a collection meets on its way: another one, its own death, lost replies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from collecting import blobs, blobs_of, collected, put_intent, state, three_versions
from conftest import S3Place
from zoos import (
    Call,
    Crash,
    CrashingStore,
    Proceed,
    WrappedStore,
    finish,
    memory_copy,
    opened,
    params,
    read_raw,
    same,
)

from brainstore import BrainManager, Conflict, NotFound
from brainstore.address import GC_STATE_KEY, Digest, blob_key
from brainstore.cache import Cache
from brainstore.errors import Corrupt, StoreUnavailable
from brainstore.fsck import fsck
from brainstore.garbage import Collection
from brainstore.records import GcState
from brainstore.storage.base import Store
from brainstore.storage.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def zoo(store: MemoryStore) -> Iterator[BrainManager]:
    with three_versions(store) as manager:
        yield manager


# One collection at a time


def test_a_second_collection_is_refused_and_does_nothing(
    zoo: BrainManager, store: MemoryStore
) -> None:
    refused = []

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == "list intent" and state(store).state == "condemned" and not refused:
            before = dict(store._shelf.objects)
            with pytest.raises(Conflict, match="has been condemned") as caught:
                collected(zoo, keep_last=1)
            refused.append(caught.value)
            assert store._shelf.objects == before
        return proceed()

    with opened(WrappedStore(store, around)) as other:
        assert len(collected(other).blobs) == 1
    assert refused


def test_a_collection_that_was_taken_over_stops(zoo: BrainManager, store: MemoryStore) -> None:
    taken: list[Collection] = []

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == "list intent" and state(store).state == "condemned" and not taken:
            taken.append(collected(zoo, take_over=True))
        return proceed()

    with opened(WrappedStore(store, around)) as other, pytest.raises(Conflict, match="stops"):
        collected(other)
    assert len(taken[0].blobs) == 1
    assert state(store).state == "idle"
    assert fsck(zoo.zoo) == []


def test_on_disk_the_kernel_tells_that_a_collection_is_under_way(tmp_path: Path) -> None:
    with opened(tmp_path / "zoo") as zoo:
        zoo.save("ppo", params(1))
        with zoo.zoo.store.sole("blobs/") as is_sole:
            assert is_sole
            with pytest.raises(Conflict, match="holds the lock"):
                collected(zoo)
        collected(zoo)


def test_equal_states_of_two_collectors_differ(zoo: BrainManager, store: MemoryStore) -> None:
    collected(zoo)
    first = state(store)
    collected(zoo)
    assert first.write_id
    assert first.write_id != state(store).write_id
    assert first.generation < state(store).generation


# Death


def stuck(store: Store, zoo: BrainManager, stage: str, age_s: float = 0.0) -> set[Digest]:
    """Leave the zoo as a collection that died in this stage would; return what it condemned."""
    condemned = {each.digest for each in collected(zoo, dry_run=True).blobs}
    body = GcState(state=stage, generation=7, condemned=tuple(condemned), write_id="dead").encode()
    store.put(GC_STATE_KEY, body)
    if isinstance(store, MemoryStore):
        store._shelf.objects[GC_STATE_KEY] = body, time.time() - age_s
    return condemned


def test_a_collection_that_died_while_it_deleted_needs_an_operator(
    zoo: BrainManager, store: MemoryStore
) -> None:
    condemned = stuck(store, zoo, "deleting", age_s=60)
    with pytest.raises(Conflict, match="--take-over"):
        collected(zoo)
    with pytest.raises(Conflict, match="may still take effect"):
        collected(zoo, take_over=True)
    stuck(store, zoo, "deleting", age_s=3700)
    collected(zoo, take_over=True)
    assert not {blob_key(digest) for digest in condemned} & blobs(store)
    assert state(store).state == "idle"
    assert state(store).generation > 7


def test_one_that_died_before_it_deleted_is_passed_over_after_an_hour(
    zoo: BrainManager, store: MemoryStore
) -> None:
    stuck(store, zoo, "condemned", age_s=60)
    with pytest.raises(Conflict, match="has been condemned for 1 minutes"):
        collected(zoo)
    stuck(store, zoo, "condemned", age_s=3700)
    assert len(collected(zoo).blobs) == 1


@pytest.mark.parametrize("stage", ["condemned", "deleting"])
def test_in_a_folder_the_next_collection_goes_on_by_itself(tmp_path: Path, stage: str) -> None:
    with opened(tmp_path / "zoo") as zoo:
        zoo.save("ppo", params(1))
        zoo.save("ppo", params(2))
        zoo.delete("ppo:1")
        finish(zoo)
        condemned = stuck(zoo.zoo.store, zoo, stage)
        assert condemned
        collected(zoo)
        assert blobs(zoo.zoo.store) == blobs_of(zoo, "ppo:2")
        assert state(zoo.zoo.store).state == "idle"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_the_world_stops_at_any_call_of_a_collection(
    zoo: BrainManager, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    monkeypatch.setattr("brainstore.fsck.check.SECOND_LOOK_S", 0)
    put_intent(zoo, [], version=4)
    put_intent(zoo, [], version=2, exact=True)
    zoo.save("ppo", params(4))
    finish(zoo)
    seeds = {1: 1, 3: 3, 5: 4, 4: 4}
    for at in range(200):
        copy = memory_copy(store)
        crashing = CrashingStore(copy, at, after=after)
        with opened(crashing) as dying, suppress(Crash):
            collected(dying, keep_last=2, expiry_s=0)
        if not crashing.has_crashed:
            break
        assert read_raw(copy).problems == []
        stage = state(copy).state
        if stage == "deleting":
            # An hour later.
            body, _ = copy._shelf.objects[GC_STATE_KEY]
            copy._shelf.objects[GC_STATE_KEY] = body, time.time() - 3700
        with opened(copy) as again:
            collected(again, expiry_s=0, take_over=stage != "idle")
            for _, number in read_raw(copy).live:
                assert same(again.load("ppo", number, as_numpy=True)[0], params(seeds[number]))
            again.save("ppo", params(8))
            with suppress(NotFound):
                again.delete("ppo:1")  # if that is how far it came, it is finished so
            finish(again)
            named = {key for full in again.list_models() for key in blobs_of(again, full)}
            collected(again, expiry_s=0)
            assert blobs(copy) == named
            assert fsck(again.zoo) == []
    assert 20 < at < 199


def test_a_collection_that_died_early_holds_no_save_up_though_nothing_can_be_collected(
    zoo: BrainManager, store: MemoryStore
) -> None:
    stuck(store, zoo, "condemned", age_s=3700)
    key = "models/ppo/v1/manifest.json"
    store.put(key, b"{}")
    with pytest.raises(Corrupt):
        collected(zoo)
    assert state(store).state == "idle"


@pytest.mark.parametrize("step", ["swap gc idle", "lost deletion"])
def test_a_state_that_stays_is_said(
    zoo: BrainManager, store: MemoryStore, tmp_path: Path, step: str
) -> None:
    """Saves wait for it, and nobody else would tell why."""

    class Failing(WrappedStore):
        def put(self, key: str, body: Any, **options: Any) -> Any:
            if key == GC_STATE_KEY and b'"idle"' in body:
                raise StoreUnavailable("the network is gone.")
            return super().put(key, body, **options)

        def delete_all(self, keys: Any) -> None:
            if step == "lost deletion":
                raise StoreUnavailable("the network is gone, and nothing was sent.")
            super().delete_all(keys)

    with (
        opened(Failing(store, is_remote=True), cache=Cache(tmp_path / "cache")) as remote,
        pytest.raises(StoreUnavailable) as caught,
    ):
        collected(remote)
    assert "could not say so" in caught.value.__notes__[0]
    assert state(store).state == "deleting"


def test_what_fails_after_the_garbage_is_gone_does_not_hide_that(
    zoo: BrainManager, store: MemoryStore
) -> None:
    put_intent(zoo, [])

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == "delete intent":
            raise StoreUnavailable("the network is gone.")
        return proceed()

    with opened(WrappedStore(store, around)) as other:
        with pytest.raises(StoreUnavailable) as caught:
            collected(other, expiry_s=0)
        assert "1 blobs of garbage were removed" in caught.value.__notes__[0]
    assert state(store).state == "idle"


def test_who_may_not_list_uploads_collects_all_the_same(
    zoo: BrainManager, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Denied(WrappedStore):
        def leftovers(self) -> Any:
            raise StoreUnavailable("access denied.")

    with opened(Denied(store)) as other:
        assert len(collected(other, dry_run=True).blobs) == 1
        assert len(collected(other).blobs) == 1
    assert "cannot be listed, and stay: access denied" in caplog.text


# Buckets


@pytest.fixture(params=["moto_place", pytest.param("s3_place", marks=pytest.mark.s3)])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrainManager]:
    place: S3Place = request.getfixturevalue(request.param)
    cache = Cache(tmp_path / "cache")
    with opened(place.url, storage_options=place.storage_options, cache=cache) as zoo:
        yield zoo


def test_a_bucket_is_collected(bucket: BrainManager) -> None:
    for seed in range(4):
        bucket.save("ppo", params(seed))
    bucket.delete("ppo:2")
    finish(bucket)
    assert collected(bucket, dry_run=True).live_blobs == 3
    before = bucket.zoo.store.requests.copy()
    assert len(collected(bucket).blobs) == 1
    spent = bucket.zoo.store.requests - before
    assert spent["DeleteObjects"] == 1
    assert blobs(bucket.zoo.store) == {
        key for number in (1, 3, 4) for key in blobs_of(bucket, f"ppo:{number}")
    }
    # The saver that knows blobs from before has learned that this one is gone.
    assert bucket.save("ppo", params(1)) == "ppo_v5"
    assert same(bucket.load("ppo:5", as_numpy=True, verify=True)[0], params(1))
    finish(bucket)
    assert fsck(bucket.zoo) == []


class Losing(WrappedStore):
    """A bucket whose deletions lose their replies, some before and some after they act."""

    def __init__(self, inner: Store, losses: int) -> None:
        super().__init__(inner, is_remote=True)
        self.losses = losses
        self.sent: list[list[str]] = []

    def delete_all(self, keys: Any) -> None:
        self.sent.append(list(keys))
        if self.losses:
            self.losses -= 1
            raise StoreUnavailable("the reply was lost.", outcome_unknown=True)
        super().delete_all(keys)


def test_where_a_reply_is_lost_a_collection_waits_until_the_request_is_over(
    zoo: BrainManager, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    stages: list[str] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        stages.append(state(store).state)

    losing = Losing(store, losses=1)
    with opened(losing, cache=Cache(tmp_path / "cache")) as remote:
        monkeypatch.setattr("brainstore.garbage.collector.time.sleep", sleep)
        assert len(collected(remote).blobs) == 1
    assert waits == [3600.0]
    assert stages == ["deleting"]
    assert losing.sent[0] == losing.sent[1]
    assert state(store).state == "idle"


def test_one_whose_replies_are_all_lost_says_so_and_frees_the_zoo(
    zoo: BrainManager, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing = Losing(store, losses=9)
    with opened(losing, cache=Cache(tmp_path / "cache")) as remote:
        monkeypatch.setattr("brainstore.garbage.collector.time.sleep", lambda _: None)
        with pytest.raises(StoreUnavailable, match="3 times in a row"):
            collected(remote)
        # The last request is over by now, too.
        assert state(store).state == "idle"
        losing.losses = 0
        assert len(collected(remote).blobs) == 1


def test_a_swap_whose_outcome_is_unknown_is_taken_back(
    zoo: BrainManager, store: MemoryStore
) -> None:
    for stage in ("condemned", "deleting"):

        def around(call: Call, proceed: Proceed, stage: str = stage) -> Any:
            result = proceed()
            if call.step == "put gc" and state(store).state == stage:
                raise StoreUnavailable("nobody answers", outcome_unknown=True)
            return result

        with opened(WrappedStore(store, around)) as other, pytest.raises(StoreUnavailable):
            collected(other)
        assert state(store).state == "idle"
    assert len(collected(zoo).blobs) == 1


def test_ctrl_c_while_a_bucket_deletes_leaves_the_state_and_says_so(
    zoo: BrainManager, store: MemoryStore, tmp_path: Path
) -> None:
    class Interrupted(Losing):
        def delete_all(self, keys: Any) -> None:
            raise KeyboardInterrupt

    with (
        opened(Interrupted(store, 0), cache=Cache(tmp_path / "cache")) as remote,
        pytest.raises(KeyboardInterrupt) as caught,
    ):
        collected(remote)
    assert "--take-over" in caught.value.__notes__[0]
    assert state(store).state == "deleting"
