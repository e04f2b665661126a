"""Who did what, in the order in which it was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from zoos import WrappedStore

from brainstore import records
from brainstore.address import Name, manifest_key, new_ulid
from brainstore.cache import Cache
from brainstore.errors import NotFound
from brainstore.manager import BrainManager
from brainstore.records import Tombstone
from brainstore.storage.base import ABSENT
from brainstore.storage.memory import MemoryStore

PARAMS = {"w": jnp.ones(2)}


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    ticks = iter(range(10**6))

    def now() -> str:
        return f"2026-01-01T00:00:{next(ticks) / 1000:06.3f}Z"

    for room in ("drafts", "deletion", "pointers", "records"):
        monkeypatch.setattr(f"brainstore.{room}.now", now)
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


def told(zoo: BrainManager, name: str | None = None) -> list[tuple[str, str, str]]:
    return [(each.what, each.ref, each.why) for each in zoo.history(name)]


def break_object(tmp_path: Path, key: str) -> None:
    path = tmp_path / "brains" / key
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])


def test_the_story_of_a_model_is_told_in_order(zoo: BrainManager) -> None:
    zoo.save("a", PARAMS)
    zoo.alias("a:1", "prod", why="good")
    zoo.save("a", PARAMS)
    zoo.alias("a:2", "prod", why="better")
    zoo.rollback("a", "prod")
    zoo.save("a", PARAMS, aliases=["candidate"])
    zoo.unalias("a", "candidate")
    zoo.delete("a:3", why="broken")
    assert told(zoo, "a") == [
        ("saved", "a:1", ""),
        ("moved nothing → 1", "a:prod", "good"),
        ("saved", "a:2", ""),
        ("moved 1 → 2", "a:prod", "better"),
        ("moved 2 → 1", "a:prod", "rolled back"),
        ("saved", "a:3", ""),
        ("moved nothing → 3", "a:candidate", "set by the save"),
        ("removed", "a:candidate", ""),
        ("deleted", "a:3", "broken"),
        ("moved 3 → 2", "a:latest", ""),
    ]
    move = zoo.history("a")[3]
    assert (move.from_version, move.to_version) == (1, 2)
    assert all(each.by for each in zoo.history())


def test_a_restored_version_was_saved_and_restored(zoo: BrainManager) -> None:
    zoo.save("a", PARAMS)
    zoo.save("a", PARAMS)
    zoo.delete("a:1")
    zoo.undelete("a:1")
    assert told(zoo) == [("saved", "a:1", ""), ("saved", "a:2", ""), ("restored", "a:1", "")]


def test_a_model_of_which_all_is_deleted_has_a_history(zoo: BrainManager) -> None:
    zoo.save("a", PARAMS)
    zoo.delete("a:1")
    assert told(zoo, "a") == [
        ("saved", "a:1", ""),
        ("deleted", "a:1", ""),
        ("removed", "a:latest", ""),
    ]


def test_models_are_told_apart_and_together(zoo: BrainManager) -> None:
    zoo.save("a/b", PARAMS)
    zoo.save("a", PARAMS)
    zoo.save("ab", PARAMS)
    assert told(zoo, "a") == [("saved", "a:1", "")]
    assert told(zoo, "a/b") == [("saved", "a/b:1", "")]
    assert [ref for _, ref, _ in told(zoo)] == ["a/b:1", "a:1", "ab:1"]


def test_an_unknown_model_is_not_found_with_near_names(zoo: BrainManager) -> None:
    zoo.save("swarm", PARAMS)
    with pytest.raises(NotFound, match="swarm"):
        zoo.history("swarn")


def test_an_empty_place_has_no_history(zoo: BrainManager) -> None:
    assert zoo.history() == []
    with pytest.raises(NotFound):
        zoo.history("a")


def test_damaged_records_are_told_of_and_the_rest_too(zoo: BrainManager, tmp_path: Path) -> None:
    for _ in range(3):
        zoo.save("a", PARAMS)
    zoo.alias("a:1", "prod")
    break_object(tmp_path, "models/a/v2/manifest.json")
    break_object(tmp_path, "models/a/refs/prod.json")
    found = zoo.history("a")
    assert {each.ref for each in found if each.what == "unreadable"} == {"a:prod", "a:2"}
    assert [each.ref for each in found if each.what == "saved"] == ["a:1", "a:3"]
    assert all("fsck" in each.why and each.at for each in found if each.what == "unreadable")


@pytest.mark.parametrize("target", [2, 9])
def test_a_report_that_was_carried_to_other_content_is_not_told_as_its_own(
    zoo: BrainManager, tmp_path: Path, target: int
) -> None:
    zoo.save("a", PARAMS)
    zoo.save("a", {"w": jnp.zeros(2)})
    filed = zoo.add_report("a:1", {"station": "s3", "checks": ["return=1>0"]})
    models = tmp_path / "brains" / "models/a"
    body = (models / f"v1/reports/{filed.id}.json").read_text()
    carried = models / f"v{target}/reports/{filed.id}.json"
    carried.parent.mkdir(parents=True)
    carried.write_text(body.replace('"version": 1', f'"version": {target}'))
    found = [each for each in zoo.history("a") if each.what != "saved"]
    assert {(each.what, each.ref) for each in found} == {
        ("reported s3 passed", "a:1"),
        ("unreadable", f"a:{target}"),
    }


def test_reports_on_a_deleted_version_are_told_still(zoo: BrainManager) -> None:
    zoo.save("a", PARAMS)
    zoo.add_report("a:1", {"station": "s3", "checks": ["return=1>0"]})
    zoo.delete("a:1")
    assert ("reported s3 passed", "a:1", "return 1 > 0") in told(zoo, "a")


def test_a_tombstone_around_a_damaged_manifest_still_tells_of_the_deletion(
    zoo: BrainManager, tmp_path: Path
) -> None:
    zoo.save("a", PARAMS)
    zoo.delete("a:1", why="old")
    path = tmp_path / "brains/models/a/v1/manifest.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"groups"', b'"graups"'))
    found = [(what, ref) for what, ref, _ in told(zoo, "a") if ref == "a:1"]
    assert found == [("unreadable", "a:1"), ("deleted", "a:1")]


def test_a_number_that_a_collection_closed_is_told_as_such(zoo: BrainManager) -> None:
    zoo.save("a", PARAMS)
    fence = Tombstone(
        name=Name("a"), version=2, write_id=new_ulid(), generation=1, at=records.now(), by="gc"
    )
    zoo.zoo.store.put(manifest_key(Name("a"), 2), fence.encode(), expect=ABSENT)
    assert told(zoo, "a") == [("saved", "a:1", ""), ("closed", "a:2", "")]


def test_objects_of_others_among_the_models_are_passed_over(
    zoo: BrainManager, tmp_path: Path
) -> None:
    zoo.save("a", PARAMS)
    for key in ("models/A B/v1/manifest.json", "models/a/v1/notes.txt", "models/a/refs/V1.json"):
        path = tmp_path / "brains" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert told(zoo) == [("saved", "a:1", "")]


def test_a_happening_reads_as_a_line(zoo: BrainManager) -> None:
    zoo.save("a", PARAMS)
    zoo.delete("a:1", why="old")
    lines = [str(each) for each in zoo.history("a")]
    assert lines[1].endswith("  a:1 deleted (old)")


def test_the_story_is_told_offline_as_it_was_read_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = WrappedStore(MemoryStore(), is_remote=True)
    for rules in (None, [{"alias": "prod", "stations": ["s3"]}]):
        with BrainManager(store, cache=Cache(tmp_path)) as zoo:
            zoo.save("a", PARAMS, report={"station": "s3"})
            if rules:
                zoo.set_policy(rules, why="why not")
            online = zoo.history()
            with monkeypatch.context() as patch:
                patch.setenv("BRAINSTORE_OFFLINE", "1")
                assert zoo.history() == online
