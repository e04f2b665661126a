"""Whatever an enemy makes of an object of a zoo: errors of the tree, and nothing else lost."""

from __future__ import annotations

import functools
import itertools
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
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
from brainstore.fsck import check as checking
from brainstore.fsck import fsck
from brainstore.garbage import collect, why
from brainstore.garbage.collector import DAY_S
from brainstore.storage.base import Store
from brainstore.storage.local import LocalStore
from brainstore.storage.memory import MemoryStore

# What a changed record or tree tells of its experts need not be so.
pytestmark = pytest.mark.filterwarnings("ignore:.*leaf by leaf:UserWarning")

LIVE = ["ppo:1", "ppo:2", "ppo:4", "ppo:5", "team/nav:1", "whole:1", "cut:1"]
KEYS = [stat.key for stat in small_zoo().list("")]


@pytest.fixture(autouse=True)
def second_look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody saves meanwhile whom fsck would have to wait for.
    monkeypatch.setattr(checking, "SECOND_LOOK_S", 0)


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
    return fsck(zoo.zoo, repair=repair)


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
    "export": lambda zoo: into_a_folder(zoo.export_all),
    "import": lambda zoo: into_a_folder(lambda folder: zoo.import_zoo(written(folder))),
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


def check_collecting(store: MemoryStore, key: str, *, repair: bool) -> None:
    """Nothing that a version names, or named before its record was changed, is removed.

    With `repair`, not after a repair either.
    """
    if repair:
        with opened(store) as zoo:
            findings(zoo, repair=True)
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


def mutate(store: Store, seed: int, key: str) -> None:
    store.put(key, mutated(random.Random(seed), small_zoo(), key))


def copy_in_memory(name: str) -> MemoryStore:
    """Return a copy of the small zoo that the command line finds as well."""
    store = MemoryStore(name)
    store._shelf.objects.clear()
    store._shelf.objects.update(small_zoo()._shelf.objects)
    return store


def copy_on_disk(folder: Path) -> LocalStore:
    store = LocalStore(folder)
    for stat in small_zoo().list(""):
        store.put(stat.key, small_zoo().get(stat.key).body)  # type: ignore[union-attr]  # listed
    return store


def check(seed: int) -> None:
    """Change one object of a copy, and do one thing or the other with it."""
    choose = random.Random(seed)
    key = choose.choice(KEYS)
    store = copy_in_memory("fuzz")
    mutate(store, seed, key)
    before = all_of(store)[key]
    kind = choose.choice(["read", "change", "change", "collect", "collect", "verb", "verb"])
    try:
        if kind == "read":
            check_reading(store, key)
        elif kind == "change":
            check_changing(store, key, choose.choice(list(CHANGES)))
        elif kind == "collect":
            check_collecting(store, key, repair=choose.random() < 0.5)
        else:
            check_verb(store, choose.choice(VERBS))
    except BaseException as error:
        # The zoo has times and random names in it: the seed alone does not bring this back.
        error.add_note(f"seed {seed}, {kind}: {key} was {before!r}")
        raise


SEEDS = st.integers(0, 2**32)
patient = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(patient, max_examples=120)
@given(seed=SEEDS)
def test_a_zoo_with_one_changed_object_is_used(seed: int) -> None:
    check(seed)


@pytest.mark.soak
def test_a_zoo_with_any_changed_object_is_used(soak_s: float, tally: Callable[..., None]) -> None:
    deadline, inputs = time.monotonic() + soak_s, 0
    while time.monotonic() < deadline:
        check(random.getrandbits(32))
        inputs += 1
    tally("zoos with one object changed by an enemy", cases=inputs, lost=0)


def test_every_kind_of_object_is_changed() -> None:
    rooms = {key.partition("/")[0] for key in KEYS}
    assert rooms == {
        "blobs", "brainstore.json", "damaged", "gc", "intents", "journal", "models", "policy.json",
        "probe", "registry.json",
    }  # fmt: skip
    assert {key.rpartition("~")[0].split("~")[1] for key in KEYS if "~" in key} > {"save", "move"}
    assert any(zoo_key.endswith("refs/prod.json") for zoo_key in KEYS)


def check_on_disk(folder: Path, seeds: Iterable[int]) -> int:
    """Use zoos on disk, each with one object changed; what lies around them stays as it is."""
    used = 0
    for seed in seeds:
        choose = random.Random(seed)
        key = choose.choice(KEYS)
        store = copy_on_disk(folder / "zoo")
        mutate(store, seed, key)
        with opened(store) as zoo:
            for use in [*READS.values(), CHANGES[choose.choice(list(CHANGES))]]:
                attempt(functools.partial(use, zoo))
            attempt(lambda zoo=zoo: collect(zoo.zoo, dry_run=False, older_than_s=0, expiry_s=0))
        shutil.rmtree(folder / "zoo")
        used += 1
    return used


def around(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def canaries(tmp_path: Path) -> Path:
    """A folder where a zoo goes, with files of others beside and above it."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for place in (tmp_path, inner.parent, inner):
        for name in ("outside", "x", "planted.json", "registry.json"):
            (place / name).write_text("mine")
    return inner


def test_a_changed_object_on_disk_leads_nowhere(canaries: Path, tmp_path: Path) -> None:
    before = around(tmp_path)
    check_on_disk(canaries, range(6))
    assert around(tmp_path) == before


@pytest.mark.soak
def test_no_changed_object_on_disk_leads_anywhere(
    canaries: Path, tmp_path: Path, soak_s: float, tally: Callable[..., None]
) -> None:
    before = around(tmp_path)
    deadline = time.monotonic() + soak_s / 2
    seeds = iter(lambda: random.getrandbits(32), None)
    inputs = check_on_disk(
        canaries, itertools.takewhile(lambda _: time.monotonic() < deadline, seeds)
    )
    assert around(tmp_path) == before
    tally("zoos on disk with one object changed", cases=inputs, lost=0)


# What other programs wrote


@functools.cache
def plain_tree() -> dict[str, bytes]:
    """Return the files of the small zoo, as the original brain manager laid them out."""
    with opened(memory_copy(small_zoo())) as zoo, tempfile.TemporaryDirectory() as folder:
        zoo.export_all(Path(folder) / "plain")
        root = Path(folder) / "plain"
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and "latest" not in path.parts
        }


def written(folder: Path) -> Path:
    """Write the tree of plain files; return its folder."""
    for name, body in plain_tree().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder


def check_import(seed: int) -> None:
    files = MemoryStore()
    for name, body in plain_tree().items():
        files.put(name, body)
    choose = random.Random(seed)
    changed = choose.choice(sorted(plain_tree()))
    with tempfile.TemporaryDirectory() as folder, opened(MemoryStore()) as zoo:
        tree = written(Path(folder) / "plain")
        (tree / changed).write_bytes(mutated(choose, files, changed))
        attempt(lambda: zoo.import_zoo(tree))
        if changed.endswith(".safetensors"):
            attempt(lambda: zoo.import_file(tree / changed, "again"))


@settings(patient, max_examples=10)
@given(seed=SEEDS)
def test_a_changed_tree_of_files_is_imported_or_refused(seed: int) -> None:
    check_import(seed)


@pytest.mark.soak
def test_any_changed_tree_of_files_is_imported_or_refused(
    soak_s: float, tally: Callable[..., None]
) -> None:
    deadline, inputs = time.monotonic() + soak_s / 4, 0
    while time.monotonic() < deadline:
        check_import(random.getrandbits(32))
        inputs += 1
    tally("trees of plain files with one changed", cases=inputs, lost=0)
