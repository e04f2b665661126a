"""The verbs gc and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import ok, parsed, refused, run
from zoos import finish, opened, params

from brainstore import BrainManager


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrainManager]:
    """ppo:1 (prod), 3 and 4 are live, 2 is deleted."""
    monkeypatch.setenv("BRAINSTORE_ZOO", str(tmp_path / "zoo"))
    with opened(tmp_path / "zoo") as manager:
        for seed in (1, 2, 3, 4):
            manager.save("ppo", params(seed))
        manager.alias("ppo:1", "prod")
        manager.delete("ppo:2")
        finish(manager)
        yield manager


def test_gc_shows_its_plan_and_does_nothing(zoo: BrainManager) -> None:
    (blob,) = (each.digest for each in zoo.gc(older_than=0).blobs)
    for arguments in ([], ["--dry-run"]):
        assert ok("gc", "--older-than", "0", *arguments).splitlines() == [
            f"would be removed: {blob} 352 B",
            "1 blob of garbage, 352 B, would be removed; 3 blobs stay, 1.1 kB",
            "nothing was changed; to do it, add --yes",
        ]
    assert ok("gc").splitlines() == [
        "0 blobs of garbage, 0 B, would be removed; 4 blobs stay, 1.4 kB"
    ]
    assert len(list(zoo.zoo.store.list("blobs/"))) == 4


def test_gc_does_it_when_told_to(zoo: BrainManager) -> None:
    assert "1 blob of garbage, 352 B, removed" in ok("gc", "--older-than", "0s", "-y")
    assert len(list(zoo.zoo.store.list("blobs/"))) == 3
    assert "cannot come back" in refused(3, "undelete", "ppo:2")


def test_gc_keeps_the_last_and_what_an_alias_names(zoo: BrainManager) -> None:
    assert ok("gc", "--keep-last", "1").splitlines()[:2] == [
        "would be deleted: ppo:3",
        "kept: ppo:1, for ppo:prod names it",
    ]
    ok("gc", "--keep-last", "1", "--yes")
    assert zoo.list_models() == ["ppo_v1", "ppo_v4"]
    ok("undelete", "ppo:3")
    zoo.alias("ppo:3", "prod")
    zoo.alias("ppo:4", "prod")
    plan = parsed("gc", "--keep-last", "1", "--keep-alias", "prod")
    assert plan["deleted"] == []
    assert {each["full_name"] for each in plan["kept"]} == {"ppo_v1", "ppo_v3"}


def test_gc_tells_all_as_json(zoo: BrainManager) -> None:
    found = parsed("gc", "--older-than", "0", "--keep-last", "2")
    assert list(found) == [
        "dry_run", "deleted", "kept", "blobs", "leftovers", "intents", "size_bytes",
        "live_blobs", "live_bytes",
    ]  # fmt: skip
    assert found["dry_run"]
    assert list(found["blobs"][0]) == ["digest", "size_bytes"]
    assert list(found["kept"][0]) == ["full_name", "name", "version", "digest", "why"]


def test_much_garbage_is_shown_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINSTORE_ZOO", str(tmp_path / "zoo"))
    with opened(tmp_path / "zoo") as zoo:
        for seed in range(23):
            zoo.save("ppo", params(seed))
        for seed in range(22):
            zoo.delete(f"ppo:{seed + 1}")
    lines = ok("gc", "--older-than", "0").splitlines()
    assert len(lines) == 23
    assert lines[20] == "… and 2 more; -v shows all"
    assert len(ok("gc", "--older-than", "0", "-v").splitlines()) == 24


@pytest.mark.parametrize(
    "arguments",
    [
        ["--yes", "--dry-run"],
        ["--older-than", "soon"],
        ["--keep-last", "0"],
        ["--keep-alias", "prod"],
    ],
)
def test_gc_refuses_what_makes_no_sense(zoo: BrainManager, arguments: list[str]) -> None:
    result = run("gc", *arguments)
    assert result.exit_code == 2
    assert "rror: " in result.stderr


def test_gc_says_that_another_is_under_way(zoo: BrainManager) -> None:
    with zoo.zoo.store.sole("blobs/"):
        assert "holds the lock" in refused(4, "gc", "--yes")


def test_gc_refuses_damage_and_a_place_that_is_no_zoo(zoo: BrainManager, tmp_path: Path) -> None:
    (tmp_path / "zoo/models/ppo/v1/manifest.json").write_text("{")
    assert "fsck" in refused(5, "gc")
    assert "no zoo" in refused(3, "gc", "--zoo", tmp_path)


def test_why_tells_what_keeps_a_blob(zoo: BrainManager) -> None:
    (blob,) = zoo.manifest("ppo:1").blobs
    assert ok("why", blob[:15]).splitlines() == [
        f"{blob}  352 B",
        "  version ppo:1: params: dense/bias, params: dense/kernel",
        "it stays: 1 record names it",
    ]
    found = parsed("why", blob)
    assert list(found) == ["digest", "size_bytes", "age_s", "reasons", "verdict"]
    assert found["reasons"][0] == {
        "by": "version", "where": "ppo:1", "what": "params: dense/bias",
    }  # fmt: skip


def test_why_refuses_what_it_does_not_know(zoo: BrainManager) -> None:
    assert "no blob" in refused(3, "why", "12345678")
    assert "expected 'blake3:'" in refused(2, "why", "ppo:1")
