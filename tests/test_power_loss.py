"""A machine that loses power at any moment: what was acknowledged is on the disk.

The model of the disk is in power.py. It knows nothing of journals that would keep changes in
order, so it finds more states than most filesystems leave, and none fewer.
"""

from __future__ import annotations

import itertools
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aftermath import broken, checked, problems
from killed import LARGE, PATIENCE_S, WORK, collect_all, make_zoos
from power import MUTANTS, Event, PowerCut, State, cuts, recorded, state_of, write_state
from system_calls import needs_proc
from zoos import WrappedStore, opened, params, same

from brainstore import BrainManager, Corrupt, StoreUnavailable
from brainstore.address import GC_STATE_KEY, Name
from brainstore.cache import Cache
from brainstore.intents import finish_abandoned
from brainstore.quality import QualityReport
from brainstore.records import GcState
from brainstore.storage.memory import MemoryStore

pytestmark = needs_proc


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoos")
    make_zoos(folder)
    return folder


AT_MOST = 256
"""States of the disk that are looked at for each moment; so many that none is left out."""

Promise = Callable[[BrainManager], bool]


@dataclass(frozen=True)
class Traced:
    """What was on the disk before, all calls since, and what was promised at last."""

    before: State
    events: list[Event]
    holds: Promise


def traced(
    work: str,
    zoos: Path,
    folder: Path,
    *,
    killed_at: int | None = None,
    then: Callable[[BrainManager], Promise] | None = None,
) -> Traced | None:
    """Do the work in `folder`/zoo, which is made, and write down every call.

    With `killed_at`, somebody dies before that call of the work, and somebody else does
    `then`, or the same work, after that; None if the work had ended.
    """
    task, source = WORK[work], zoos / "source"
    shutil.copytree(zoos / "zoo", folder / "zoo")
    task.prepare(folder / "zoo")
    before, holds, threads = state_of(folder), task.holds, set(threading.enumerate())
    with recorded(folder, killed_at) as recorder:
        try:
            with opened(folder / "zoo") as zoo:
                task.do(zoo, source)
        except PowerCut:
            # Before the next one comes, all of the one who was killed is dead.
            for thread in set(threading.enumerate()) - threads:
                thread.join(PATIENCE_S)
            recorder.stop_at = None
            with opened(folder / "zoo") as zoo:
                holds = then(zoo) if then else task.holds
                if then is None:
                    task.do(zoo, source)
        else:
            if killed_at is not None:
                return None
        recorder.say("returned")
    return Traced(before, recorder.events, holds)


def lost(work: str, state: State, folder: Path, holds: Promise | None) -> list[str]:
    """Return what is wrong with the zoo in this state of the disk.

    `holds` is what had been promised before the power was cut.
    """
    task = WORK[work]
    write_state(state, folder)
    zoo = folder / "zoo"
    found = broken(zoo, holds) if holds else []
    if work != "fsck --repair":  # what it had not come to is damaged still
        found += problems(zoo, task.before)
    shutil.rmtree(folder)
    return found


def losses(
    work: str, trace: Traced, folder: Path, *, at_most: int | None = None
) -> tuple[int, list[str]]:
    """Return how many states of the disk were looked at, and what is wrong in the first bad one."""
    found = list(cuts(trace.before, trace.events, AT_MOST))
    if at_most is not None and len(found) > at_most:
        found = random.Random(work).sample(found, at_most)
    for looked, (state, said) in enumerate(found, 1):
        if problems := lost(work, state, folder, trace.holds if said else None):
            return looked, problems
    return len(found), []


@pytest.mark.parametrize("work", WORK)
def test_a_power_cut_loses_nothing(zoos: Path, tmp_path: Path, work: str) -> None:
    (tmp_path / "disk").mkdir()
    trace = traced(work, zoos, tmp_path / "disk")
    states, found = losses(work, trace, tmp_path / "cut", at_most=5)
    assert (work, found) == (work, [])
    assert states > 2


@pytest.mark.soak
@pytest.mark.parametrize("work", WORK)
def test_no_power_cut_loses_anything(
    zoos: Path, tmp_path: Path, work: str, tally: Callable[..., None]
) -> None:
    (tmp_path / "disk").mkdir()
    trace = traced(work, zoos, tmp_path / "disk")
    states, found = losses(work, trace, tmp_path / "cut")
    assert (work, found) == (work, [])
    tally("power cut at every moment: states of the disk", cases=states, lost=0)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_program_that_syncs_less_loses_something(zoos: Path, tmp_path: Path, mutant: str) -> None:
    (tmp_path / "disk").mkdir()
    trace = traced("save", zoos, tmp_path / "disk")
    worse = replace(trace, events=MUTANTS[mutant](trace.events))
    _, found = losses("save", worse, tmp_path / "cut", at_most=100)
    assert found != []


