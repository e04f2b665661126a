"""Repairs from another zoo: what is fetched, what is put back, and what is left alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from conftest import S3Place
from zoos import (
    Call,
    Crash,
    CrashingStore,
    Proceed,
    WrappedStore,
    finish,
    memory_copy,
    params,
    same,
)

from brainstore import BrainManager, BrainstoreError, Corrupt
from brainstore.address import (
    Alias,
    Digest,
    Name,
    blob_key,
    damaged_key,
    damaged_record_key,
    manifest_key,
    pointer_key,
)
from brainstore.fsck import Finding, Step, fsck
from brainstore.records import Tombstone, decode_version
from brainstore.storage.base import ABSENT
from brainstore.storage.memory import MemoryStore

PPO = Name("ppo")
LATEST = Alias("latest")
FIRST, THIRD = manifest_key(PPO, 1), manifest_key(PPO, 3)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("brainstore.fsck.check.SECOND_LOOK_S", 0)


def filled(place: Any, **options: Any) -> BrainManager:
    """Return a zoo with ppo 1 to 3, of which prod names the first, and a child of ppo:1."""
    zoo = BrainManager(place, **options)
    for seed in (1, 2, 3):
        zoo.save("ppo", params(seed), {"brain_type": "ppo"})
    zoo.save("child", params(9), parents="ppo:1")
    zoo.alias("ppo:1", "prod")
    finish(zoo)
    return zoo


@pytest.fixture(params=["disk", "memory"])
def zoo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrainManager]:
    with filled(MemoryStore() if request.param == "memory" else tmp_path / "zoo") as zoo:
        yield zoo


@pytest.fixture
def other(zoo: BrainManager, tmp_path: Path) -> Iterator[BrainManager]:
    """A copy of it, made while it was whole."""
    with BrainManager(tmp_path / "other") as other:
        zoo.push(other, aliases=True)
        yield other


def overwrite(zoo: BrainManager, key: str, content: bytes) -> None:
    zoo.zoo.store.delete(key)
    zoo.zoo.store.put(key, content, expect=ABSENT)


def body(zoo: BrainManager, key: str) -> bytes:
    found = zoo.zoo.store.get(key)
    assert found is not None
    return found.body


def flip(zoo: BrainManager, digest: Digest) -> None:
    content = bytearray(body(zoo, blob_key(digest)))
    content[-1] ^= 1
    overwrite(zoo, blob_key(digest), bytes(content))


def a_blob(zoo: BrainManager, ref: str) -> Digest:
    return next(iter(zoo.manifest(ref).blobs))


def repaired(zoo: BrainManager, other: BrainManager, **options: Any) -> dict[str, Finding]:
    """Return what a repair found that was or is wrong, by kind."""
    with BrainManager(zoo.zoo.store) as fresh:
        findings = fsck(fresh.zoo, repair=True, source=other.zoo, **options)
        finish(fresh)
    return {each.kind: each for each in findings if not each.is_harmless}


def damage(zoo: BrainManager) -> list[str]:
    with BrainManager(zoo.zoo.store) as fresh:
        return [each.kind for each in fsck(fresh.zoo) if each.is_damage]


def loads(zoo: BrainManager, ref: str, seed: int) -> bool:
    with BrainManager(zoo.zoo.store) as fresh:
        return same(fresh.load(ref, as_numpy=True, verify=True)[0], params(seed))


def no_intents(zoo: BrainManager) -> bool:
    return not list(zoo.zoo.store.list("intents/"))


# Blobs


def test_a_damaged_blob_is_moved_aside_and_fetched(zoo: BrainManager, other: BrainManager) -> None:
    digest = a_blob(zoo, "ppo:2")
    flip(zoo, digest)
    damaged = body(zoo, blob_key(digest))
    found = repaired(zoo, other)
    assert {kind: each.repaired for kind, each in found.items()} == {
        "blob-damaged": True,
        "blob-missing": True,
    }
    assert f"fetched from {other.zoo.url}" in found["blob-missing"].text
    assert loads(zoo, "ppo:2", 2)
    assert body(zoo, damaged_key(digest)) == damaged
    assert damage(zoo) == []
    assert no_intents(zoo)


@pytest.mark.parametrize("quick", [False, True])
def test_a_missing_blob_and_one_of_the_wrong_size_are_fetched(
    zoo: BrainManager, other: BrainManager, quick: bool
) -> None:
    missing, short = a_blob(zoo, "ppo:2"), a_blob(zoo, "ppo:3")
    zoo.zoo.store.delete(blob_key(missing))
    overwrite(zoo, blob_key(short), body(zoo, blob_key(short))[:-1])
    with BrainManager(zoo.zoo.store) as fresh:
        findings = fsck(fresh.zoo, repair=True, source=other.zoo, quick=quick)
    assert {(each.kind, each.where, each.repaired) for each in findings} == {
        ("blob-missing", blob_key(missing), True),
        ("blob-missing", blob_key(short), True),
        ("blob-damaged", blob_key(short), True),
    }
    assert loads(zoo, "ppo:2", 2)
    assert loads(zoo, "ppo:3", 3)
    assert damage(zoo) == []


def test_what_the_other_zoo_has_damaged_too_is_not_taken(
    zoo: BrainManager, other: BrainManager
) -> None:
    digest = a_blob(zoo, "ppo:2")
    flip(other, digest)
    zoo.zoo.store.delete(blob_key(digest))
    found = repaired(zoo, other)
    assert found["blob-missing"].is_damage
    assert "Not fetched: " in found["blob-missing"].text
    assert "hashes to" in found["blob-missing"].text
    assert zoo.zoo.store.get(blob_key(digest)) is None


def test_what_the_other_zoo_lacks_stays_a_finding_and_the_rest_is_fetched(
    zoo: BrainManager, other: BrainManager
) -> None:
    for ref in ("ppo:2", "ppo:3"):
        zoo.zoo.store.delete(blob_key(a_blob(zoo, ref)))
    other.zoo.store.delete(blob_key(a_blob(zoo, "ppo:2")))
    with BrainManager(zoo.zoo.store) as fresh:
        findings = fsck(fresh.zoo, repair=True, source=other.zoo)
    assert {each.where: each.repaired for each in findings} == {
        blob_key(a_blob(zoo, "ppo:2")): False,
        blob_key(a_blob(zoo, "ppo:3")): True,
    }
    assert loads(zoo, "ppo:3", 3)


def test_a_damaged_blob_that_nothing_needs_is_not_fetched(
    zoo: BrainManager, other: BrainManager
) -> None:
    digest = a_blob(zoo, "ppo:2")
    zoo.delete("ppo:2")
    flip(zoo, digest)
    found = repaired(zoo, other)
    assert [*found] == ["blob-damaged"]
    assert zoo.zoo.store.get(blob_key(digest)) is None


def test_one_model_alone_is_rescued(zoo: BrainManager, other: BrainManager) -> None:
    for ref in ("ppo:2", "child:1"):
        zoo.zoo.store.delete(blob_key(a_blob(zoo, ref)))
    assert [*repaired(zoo, other, name="child")] == ["blob-missing"]
    assert damage(zoo) == ["blob-missing"]
    assert loads(zoo, "child:1", 9)


def test_a_blob_that_is_being_collected_is_fetched_once_the_collection_is_over(
    zoo: BrainManager, other: BrainManager
) -> None:
    digest = a_blob(zoo, "ppo:2")
    zoo.zoo.store.delete(blob_key(digest))
    state = json.loads(body(zoo, "gc/state.json"))
    condemned = {**state, "state": "deleting", "condemned": [digest], "generation": 7}
    overwrite(zoo, "gc/state.json", json.dumps(condemned).encode())
    fetched: list[dict[str, Finding]] = []
    thread = threading.Thread(target=lambda: fetched.append(repaired(zoo, other)))
    # As a collection that runs does; one that is dead is not waited for.
    with zoo.zoo.store.sole("blobs/"):
        thread.start()
        thread.join(0.5)
        assert fetched == []
        assert zoo.zoo.store.get(blob_key(digest)) is None
        zoo.zoo.store.put("gc/state.json", json.dumps({**state, "generation": 7}).encode())
    thread.join(60)
    assert fetched[0]["blob-missing"].repaired


def test_fetching_tells_its_progress(zoo: BrainManager, other: BrainManager) -> None:
    sizes = [zoo.manifest(ref).blobs[a_blob(zoo, ref)] for ref in ("ppo:2", "ppo:3")]
    for ref in ("ppo:2", "ppo:3"):
        zoo.zoo.store.delete(blob_key(a_blob(zoo, ref)))
    steps: list[Step] = []
    repaired(zoo, other, progress=steps.append)
    assert steps[-1] == Step("fetched", 2, 2, sum(sizes), sum(sizes))


# Manifests


@pytest.mark.parametrize("content", [b"", b'{"format":1,"kind":"mani', b"\xff"])
def test_a_manifest_that_cannot_be_read_is_put_back(
    zoo: BrainManager, other: BrainManager, content: bytes
) -> None:
    before = body(zoo, FIRST)
    overwrite(zoo, FIRST, content)
    found = repaired(zoo, other)
    assert {kind: each.repaired for kind, each in found.items()} == {"manifest": True}
    assert body(zoo, FIRST) == before
    assert body(zoo, damaged_record_key(FIRST, content)) == content
    assert damage(zoo) == []
    assert loads(zoo, "ppo:prod", 1)
    assert no_intents(zoo)


def test_its_blobs_are_fetched_before_it_is_put_back(
    zoo: BrainManager, other: BrainManager
) -> None:
    blob = blob_key(a_blob(zoo, "ppo:3"))
    overwrite(zoo, THIRD, b"{")
    zoo.zoo.store.delete(blob)
    watched = WrappedStore(zoo.zoo.store)
    with BrainManager(watched) as again:
        fsck(again.zoo, repair=True, source=other.zoo)
    puts = [call.key for call in watched.calls if call.method == "put"]
    order = [next(n for n, key in enumerate(puts) if key.startswith(prefix))
             for prefix in ("intents/", blob, "damaged/", THIRD)]  # fmt: skip
    assert order == sorted(order)
    assert loads(zoo, "ppo:3", 3)
    assert damage(zoo) == []


def test_its_place_is_never_empty(zoo: BrainManager, other: BrainManager) -> None:
    overwrite(zoo, FIRST, b"{")
    watched = WrappedStore(zoo.zoo.store)
    with BrainManager(watched) as again:
        fsck(again.zoo, repair=True, source=other.zoo)
    writes = [call for call in watched.calls if call.key == FIRST and call.method != "get"]
    assert [(call.method, call.expect) for call in writes] == [("put", "token")]


def test_swapped_manifests_are_put_back(zoo: BrainManager, other: BrainManager) -> None:
    bodies = body(zoo, FIRST), body(zoo, THIRD)
    overwrite(zoo, FIRST, bodies[1])
    overwrite(zoo, THIRD, bodies[0])
    repaired(zoo, other)
    assert (body(zoo, FIRST), body(zoo, THIRD)) == bodies
    assert damage(zoo) == []


def test_a_manifest_is_not_put_back_before_all_its_blobs_are_there(
    zoo: BrainManager, other: BrainManager
) -> None:
    blob = blob_key(a_blob(zoo, "ppo:3"))
    overwrite(zoo, THIRD, b"{")
    zoo.zoo.store.delete(blob)
    other.zoo.store.delete(blob)
    found = repaired(zoo, other)
    assert found["manifest"].is_damage
    assert "Not put back: blob" in found["manifest"].text
    assert body(zoo, THIRD) == b"{"


def test_other_bytes_than_this_zoo_tells_of_are_not_put_back(
    zoo: BrainManager, tmp_path: Path
) -> None:
    overwrite(zoo, FIRST, b"{")
    with BrainManager(tmp_path / "stranger") as stranger:
        stranger.save("ppo", params(7))
        found = repaired(zoo, stranger)
    assert found["manifest"].is_damage
    assert "is wanted" in found["manifest"].text
    assert body(zoo, FIRST) == b"{"


def test_a_zoo_that_has_not_got_the_version_cannot_help(zoo: BrainManager, tmp_path: Path) -> None:
    overwrite(zoo, FIRST, b"{")
    with BrainManager(tmp_path / "stranger") as stranger:
        stranger.init()
        text = repaired(zoo, stranger)["manifest"].text
    assert f"Not put back: {tmp_path / 'stranger'} has no ppo:1" in text


def test_a_digest_that_is_told_in_two_ways_is_not_trusted(
    zoo: BrainManager, other: BrainManager
) -> None:
    overwrite(zoo, FIRST, b"{")
    snapshot = json.loads(body(zoo, "registry.json"))
    snapshot["models"]["ppo_v1"]["digest"] = "blake3:" + "1" * 64
    overwrite(zoo, "registry.json", json.dumps(snapshot).encode())
    found = repaired(zoo, other)
    assert "its digest is told as " in found["manifest"].text
    assert body(zoo, FIRST) == b"{"


def test_a_digest_that_nothing_tells_is_not_believed(
    zoo: BrainManager, other: BrainManager
) -> None:
    # A child names it with its digest, which may be one of another zoo.
    zoo.save("child", params(8), parents="ppo:2")
    overwrite(zoo, manifest_key(PPO, 2), b"{")
    snapshot = json.loads(body(zoo, "registry.json"))
    snapshot["models"]["ppo_v2"]["digest"] = "../../x"
    overwrite(zoo, "registry.json", json.dumps(snapshot).encode())
    record = json.loads(body(zoo, pointer_key(PPO, LATEST))) | {"moves": []}
    overwrite(zoo, pointer_key(PPO, LATEST), json.dumps(record).encode())
    assert "neither the index nor a pointer tells its digest" in (
        repaired(zoo, other)["manifest"].text
    )


@pytest.mark.parametrize("there", ["live", "deleted"])
def test_what_was_deleted_here_comes_back_deleted(
    zoo: BrainManager, other: BrainManager, there: str
) -> None:
    key, digest = manifest_key(PPO, 2), zoo.resolve("ppo:2").digest
    zoo.delete("ppo:2")
    if there == "deleted":
        other.delete("ppo:2")
    overwrite(zoo, key, b"{")
    assert repaired(zoo, other)["manifest"].repaired
    record = decode_version(body(zoo, key), key)
    assert isinstance(record, Tombstone)
    assert (record.generation, record.replaced_digest) == (1, digest)
    with BrainManager(zoo.zoo.store) as fresh:
        assert "ppo_v2" not in fresh.list_models()
        assert damage(fresh) == []
        fresh.gc(dry_run=False)
        fresh.undelete("ppo:2")
        assert fresh.resolve("ppo:2").digest == digest
    assert loads(zoo, "ppo:2", 2)


def test_what_was_restored_keeps_its_generation(zoo: BrainManager, other: BrainManager) -> None:
    key = manifest_key(PPO, 2)
    zoo.delete("ppo:2")
    zoo.undelete("ppo:2")
    digest = zoo.resolve("ppo:2").digest
    overwrite(zoo, key, b"{")
    assert repaired(zoo, other)["manifest"].repaired
    record = decode_version(body(zoo, key), key)
    assert isinstance(record, Tombstone)
    assert record.generation == 2
    with BrainManager(zoo.zoo.store) as fresh:
        assert fresh.resolve("ppo:2").digest == digest
        assert fsck(fresh.zoo) == [each for each in fsck(fresh.zoo) if each.is_harmless]
        fresh.delete("ppo:2")
        assert "ppo_v2" not in fresh.list_models()
        fresh.undelete("ppo:2")
        assert "ppo_v2" in fresh.list_models()


def test_without_an_index_a_pointer_tells_that_a_version_lives(
    zoo: BrainManager, other: BrainManager
) -> None:
    second = manifest_key(PPO, 2)
    for key in (FIRST, second, THIRD):
        overwrite(zoo, key, b"{")
    overwrite(zoo, "registry.json", b"{")
    with BrainManager(zoo.zoo.store) as fresh:
        findings = {each.where: each for each in fsck(fresh.zoo, repair=True, source=other.zoo)}
    assert findings[FIRST].repaired
    assert findings[THIRD].repaired
    assert findings[second].is_damage
    assert "nothing else tells whether it was deleted" in findings[second].text
    assert loads(zoo, "ppo:prod", 1)
    assert loads(zoo, "ppo", 3)
    record = decode_version(body(zoo, FIRST), FIRST)
    assert isinstance(record, Tombstone)
    assert record.generation == 2


def test_who_repairs_it_meanwhile_is_not_overruled(zoo: BrainManager, other: BrainManager) -> None:
    before = body(zoo, FIRST)
    overwrite(zoo, FIRST, b"{")

    def around(call: Call, proceed: Proceed) -> Any:
        if call.key == FIRST and call.method == "put":
            overwrite(zoo, FIRST, before + b" ")
        return proceed()

    with BrainManager(WrappedStore(zoo.zoo.store, around)) as again:
        fsck(again.zoo, repair=True, source=other.zoo)
    assert body(zoo, FIRST) == before + b" "


def test_a_newer_manifest_is_no_damage_to_be_mended(zoo: BrainManager, other: BrainManager) -> None:
    record = json.loads(body(zoo, FIRST)) | {"format": 2}
    overwrite(zoo, FIRST, json.dumps(record).encode())
    assert [*repaired(zoo, other)] == ["newer"]
    assert json.loads(body(zoo, FIRST)) == record


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.soak)])
def test_a_repair_that_dies_at_any_call_loses_nothing_and_can_be_repeated(
    tmp_path: Path, step: int, tally: Callable[..., None]
) -> None:
    cases = lost = 0
    with filled(MemoryStore()) as whole, BrainManager(tmp_path / "other") as other:
        whole.push(other)
        for at in range(0, 1000, step):
            for after in (False, True):
                with BrainManager(damaged_copy(whole)) as zoo:
                    has_crashed = die_repairing(zoo, other, at, after=after)
                    assert zoo.zoo.store.get(FIRST) is not None
                    repaired(zoo, other)
                    cases += has_crashed
                    lost += len(damage(zoo))
                    lost += sum(not loads(zoo, f"ppo:{seed}", seed) for seed in (1, 2, 3))
            if not has_crashed:
                break
    tally("a repair from another zoo dies at any call", cases=cases, lost=lost)
    assert lost == 0
    assert cases > 10


def damaged_copy(whole: BrainManager) -> MemoryStore:
    """Return a store with the same objects, but one manifest and two blobs."""
    assert isinstance(whole.zoo.store, MemoryStore)
    store = memory_copy(whole.zoo.store)
    with BrainManager(store) as zoo:
        flip(zoo, a_blob(zoo, "ppo:2"))
        store.delete(blob_key(a_blob(zoo, "ppo:3")))
        overwrite(zoo, FIRST, b"{")
    return store


def die_repairing(zoo: BrainManager, other: BrainManager, at: int, *, after: bool) -> bool:
    """Repair, and stop the world at the call of that number; return whether it came to that."""
    with suppress(Crash), BrainManager(CrashingStore(zoo.zoo.store, at, after=after)) as dying:
        fsck(dying.zoo, repair=True, source=other.zoo)
        return False
    return True


def test_while_others_collect_and_save_everything_comes_back(tmp_path: Path) -> None:
    place = tmp_path / "zoo"
    with filled(place) as zoo, BrainManager(tmp_path / "other") as other:
        zoo.push(other)
        stop = threading.Event()
        problems: list[BaseException] = []

        def busy() -> None:
            with BrainManager(place) as mine:
                for seed in range(50, 1000):
                    if stop.is_set():
                        return
                    try:
                        mine.save("busy", params(seed))
                        mine.gc(dry_run=False, older_than=0)
                    except Corrupt:
                        continue  # a record cannot be read: nothing was collected
                    except BrainstoreError as error:
                        problems.append(error)
                        return

        thread = threading.Thread(target=busy)
        thread.start()
        for _ in range(4):
            overwrite(zoo, FIRST, b"{")
            zoo.zoo.store.delete(blob_key(a_blob(other, "ppo:2")))
            found = repaired(zoo, other)
            assert found["manifest"].repaired
            assert found["blob-missing"].repaired
        stop.set()
        thread.join()
        assert problems == []
        for seed in (1, 2, 3):
            assert loads(zoo, f"ppo:{seed}", seed)


# From a shell, and in a bucket


def test_a_shell_repairs_from_another_zoo(tmp_path: Path) -> None:
    with filled(tmp_path / "zoo") as zoo, BrainManager(tmp_path / "other") as other:
        zoo.push(other)
        flip(zoo, a_blob(zoo, "ppo:2"))
        overwrite(zoo, FIRST, b"{")
        result = run("fsck", "--repair", "--from", tmp_path / "other", "--zoo", tmp_path / "zoo")
        assert result.exit_code == 0
        assert result.stdout.splitlines()[-1] == "1 harmless, 3 repaired"
        assert loads(zoo, "ppo:1", 1)
        assert loads(zoo, "ppo:2", 2)


def test_a_bucket_is_rescued_from_a_folder_and_a_folder_from_a_bucket(
    s3_place: S3Place, tmp_path: Path
) -> None:
    options = s3_place.storage_options
    with (
        filled(tmp_path / "zoo") as folder,
        BrainManager(s3_place.url, storage_options=options) as bucket,
    ):
        folder.save("large", {"w": np.arange(5_000_000, dtype=np.float32)})
        folder.push(bucket)
        finish(bucket)
        for zoo, other in ((bucket, folder), (folder, bucket)):
            large = a_blob(zoo, "large")
            flip(zoo, large)
            zoo.zoo.store.delete(blob_key(a_blob(zoo, "ppo:2")))
            overwrite(zoo, FIRST, b"{")
            findings = fsck(zoo.zoo, repair=True, source=other.zoo)
            assert {each.kind: each.repaired for each in findings if not each.is_harmless} == {
                "manifest": True, "blob-missing": True, "blob-damaged": True,
            }  # fmt: skip
            assert body(zoo, FIRST) == body(other, FIRST)
            assert [each for each in fsck(zoo.zoo) if each.is_damage] == []
            finish(zoo)
