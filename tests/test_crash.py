"""Stopping the world anywhere: what is left is whole, and the next save goes on from it."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from zoos import crash, memory_copy, opened, params, read_raw, same

from brainstore import BrainManager, Conflict, NotFound
from brainstore.intents import finish_abandoned
from brainstore.storage.base import Store
from brainstore.storage.local import LocalStore
from brainstore.storage.memory import MemoryStore

MOST_CALLS = 60


@pytest.fixture(scope="module")
def three_versions() -> MemoryStore:
    """ppo:1 to ppo:3, of which 2 is deleted, `prod` on 1, and a fact not yet folded."""
    store = MemoryStore()
    with opened(store) as zoo:
        for seed in (1, 2, 3):
            zoo.save("ppo", params(seed))
        zoo.alias("ppo:1", "prod")
        zoo.delete("ppo:2")
        fold, zoo.zoo.committer.tidy = zoo.zoo.committer.tidy, lambda: None
        zoo.alias("ppo:3", "candidate")
        zoo.zoo.committer.tidy = fold
    return store


WORK: dict[str, Callable[[BrainManager], object]] = {
    "save": lambda zoo: zoo.save("ppo", params(4)),
    "save of what is there": lambda zoo: zoo.save("ppo", params(3)),
    "save of another": lambda zoo: zoo.save("team/other", params(4), aliases=["prod"]),
    "alias": lambda zoo: zoo.alias("ppo:3", "prod", expected=1),
    "move": lambda zoo: zoo.alias("ppo:3", "prod"),
    "new alias": lambda zoo: zoo.alias("ppo:3", "best"),
    "unalias": lambda zoo: zoo.unalias("ppo", "prod"),
    "delete newest": lambda zoo: zoo.delete("ppo:3", force=True),
    "delete aliased": lambda zoo: zoo.delete("ppo:1", force=True),
    "undelete": lambda zoo: zoo.undelete("ppo:2"),
    "fold": lambda zoo: zoo.zoo.registry.journal.fold(),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("work", WORK)
def test_the_world_stops_at_any_call(
    three_versions: MemoryStore, work: str, *, after: bool
) -> None:
    crashes = 0
    for at in range(MOST_CALLS):
        store = memory_copy(three_versions)
        if not crash(store, WORK[work], at, after=after):
            break
        crashes += 1
        assert_goes_on(store, acknowledged={("ppo", 1): 1, ("ppo", 3): 3})
    assert 2 < crashes < MOST_CALLS


def test_the_world_stops_while_a_zoo_is_made() -> None:
    for after in (False, True):
        crashes = 0
        for at in range(400):
            store = MemoryStore()
            if not crash(store, lambda zoo: zoo.save("ppo", params(1)), at, after=after):
                break
            crashes += 1
            # Racing probes are many and alike.
            if at < 30 or at > 90:
                assert_goes_on(store, acknowledged={})
        assert 10 < crashes < 400


def assert_goes_on(store: Store, acknowledged: dict[tuple[str, int], int]) -> None:
    """Every reader finds only whole versions; the next save is the next version and `latest`."""
    found = read_raw(store)
    assert found.problems == []
    with opened(store) as zoo:
        for name in zoo.list_models():
            model, number = name.rsplit("_v", 1)
            # A deletion that stopped half way may still be listed, and is seen to be deleted.
            if (model, int(number)) in found.deleted:
                with pytest.raises(NotFound, match="undelete"):
                    zoo.load(name)
                continue
            tree, _ = zoo.load(name, as_numpy=True, verify=True)
            seed = acknowledged.get((model, int(number)))
            assert seed is None or same(tree, params(seed))
        for (model, number), seed in acknowledged.items():
            if (model, number) not in found.deleted:
                assert same(zoo.load(model, number, as_numpy=True)[0], params(seed))
        zoo.zoo.registry.journal.fold()
        finish_abandoned(zoo.zoo.registry, older_than_s=-1)
        zoo.zoo.registry.journal.fold()
        taken = [n for model, n in [*found.live, *found.deleted] if model == "ppo"]
        assert zoo.save("ppo", params(77)) == f"ppo_v{max(taken, default=0) + 1}"
        assert zoo.get_latest("ppo") == f"ppo_v{max(taken, default=0) + 1}"
        assert same(zoo.load("ppo", as_numpy=True)[0], params(77))
        # What was committed is listed by now, whoever had to publish it. A restoration is
        # listed when it is done again, see below.
        listed = zoo.list_models()
        committed = set(found.live) - found.restored
        assert {f"{model}_v{number}" for model, number in committed} <= set(listed)
        assert all(zoo.table())
    assert read_raw(store).problems == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_what_stopped_half_way_is_finished_by_doing_it_again(
    three_versions: MemoryStore, *, after: bool
) -> None:
    for work in ("move", "new alias", "unalias", "delete newest", "delete aliased", "undelete"):
        expected = memory_copy(three_versions)
        with opened(expected) as zoo:
            WORK[work](zoo)
            names, table = zoo.list_models(), zoo.table()
        for at in range(MOST_CALLS):
            store = memory_copy(three_versions)
            if not crash(store, WORK[work], at, after=after):
                break
            with opened(store) as zoo:
                with contextlib.suppress(Conflict, NotFound):
                    WORK[work](zoo)
                assert (work, at, zoo.list_models()) == (work, at, names)
                assert zoo.table() == table
                assert zoo.get_latest("ppo") == names[-1]
                zoo.load("ppo", as_numpy=True)


# The same, by killing real processes on a real disk

KILLER = """
import sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, sys.argv[2])
from zoos import params
from brainstore import BrainManager
zoo = BrainManager(sys.argv[1])
zoo.load("ppo", as_numpy=True)
import os
os.write(1, b"begin\\n")
for seed in (4, 5):
    os.write(1, zoo.save("ppo", params(seed)).encode() + b"\\n")