def newest(zoo: BrainManager, name: str = "ppo") -> int:
    """Return the highest live version that a reader sees, whoever saved it."""
    found = zoo.zoo.registry.versions.highest_live(Name(name))
    return found.version if found else 0


def alias_of_the_newest(zoo: BrainManager) -> Promise:
    number = newest(zoo)
    zoo.alias(f"ppo:{number}", "prod")
    return lambda zoo: zoo.resolve("ppo:prod").version == number and loads(zoo, "ppo:prod")


def child_of_the_newest(zoo: BrainManager) -> Promise:
    parent = f"ppo:{newest(zoo)}"
    zoo.save("child", params(5), parents=[parent])
    return lambda zoo: loads(zoo, "child:1") and loads(zoo, parent)


def expert_of_the_newest(zoo: BrainManager) -> Promise:
    expert = f"ppo:{newest(zoo)}"
    tree, _ = zoo.load(expert, as_numpy=True)
    zoo.save("child", {"nav": tree}, frozen_experts={"nav": expert})
    return lambda zoo: loads(zoo, "child:1") and loads(zoo, expert)


def report_on_the_newest(zoo: BrainManager) -> Promise:
    number = newest(zoo)
    zoo.add_report(f"ppo:{number}", QualityReport("s1"))
    return lambda zoo: len(zoo.reports(f"ppo:{number}")) == 1


def deletion_of_the_newest(zoo: BrainManager) -> Promise:
    deleted = f"ppo_v{newest(zoo)}"
    zoo.delete(deleted, force=True)
    return lambda zoo: deleted not in zoo.list_models() and loads(zoo, "ppo:latest")


def what_others_finish(zoo: BrainManager) -> Promise:
    number = newest(zoo)
    finished = finish_abandoned(zoo.zoo.registry, older_than_s=-1)
    return lambda zoo: not finished or loads(zoo, f"ppo:{number}")


def repair(zoo: BrainManager) -> Promise:
    checked(zoo, repair=True)
    # What it saw to be in order, and left as it was, may be as it was before.
    return lambda zoo: loads(zoo, "ppo:1")


def collection(zoo: BrainManager) -> Promise:
    collect_all(zoo, Path())
    # What was removed may be back; it is garbage still.
    return lambda zoo: GcState.decode(zoo.zoo.store.get(GC_STATE_KEY).body, "").state == "idle"


def loads(zoo: BrainManager, reference: str) -> bool:
    zoo.load(reference, as_numpy=True, verify=True)
    return True


THEN: dict[str, Callable[[BrainManager], Promise] | None] = {
    "the same": None,
    "an alias": alias_of_the_newest,
    "a child": child_of_the_newest,
    "an expert": expert_of_the_newest,
    "a report": report_on_the_newest,
    "a deletion": deletion_of_the_newest,
    "finishing": what_others_finish,
    "a repair": repair,
    "a collection": collection,
}
"""What somebody does who sees what another has left who was killed, and builds on it."""

SAFE_TO_REPEAT = [
    "first save", "save", "save of several blobs", "alias move", "new alias", "sync"
]  # fmt: skip
KILLED_FIRST = [
    *((work, "the same") for work in SAFE_TO_REPEAT),
    *((work, "a repair") for work in ("delete", "undelete")),
    *((work, "a collection") for work in ("delete", "gc")),
    *(("save", then) for then in THEN if then != "the same"),
    ("undelete", "an alias"),
    ("sync", "finishing"),
]
IDS = [" then ".join(each) for each in KILLED_FIRST]


@pytest.mark.parametrize(
    ("work", "then"), KILLED_FIRST, ids=[" then ".join(each) for each in KILLED_FIRST]
)
def test_what_is_built_on_the_work_of_one_who_was_killed_survives_a_power_cut(
    zoos: Path, tmp_path: Path, work: str, then: str
) -> None:
    stride = {"first save": 45, "sync": 25, "save of several blobs": 25}.get(work, 12)
    problems, states = built_upon(zoos, tmp_path, work, then, stride=stride)
    assert (work, then, problems) == (work, then, {})
    assert states > 0


