"""Collections: what goes and what stays."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collecting import blobs, blobs_of, collected, put_intent, state, three_versions
from zoos import (
    Call,
    Crash,
    Proceed,
    WrappedStore,
    finish,
    objects,
    opened,
    params,
    same,
)

from brainstore import BrainManager, NotFound
from brainstore.address import GC_STATE_KEY, blob_key, intent_key, new_ulid
from brainstore.errors import Corrupt, Unsupported
from brainstore.fsck import fsck
from brainstore.storage.memory import MemoryStore

DAY_S = 86400.0


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def zoo(store: MemoryStore) -> Iterator[BrainManager]:
    with three_versions(store) as manager:
        yield manager


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