zoo.alias("ppo:1", "prod")
os.write(1, b"prod\\n")
zoo.delete("ppo:2")
os.write(1, b"deleted\\n")
zoo.close()
"""
CALLS = ["write", "fsync", "link", "rename", "unlink", "mkdir"]


def killed(zoo: Path, call: str, when: int) -> tuple[bool, list[str]]:
    """Run the saves, kill them at the `when`-th such call; return what they had said."""
    done = subprocess.run(
        [
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}",
            "-e", f"inject={call}:signal=KILL:when={when}",
            sys.executable, "-c", KILLER, str(zoo), str(Path(__file__).parent),
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, -9, 137), done.stderr
    return done.returncode != 0, done.stdout.split()


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "zoo"
    with opened(folder) as zoo:
        for seed in (1, 2, 3):
            zoo.save("ppo", params(seed))
    return folder


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which kills at a system call, is missing"
)


def check_kill(template: Path, zoo: Path, call: str, when: int) -> bool:
    shutil.copytree(template, zoo)
    was_killed, said = killed(zoo, call, when)
    acknowledged = {("ppo", number): number for number in (1, 2, 3)}
    for name in said:
        if match := re.fullmatch(r"ppo_v(\d+)", name):
            acknowledged["ppo", int(match[1])] = int(match[1])
    if "prod" in said:
        assert read_raw(LocalStore(zoo)).pointers["ppo", "prod"]["version"] == 1
    assert_goes_on(LocalStore(zoo), acknowledged)
    shutil.rmtree(zoo)
    return was_killed


@needs_strace
@pytest.mark.parametrize(
    ("call", "when"), [("link", 2), ("link", 3), ("rename", 2), ("fsync", 9), ("unlink", 3)]
)
def test_a_process_killed_at_a_system_call_leaves_a_whole_zoo(
    on_disk: Path, tmp_path: Path, call: str, when: int
) -> None:
    assert check_kill(on_disk, tmp_path / "zoo", call, when)


@needs_strace
@pytest.mark.soak
@pytest.mark.parametrize("call", CALLS)
def test_a_process_killed_at_every_system_call_leaves_a_whole_zoo(
    on_disk: Path, tmp_path: Path, call: str
) -> None:
    when, survived = 0, 0
    while survived < 2 and when < 400:
        when += 1
        survived += not check_kill(on_disk, tmp_path / "zoo", call, when)
    assert when > 2
