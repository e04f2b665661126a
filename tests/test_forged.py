"""Records that somebody changed so that they can still be read: what rests on them is refused.

Most of these were found by `test_fuzz.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from mutations import nested, small_zoo
from zoos import finish, memory_copy, opened, params, same

from brainstore import BadParams, BrainManager, Corrupt
from brainstore.address import (
    GC_STATE_KEY,
    Fact,
    Name,
    blob_key,
    intent_key,
    manifest_key,
    new_ulid,
)
from brainstore.fsck import fsck
from brainstore.garbage import collect
from brainstore.garbage.collector import DAY_S
from brainstore.intents import finish_abandoned
from brainstore.pytree import structure
from brainstore.records import GcState, Intent, Target
from brainstore.storage.local import LocalStore
from brainstore.storage.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    """One of everything, see `small_zoo`; stored three days ago."""
    found = memory_copy(small_zoo())
    for key, (body, at) in found._shelf.objects.items():
        found._shelf.objects[key] = body, at - 3 * DAY_S
    return found


def change(store: MemoryStore, key: str, edit: Callable[[Any], object]) -> None:
    found = store.get(key)
    assert found is not None
    record = json.loads(found.body)
    edit(record)
    store.put(key, msgspec.json.encode(record))


def test_a_flipped_byte_of_a_leaf_in_pieces_is_told(store: MemoryStore) -> None:
    with opened(store) as zoo:
        [digest] = zoo.manifest("cut:1").blobs
        body = store.get(blob_key(digest)).body
        store.put(blob_key(digest), body[:-1] + bytes([body[-1] ^ 1]))
        with pytest.raises(Corrupt, match=digest.short):
            zoo.load("cut:1", as_numpy=True)


def _overlap(leaf: Any) -> None:
    leaf["pieces"][1]["index"] = leaf["pieces"][0]["index"]


def _too_few(leaf: Any) -> None:
    del leaf["pieces"][0]


def _impossible(leaf: Any) -> None:
    leaf["shape"] = [2**62, 2**62, 0]
    for piece in leaf["pieces"]:
        piece["index"] = [[0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("edit", [_overlap, _too_few, _impossible])
def test_pieces_that_make_no_leaf_are_damage(
    store: MemoryStore, edit: Callable[[Any], object]
) -> None:
    key = manifest_key(Name("cut"), 1)
    change(store, key, lambda record: edit(record["groups"]["params"]["leaves"][0]))
    with opened(store) as zoo, pytest.raises(Corrupt):
        zoo.load("cut:1", as_numpy=True)


def test_a_restored_version_is_the_one_that_was_deleted(store: MemoryStore) -> None:
    key = manifest_key(Name("ppo"), 4)
    change(store, key, lambda record: record["record"]["meta"].update(notes="better"))
    with opened(store) as zoo:
        for call in (zoo.load, zoo.manifest, zoo.resolve):
            with pytest.raises(Corrupt, match="tombstone keeps a manifest that hashes to"):
                call("ppo:4")


def test_what_comes_back_is_what_was_deleted(store: MemoryStore) -> None:
    key = manifest_key(Name("ppo"), 3)
    change(store, key, lambda record: record["record"]["meta"].update(notes="better"))
    with opened(store) as zoo:
        with pytest.raises(Corrupt, match="tombstone keeps a manifest that hashes to"):
            zoo.undelete("ppo:3")
        # It was deleted just now, by the store's clock.
        assert_collects_nothing(zoo, store, "tombstone keeps a manifest that hashes to")
        assert ("deleted", "ppo:3") in {(each.what, each.ref) for each in zoo.history("ppo")}


DEEP = nested("[", 400, "]")


def _with_deep_row(store: MemoryStore, name: str) -> None:
    fact = Fact(new_ulid(), "save", Name(name), 1)
    store.put(fact.key, b'{"format":1,"row":{"config":%s}}' % DEEP.encode())


def test_a_fact_that_is_nested_deep_stops_no_save(store: MemoryStore) -> None:
    # It could be read with little on the stack, and not be written with more.
    for name in ("deep", "deeper"):
        _with_deep_row(store, name)
    with opened(store) as zoo:
        assert zoo.save("ppo", params(8)) == "ppo_v6"
        assert same(zoo.load("ppo", as_numpy=True)[0], params(8))
        with pytest.raises(Corrupt, match="nested deeper than 300 levels"):
            zoo.list_models() and zoo.table()


@pytest.mark.parametrize("place", ["meta", "provenance"])
def test_a_manifest_that_is_nested_deep_is_damage(store: MemoryStore, place: str) -> None:
    key = manifest_key(Name("ppo"), 5)
    change(store, key, lambda record: record.update({place: {"config": "DEEP"}}))
    store.put(key, store.get(key).body.replace(b'"DEEP"', DEEP.encode()))
    with opened(store) as zoo, pytest.raises(Corrupt, match="nested deeper"):
        zoo.manifest("ppo:5")


def test_a_key_that_no_save_writes_is_no_key() -> None:
    # Python would hash all multiples of 2**61 - 1 to the same.
    for key in (2**63, -(2**63) - 1, 2**61 * (2**61 - 1)):
        with pytest.raises(Corrupt, match="is no key"):
            structure.open_node(["dict", [key, "*"]])
    assert structure.open_node(["dict", [2**63 - 1, "*"], [-(2**63), "*"]])


def test_the_deepest_tree_that_can_be_saved_can_be_loaded(tmp_path: Path) -> None:
    key: Any = "k"
    for _ in range(structure.MAX_KEY_DEPTH):
        key = (key,)
    tree: Any = np.float32(1)
    for _ in range(structure.MAX_DEPTH):
        tree = {key: tree}
    with opened(tmp_path) as zoo:
        zoo.save("deep", tree)
        assert zoo.load("deep", as_numpy=True)[0] == tree
        with pytest.raises(BadParams, match="nested 16 levels deep at most"):
            zoo.save("deep", {(key,): np.float32(1)})


def all_blobs(store: MemoryStore) -> set[str]:
    return {stat.key for stat in store.list("blobs/")}


def assert_collects_nothing(zoo: BrainManager, store: MemoryStore, match: str) -> None:
    before = all_blobs(store)
    for dry_run in (True, False):
        with pytest.raises(Corrupt, match=match):
            collect(zoo.zoo, dry_run=dry_run)
    assert all_blobs(store) == before


def test_a_collection_trusts_no_manifest_that_the_index_does_not_know(store: MemoryStore) -> None:
    key = manifest_key(Name("ppo"), 5)
    with opened(store) as zoo:
        [own], [other] = zoo.manifest("ppo:5").blobs, zoo.manifest("team/nav:1").blobs
        body = store.get(key).body.replace(own.encode(), other.encode())
        store.put(key, body)
        store._shelf.objects[key] = body, 0.0
        assert_collects_nothing(zoo, store, "the index names")


def test_a_collection_trusts_no_fence_in_place_of_a_version(store: MemoryStore) -> None:
    key = manifest_key(Name("ppo"), 5)
    fence = store.get(manifest_key(Name("team/nav"), 2)).body
    body = fence.replace(b'"team/nav"', b'"ppo"').replace(b'"version":2', b'"version":5')
    with opened(store) as zoo:
        store._shelf.objects[key] = body, 0.0
        assert_collects_nothing(zoo, store, "the index names")


def test_a_collection_does_not_take_a_lost_record_for_garbage(store: MemoryStore) -> None:
    store.delete(manifest_key(Name("ppo"), 5))
    with opened(store) as zoo:
        assert_collects_nothing(zoo, store, "its record is missing")


def test_a_pointer_to_come_does_not_fail_a_collection(store: MemoryStore) -> None:
    """What is told to the index at its end is housekeeping."""
    change(store, "models/ppo/refs/latest.json", lambda record: record.update(format=2))
    with opened(store) as zoo:
        finish(zoo)
        assert collect(zoo.zoo, dry_run=False).blobs
        assert finish_abandoned(zoo.zoo.registry, older_than_s=-1) == []
        assert np.float32(zoo.load("ppo:5", as_numpy=True)[0]["dense"]["bias"][0]) == 5


def test_a_row_of_no_form_does_not_stop_an_import(store: MemoryStore, tmp_path: Path) -> None:
    with opened(memory_copy(small_zoo())) as zoo:
        zoo.export_all(tmp_path)
    change(store, "registry.json", lambda record: record["models"]["ppo_v1"].update(config=5))
    with opened(store) as zoo:
        assert zoo.import_zoo(tmp_path)


@pytest.mark.parametrize("checks", [5, [5], [[]], {"metric": 1}])
def test_a_report_of_no_form_in_a_tree_is_told(tmp_path: Path, checks: Any) -> None:
    with opened(memory_copy(small_zoo())) as zoo:
        zoo.export_all(tmp_path)
    path = tmp_path / "ppo" / "v1" / "quality_report.json"
    told = json.loads(path.read_text())
    told["reports"][0]["checks"] = checks
    path.write_text(json.dumps(told))
    with opened(MemoryStore()) as zoo, pytest.raises(BadParams, match="quality_report"):
        zoo.import_zoo(tmp_path)


@pytest.mark.parametrize("state", ["deleting", "condemned"])
def test_a_collection_goes_on_with_no_list_that_names_what_is_needed(
    store: MemoryStore, tmp_path: Path, state: str
) -> None:
    """Nobody but a collection writes the list, and a collection condemns nothing like that."""
    disk = LocalStore(tmp_path / "zoo")
    for key, (body, _) in store._shelf.objects.items():
        disk.put(key, body)
    with opened(disk) as zoo:
        listed = [*zoo.manifest("ppo:1").blobs, *zoo.manifest("cut:1").blobs]
        body = GcState(state=state, generation=9, condemned=tuple(listed)).encode()
        disk.put(GC_STATE_KEY, body)
        before = [stat.key for stat in disk.list("blobs/")]
        if state == "deleting":
            for _ in range(2):
                with pytest.raises(Corrupt, match=r"gc/state\.json condemns .* that versions need"):
                    collect(zoo.zoo, dry_run=False, take_over=True)
        else:
            collect(zoo.zoo, dry_run=False, take_over=True)
        assert [stat.key for stat in disk.list("blobs/")] == before
        assert zoo.load("ppo:1", as_numpy=True)[1].version == 1


def test_an_intent_of_very_many_saves_is_none(store: MemoryStore) -> None:
    """To give it up, a collection would store a fence for each."""
    ulid = new_ulid()
    targets = tuple(Target(name=Name(f"m{number}"), version=1) for number in range(2000))
    intent = Intent(write_id=ulid, created_at="", by="", targets=targets, digests=())
    with opened(store) as zoo:
        store.put(intent_key(ulid), intent.encode())
        before = {stat.key for stat in store.list("")}
        with pytest.raises(Corrupt, match="1024"):
            collect(zoo.zoo, dry_run=False, older_than_s=0, expiry_s=0)
        assert {stat.key for stat in store.list("")} == before


@pytest.mark.parametrize("ref", ["ppo:1", "ppo:5", "whole:1"])
def test_a_repair_believes_no_manifest_that_index_and_pointers_do_not_know(
    store: MemoryStore, ref: str
) -> None:
    """It would be the last to tell of the right one, which another zoo may have."""
    name, number = ref.split(":")
    key = manifest_key(Name(name), int(number))
    elsewhere = MemoryStore("elsewhere")
    elsewhere._shelf.objects.update(small_zoo()._shelf.objects)
    with opened(store) as zoo, opened(elsewhere) as other:
        right = store.get(key).body
        own, foreign = min(zoo.manifest(ref).blobs), min(zoo.manifest("team/nav:1").blobs)
        store.put(key, right.replace(own.encode(), foreign.encode()))
        pointer = f"models/{name}/refs/latest.json"
        before = store.get(pointer).body
        for _ in range(2):
            found = {(each.kind, each.where): each for each in fsck(zoo.zoo, repair=True)}
            assert not found["manifest", key].repaired
            assert store.get(pointer).body == before
        assert_collects_nothing(zoo, store, "the index names")
        assert not [each for each in fsck(zoo.zoo, repair=True, source=other.zoo) if each.is_damage]
        assert store.get(key).body == right
        assert same(zoo.load(ref, as_numpy=True)[0], other.load(ref, as_numpy=True)[0])
        assert collect(zoo.zoo, dry_run=False).dry_run is False


def test_a_repair_believes_a_manifest_that_a_pointer_knows_rather_than_the_index(
    store: MemoryStore,
) -> None:
    wrong = "blake3:" + "0" * 64
    change(store, "registry.json", lambda record: record["models"]["ppo_v5"].update(digest=wrong))
    with opened(store) as zoo:
        assert not [each for each in fsck(zoo.zoo, repair=True) if each.is_damage]
        assert zoo.table("ppo")[-1]["digest"] == zoo.resolve("ppo:5").digest
