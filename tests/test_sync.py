"""`sync` copies between zoos, verbatim, in an order that a kill at any point survives."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import S3Place
from zoos import Crash, CrashingStore, WrappedStore, finish, memory_copy, params

from brainstore import BrainManager
from brainstore.address import Alias, Digest, Name, manifest_key, new_ulid, parse_blob_key
from brainstore.errors import BadParams, BadReference, NotFound, NoZoo, StoreUnavailable
from brainstore.fsck import fsck
from brainstore.records import Tombstone, now
from brainstore.storage.base import ABSENT, Store
from brainstore.storage.memory import MemoryStore
from brainstore.sync import Step, SyncReport, sync


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["disk", "memory"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """Two empty places."""
    if request.param == "memory":
        return MemoryStore(), MemoryStore()
    return tmp_path / "source", tmp_path / "target"


@pytest.fixture
def source(stores: tuple[Any, Any]) -> Iterator[BrainManager]:
    with BrainManager(stores[0]) as zoo:
        yield zoo


@pytest.fixture
def target(stores: tuple[Any, Any]) -> Iterator[BrainManager]:
    with BrainManager(stores[1]) as zoo:
        yield zoo


def copy(source: BrainManager, target: BrainManager, *refs: str, **options: Any) -> SyncReport:
    return sync(source.zoo, target.zoo, refs, **options)


def statuses(report: SyncReport) -> dict[str, str]:
    return {f"{each.name}:{each.version}": each.status for each in report.outcomes}


def keys(store: Store, prefix: str = "") -> list[str]:
    return [stat.key for stat in store.list(prefix)]


def blob_puts(store: WrappedStore) -> list[str]:
    return [call.key for call in store.calls if call.step == "put blob"]


def a_family(zoo: BrainManager) -> None:
    """Save a base, one tuned from it (whose name sorts first), and one that contains both."""
    zoo.save("base", params(1))
    zoo.save("a_child", params(2), parents={"base:1": "fine_tuned"})
    fused = {"child": params(2), **params(3)}
    zoo.save("a_fusion", fused, frozen_experts={"child": "a_child:1"}, files={"n": b"hi"})


def test_everything_is_copied_byte_for_byte(source: BrainManager, target: BrainManager) -> None:
    a_family(source)
    source.save("base", params(4), groups={"opt": params(5)})
    report = copy(source, target)
    assert set(statuses(report).values()) == {"copied"}
    assert report.sent_bytes == report.planned_bytes > 0
    assert target.list_models() == source.list_models()
    assert target.zoo.index().rows == source.zoo.index().rows
    for full_name in source.list_models():
        assert target.resolve(full_name) == source.resolve(full_name)
    assert target.get_latest("base") == "base_v2"
    loaded, _ = target.load("base", as_numpy=True)
    np.testing.assert_array_equal(loaded["dense"]["kernel"], params(4)["dense"]["kernel"])
    assert fsck(target.zoo) == []


def test_a_second_sync_finds_everything_present(source: BrainManager, target: BrainManager) -> None:
    a_family(source)
    copy(source, target)
    watched = WrappedStore(target.zoo.store)
    with BrainManager(watched) as again:
        report = copy(source, again)
    assert set(statuses(report).values()) == {"present"}
    assert report.sent_bytes == report.planned_bytes == 0
    assert set(watched.steps("put")) <= {"put gc", "put snapshot"}


def test_a_name_means_all_its_versions_and_a_number_means_one(
    source: BrainManager, target: BrainManager
) -> None:
    for seed in (1, 2, 3):
        source.save("ppo", params(seed))
    source.save("other", params(9))
    source.alias("ppo:2", "prod")
    assert statuses(copy(source, target, "ppo:prod")) == {"ppo:2": "copied"}
    assert target.get_latest("ppo") == "ppo_v2"
    assert statuses(copy(source, target, "ppo:latest")) == {"ppo:3": "copied"}
    expected = {"ppo:1": "copied", "ppo:2": "present", "ppo:3": "present"}
    assert statuses(copy(source, target, "ppo")) == expected
    assert target.list_models() == ["ppo_v1", "ppo_v2", "ppo_v3"]
    assert fsck(target.zoo) == []


def test_parents_and_experts_come_along_and_a_missing_one_is_told(
    source: BrainManager, target: BrainManager
) -> None:
    a_family(source)
    assert len(copy(source, target, "a_fusion:1").copied) == 3
    source.save("lone", params(7), parents="base:1")
    source.delete("base:1")
    report = copy(source, target, "lone")
    assert "base:1" in report.copied[0].detail


@pytest.mark.parametrize(
    ("ref", "error"),
    [
        ("nothing", NotFound),
        ("base:7", NotFound),
        ("base:prod", NotFound),
        ("base#dense", BadReference),
        ("s3://other/zoo::base", BadReference),
    ],
)
def test_a_reference_to_nothing_stops_before_anything_is_copied(
    source: BrainManager, target: BrainManager, ref: str, error: type[Exception]
) -> None:
    a_family(source)
    with pytest.raises(error):
        copy(source, target, "base:1", ref)
    assert keys(target.zoo.store) == []


def test_a_string_of_references_is_refused(source: BrainManager, target: BrainManager) -> None:
    a_family(source)
    with pytest.raises(BadReference, match=r"did you mean \['base'\]"):
        sync(source.zoo, target.zoo, "base")


def test_a_source_that_is_no_zoo_is_said_so(source: BrainManager, target: BrainManager) -> None:
    with pytest.raises(NoZoo):
        copy(source, target)


def test_a_zoo_is_not_copied_onto_itself(tmp_path: Path) -> None:
    with BrainManager(tmp_path / "zoo") as zoo:
        zoo.save("ppo", params(1))
        (tmp_path / "link").symlink_to(tmp_path / "zoo")
        with BrainManager(tmp_path / "link") as same, pytest.raises(BadParams, match="both"):
            copy(zoo, same)


def test_a_dry_run_tells_what_would_happen_and_writes_nothing(
    source: BrainManager, target: BrainManager
) -> None:
    a_family(source)
    report = copy(source, target, dry_run=True)
    assert report.dry_run
    assert (len(report.copied), report.sent_bytes) == (3, 0)
    assert keys(target.zoo.store) == []
    assert copy(source, target).sent_bytes == report.planned_bytes
    source.alias("base:1", "prod")
    before = keys(target.zoo.store)
    assert "moved" in statuses(copy(source, target, aliases=True, dry_run=True)).values()
    assert keys(target.zoo.store) == before


def test_only_missing_blobs_travel(source: BrainManager, target: BrainManager) -> None:
    shared = np.arange(300_000, dtype=np.float32)
    source.save("ppo", {"trunk": shared, "head": np.float32([1])})
    copy(source, target)
    source.save("ppo", {"trunk": shared, "head": np.float32([2])})
    watched = WrappedStore(target.zoo.store)
    with BrainManager(watched) as again:
        report = copy(source, again)
    assert len(blob_puts(watched)) == 1
    assert report.sent_bytes == report.planned_bytes < 1000


def test_only_missing_blobs_travel_to_a_bucket_too(tmp_path: Path) -> None:
    remote = WrappedStore(MemoryStore(), is_remote=True)
    with BrainManager(tmp_path / "a") as source, BrainManager(remote) as target:
        source.save("ppo", params(1))
        source.save("ppo", params(1))
        copy(source, target)
        assert len(blob_puts(remote)) == 1


def test_blobs_come_before_manifests_parents_before_children_and_pointers_last(
    source: BrainManager,
) -> None:
    a_family(source)
    source.save("base", params(1), parents="a_fusion:1")
    # What is put, in the order in which it is done, not begun.
    puts: list[str] = []

    def around(call: Any, proceed: Any) -> Any:
        if call.step == "put manifest" and call.key == manifest_key(Name("base"), 1):
            time.sleep(0.2)
        result = proceed()
        if call.method == "put":
            puts.append(call.key)
        return result

    watched = WrappedStore(MemoryStore(), around)
    with BrainManager(watched) as target:
        copy(source, target)
        finish(target)
    order = {key: place for place, key in reversed(list(enumerate(puts)))}
    manifests = [key for key in puts if key.endswith("manifest.json")]
    assert len(manifests) == 4
    for child, parent in [("a_child", "base"), ("a_fusion", "a_child")]:
        assert order[manifest_key(Name(parent), 1)] < order[manifest_key(Name(child), 1)]
    assert order[manifest_key(Name("a_fusion"), 1)] < order[manifest_key(Name("base"), 2)]
    intents = [place for key, place in order.items() if key.startswith("intents/")]
    blobs = [place for key, place in order.items() if key.startswith("blobs/")]
    assert max(intents) < min(blobs)
    assert max(blobs) < min(order[key] for key in manifests)
    for name in ("base", "a_child", "a_fusion"):
        assert order[f"models/{name}/refs/latest.json"] > order[manifest_key(Name(name), 1)]


def test_a_sync_that_died_goes_on_with_what_is_missing(source: BrainManager) -> None:
    for seed in range(6):
        source.save("ppo", params(seed))
    inner = MemoryStore()
    with BrainManager(inner) as target:
        target.init()
    failing = WrappedStore(inner, failing_after_blobs(3))
    target = BrainManager(failing)
    with pytest.raises(StoreUnavailable) as error:
        copy(source, target)
    assert "run it again" in error.value.__notes__[0]
    there = sum(parse_blob_key(key) is not None for key in keys(inner))
    assert 3 <= there < 6
    watched = WrappedStore(inner)
    with BrainManager(watched) as target:
        assert len(copy(source, target).copied) == 6
        assert len(blob_puts(watched)) == 6 - there
        assert fsck(target.zoo) == []


def failing_after_blobs(count: int) -> Any:
    seen: list[str] = []

    def around(call: Any, proceed: Any) -> Any:
        if call.step == "put blob":
            seen.append(call.key)
            if len(seen) > count:
                raise StoreUnavailable("the cable was pulled")
        return proceed()

    return around


@pytest.mark.parametrize("after", [False, True])
def test_a_sync_killed_at_any_call_is_finished_by_the_next(after: bool) -> None:
    source = BrainManager(MemoryStore())
    a_family(source)
    source.save("base", params(8))
    start = MemoryStore()
    with BrainManager(start) as target:
        target.init()
    at = 0
    while True:
        inner = memory_copy(start)
        dying = CrashingStore(inner, at, after=after)
        target = BrainManager(dying)
        with contextlib.suppress(Crash):
            copy(source, target)
        if not dying.has_crashed:
            break
        with BrainManager(inner) as target:
            for full_name in target.list_models():
                target.load(full_name, as_numpy=True)
            copy(source, target)
            assert target.list_models() == source.list_models()
            found = [each for each in fsck(target.zoo) if not each.is_harmless]
            assert found == [], f"killed at call {at}"
        at += 7 if at > 40 else 1
    assert at > 20


def test_another_version_of_the_same_number_is_a_conflict_and_stays(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("ppo", params(1))
    source.save("ppo", params(2))
    target.save("ppo", params(3))
    mine = target.resolve("ppo:1")
    report = copy(source, target)
    assert statuses(report) == {"ppo:1": "conflict", "ppo:2": "copied"}
    assert report.conflicts[0].version == 1
    assert target.resolve("ppo:1") == mine


def test_what_was_deleted_at_the_target_stays_deleted(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("ppo", params(1))
    copy(source, target)
    target.delete("ppo:1", why="too bold")
    report = copy(source, target)
    assert statuses(report) == {"ppo:1": "skipped"}
    assert "too bold" in report.outcomes[0].detail
    assert target.list_models() == []


def test_a_number_that_another_version_had_is_a_conflict_even_when_deleted(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("ppo", params(1))
    target.save("ppo", params(2))
    target.delete("ppo:1")
    assert statuses(copy(source, target)) == {"ppo:1": "conflict"}


def put_fence(zoo: BrainManager, name: str, number: int) -> None:
    fence = Tombstone(
        name=Name(name), version=number, write_id=new_ulid(), generation=1, at=now(), by="gc"
    )
    zoo.zoo.store.put(manifest_key(Name(name), number), fence.encode(), expect=ABSENT)


def test_a_number_that_a_collection_closed_is_taken(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("ppo", params(1))
    target.init()
    put_fence(target, "ppo", 1)
    assert fsck(target.zoo) == []
    assert statuses(copy(source, target)) == {"ppo:1": "copied"}
    assert target.list_models() == ["ppo_v1"]
    assert fsck(target.zoo) == []


def test_a_fence_that_appears_meanwhile_needs_a_new_intent(source: BrainManager) -> None:
    source.save("ppo", params(1))
    inner = MemoryStore()
    with BrainManager(inner) as plain:
        plain.init()
        fenced: list[bool] = []

        def around(call: Any, proceed: Any) -> Any:
            if call.step == "put manifest" and not fenced:
                fenced.append(True)
                put_fence(plain, "ppo", 1)
            return proceed()

        watched = WrappedStore(inner, around)
        with BrainManager(watched) as target:
            assert statuses(copy(source, target)) == {"ppo:1": "copied"}
    assert watched.steps().count("put intent") == 2


def test_deletions_travel_only_when_asked_for(source: BrainManager, target: BrainManager) -> None:
    a_family(source)
    copy(source, target)
    for ref in ("a_fusion:1", "a_child:1"):
        source.delete(ref, why="old")
    assert set(statuses(copy(source, target)).values()) == {"present"}
    assert len(target.list_models()) == 3
    planned = copy(source, target, delete=True, dry_run=True)
    assert len(target.list_models()) == 3
    report = copy(source, target, delete=True)
    assert statuses(report) == statuses(planned)
    # The fusion first, because it needs the child.
    assert [str(each.name) for each in report.outcomes if each.status == "deleted"] == [
        "a_fusion",
        "a_child",
    ]
    assert target.list_models() == ["base_v1"]
    assert fsck(target.zoo) == []
    assert statuses(copy(source, target, "a_child:1", delete=True)) == {}


def test_a_deletion_that_an_alias_forbids_is_a_conflict(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("ppo", params(1))
    copy(source, target)
    target.alias("ppo:1", "prod")
    source.delete("ppo:1")
    report = copy(source, target, delete=True)
    assert statuses(report) == {"ppo:1": "conflict"}
    assert "prod" in report.conflicts[0].detail
    assert target.list_models() == ["ppo_v1"]


def test_aliases_travel_only_when_asked_for_and_only_forward(
    source: BrainManager, target: BrainManager
) -> None:
    for seed in (1, 2, 3):
        source.save("ppo", params(seed))
    source.alias("ppo:1", "prod")
    copy(source, target)
    assert target.aliases("ppo") == {"latest": 3}
    copy(source, target, aliases=True)
    assert target.aliases("ppo") == {"latest": 3, "prod": 1}
    source.alias("ppo:2", "prod")
    assert "moved" in [each.status for each in copy(source, target, aliases=True).outcomes]
    assert target.aliases("ppo")["prod"] == 2
    target.alias("ppo:3", "prod")
    source.alias("ppo:1", "prod")
    report = copy(source, target, aliases=True)
    assert report.conflicts[0].detail == "ppo:prod names version 3 there"
    assert target.aliases("ppo")["prod"] == 3
    assert fsck(target.zoo) == []


def test_an_alias_removed_at_the_source_is_removed_with_delete(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("ppo", params(1))
    source.alias("ppo:1", "prod")
    copy(source, target, aliases=True)
    source.unalias("ppo", "prod")
    copy(source, target, aliases=True)
    assert target.aliases("ppo")["prod"] == 1
    copy(source, target, aliases=True, delete=True)
    assert target.aliases("ppo") == {"latest": 1}
    target.alias("ppo:1", "canary")
    source.alias("ppo:1", "prod")
    copy(source, target, aliases=True, delete=True)
    assert target.aliases("ppo") == {"latest": 1, "prod": 1, "canary": 1}


def overwrite(store: Store, key: str, body: bytes) -> None:
    store.delete(key)
    store.put(key, body, expect=ABSENT)


def test_a_damaged_blob_of_the_source_is_refused_and_the_others_travel(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("bad", params(1))
    source.save("good", params(2))
    (digest,) = source.manifest("bad").blobs
    key = f"blobs/{digest.hex[:2]}/{digest.hex}"
    found = source.zoo.store.get(key)
    assert found is not None
    overwrite(source.zoo.store, key, found.body[:-1] + bytes([found.body[-1] ^ 1]))
    report = copy(source, target)
    assert statuses(report) == {"bad:1": "failed", "good:1": "copied"}
    assert "hashes to" in report.failed[0].detail
    assert key not in keys(target.zoo.store)
    assert fsck(target.zoo) == []


def test_a_damaged_manifest_of_the_source_is_told_and_the_others_travel(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("bad", params(1))
    source.save("good", params(2))
    overwrite(source.zoo.store, manifest_key(Name("bad"), 1), b'{"format":1')
    assert statuses(copy(source, target)) == {"bad:1": "failed", "good:1": "copied"}


def test_a_pull_by_reference_mends_a_zoo_that_lost_a_blob(
    source: BrainManager, target: BrainManager
) -> None:
    a_family(source)
    copy(source, target)
    (digest,) = source.manifest("base:1").blobs
    target.zoo.store.delete(f"blobs/{digest.hex[:2]}/{digest.hex}")
    assert [finding.kind for finding in fsck(target.zoo)] == ["blob-missing"]
    assert statuses(target.pull(source, ["base:1"])) == {"base:1": "present"}
    assert fsck(target.zoo) == []


def test_two_syncs_into_one_target_at_once_agree(
    source: BrainManager, stores: tuple[Any, Any]
) -> None:
    a_family(source)
    for seed in range(10):
        source.save("ppo", params(seed))

    def run(_: int) -> SyncReport:
        with BrainManager(stores[1]) as target:
            return copy(source, target)

    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(run, range(3)))
    for report in reports:
        assert set(statuses(report).values()) <= {"copied", "present"}
    with BrainManager(stores[1]) as target:
        assert target.list_models() == source.list_models()
        assert fsck(target.zoo) == []


def test_the_source_may_go_on_saving_into_a_zoo_that_has_saves_of_its_own(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("ppo", params(1))
    target.save("mine", params(2))
    copy(source, target)
    assert target.save("ppo", params(3)) == "ppo_v2"
    source.save("ppo", params(4))
    assert statuses(copy(source, target)) == {"ppo:1": "present", "ppo:2": "conflict"}


def test_a_restored_version_travels_as_the_manifest_that_it_was(
    source: BrainManager, target: BrainManager
) -> None:
    source.save("ppo", params(1))
    before = source.resolve("ppo:1")
    source.delete("ppo:1")
    source.undelete("ppo:1")
    copy(source, target)
    assert target.resolve("ppo:1") == before
    assert fsck(target.zoo) == []


def test_progress_tells_bytes_and_versions_and_ends_with_all(
    source: BrainManager, target: BrainManager
) -> None:
    a_family(source)
    steps: list[Step] = []
    report = copy(source, target, progress=steps.append)
    last = steps[-1]
    assert (last.done_versions, last.total_versions) == (3, 3)
    assert last.done_bytes == last.total_bytes == report.sent_bytes
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)


def test_many_versions_go_in_batches_under_an_intent_each(source: BrainManager) -> None:
    for seed in range(40):
        source.save("ppo", {"w": np.float32([seed])})
    watched = WrappedStore(MemoryStore())
    with BrainManager(watched) as target:
        assert len(copy(source, target).copied) == 40
        finish(target)
        assert watched.steps().count("put intent") == 2
        assert not keys(watched, "intents/")
        assert target.zoo.registry.pointers.pointer(Name("ppo"), Alias("latest")) is not None


def test_a_manifest_that_pins_itself_and_far_lineages_are_put_in_order() -> None:
    from brainstore.sync.plan import Item, in_order
    from brainstore.versions import Version

    digest, name = Digest.of(b""), Name("ppo")
    versions = [Version(name, number, digest) for number in range(1, 5001)]
    items = {(name, v.version): Item(v, (child,), {}) for v, child in pairwise(versions)}
    items[name, 5000] = Item(versions[-1], (versions[-1], versions[0]), {})
    assert [item.version.version for item in in_order(items)] == list(range(5000, 0, -1))


def test_push_and_pull_go_to_a_bucket_and_back(tmp_path: Path, s3_place: S3Place) -> None:
    options = s3_place.storage_options
    with (
        BrainManager(tmp_path / "here") as here,
        BrainManager(s3_place.url, storage_options=options) as bucket,
        BrainManager(tmp_path / "there") as there,
    ):
        a_family(here)
        here.save("large", {"w": np.arange(3_000_000, dtype=np.float32)})
        here.alias("base:1", "prod")
        assert len(here.push(bucket, aliases=True).copied) == 4
        assert fsck(bucket.zoo) == []
        assert here.push(bucket).sent_bytes == 0
        assert len(there.pull(bucket, aliases=True).copied) == 4
        assert there.aliases("base") == {"latest": 1, "prod": 1}
        assert {n: there.resolve(n) for n in here.list_models()} == {
            n: here.resolve(n) for n in here.list_models()
        }
        assert fsck(there.zoo) == []