@pytest.mark.soak
@pytest.mark.parametrize(("work", "then"), KILLED_FIRST, ids=IDS)
def test_what_is_built_on_the_work_of_one_who_was_killed_anywhere_survives_a_power_cut(
    zoos: Path, tmp_path: Path, work: str, then: str, tally: Callable[..., None]
) -> None:
    stride = {"first save": 9, "sync": 3, "save of several blobs": 3}.get(work, 1)
    problems, states = built_upon(zoos, tmp_path, work, then, stride=stride)
    assert (work, then, problems) == (work, then, {})
    assert states > 5
    tally("power cut after one was killed and another went on", cases=states, lost=0)


def built_upon(
    zoos: Path, folder: Path, work: str, then: str, *, stride: int
) -> tuple[dict[int, list[str]], int]:
    """Kill the work at every `stride`-th call, do `then`, and cut the power.

    Returns what was lost, by the call, and how many states were looked at.
    """
    found: dict[int, list[str]] = {}
    looked = 0
    for at in itertools.count(stride - 1, stride):
        (folder / "disk").mkdir()
        trace = traced(work, zoos, folder / "disk", killed_at=at, then=THEN[then])
        shutil.rmtree(folder / "disk")
        if trace is None:
            return found, looked
        for state, said in cuts(trace.before, trace.events, AT_MOST):
            # Before the promise, all is as in the other tests.
            if said:
                looked += 1
                if problems := lost(work, state, folder / "cut", trace.holds):
                    found[at] = problems
    raise AssertionError("there is no end to it")


# The cache of a remote zoo


@pytest.fixture
def far(tmp_path: Path) -> WrappedStore:
    """A zoo in memory that counts as remote, with big:1, whose seed is 4."""
    store = WrappedStore(MemoryStore(), is_remote=True)
    store.url = f"memory://far/{tmp_path.name}"
    with opened(store, cache=Cache(tmp_path / "savers")) as zoo:
        zoo.save("big", params(4, LARGE))
    return store


def cache_after_power_cuts(far: WrappedStore, folder: Path, mutant: str = "") -> Iterator[Cache]:
    """Fill a cache by a load; yield it as each power cut leaves it."""
    blobs = folder / "cache" / "blobs"
    blobs.mkdir(parents=True)
    with recorded(blobs) as recorder, opened(far, cache=Cache(blobs.parent)) as zoo:
        zoo.load("big", as_numpy=True)
    events = MUTANTS[mutant](recorder.events) if mutant else recorder.events
    for number, (state, _) in enumerate(cuts({}, events, AT_MOST)):
        cache = Cache(folder / str(number))
        cache.folder.mkdir()
        write_state(state, cache.folder / "blobs")
        yield cache


def test_a_power_cut_leaves_nothing_in_the_cache_that_is_taken_for_whole(
    far: WrappedStore, tmp_path: Path
) -> None:
    looked = 0
    for cache in cache_after_power_cuts(far, tmp_path):
        with opened(far, cache=cache) as zoo:
            assert same(zoo.load("big", as_numpy=True)[0], params(4, LARGE))
        assert cache.verify() == []
        looked += 1
    assert looked > 2


@pytest.mark.parametrize("mutant", ["without syncing files", "naming before syncing"])
def test_a_cache_that_syncs_less_is_damaged(far: WrappedStore, tmp_path: Path, mutant: str) -> None:
    assert any(cache.verify() for cache in cache_after_power_cuts(far, tmp_path, mutant))


def test_records_that_a_power_cut_has_torn_in_the_cache_are_read_again(
    far: WrappedStore, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    with opened(far, cache=cache) as zoo:
        zoo.load("big", as_numpy=True)
    # They are not synced, for they only serve work without a network.
    records = [path for path in (cache.folder / "zoos").rglob("*") if path.is_file()]
    for record in records:
        record.write_bytes(record.read_bytes()[:10])
    with opened(far, cache=cache) as zoo:
        assert same(zoo.load("big", as_numpy=True)[0], params(4, LARGE))
        assert zoo.list_models() == ["big_v1"]
    assert len(records) > 1


def test_offline_a_torn_record_is_said_to_be_damaged(
    far: WrappedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    with opened(far, cache=cache) as zoo:
        zoo.load("big", as_numpy=True)
        zoo.list_models()
    monkeypatch.setenv("BRAINSTORE_OFFLINE", "1")
    records = [path for path in (cache.folder / "zoos").rglob("*") if path.is_file()]
    for length in (0, 10):
        for record in records:
            record.write_bytes(record.read_bytes()[:length] or b"")
        with opened(far, cache=cache) as zoo, pytest.raises((Corrupt, StoreUnavailable)):
            zoo.load("big", as_numpy=True)
