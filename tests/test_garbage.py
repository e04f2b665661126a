"""Collections: what goes, what stays, and what a collection meets on its way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import S3Place
from zoos import (
    Call,
    Crash,
    CrashingStore,
    Proceed,
    WrappedStore,
    finish,
    memory_copy,
    objects,
    opened,
    params,
    read_raw,
    same,
)

from brainstore import BrainManager, Conflict, NotFound
from brainstore.address import GC_STATE_KEY, Digest, blob_key, intent_key, new_ulid
from brainstore.cache import Cache
from brainstore.errors import BadParams, BadReference, Corrupt, StoreUnavailable, Unsupported
from brainstore.fsck import fsck
from brainstore.garbage import Collection, collect
from brainstore.records import GcState, Intent, Target
from brainstore.storage.base import Store
from brainstore.storage.memory import MemoryStore

DAY_S = 86400.0


def collected(zoo: BrainManager, **options: Any) -> Collection:
    """Collect at once, whatever is old enough for that."""
    return collect(zoo.zoo, **{"dry_run": False, "older_than_s": 0, **options})


def blobs(store: Store) -> set[str]:
    return {stat.key for stat in store.list("blobs/")}


def blobs_of(zoo: BrainManager, ref: str) -> set[str]:
    return {blob_key(digest) for digest in zoo.manifest(ref).blobs}


def state(store: Store) -> GcState:
    found = store.get(GC_STATE_KEY)
    assert found is not None
    return GcState.decode(found.body, GC_STATE_KEY)


def put_intent(zoo: BrainManager, digests: Any, version: int = 9, **fields: Any) -> str:
    """Leave an intent as a save that died would."""
    write_id = new_ulid()
    target = Target(name=fields.pop("name", "ppo"), version=version)
    intent = Intent(
        write_id=write_id, created_at="", by="ada", targets=(target,), digests=tuple(digests),
        **fields,
    )  # fmt: skip
    zoo.zoo.store.put(intent_key(write_id), intent.encode())
    return write_id


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def zoo(store: MemoryStore) -> Iterator[BrainManager]:
    """ppo:1 to 3, of which 2 is deleted; nothing runs any more."""
    with opened(store) as manager:
        for seed in (1, 2, 3):
            manager.save("ppo", params(seed))
        manager.delete("ppo:2")
        finish(manager)
        yield manager


# What goes and what stays


def test_only_what_nothing_names_is_removed(zoo: BrainManager, store: MemoryStore) -> None:
    stay = blobs_of(zoo, "ppo:1") | blobs_of(zoo, "ppo:3")
    garbage = blobs(store) - stay
    plan = collected(zoo, dry_run=True)
    before = objects(zoo)
    done = collected(zoo)
    assert (plan.blobs, plan.size_bytes, plan.dry_run) == (done.blobs, done.size_bytes, True)
    assert {blob_key(each.digest) for each in done.blobs} == garbage
    assert blobs(store) == stay
    assert (done.live_blobs, done.live_bytes) == (2, sum(len(before[key]) for key in stay))
    assert state(store).state == "idle"
    assert fsck(zoo.zoo) == []
    with pytest.raises(NotFound, match="blobs are gone"):
        zoo.undelete("ppo:2")
    assert collected(zoo).blobs == ()


def test_a_dry_run_changes_nothing(zoo: BrainManager) -> None:
    before = objects(zoo)
    assert collected(zoo, dry_run=True, keep_last=1).deleted
    assert zoo.gc(older_than=0).blobs
    assert objects(zoo) == before


def test_a_deleted_version_can_come_back_for_a_day(zoo: BrainManager) -> None:
    assert zoo.gc(dry_run=False).blobs == ()
    zoo.undelete("ppo:2")
    assert same(zoo.load("ppo:2", as_numpy=True)[0], params(2))


def test_old_garbage_goes_and_young_garbage_stays(tmp_path: Path) -> None:
    with opened(tmp_path / "zoo") as zoo:
        zoo.save("ppo", params(1))
        zoo.save("ppo", params(2))
        zoo.delete("ppo:1")
        zoo.delete("ppo:2")
        finish(zoo)
        old = time.time() - 2 * DAY_S
        folder = tmp_path / "zoo"
        for path in [*(folder / "blobs").rglob("*"), folder / "models/ppo/v1/manifest.json"]:
            os.utime(path, (old, old))
        # The blob of ppo:2 is old, its deletion is not.
        assert len(zoo.gc(dry_run=False).blobs) == 1
        zoo.undelete("ppo:2")
        with pytest.raises(NotFound):
            zoo.undelete("ppo:1")


def test_all_that_a_version_needs_stays(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("first")
    with opened(store) as zoo:
        zoo.save("expert", params(1))
        zoo.save(
            "ppo",
            {"own": params(2), "expert": params(1)},
            groups={"opt_state": {"m": np.ones(300_000, np.float32)}, "step": 4},
            files={"notes.md": tmp_path / "notes.md"},
            frozen_experts={"expert": "expert:1"},
        )
        zoo.save("gone", params(9))
        zoo.delete("gone:1")
        finish(zoo)
        assert len(collected(zoo).blobs) == 1
        zoo.load("ppo", groups="all", as_numpy=True, verify=True)
        assert zoo.file("ppo", "notes.md") == b"first"
        assert fsck(zoo.zoo) == []


def test_a_blob_that_two_versions_share_stays_for_the_other(zoo: BrainManager) -> None:
    zoo.save("same", params(3))
    zoo.delete("ppo:3")
    finish(zoo)
    collected(zoo)
    assert same(zoo.load("same", as_numpy=True, verify=True)[0], params(3))


def test_a_restored_version_stays(zoo: BrainManager) -> None:
    zoo.undelete("ppo:2")
    finish(zoo)
    assert collected(zoo).blobs == ()
    assert same(zoo.load("ppo:2", as_numpy=True)[0], params(2))


def test_half_written_files_of_killed_writers_go(tmp_path: Path) -> None:
    with opened(tmp_path / "zoo") as zoo:
        zoo.save("ppo", params(1))
        leftover = tmp_path / "zoo/blobs/.tmp-1-abc"
        leftover.write_bytes(b"half")
        assert collected(zoo).leftovers == ()
        done = collected(zoo, expiry_s=0)
        assert done.leftovers == (("blobs/.tmp-1-abc", 4),)
        assert not leftover.exists()


# Intents


def test_what_a_save_under_way_has_declared_stays(zoo: BrainManager, store: MemoryStore) -> None:
    (garbage,) = (each.digest for each in collected(zoo, dry_run=True).blobs)
    put_intent(zoo, [garbage])
    assert collected(zoo).blobs == ()
    assert store.get(blob_key(garbage))


def test_the_intent_of_a_dead_save_is_given_up(zoo: BrainManager, store: MemoryStore) -> None:
    (garbage,) = (each.digest for each in collected(zoo, dry_run=True).blobs)
    write_id = put_intent(zoo, [garbage], version=4)
    done = collected(zoo, expiry_s=0)
    assert [each.digest for each in done.blobs] == [garbage]
    assert done.intents == (intent_key(write_id),)
    assert list(store.list("intents/")) == []
    # Its number is closed: should the save only sleep, it cannot commit there.
    assert zoo.save("ppo", params(5)) == "ppo_v5"
    assert [each.what for each in zoo.history("ppo") if each.ref == "ppo:4"] == ["closed"]
    finish(zoo)
    assert fsck(zoo.zoo) == []


def test_what_was_committed_under_an_old_intent_is_told_to_the_index(store: MemoryStore) -> None:
    dying = WrappedStore(store)

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step in ("put fact", "put pointer", "delete intent"):
            raise Crash
        return proceed()

    with opened(store) as zoo:
        zoo.save("ppo", params(1))
    with opened(dying) as zoo:
        dying.around = around
        with pytest.raises(Crash):
            zoo.save("ppo", params(2))
        finish(zoo)
        dying.around = None
    with opened(store) as zoo:
        assert zoo.list_models() == ["ppo_v1"]
        collected(zoo, expiry_s=0)
        assert zoo.list_models() == ["ppo_v1", "ppo_v2"]
        assert zoo.get_latest("ppo") == "ppo_v2"
        assert same(zoo.load("ppo", as_numpy=True)[0], params(2))
        assert list(store.list("intents/")) == []
        assert fsck(zoo.zoo) == []


@pytest.mark.parametrize("body", [b"{", b'{"format":1}', b'{"format":9}'])
def test_an_intent_that_cannot_be_read_stops_a_collection(
    zoo: BrainManager, store: MemoryStore, body: bytes
) -> None:
    key = intent_key(new_ulid())
    store.put(key, body)
    before = objects(zoo)
    with pytest.raises((Corrupt, Unsupported), match="intents/"):
        collected(zoo)
    assert objects(zoo) == before


# Damage


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_record_that_cannot_be_read_stops_a_collection(
    zoo: BrainManager, store: MemoryStore, version: int
) -> None:
    key = f"models/ppo/v{version}/manifest.json"
    whole = store.get(key)
    assert whole is not None
    store.put(key, whole.body[:-9])
    before = objects(zoo)
    with pytest.raises(Corrupt, match=f"v{version}"):
        collected(zoo)
    assert objects(zoo) == before


def test_damage_that_appears_meanwhile_stops_a_collection_before_it_removes_anything(
    zoo: BrainManager, store: MemoryStore
) -> None:
    wrapped = WrappedStore(store)

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == "put gc" and state(store).state == "idle":
            store.put("models/new/v1/manifest.json", b"{")
        return proceed()

    wrapped.around = around
    kept = blobs(store)
    with opened(wrapped) as other, pytest.raises(Corrupt, match="new/v1"):
        collected(other)
    assert blobs(store) == kept
    assert state(store).state == "idle"


def test_a_missing_state_of_the_collector_is_said(zoo: BrainManager, store: MemoryStore) -> None:
    store.delete(GC_STATE_KEY)
    with pytest.raises(Corrupt, match="fsck --repair"):
        collected(zoo)


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


# Keep the last


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


# Why


def test_why_tells_what_names_a_blob(zoo: BrainManager) -> None:
    leaf = zoo.manifest("ppo:1").groups["params"].leaves[0]
    (blob,) = zoo.manifest("ppo:1").blobs
    for asked in (blob, blob[:15], blob.hex[:8], leaf.digest):
        found = zoo.why(asked)
        assert found.digest == blob
        assert {(each.by, each.where) for each in found.reasons} == {("version", "ppo:1")}
        assert found.size_bytes
        assert "stays" in found.verdict
    assert {each.what for each in zoo.why(blob).reasons} == {
        "params: dense/bias",
        "params: dense/kernel",
    }


def test_why_tells_of_deleted_versions_and_of_saves_under_way(zoo: BrainManager) -> None:
    (garbage,) = (each.digest for each in collected(zoo, dry_run=True).blobs)
    assert {each.by for each in zoo.why(garbage).reasons} == {"deleted"}
    put_intent(zoo, [garbage])
    assert {each.by for each in zoo.why(garbage).reasons} == {"deleted", "intent"}


def test_why_tells_that_nothing_names_a_blob(zoo: BrainManager, store: MemoryStore) -> None:
    stray = Digest.of(b"stray")
    store.put(blob_key(stray), b"stray")
    assert "once it is a day old" in zoo.why(stray).verdict
    store._shelf.objects[blob_key(stray)] = b"stray", time.time() - 2 * DAY_S
    assert "brainstore gc --yes" in zoo.why(stray).verdict
    assert zoo.why(stray).reasons == ()


def test_why_tells_that_a_blob_is_missing(zoo: BrainManager, store: MemoryStore) -> None:
    (blob,) = zoo.manifest("ppo:1").blobs
    store.delete(blob_key(blob))
    found = zoo.why(blob)
    assert found.size_bytes is None
    assert "missing" in found.verdict


def test_why_refuses_what_is_no_digest_or_not_there(zoo: BrainManager) -> None:
    with pytest.raises(BadReference):
        zoo.why("ppo:1")
    with pytest.raises(NotFound, match="no blob and no leaf"):
        zoo.why("0" * 16)


@pytest.mark.parametrize("age", [-1.0, float("nan")])
def test_an_age_that_is_none_is_refused(zoo: BrainManager, age: float) -> None:
    with pytest.raises(BadParams, match="older_than"):
        zoo.gc(older_than=age)
