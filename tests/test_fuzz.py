"""Whatever an enemy makes of an object of a zoo: errors of the tree, and nothing else lost."""

from __future__ import annotations

import functools
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import REPORT, mutated, small_zoo
from zoos import finish, memory_copy, opened, params, same

from brainstore import BrainManager, BrainstoreError
from brainstore.address import parse_manifest_key
from brainstore.fsck import check, fsck
from brainstore.garbage import collect, why
from brainstore.garbage.collector import DAY_S
from brainstore.storage.base import Store
from brainstore.storage.memory import MemoryStore

LIVE = ["ppo:1", "ppo:2", "ppo:4", "ppo:5", "team/nav:1", "whole:1", "cut:1"]
KEYS = [stat.key for stat in small_zoo().list("")]


@pytest.fixture(autouse=True)
def second_look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody saves meanwhile whom fsck would have to wait for.
    monkeypatch.setattr(check, "SECOND_LOOK_S", 0)


@functools.cache
def originals() -> dict[str, Any]:
    """Return all groups of each live version, as they were saved."""
    with opened(memory_copy(small_zoo())) as zoo:
        return {ref: zoo.load(ref, groups="all", as_numpy=True)[0] for ref in LIVE}


@functools.cache
def needed() -> dict[str, set[str]]:
    """Return the keys of the blobs of each live version."""
    with opened(memory_copy(small_zoo())) as zoo:
        return {
            ref: {f"blobs/{digest.hex[:2]}/{digest.hex}" for digest in zoo.manifest(ref).blobs}
            for ref in LIVE
        }


def unharmed(key: str) -> list[str]:
    """Return the versions that have nothing to do with the object."""
    name, number = parse_manifest_key(key) or ("", 0)
    return [ref for ref in LIVE if ref != f"{name}:{number}" and key not in needed()[ref]]


def target_of(ref: str) -> Any:
    return originals()[ref]["params"]


def findings(zoo: BrainManager, *, repair: bool = False) -> Any:
    return fsck(zoo.zoo, deep=True, repair=repair)


Use = Callable[[BrainManager], Any]

READS: dict[str, Use] = {
    "load": lambda zoo: [attempt(lambda ref=ref: zoo.load(ref, as_numpy=True)) for ref in LIVE],
    "load latest": lambda zoo: zoo.load("ppo", groups="all", as_numpy=True, verify=True),
    "load prod": lambda zoo: zoo.load("ppo:prod", as_numpy=True),
    "load before": lambda zoo: zoo.load("ppo:best~1", as_numpy=True),
    "load part": lambda zoo: zoo.load("ppo:1#dense", as_numpy=True),
    "load by digest": lambda zoo: zoo.load(f"ppo@{digest_of('ppo:2')}", as_numpy=True),
    "load as": lambda zoo: zoo.load("ppo:1", target=target_of("ppo:1"), as_numpy=True),
    "load jax": lambda zoo: zoo.load("ppo:2"),
    "load stacked": lambda zoo: zoo.load_stacked(["ppo:1", "ppo:2"]),
    "resolve": lambda zoo: [attempt(lambda ref=ref: zoo.resolve(ref)) for ref in [*LIVE, "ppo"]],
    "manifest": lambda zoo: zoo.manifest("ppo:1"),
    "abstract": lambda zoo: zoo.abstract("ppo:1"),
    "file": lambda zoo: zoo.file("ppo:1", "notes"),
    "names": lambda zoo: zoo.list_models(),
    "latest": lambda zoo: [zoo.get_latest("ppo"), zoo.get_latest("team/nav")],
    "registry": lambda zoo: zoo.registry,
    "table": lambda zoo: [zoo.table(), zoo.table(where={"metrics.return": 1.5}), zoo._repr_html_()],
    "best": lambda zoo: zoo.best("ppo", "return"),
    "aliases": lambda zoo: zoo.aliases("ppo"),
    "history": lambda zoo: [zoo.history(), zoo.history("ppo")],
    "diff": lambda zoo: [zoo.diff("ppo:1", "ppo:2"), zoo.diff("ppo:4", "ppo:5")],
    "reports": lambda zoo: [zoo.reports("ppo:1"), zoo.reports("team/nav:1")],
    "policy": lambda zoo: zoo.policy(),
    "lineage": lambda zoo: zoo.lineage("ppo:2").text(),
    "prove": lambda zoo: zoo.prove("ppo:2"),
    "judge": lambda zoo: zoo.promote("ppo:1", "prod", dry_run=True),
    "why": lambda zoo: why(zoo.zoo, "blake3:" + min(needed()["ppo:1"])[9:]),
    "collect": lambda zoo: collect(zoo.zoo, older_than_s=0, expiry_s=0),
    "keep last": lambda zoo: collect(zoo.zoo, older_than_s=0, expiry_s=0, keep_last=1),
}
CHANGES: dict[str, Use] = {
    "save": lambda zoo: zoo.save("ppo", params(9), parents={"ppo:1": "fine_tuned"}),
    "save the same": lambda zoo: zoo.save("ppo", params(5)),
    "save another": lambda zoo: zoo.save("new", params(5)),
    "save after a fence": lambda zoo: zoo.save("team/nav", params(9)),
    "alias": lambda zoo: zoo.alias("ppo:4", "best"),
    "unalias": lambda zoo: zoo.unalias("ppo", "best"),
    "rollback": lambda zoo: zoo.rollback("ppo", "best"),
    "promote": lambda zoo: zoo.promote("ppo:1", "prod"),
    "report": lambda zoo: zoo.add_report("ppo:2", REPORT),
    "rules": lambda zoo: zoo.set_policy([]),
    "delete": lambda zoo: zoo.delete("whole:1"),
    "undelete": lambda zoo: zoo.undelete("ppo:3"),
    "fold": lambda zoo: zoo.zoo.registry.journal.fold(),
    "push": lambda zoo: zoo.push(MemoryStore()),
    "push all": lambda zoo: zoo.push(memory_copy(small_zoo()), aliases=True, delete=True),
    "pull": lambda zoo: zoo.pull(memory_copy(small_zoo()), aliases=True, delete=True),
    "import": lambda zoo: into_a_folder(lambda folder: zoo.export_all(folder)),
    "fsck": findings,
    "repair": functools.partial(findings, repair=True),
}
VERBS = [
    ["ls"], ["ls", "--json"], ["ls", "ppo", "--sort", "-metrics.return"],
    ["ls", "--where", "station=night"], ["show", "ppo"], ["show", "ppo:1", "--json"],
    ["show", "ppo:3"], ["log"], ["log", "--json"],
    ["diff", "ppo:1", "ppo:2"], ["diff", "ppo:4", "ppo:5", "--json"], ["lineage", "ppo:2"],
    ["lineage", "ppo:2", "--json"], ["gc"], ["gc", "--json"], ["fsck"], ["fsck", "--json"],
    ["report", "ls", "ppo:1"], ["policy", "show"],
]  # fmt: skip


