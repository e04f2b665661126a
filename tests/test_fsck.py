"""`fsck` finds every kind of planted damage, and mends what it says that it mends."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import S3Place
from zoos import Call, Crash, Proceed, WrappedStore, finish, objects, opened, params, same

from brainstore import BrainManager
from brainstore.address import (
    Alias,
    Digest,
    Fact,
    Name,
    blob_key,
    damaged_key,
    manifest_key,
    new_ulid,
    pointer_key,
)
from brainstore.errors import Corrupt, NotFound
from brainstore.fsck import Finding, fsck
from brainstore.fsck.repair import rebuild_index
from brainstore.intents import put_intent
from brainstore.records import FactBody, Target
from brainstore.storage.base import ABSENT, Store
from brainstore.storage.memory import MemoryStore

LATEST = Alias("latest")
PPO = Name("ppo")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return MemoryStore() if request.param == "memory" else tmp_path / "zoo"


@pytest.fixture
def zoo(place: Any) -> Iterator[BrainManager]:
    """A zoo with three versions of ppo, of which prod names the second, and other:1."""
    with BrainManager(place) as zoo:
        for seed in (1, 2, 3):
            zoo.save("ppo", params(seed), {"brain_type": "ppo"})
        zoo.save("other", params(9), parents="ppo:1", files={"notes": b"hello"})
        zoo.alias("ppo:2", "prod")
        finish(zoo)
        yield zoo


def check(zoo: BrainManager, **options: Any) -> dict[str, str]:
    """Return {kind: where} of the findings, of which no two are of a kind."""
    found = fsck(zoo.zoo, **options)
    assert len({each.kind for each in found}) == len(found), found
    return {each.kind: each.where for each in found}


def mend(zoo: BrainManager, **options: Any) -> list[Finding]:
    """Repair, and return what was found; all must be told as mended, and be so."""
    found = fsck(zoo.zoo, repair=True, **options)
    assert found
    assert all(each.repaired for each in found), found
    with BrainManager(zoo.zoo.store) as fresh:
        assert [each for each in fsck(fresh.zoo, **options) if not each.is_harmless] == []
    return found


def body(zoo: BrainManager, key: str) -> bytes:
    found = zoo.zoo.store.get(key)
    assert found is not None
    return found.body


def overwrite(zoo: BrainManager, key: str, content: bytes) -> None:
    zoo.zoo.store.delete(key)
    zoo.zoo.store.put(key, content, expect=ABSENT)


def edit(zoo: BrainManager, key: str, **changed: Any) -> None:
    record = json.loads(body(zoo, key))
    overwrite(zoo, key, json.dumps(record | changed).encode())


def a_blob(zoo: BrainManager, ref: str) -> Digest:
    return next(iter(zoo.manifest(ref).blobs))


def test_a_healthy_zoo_has_no_findings_after_all_kinds_of_operations(
    zoo: BrainManager, tmp_path: Path
) -> None:
    experts = {"dense": "other:1#dense"}
    more = {**params(9), "head": np.float32([4, 5])}
    zoo.save("ppo", more, groups={"opt": params(5)}, frozen_experts=experts, station="s3")
    zoo.add_report("ppo:1", {"station": "s3", "checks": ["return=7>=6"]})
    zoo.set_policy([{"alias": "candidate", "stations": ["s3"]}])
    zoo.promote("ppo:1", "candidate")
    zoo.unalias("ppo", "candidate")
    zoo.save("deep/er", {"w": np.arange(600_000, dtype=np.float32), "n": np.float32(3)})
    zoo.save("deep/er", {"w": np.zeros((0, 4), np.int8), "b": np.array([True])})
    zoo.alias("ppo:3", "prod")
    zoo.rollback("ppo", "prod")
    zoo.alias("ppo:1", "old")
    zoo.unalias("ppo", "old")
    for ref in ("ppo:3", "ppo:1", "ppo:4"):
        zoo.delete(ref)
    zoo.undelete("ppo:3")
    zoo.undelete("ppo:1")
    zoo.delete("ppo:1")
    assert fsck(zoo.zoo) == []
    assert fsck(zoo.zoo, repair=True) == []
    assert fsck(zoo.zoo, name="ppo") == []
    with BrainManager(tmp_path / "copy") as copy:
        zoo.push(copy, aliases=True)
        assert fsck(copy.zoo) == []


def test_an_empty_zoo_is_healthy_and_an_empty_place_is_none(place: Any) -> None:
    with BrainManager(place) as zoo:
        assert check(zoo, repair=True) == {"marker": "brainstore.json"}
        assert list(zoo.zoo.store.list("")) == []
        zoo.init()
        assert fsck(zoo.zoo) == []


def test_fsck_of_a_model_that_is_not_there_says_so(zoo: BrainManager) -> None:
    with pytest.raises(NotFound, match="Did you mean other"):
        fsck(zoo.zoo, name="othr")


@pytest.mark.parametrize("content", [b"", b'{"format":1,"kind":"mani', b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_manifest_is_found(zoo: BrainManager, content: bytes) -> None:
    key = manifest_key(PPO, 1)
    overwrite(zoo, key, content)
    assert check(zoo) == {"manifest": key}
    assert check(zoo, name="ppo") == {"manifest": key}
    (finding,) = fsck(zoo.zoo, repair=True)
    assert not finding.repaired
    assert "fsck --repair --from OTHER_ZOO" in finding.text
    assert body(zoo, key) == content


def test_a_damaged_newest_manifest_keeps_latest_and_its_row(zoo: BrainManager) -> None:
    overwrite(zoo, manifest_key(PPO, 3), b"{}")
    overwrite(zoo, "registry.json", b"{}")
    found = {each.kind: each.repaired for each in fsck(zoo.zoo, repair=True)}
    assert found == {"manifest": False, "index": True}
    assert zoo.get_latest("ppo") == "ppo_v3"


def test_a_repair_keeps_the_rows_of_versions_that_it_cannot_read(zoo: BrainManager) -> None:
    overwrite(zoo, manifest_key(PPO, 3), b"{}")
    zoo.zoo.registry.journal.record(
        Fact(new_ulid(), "save", PPO, 9), FactBody(row={"digest": "blake3:" + "0" * 64})
    )
    fsck(zoo.zoo, repair=True)
    assert zoo.list_models() == ["other_v1", "ppo_v1", "ppo_v2", "ppo_v3"]


def test_swapped_manifests_are_found(zoo: BrainManager) -> None:
    first, second = manifest_key(PPO, 1), manifest_key(PPO, 3)
    bodies = body(zoo, first), body(zoo, second)
    overwrite(zoo, first, bodies[1])
    overwrite(zoo, second, bodies[0])
    found = fsck(zoo.zoo)
    assert [(each.kind, each.where) for each in found] == [
        ("manifest", first),
        ("manifest", second),
    ]
    assert "holds the record of ppo:3" in found[0].text


def test_a_manifest_of_a_newer_format_is_told_apart_from_damage(zoo: BrainManager) -> None:
    edit(zoo, manifest_key(PPO, 1), format=2)
    (finding,) = fsck(zoo.zoo)
    assert finding.kind == "newer"
    assert "pip install -U" in finding.text


@pytest.mark.parametrize("name", ["../../etc/passwd", "models/../x", "ppo/refs", "PPO", ""])
def test_a_hostile_manifest_cannot_name_other_keys(zoo: BrainManager, name: str) -> None:
    edit(zoo, manifest_key(PPO, 1), name=name)
    watched = WrappedStore(zoo.zoo.store)
    with BrainManager(watched) as again:
        assert check(again, repair=True) == {"manifest": manifest_key(PPO, 1)}
    assert not [call for call in watched.calls if ".." in call.key or "passwd" in call.key]


def test_a_hostile_blob_name_or_size_in_a_manifest_is_found(zoo: BrainManager) -> None:
    edit(zoo, manifest_key(PPO, 1), blobs={"blake3:../../x": 1})
    assert check(zoo) == {"manifest": manifest_key(PPO, 1)}


def test_a_leaf_in_a_blob_that_is_not_listed_is_found(zoo: BrainManager) -> None:
    edit(zoo, manifest_key(PPO, 1), blobs={})
    found = fsck(zoo.zoo)
    assert {each.kind for each in found if each.is_damage} == {"manifest"}
    assert "not listed" in found[0].text


def test_a_tombstone_that_keeps_another_manifest_is_found(zoo: BrainManager) -> None:
    zoo.delete("other:1")
    edit(zoo, manifest_key(Name("other"), 1), replaced_digest="blake3:" + "1" * 64)
    assert check(zoo) == {"manifest": manifest_key(Name("other"), 1)}


def test_a_missing_blob_is_found_with_what_needs_it(zoo: BrainManager) -> None:
    digest = a_blob(zoo, "ppo:3")
    zoo.zoo.store.delete(blob_key(digest))
    (finding,) = fsck(zoo.zoo, repair=True)
    assert (finding.kind, finding.where) == ("blob-missing", blob_key(digest))
    assert "needed by ppo:3" in finding.text
    assert not finding.repaired
    assert check(zoo, name="ppo") == {"blob-missing": blob_key(digest)}
    assert check(zoo, name="other") == {}


def test_a_blob_of_a_deleted_version_may_be_gone(zoo: BrainManager) -> None:
    digest = a_blob(zoo, "ppo:3")
    zoo.delete("ppo:3")
    zoo.zoo.store.delete(blob_key(digest))
    assert fsck(zoo.zoo) == []


def flip(zoo: BrainManager, digest: Digest, at: int = -1) -> None:
    content = bytearray(body(zoo, blob_key(digest)))
    content[at] ^= 1
    overwrite(zoo, blob_key(digest), bytes(content))


@pytest.mark.parametrize("at", [0, 9, 100, -1])
def test_a_flipped_byte_is_found_when_all_is_read(zoo: BrainManager, at: int) -> None:
    digest = a_blob(zoo, "ppo:2")
    flip(zoo, digest, at)
    assert fsck(zoo.zoo, quick=True) == []
    (finding,) = fsck(zoo.zoo)
    assert (finding.kind, finding.where) == ("blob-damaged", blob_key(digest))
    assert "breaks ppo:2" in finding.text
    assert [each.kind for each in fsck(zoo.zoo, name="ppo")] == ["blob-damaged"]
    assert fsck(zoo.zoo, name="other") == []


def test_a_damaged_blob_is_moved_aside_so_that_a_save_stores_it_again(zoo: BrainManager) -> None:
    digest = a_blob(zoo, "ppo:2")
    flip(zoo, digest)
    damaged = body(zoo, blob_key(digest))
    moved, missing = fsck(zoo.zoo, repair=True)
    assert (moved.kind, moved.repaired) == ("blob-damaged", True)
    assert (missing.kind, missing.is_damage) == ("blob-missing", True)
    assert "fsck --repair --from OTHER_ZOO" in missing.text
    assert body(zoo, damaged_key(digest)) == damaged
    assert check(zoo) == {"blob-missing": blob_key(digest), "stray": damaged_key(digest)}
    with BrainManager(zoo.zoo.store) as again:
        again.save("ppo", params(2))
    assert check(zoo) == {"stray": damaged_key(digest)}


def test_a_repair_that_dies_leaves_no_writer_that_relies_on_what_is_gone() -> None:
    inner = MemoryStore()
    with opened(inner) as writer:
        writer.save("ppo", params(1))
        [digest] = writer.manifest("ppo").blobs
        body, at = inner._shelf.objects[blob_key(digest)]
        inner._shelf.objects[blob_key(digest)] = bytes([body[0] ^ 1]) + body[1:], at

        dead: list[Call] = []

        def die(call: Call, proceed: Proceed) -> Any:
            if dead:
                raise Crash
            result = proceed()
            if call.step == "delete blob":
                dead.append(call)
            return result

        with pytest.raises(Crash), opened(WrappedStore(inner, die)) as repairer:
            fsck(repairer.zoo, repair=True)
        assert inner.get(blob_key(digest)) is None
        writer.save("ppo", params(1))
        assert same(writer.load("ppo:2", as_numpy=True, verify=True)[0], params(1))


def test_a_damaged_blob_comes_back_from_another_zoo(zoo: BrainManager, tmp_path: Path) -> None:
    with BrainManager(tmp_path / "copy") as copy:
        zoo.push(copy)
        flip(zoo, a_blob(zoo, "ppo:2"))
        fsck(zoo.zoo, repair=True)
        with pytest.raises(NotFound, match="missing"):
            zoo.load("ppo:2", as_numpy=True)
        zoo.pull(copy, ["ppo:2"])
        zoo.load("ppo:2", as_numpy=True)
        assert [each for each in fsck(zoo.zoo) if not each.is_harmless] == []


def test_a_truncated_blob_is_found_by_its_size(zoo: BrainManager) -> None:
    digest = a_blob(zoo, "ppo:2")
    overwrite(zoo, blob_key(digest), body(zoo, blob_key(digest))[:-1])
    assert check(zoo, quick=True) == {"blob-size": blob_key(digest)}
    assert check(zoo) == {"blob-damaged": blob_key(digest)}


def test_a_damaged_blob_that_nobody_needs_is_found_too(zoo: BrainManager) -> None:
    key = blob_key(Digest.of(b"something else"))
    zoo.zoo.store.put(key, b"", expect=ABSENT)
    orphan, damaged = fsck(zoo.zoo)
    assert (orphan.kind, damaged.kind, damaged.where) == ("orphan", "blob-damaged", key)
    assert "No version needs it" in damaged.text


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", "int32"), ("shape", [6]), ("dtype", "float33"), ("entry", "x")]
)
def test_a_manifest_that_tells_another_form_than_the_blob_has_is_found(
    zoo: BrainManager, field: str, value: Any
) -> None:
    key = manifest_key(PPO, 3)
    groups = json.loads(body(zoo, key))["groups"]
    leaf = next(leaf for leaf in groups["params"]["leaves"] if leaf["shape"] != [2])
    leaf[field] = value
    edit(zoo, key, groups=groups)
    assert "leaf" in {each.kind for each in fsck(zoo.zoo)}


def test_a_pointer_to_nothing_is_found_and_latest_is_mended(zoo: BrainManager) -> None:
    key = pointer_key(PPO, LATEST)
    edit(zoo, key, version=7)
    assert check(zoo) == {"pointer": key}
    mend(zoo)
    assert BrainManager(zoo.zoo.store).get_latest("ppo") == "ppo_v3"


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 1},
        {"version": None, "digest": None},
        {"newest": 2},
        {"digest": "blake3:" + "0" * 64},
        {"name": "other"},
        {"version": "three"},
    ],
)
def test_a_wrong_latest_is_found_and_mended(zoo: BrainManager, changed: dict[str, Any]) -> None:
    key = pointer_key(PPO, LATEST)
    if changed == {"version": 1}:
        changed = changed | {"digest": zoo.resolve("ppo:1").digest}
    edit(zoo, key, **changed)
    assert [each.where for each in mend(zoo)] == [key]
    with BrainManager(zoo.zoo.store) as fresh:
        assert fresh.resolve("ppo") == fresh.resolve("ppo:3")
        assert fresh.save("ppo", params(7)) == "ppo_v4"


def test_a_missing_latest_is_found_and_mended(zoo: BrainManager) -> None:
    zoo.zoo.store.delete(pointer_key(PPO, LATEST))
    assert check(zoo, name="ppo") == {"latest": pointer_key(PPO, LATEST)}
    mend(zoo, name="ppo")
    with BrainManager(zoo.zoo.store) as fresh:
        assert fresh.save("ppo", params(7)) == "ppo_v4"


def test_an_alias_of_a_deleted_version_is_found_and_left_to_people(zoo: BrainManager) -> None:
    key = pointer_key(PPO, Alias("prod"))
    edit(zoo, key, version=1)
    found = fsck(zoo.zoo, repair=True)
    assert [(each.kind, each.where, each.repaired) for each in found] == [
        ("pointer", key, False),
        ("index", "ppo:prod", True),
    ]
    zoo.alias("ppo:2", "prod")
    assert fsck(zoo.zoo) == []


def test_an_alias_that_cannot_be_read_is_written_anew_from_the_index(zoo: BrainManager) -> None:
    key = pointer_key(PPO, Alias("prod"))
    overwrite(zoo, key, b'{"format":1')
    with pytest.raises(Corrupt):
        zoo.alias("ppo:3", "prod")
    mend(zoo)
    assert zoo.aliases("ppo")["prod"] == 2
    zoo.alias("ppo:3", "prod")
    assert fsck(zoo.zoo) == []


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"format":1,"folded_at":"","models":[]}'])
def test_a_lost_or_damaged_snapshot_is_rebuilt(zoo: BrainManager, content: bytes | None) -> None:
    zoo.delete("ppo:1")
    before = zoo.zoo.index()
    if content is None:
        zoo.zoo.store.delete("registry.json")
    else:
        overwrite(zoo, "registry.json", content)
    assert check(zoo) == {"index": "registry.json"}
    mend(zoo)
    assert zoo.zoo.index() == before


def test_an_index_that_lacks_versions_or_has_too_many_is_rebuilt(zoo: BrainManager) -> None:
    before = zoo.zoo.index()
    snapshot = json.loads(body(zoo, "registry.json"))
    snapshot["models"]["ghost_v4"] = snapshot["models"].pop("ppo_v2")
    snapshot["models"]["other_v1"]["brain_type"] = "told otherwise"
    snapshot["tombstones"]["ppo_v1"] = 2
    snapshot["aliases"]["ppo"]["prod"]["version"] = 3
    snapshot["aliases"]["ghost"] = {"prod": {"version": 4, "generation": 1}}
    overwrite(zoo, "registry.json", json.dumps(snapshot).encode())
    found = mend(zoo)
    assert [each.where for each in found] == [
        "ghost:4",
        "other:1",
        "ppo:1",
        "ppo:2",
        "ppo:prod",
        "ghost:prod",
    ]
    assert zoo.zoo.index() == before


def test_facts_of_what_never_was_are_dropped(zoo: BrainManager) -> None:
    before = zoo.zoo.index()
    journal = zoo.zoo.registry.journal
    journal.record(Fact(new_ulid(), "save", PPO, 9), FactBody(row={"digest": "x"}))
    journal.record(Fact(new_ulid(), "delete", PPO, 2, 5), FactBody())
    zoo.zoo.store.put(Fact(new_ulid(), "save", PPO, 8).key, b"not a body")
    assert check(zoo) == {"index": "registry.json"}
    mend(zoo)
    assert zoo.zoo.index() == before


def test_a_version_whose_saver_died_is_published(zoo: BrainManager) -> None:
    def around(call: Any, proceed: Any) -> Any:
        if call.step in ("put fact", "put pointer"):
            raise ConnectionAbortedError
        return proceed()

    dying = BrainManager(WrappedStore(zoo.zoo.store, around))
    with dying, pytest.raises(ConnectionAbortedError):
        dying.save("ppo", params(4))
    # As long as its intent is fresh, the save may still be under way.
    assert fsck(zoo.zoo) == []
    for stat in list(zoo.zoo.store.list("intents/")):
        zoo.zoo.store.delete(stat.key)
    with BrainManager(zoo.zoo.store) as fresh:
        assert check(fresh) == {"latest": pointer_key(PPO, LATEST), "index": "ppo:4"}
        mend(fresh)
        assert fresh.list_models()[-1] == "ppo_v4"
        assert fresh.get_latest("ppo") == "ppo_v4"


@pytest.mark.parametrize("key", ["brainstore.json", "gc/state.json"])
def test_a_lost_marker_or_collector_state_is_created_again(zoo: BrainManager, key: str) -> None:
    zoo.zoo.store.delete(key)
    assert [each.where for each in fsck(zoo.zoo)] == [key]
    mend(zoo)
    if key.startswith("gc"):
        assert json.loads(body(zoo, key))["generation"] > 10**9


def test_a_zoo_of_a_newer_format_is_left_alone(zoo: BrainManager) -> None:
    edit(zoo, "brainstore.json", format=2)
    before = objects(zoo)
    assert check(zoo, repair=True) == {"newer": "brainstore.json"}
    assert objects(zoo) == before


def test_a_damaged_collector_state_is_told(zoo: BrainManager) -> None:
    overwrite(zoo, "gc/state.json", b'{"format":1,"state":"asleep"}')
    assert check(zoo, repair=True) == {"gc": "gc/state.json"}


def test_strays_are_told_mildly_and_kept(zoo: BrainManager) -> None:
    strays = [
        "README.md",
        "blobs/3f/notes.txt",
        "journal/nonsense",
        "models/UPPER/v1/manifest.json",
    ]
    strays += ["models/ppo/v1/notes", "models/ppo/refs/Prod.json", "probe/x/create"]
    for key in strays:
        zoo.zoo.store.put(key, b"?")
    zoo.add_report("ppo:1", {"station": "s3"})
    found = fsck(zoo.zoo, repair=True)
    assert sorted(each.where for each in found) == sorted(strays)
    assert all(each.is_harmless and not each.repaired for each in found)
    assert zoo.zoo.store.get("README.md") is not None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_a_file_whose_name_is_no_text_is_told_as_text(tmp_path: Path) -> None:
    with opened(tmp_path) as zoo:
        zoo.save("ppo", params(1))
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_bytes(b"x")
        assert [finding.where for finding in fsck(zoo.zoo)] == ["\\udcff"]


def test_an_intent_of_a_day_ago_is_told_mildly(tmp_path: Path) -> None:
    with BrainManager(tmp_path) as zoo:
        zoo.save("ppo", params(1))
        put_intent(zoo.zoo.registry, new_ulid(), [Target(name=PPO, version=2)], [])
        assert fsck(zoo.zoo) == []
        (intent,) = (path for path in (tmp_path / "intents").iterdir())
        two_days_ago = time.time() - 2 * 24 * 3600
        os.utime(intent, (two_days_ago, two_days_ago))
        (finding,) = fsck(zoo.zoo)
        assert finding.kind == "intent-expired"
        assert "ppo:2 died 48 h ago" in finding.text
        assert finding.is_harmless


def test_all_damage_is_found_in_one_go(zoo: BrainManager) -> None:
    overwrite(zoo, manifest_key(PPO, 1), b"")
    flip(zoo, a_blob(zoo, "ppo:2"))
    zoo.zoo.store.delete(blob_key(a_blob(zoo, "ppo:3")))
    zoo.zoo.store.delete("registry.json")
    zoo.zoo.store.delete("gc/state.json")
    edit(zoo, pointer_key(Name("other"), LATEST), version=5)
    kinds = [each.kind for each in fsck(zoo.zoo)]
    assert sorted(kinds) == [
        "blob-damaged", "blob-missing", "gc", "index", "manifest", "pointer",
    ]  # fmt: skip


def test_a_rebuilt_index_never_replaces_one_that_was_folded_meanwhile(zoo: BrainManager) -> None:
    saved: list[str] = []

    def around(call: Any, proceed: Any) -> Any:
        if call.method == "list" and call.key == "models/":
            found = proceed()
            if not saved:
                saved.append(zoo.save("ppo", params(30)))
            return found
        return proceed()

    with BrainManager(WrappedStore(zoo.zoo.store, around)) as other:
        rebuild_index(other.zoo)
    assert saved == ["ppo_v4"]
    assert "ppo_v4" in zoo.list_models()
    assert fsck(zoo.zoo) == []


def test_a_repair_while_others_save_loses_nothing(place: Any, zoo: BrainManager) -> None:
    def save(seed: int) -> str:
        with BrainManager(place) as mine:
            return mine.save("ppo", params(seed))

    def rebuild(_: int) -> None:
        with BrainManager(place) as mine:
            rebuild_index(mine.zoo)

    with ThreadPoolExecutor(6) as pool:
        saves = [pool.submit(save, seed) for seed in range(20, 36)]
        repairs = [pool.submit(rebuild, number) for number in range(4)]
        names = {each.result() for each in saves}
        for each in repairs:
            each.result()
    with BrainManager(place) as fresh:
        assert names <= set(fresh.list_models())
        assert fsck(fresh.zoo) == []


def test_a_busy_zoo_has_no_findings(place: Any, zoo: BrainManager) -> None:
    def work(seed: int) -> None:
        with BrainManager(place) as mine:
            for step in range(4):
                version = mine.save("ppo", params(100 * seed + step))
                mine.alias(version, "prod")
                mine.delete(mine.save("other", params(100 * seed + step)))

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, seed) for seed in range(3)]
        found = [fsck(zoo.zoo) for _ in range(4)]
        for each in working:
            each.result()
    assert [each for findings in found for each in findings if not each.is_harmless] == []
    assert fsck(zoo.zoo) == []


def test_memory_is_bounded_by_ranges_not_by_blobs(tmp_path: Path) -> None:
    with BrainManager(tmp_path) as zoo:
        zoo.save("large", {"w": np.arange(6_000_000, dtype=np.float32)})
        watched = WrappedStore(zoo.zoo.store)
        with BrainManager(watched) as again:
            assert fsck(again.zoo) == []
        assert watched.steps("get_range").count("get_range blob") == 3
        assert "get blob" not in watched.steps()


def test_a_bucket_is_checked_and_mended_alike(s3_place: S3Place) -> None:
    with BrainManager(s3_place.url, storage_options=s3_place.storage_options) as zoo:
        for seed in (1, 2):
            zoo.save("ppo", params(seed))
        zoo.alias("ppo:1", "prod")
        finish(zoo)
        assert fsck(zoo.zoo) == []
        store: Store = zoo.zoo.store
        digest = a_blob(zoo, "ppo:1")
        flip(zoo, digest)
        store.delete("registry.json")
        edit(zoo, pointer_key(PPO, LATEST), version=9)
        found = fsck(zoo.zoo, repair=True)
        assert {each.kind: each.repaired for each in found} == {
            "blob-damaged": True, "blob-missing": False, "index": True, "pointer": True,
        }  # fmt: skip
        assert body(zoo, damaged_key(digest))
        zoo.zoo.registry.pointers.forget_latest(PPO)
        assert check(zoo) == {"blob-missing": blob_key(digest), "stray": damaged_key(digest)}
