"""The save path: what is written in which order, and what is left when something fails."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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

from brainstore import (
    AlreadyExists,
    BadParams,
    BrainManager,
    Conflict,
    Corrupt,
    NotFound,
    ReadOnly,
    StoreUnavailable,
)
from brainstore.address import Digest, Name, blob_key, manifest_key, new_ulid
from brainstore.records import GcState, Tombstone
from brainstore.storage.base import ABSENT, Store
from brainstore.storage.local import LocalStore
from brainstore.storage.memory import MemoryStore


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> WrappedStore:
    inner = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "zoo")
    return WrappedStore(inner)


@pytest.fixture
def zoo(store: WrappedStore) -> Any:
    """A zoo with versions 1 and 2 of ppo, whose calls from now on are recorded."""
    with opened(store) as zoo:
        for seed in (1, 2):
            zoo.save("ppo", params(seed))
        finish(zoo)
        store.calls.clear()
        yield zoo


def assert_whole(store: Store, *numbers: int) -> None:
    """These versions of ppo are there and load, `latest` is the last of them."""
    found = read_raw(store)
    assert found.problems == []
    assert sorted(number for _, number in found.live) == list(numbers)
    with opened(store) as reader:
        assert reader.list_models() == [f"ppo_v{number}" for number in numbers]
        assert reader.get_latest("ppo") == f"ppo_v{numbers[-1]}"
        for number in numbers:
            reader.load("ppo", number, as_numpy=True, verify=True)


def notes_of(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", []))


def once(step: str, fault: Callable[[Call, Proceed], Any]) -> Callable[[Call, Proceed], Any]:
    """Return an `around` that does `fault` at the first call of this step."""
    lock, done = threading.Lock(), []

    def around(call: Call, proceed: Proceed) -> Any:
        with lock:
            is_it = call.step == step and not done
            if is_it:
                done.append(call)
        return fault(call, proceed) if is_it else proceed()

    return around


def lose(error: Exception) -> Callable[[Call, Proceed], Any]:
    """The call takes effect, and its reply is this error."""

    def fault(call: Call, proceed: Proceed) -> Any:
        proceed()
        raise error

    return fault


def fail(error: BaseException) -> Callable[[Call, Proceed], Any]:
    def fault(call: Call, proceed: Proceed) -> Any:
        raise error

    return fault


def test_the_first_save_makes_the_zoo(store: WrappedStore) -> None:
    with opened(store) as zoo:
        assert zoo.save("ppo", params(1)) == "ppo_v1"
        assert same(zoo.load("ppo", as_numpy=True)[0], params(1))
    assert_whole(store.inner, 1)


def test_the_order_of_writes_is_the_protocol(zoo: BrainManager, store: WrappedStore) -> None:
    assert zoo.save("ppo", params(3)) == "ppo_v3"
    finish(zoo)
    steps = store.steps()
    commit, intent = steps.index("put manifest"), steps.index("put intent")
    assert intent < steps.index("get gc") < commit
    assert steps.index("put blob") < commit
    assert commit < steps.index("put fact")
    assert commit < steps.index("put pointer")
    assert steps.index("put fact") < steps.index("put snapshot") < steps.index("delete fact")
    assert steps.index("put pointer") < steps.index("delete intent")
    puts = {call.step: call.expect for call in store.calls if call.method == "put"}
    assert (puts["put manifest"], puts["put blob"]) == ("absent", "absent")
    assert (puts["put pointer"], puts["put snapshot"]) == ("token", "token")
    assert sorted(store.steps("delete")) == ["delete fact", "delete intent"]


def test_the_state_of_the_collector_is_read_when_the_intent_is_stored(store: WrappedStore) -> None:
    stored: list[str] = []

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == "put intent":
            time.sleep(0.02)
        result = proceed()
        stored.append(call.step)
        return result

    with opened(store) as zoo:
        zoo.save("ppo", params(1))
        finish(zoo)
        store.around = around
        zoo.save("ppo", params(2))
        finish(zoo)
    assert stored.index("put intent") < stored.index("get gc") < stored.index("put manifest")


def test_a_blob_that_is_there_is_not_written_again(zoo: BrainManager, store: WrappedStore) -> None:
    zoo.save("ppo", params(2))
    finish(zoo)
    assert "put blob" not in store.steps()
    assert_whole(store.inner, 1, 2, 3)
    assert zoo.manifest("ppo:3").new_bytes == 0


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("no reply"), AlreadyExists("something is there")],
    ids=["unavailable", "exists"],
)
def test_a_commit_whose_reply_was_settled_wrongly_is_ours(
    zoo: BrainManager, store: WrappedStore, error: Exception
) -> None:
    store.around = once("put manifest", lose(error))
    if isinstance(error, AlreadyExists):
        assert zoo.save("ppo", params(3)) == "ppo_v3"
        store.around = None
        finish(zoo)
        assert_whole(store.inner, 1, 2, 3)
        return
    error.outcome_unknown = True
    with pytest.raises(StoreUnavailable) as caught:
        zoo.save("ppo", params(3))
    assert "not known whether ppo:3 was committed" in notes_of(caught.value)
    store.around = None
    assert zoo.save("ppo", params(4)) == "ppo_v4"
    assert same(zoo.load("ppo:3", as_numpy=True)[0], params(3))


def test_a_pointer_whose_reply_is_lost_ends_up_right(
    zoo: BrainManager, store: WrappedStore
) -> None:
    store.around = once("put pointer", lose(Conflict("changed")))
    assert zoo.save("ppo", params(3)) == "ppo_v3"
    finish(zoo)
    assert_whole(store.inner, 1, 2, 3)
    assert [move["to"] for move in read_raw(store.inner).pointers["ppo", "latest"]["moves"]] == [
        1, 2, 3,
    ]  # fmt: skip


def test_the_first_pointer_whose_reply_is_lost_ends_up_right(store: WrappedStore) -> None:
    with opened(store) as zoo:
        zoo.init()
        store.around = once("put pointer", lose(AlreadyExists("there")))
        assert zoo.save("ppo", params(1)) == "ppo_v1"
    assert_whole(store.inner, 1)


def test_an_alias_whose_reply_is_lost_moves_once(zoo: BrainManager, store: WrappedStore) -> None:
    store.around = once("put pointer", lose(AlreadyExists("there")))
    zoo.alias("ppo:1", "prod", expected=0)
    store.around = once("put pointer", lose(Conflict("changed")))
    zoo.alias("ppo:2", "prod", expected=1)
    pointer = read_raw(store.inner).pointers["ppo", "prod"]
    assert (pointer["version"], pointer["generation"]) == (2, 2)


def test_a_blob_whose_reply_is_lost_is_there(zoo: BrainManager, store: WrappedStore) -> None:
    store.around = once("put blob", lose(StoreUnavailable("lost", outcome_unknown=True)))
    with pytest.raises(StoreUnavailable) as caught:
        zoo.save("ppo", params(3))
    assert "nothing was committed" in notes_of(caught.value)
    store.around = None
    assert zoo.save("ppo", params(3)) == "ppo_v3"


@pytest.mark.parametrize("taken", [1, 3, 8, 9, 20])
def test_numbers_taken_by_others_are_walked_past_never_skipped(
    zoo: BrainManager, store: WrappedStore, taken: int
) -> None:
    with opened(store.inner) as other:
        for seed in range(taken):
            other.save("ppo", params(100 + seed))
    assert zoo.save("ppo", params(3)) == f"ppo_v{taken + 3}"
    finish(zoo)
    assert_whole(store.inner, *range(1, taken + 4))
    assert same(zoo.load("ppo", as_numpy=True)[0], params(3))
    tried = [call.key for call in store.calls if call.step == "put manifest"]
    intents = store.steps().count("put intent")
    assert len(tried) <= 8 * intents
    assert (intents == 1) == (taken < 8)


def test_after_64_losses_nothing_is_committed(zoo: BrainManager, store: WrappedStore) -> None:
    def always_taken(call: Call, proceed: Proceed) -> Any:
        if call.step == "put manifest":
            name, number = call.key.split("/")[1:3]
            fence = Tombstone(
                name=Name(name), version=int(number[1:]), write_id=new_ulid(), generation=1,
                at="", by="",
            )  # fmt: skip
            store.inner.put(call.key, fence.encode(), expect=ABSENT)
        return proceed()

    store.around = always_taken
    with pytest.raises(Conflict) as caught:
        zoo.save("ppo", params(3))
    assert "nothing was committed" in notes_of(caught.value)


def test_a_tombstone_at_the_number_takes_a_new_intent(
    zoo: BrainManager, store: WrappedStore
) -> None:
    with opened(store.inner) as other:
        other.save("ppo", params(9))
        other.delete("ppo:3")
    assert zoo.save("ppo", params(3)) == "ppo_v4"
    finish(zoo)
    intents = [call.key for call in store.calls if call.step == "put intent"]
    assert len(set(intents)) == 2
    steps = store.steps()
    second = len(steps) - 1 - steps[::-1].index("put intent")
    assert "get gc" in steps[second:]
    assert list(store.inner.list("intents/")) == []
    assert zoo.manifest("ppo:4").write_id in intents[1]
    assert_whole(store.inner, 1, 2, 4)


def test_a_fence_at_the_number_takes_a_new_intent(zoo: BrainManager, store: WrappedStore) -> None:
    fence = Tombstone(
        name=Name("ppo"), version=3, write_id=new_ulid(), generation=1, at="", by="", why="gc"
    )
    store.inner.put(manifest_key(Name("ppo"), 3), fence.encode(), expect=ABSENT)
    assert zoo.save("ppo", params(3)) == "ppo_v4"
    assert store.steps().count("put intent") == 2
    with pytest.raises(NotFound, match="closed by a collection"):
        zoo.load("ppo:3")
    with pytest.raises(NotFound, match="never existed"):
        zoo.undelete("ppo:3")


def test_a_version_deleted_before_its_saver_looked_was_saved(
    zoo: BrainManager, store: WrappedStore
) -> None:
    def delete_at_once(call: Call, proceed: Proceed) -> Any:
        proceed()
        with opened(store.inner) as other:
            other.delete("ppo:3")
        raise AlreadyExists("a tombstone is there")

    store.around = once("put manifest", delete_at_once)
    assert zoo.save("ppo", params(3)) == "ppo_v3"
    finish(zoo)
    assert_whole(store.inner, 1, 2)
    assert zoo.undelete("ppo:3").version == 3
    assert_whole(store.inner, 1, 2, 3)


def test_a_commit_that_cannot_be_read_back_is_unknown(
    zoo: BrainManager, store: WrappedStore
) -> None:
    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == "put manifest":
            proceed()
            raise AlreadyExists("there")
        if call.step == "get manifest":
            raise StoreUnavailable("gone")
        return proceed()

    store.around = around
    with pytest.raises(StoreUnavailable) as caught:
        zoo.save("ppo", params(3))
    assert "not known whether ppo:3" in notes_of(caught.value)
    assert caught.value.outcome_unknown


def digests_of(tree: Any) -> set[Digest]:
    """Return the blobs that a save of the tree needs."""
    with opened(MemoryStore()) as zoo:
        zoo.save("x", tree)
        return set(zoo.manifest("x").blobs)


def put_state(store: Store, state: str, generation: int, condemned: Any = ()) -> None:
    body = GcState(state=state, generation=generation, condemned=tuple(condemned)).encode()
    store.put("gc/state.json", body)


def test_a_save_waits_for_a_collection_that_condemned_its_blobs(
    zoo: BrainManager, store: WrappedStore
) -> None:
    mine = digests_of(params(1))
    put_state(store.inner, "condemned", 1, mine)
    waiting = threading.Event()

    def around(call: Call, proceed: Proceed) -> Any:
        result = proceed()
        if store.steps().count("get gc") == 2:
            waiting.set()
        return result

    def collect() -> None:
        waiting.wait(30)
        put_state(store.inner, "deleting", 1, mine)
        for digest in mine:
            store.inner.delete(blob_key(digest))
        put_state(store.inner, "idle", 1)

    store.around = around
    collector = threading.Thread(target=collect)
    collector.start()
    assert zoo.save("ppo", params(1)) == "ppo_v3"
    collector.join()
    assert same(zoo.load("ppo:3", as_numpy=True, verify=True)[0], params(1))
    steps = store.steps()
    assert "put blob" in steps[steps.index("get gc") :]


def test_a_save_does_not_wait_for_a_collection_of_other_blobs(
    zoo: BrainManager, store: WrappedStore
) -> None:
    put_state(store.inner, "condemned", 1, digests_of(params(1)))
    assert zoo.save("ppo", params(3)) == "ppo_v3"
    finish(zoo)
    steps = store.steps()
    # Present or not is learned again, after the state was read.
    assert "settle blob" in steps[steps.index("get gc") : steps.index("put manifest")]
    # And not remembered beyond this save, for the collection still runs.
    store.calls.clear()
    zoo.save("ppo", params(3))
    assert store.steps().index("settle blob") > store.steps().index("get gc")


def test_a_collection_that_does_not_end_is_reported(
    zoo: BrainManager, store: WrappedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brainstore.commit.COLLECTION_WAIT_S", 0.05)
    put_state(store.inner, "deleting", 1, digests_of(params(1)))
    with pytest.raises(StoreUnavailable, match="has been deleting") as caught:
        zoo.save("ppo", params(1))
    assert "nothing was committed" in notes_of(caught.value)
    assert_whole(store.inner, 1, 2)


def test_what_was_collected_during_the_save_is_uploaded_again(
    zoo: BrainManager, store: WrappedStore
) -> None:
    mine = digests_of(params(3))

    def collect(call: Call, proceed: Proceed) -> Any:
        # The blobs are there by now, the intent not yet: a whole collection fits in.
        for digest in mine:
            store.inner.delete(blob_key(digest))
        put_state(store.inner, "idle", 1)
        return proceed()

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == "put intent":
            deadline = time.monotonic() + 30
            while "put blob" not in done and time.monotonic() < deadline:
                time.sleep(0.001)
            return collect(call, proceed)
        result = proceed()
        done.append(call.step)
        return result

    done: list[str] = []
    store.around = around
    assert zoo.save("ppo", params(3)) == "ppo_v3"
    store.around = None
    finish(zoo)
    assert_whole(store.inner, 1, 2, 3)
    assert store.steps().count("put blob") == 2


def test_an_upload_that_ends_within_a_collection_is_done_again(
    zoo: BrainManager, store: WrappedStore
) -> None:
    mine = digests_of(params(3))
    put_state(store.inner, "condemned", 1, mine)
    state_was_read = threading.Event()

    def around(call: Call, proceed: Proceed) -> Any:
        if call.step == "put blob" and not state_was_read.is_set():
            assert state_was_read.wait(30)
            result = proceed()
            # The collector goes on, and the blob that came too early is gone again.
            put_state(store.inner, "deleting", 1, mine)
            for digest in mine:
                store.inner.delete(blob_key(digest))
            put_state(store.inner, "idle", 1)
            return result
        result = proceed()
        if call.step == "get gc":
            state_was_read.set()
        return result

    store.around = around
    assert zoo.save("ppo", params(3)) == "ppo_v3"
    finish(zoo)
    store.around = None
    assert store.steps().count("put blob") == 2
    assert_whole(store.inner, 1, 2, 3)


def test_what_an_earlier_save_saw_is_not_believed_after_a_collection(
    zoo: BrainManager, store: WrappedStore
) -> None:
    assert zoo.save("ppo", params(2)) == "ppo_v3"
    for digest in digests_of(params(2)):
        store.inner.delete(blob_key(digest))
    put_state(store.inner, "idle", 1)
    assert zoo.save("ppo", params(2)) == "ppo_v4"
    finish(zoo)
    assert_whole(store.inner, 1, 2, 3, 4)


def test_a_missing_index_stops_neither_saves_nor_loads_nor_moves(
    zoo: BrainManager, store: WrappedStore
) -> None:
    store.inner.delete("registry.json")
    assert zoo.save("ppo", params(3), source_checkpoint="runs/ckpt") == "ppo_v3"
    assert same(zoo.load("ppo", as_numpy=True)[0], params(3))
    assert same(zoo.load("ppo:1", as_numpy=True)[0], params(1))
    zoo.alias("ppo:1", "prod")
    zoo.alias("ppo:2", "prod")
    assert zoo.rollback("ppo", "prod").version == 1
    assert zoo.aliases("ppo") == {"latest": 3, "prod": 1}
    with opened(store.inner) as other:
        assert other.save("ppo", params(4)) == "ppo_v4"
    with pytest.raises(NotFound, match="fsck --repair"):
        zoo.load("nobody")
    with pytest.raises(Corrupt, match="fsck --repair"):
        zoo.list_models()
    assert store.inner.get("registry.json") is None


def test_a_source_checkpoint_that_is_a_path_costs_one_read(
    zoo: BrainManager, store: WrappedStore
) -> None:
    zoo.save("ppo", params(3), source_checkpoint="runs/ckpt_500")
    before = store.calls[: store.steps().index("put intent")]
    assert [call.key for call in before if call.room != "blob"] == [
        "models/runs/ckpt_500/refs/latest.json"
    ]


def test_bad_arguments_write_nothing(zoo: BrainManager, store: WrappedStore) -> None:
    for arguments in (
        {"params": {"w": object()}},
        {"params": {}},
        {"params": params(1), "config": {"x": object()}},
        {"params": params(1), "files": {"../x": b""}},
        {"params": params(1), "groups": {"params": {}}},
    ):
        with pytest.raises(BadParams):
            zoo.save("ppo", **arguments)
    with pytest.raises(NotFound):
        zoo.save("ppo", params(1), parents="nobody:3")
    assert not [call for call in store.calls if call.method in ("put", "delete")]


def test_two_saves_at_once_in_one_process_get_two_numbers(zoo: BrainManager) -> None:
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda seed=seed: names.append(zoo.save("ppo", params(seed))))
        for seed in range(3, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == [f"ppo_v{number}" for number in range(3, 9)]
    finish(zoo)
    assert_whole(zoo.zoo.store.inner, *range(1, 9))


@pytest.mark.parametrize("error", [StoreUnavailable("down"), ReadOnly("no")], ids=["down", "no"])
def test_the_note_on_an_error_says_what_became_of_the_save(error: Exception) -> None:
    template = MemoryStore()
    with opened(template) as zoo:
        zoo.save("ppo", params(1))
    for step in ("put blob", "put intent", "get gc", "put manifest", "put fact", "put pointer"):
        store = WrappedStore(memory_copy(template), once(step, fail(error)))
        with opened(store) as zoo, pytest.raises(type(error)) as caught:
            zoo.save("ppo", params(2))
        committed = ("ppo", 2) in read_raw(store.inner).live
        assert committed == (step in ("put fact", "put pointer"))
        last = caught.value.__notes__.pop()
        assert last.startswith(
            "ppo: ppo:2 is committed" if committed else "ppo: nothing was committed"
        )


def test_an_alias_that_cannot_be_set_after_the_commit_is_noted(
    zoo: BrainManager, store: WrappedStore
) -> None:
    def around(call: Call, proceed: Proceed) -> Any:
        if call.method == "put" and call.key.endswith("prod.json"):
            raise StoreUnavailable("down")
        return proceed()

    store.around = around
    with pytest.raises(StoreUnavailable) as caught:
        zoo.save("ppo", params(3), aliases=["prod"])
    assert "ppo:3 is committed" in notes_of(caught.value)


@pytest.fixture(scope="module")
def two_versions() -> MemoryStore:
    store = MemoryStore()
    with opened(store) as zoo:
        zoo.save("ppo", params(1))
        zoo.save("ppo", params(2))
    return store


def test_ctrl_c_at_any_call_leaves_a_whole_zoo_and_a_true_note(two_versions: MemoryStore) -> None:
    seen = set()
    for at in range(40):
        for after in (False, True):
            inner = memory_copy(two_versions)
            interrupted: list[str] = []

            def around(
                call: Call, proceed: Proceed, at: int = at, after: bool = after,
                interrupted: list[str] = interrupted,
            ) -> Any:  # fmt: skip
                if call.number != at:
                    return proceed()
                interrupted.append(call.step)
                if after:
                    proceed()
                raise KeyboardInterrupt

            store = WrappedStore(inner, around)
            note, name = "", ""
            with opened(store) as zoo:
                try:
                    name = zoo.save("ppo", params(3))
                except KeyboardInterrupt as error:
                    note = notes_of(error)
            assert name or note or not interrupted
            _check_note(inner, note, name)
            seen.update(interrupted)
    assert {"put blob", "put intent", "get gc", "put manifest", "put fact", "put pointer"} <= seen


def _check_note(store: MemoryStore, note: str, name: str) -> None:
    found = read_raw(store)
    assert found.problems == []
    is_there = ("ppo", 3) in found.live
    if "nothing was committed" in note:
        assert not is_there
    if "is committed" in note or name:
        assert is_there
    with opened(store) as zoo:
        newest = int(zoo.save("ppo", params(4)).rpartition("v")[2])
        assert newest == (4 if is_there else 3)
        assert zoo.get_latest("ppo") == f"ppo_v{newest}"
        assert same(zoo.load("ppo", as_numpy=True)[0], params(4))
        assert same(zoo.load("ppo:2", as_numpy=True)[0], params(2))
        assert not is_there or same(zoo.load("ppo:3", as_numpy=True)[0], params(3))


def test_an_abandoned_commit_is_published_by_a_later_fold(two_versions: MemoryStore) -> None:
    from brainstore.intents import finish_abandoned

    store = memory_copy(two_versions)
    crashing = CrashingStore(store, 10**9, after=True)

    def die(call: Call, proceed: Proceed) -> Any:
        if call.step == "put manifest":
            crashing.at = call.number
        return crashing._maybe_crash(call, proceed)

    crashing.around = die
    with pytest.raises(Crash), opened(crashing) as zoo:
        zoo.save("ppo", params(3))
    with opened(store) as zoo:
        assert zoo.list_models() == ["ppo_v1", "ppo_v2"]
        assert finish_abandoned(zoo.zoo.registry) == []
        assert finish_abandoned(zoo.zoo.registry, older_than_s=-1) == ["ppo:3"]
        assert finish_abandoned(zoo.zoo.registry, older_than_s=-1) == []
    assert_whole(store, 1, 2, 3)


# Deleting, while others work


def interleaved(
    store: MemoryStore, step: str, work: Callable[[BrainManager], Any], *, after: bool = False
) -> WrappedStore:
    """Return a store where another manager does `work` at the first such call."""

    def fault(call: Call, proceed: Proceed) -> Any:
        result = proceed() if after else None
        with opened(store) as other:
            work(other)
        return result if after else proceed()

    return WrappedStore(store, once(step, fault))


def three_versions(*deleted: int) -> MemoryStore:
    store = MemoryStore()
    with opened(store) as zoo:
        for seed in (1, 2, 3):
            zoo.save("ppo", params(seed))
        for number in deleted:
            zoo.delete(f"ppo:{number}")
    return store


def latest_and_live(store: Store) -> tuple[int | None, list[int]]:
    found = read_raw(store)
    assert found.problems == []
    return found.pointers["ppo", "latest"]["version"], sorted(n for _, n in found.live)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["put pointer", "get pointer", "put manifest", "put fact"])
def test_latest_is_live_when_the_two_newest_are_deleted_at_once(step: str, after: bool) -> None:
    store = three_versions()
    first = interleaved(store, step, lambda other: other.delete("ppo:2"), after=after)
    with opened(first) as zoo:
        zoo.delete("ppo:3")
    assert latest_and_live(store) == (1, [1])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["put pointer", "get pointer", "put manifest", "put fact"])
def test_latest_is_live_when_one_is_deleted_and_one_restored_at_once(
    step: str, after: bool
) -> None:
    store = three_versions(1, 2)
    first = interleaved(store, step, lambda other: other.undelete("ppo:2"), after=after)
    with opened(first) as zoo:
        zoo.delete("ppo:3")
    assert latest_and_live(store) == (2, [2])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["put pointer", "put fact", "get manifest", "get pointer"])
def test_latest_is_live_when_what_is_restored_is_deleted_again(step: str, after: bool) -> None:
    store = three_versions(3)

    def delete_again(other: BrainManager) -> None:
        with contextlib.suppress(NotFound):
            other.delete("ppo:3")

    first = interleaved(store, step, delete_again, after=after)
    with opened(first) as zoo, contextlib.suppress(Conflict):
        zoo.undelete("ppo:3")
    latest, live = latest_and_live(store)
    assert latest == live[-1]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["put pointer", "get pointer", "put manifest", "put fact"])
def test_latest_is_the_new_version_when_the_newest_is_deleted_meanwhile(
    step: str, after: bool
) -> None:
    store = three_versions()
    first = interleaved(store, step, lambda other: other.save("ppo", params(4)), after=after)
    with opened(first) as zoo:
        zoo.delete("ppo:3")
    assert latest_and_live(store) == (4, [1, 2, 4])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["put pointer", "get manifest", "put fact"])
def test_an_alias_never_stays_on_a_version_deleted_meanwhile(step: str, after: bool) -> None:
    store = three_versions()
    deleted: list[bool] = []

    def delete(other: BrainManager) -> None:
        with contextlib.suppress(Conflict):
            other.delete("ppo:1")
            deleted.append(True)

    with opened(interleaved(store, step, delete, after=after)) as zoo:
        moved = True
        try:
            zoo.alias("ppo:1", "prod")
        except NotFound:
            moved = False
    assert moved != bool(deleted)
    pointer = read_raw(store).pointers.get(("ppo", "prod"))
    assert (pointer is not None and pointer["version"] == 1) == moved


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["put manifest", "put fact", "list pointer"])
def test_a_deletion_steps_back_from_an_alias_set_meanwhile(step: str, after: bool) -> None:
    store = three_versions()
    moved: list[bool] = []

    def move(other: BrainManager) -> None:
        with contextlib.suppress(NotFound):
            other.alias("ppo:1", "prod")
            moved.append(True)

    with opened(interleaved(store, step, move, after=after)) as zoo:
        deleted = True
        try:
            zoo.delete("ppo:1")
        except Conflict:
            deleted = False
    assert deleted != bool(moved)
    _, live = latest_and_live(store)
    assert (1 in live) == bool(moved)


@pytest.mark.parametrize("ref", ["ppo", "ppo:prod"])
def test_a_load_follows_a_pointer_whose_version_is_deleted_meanwhile(ref: str) -> None:
    store = three_versions()
    with opened(store) as zoo:
        zoo.alias("ppo:3", "prod")

    def replace(other: BrainManager) -> None:
        other.save("ppo", params(4), aliases="prod")
        other.delete("ppo:3")

    with opened(interleaved(store, "get pointer", replace, after=True)) as zoo:
        tree, meta = zoo.load(ref, as_numpy=True)
    assert meta.version == 4
    assert same(tree, params(4))


def test_a_load_of_latest_falls_back_with_it_when_the_newest_is_deleted_meanwhile() -> None:
    store = interleaved(
        three_versions(), "get pointer", lambda other: other.delete("ppo:3"), after=True
    )
    with opened(store) as zoo:
        assert zoo.load("ppo", as_numpy=True)[1].version == 2