def attempt(call: Callable[[], Any]) -> Any:
    """Return what the call returns, or its error, which must be one of the tree."""
    try:
        return call()
    except BrainstoreError as error:
        return error


@functools.cache
def digest_of(ref: str) -> str:
    with opened(memory_copy(small_zoo())) as zoo:
        return str(zoo.resolve(ref).digest)


def into_a_folder(call: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return call(Path(folder) / "plain")


def all_of(store: Store) -> dict[str, bytes]:
    return {stat.key: store.get(stat.key).body for stat in store.list("")}  # type: ignore[union-attr]  # listed


def assert_unharmed(zoo: BrainManager, key: str, but: str = "") -> None:
    """Every version that has nothing to do with the object loads as it was saved."""
    for ref in unharmed(key):
        if ref != but:
            assert same(zoo.load(ref, groups="all", as_numpy=True)[0], originals()[ref])


def assert_as_saved_or_refused(zoo: BrainManager) -> None:
    """What a digest names is what was saved, or an error."""
    for ref in LIVE:
        pinned = f"{ref}@{digest_of(ref)}"
        found = attempt(lambda pinned=pinned: zoo.load(pinned, groups="all", as_numpy=True))
        assert isinstance(found, BrainstoreError) or same(found[0], originals()[ref])


def check_reading(store: Store, key: str) -> None:
    before = all_of(store)
    with opened(store) as zoo:
        for read in READS.values():
            attempt(functools.partial(read, zoo))
        assert_unharmed(zoo, key)
        assert_as_saved_or_refused(zoo)
        assert not isinstance(attempt(lambda: findings(zoo)), BrainstoreError)
    assert all_of(store) == before


def check_changing(store: Store, key: str, change: str) -> None:
    with opened(store) as zoo:
        told = attempt(functools.partial(CHANGES[change], zoo))
        finish(zoo)
        gone = "whole:1" if change == "delete" else ""
        assert_unharmed(zoo, key, gone)
        if change in ("save", "save another") and key.startswith(("journal/", "registry.json")):
            assert isinstance(told, str)
        if change in ("fsck", "repair"):
            assert not isinstance(told, BrainstoreError)
    if change == "repair":
        with opened(store) as zoo:
            assert_unharmed(zoo, key)


def check_collecting(store: MemoryStore, key: str) -> None:
    """Nothing that a version names, or named before its record was changed, is removed."""
    before = all_of(store)
    for other, (body, _) in store._shelf.objects.items():
        store._shelf.objects[other] = body, time.time() - (0 if other == key else 3 * DAY_S)
    with opened(store) as zoo:
        told = attempt(lambda: collect(zoo.zoo, dry_run=False))
        after = all_of(store)
        removed = {each for each in before.keys() - after.keys() if each.startswith("blobs/")}
        if isinstance(told, BrainstoreError):
            assert not removed
        assert not removed & set().union(*needed().values())
        assert_unharmed(zoo, key)


def check_verb(store: Store, verb: list[str]) -> None:
    before = all_of(store)
    assert run("--zoo", store.url, *verb).exit_code in range(8)
    assert all_of(store) == before


def mutate(store: MemoryStore, seed: int, key: str) -> None:
    store.put(key, mutated(random.Random(seed), small_zoo(), key))


SEEDS = st.integers(0, 2**32)
patient = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(patient, max_examples=25)
@given(seed=SEEDS, key=st.sampled_from(KEYS))
def test_a_zoo_with_one_changed_object_is_read(seed: int, key: str) -> None:
    store = memory_copy(small_zoo())
    mutate(store, seed, key)
    check_reading(store, key)


@settings(patient, max_examples=60)
@given(seed=SEEDS, key=st.sampled_from(KEYS), change=st.sampled_from(list(CHANGES)))
def test_a_zoo_with_one_changed_object_is_changed(seed: int, key: str, change: str) -> None:
    store = memory_copy(small_zoo())
    mutate(store, seed, key)
    check_changing(store, key, change)


@settings(patient, max_examples=60)
@given(seed=SEEDS, key=st.sampled_from(KEYS))
def test_a_collection_removes_nothing_because_one_object_changed(seed: int, key: str) -> None:
    store = memory_copy(small_zoo())
    mutate(store, seed, key)
    check_collecting(store, key)
