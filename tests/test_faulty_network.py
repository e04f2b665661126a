"""A network that loses, delays, cuts and stalls: nothing acknowledged is lost, nothing hangs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import S3Place
from contender import compete
from faulty_proxy import (
    FAULTS,
    Exchange,
    Fault,
    FaultyProxy,
    From,
    Weather,
    faulty_proxy,
    flip_a_bit,
    lose_request,
    pass_on,
    stall,
    stall_before_the_body,
)
from storm import IMPATIENT, Log, Tally, Worker, in_numbers, judge, tree
from zoos import Found, finish, params, read_raw, same

from brainstore import BrainManager, BrainstoreError, Conflict, commit
from brainstore.cache import Cache
from brainstore.errors import StoreUnavailable
from brainstore.fsck import Finding, fsck
from brainstore.garbage import collect, collector, turn
from brainstore.storage import open_store, s3
from brainstore.storage.base import ABSENT, Store
from brainstore.zoo import Zoo

pytestmark = pytest.mark.s3

MIB = 1 << 20
TIME_OUT_S = 1.0
# A request is tried three times, the body of a reply as often, and a conditional write six
# times with reading back. Nobody is that unlucky with so few faults; who hangs takes longer.
LONGEST_S = 6 * (3 * TIME_OUT_S + 3 * 3 * (2 * TIME_OUT_S + 3))


AT_ONCE: dict[str, Any] = {"dry_run": False, "older_than_s": 0.0, "expiry_s": 0.0}


@pytest.fixture
def proxy(s3_place: S3Place) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_place.storage_options["endpoint_url"]) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for (module, constant), shorter in IMPATIENT.items():
        monkeypatch.setattr(module, constant, shorter)


def behind(place: S3Place, proxy: FaultyProxy, **config: Any) -> dict[str, Any]:
    """Return the storage options that lead through the proxy, with short time-outs."""
    short = {"connect_timeout": TIME_OUT_S, "read_timeout": TIME_OUT_S, **config}
    return {**place.storage_options, "endpoint_url": proxy.endpoint_url, "config_kwargs": short}


def checked(zoo: Zoo, *, repair: bool = False) -> list[Finding]:
    """Return what is wrong with a zoo in which nobody works."""
    found = fsck(zoo, repair=repair)
    return [finding for finding in found if not finding.is_harmless]


def assert_true(place: S3Place, saves: list[list[Any]], cache: Path) -> Tally:
    """Everything that saves returned and said is so, seen by the direct way."""
    store = open_store(place.url, place.storage_options)
    found = read_raw(store)
    assert found.problems == []
    names = [name for _, name, _ in saves if name]
    assert len(set(names)) == len(names)
    tally = judge(saves, found, store)
    store.close()
    assert (tally.lost, tally.lies) == (0, [])
    with BrainManager(place.url, storage_options=place.storage_options, cache=Cache(cache)) as zoo:
        # Who was deleting or restoring, and is taken for dead, gives a new time of grace.
        for _ in range(2):
            collect(zoo.zoo, take_over=True, **AT_ONCE)
        assert_nothing_left(zoo.zoo.store, found)
        for name, number in found.live:
            found_tree, meta = zoo.load(name, number, as_numpy=True, verify=True)
            assert same(found_tree, tree(meta.config["seed"]))
        zoo.zoo.registry.journal.fold()
        # A deletion or move that failed half way is told to the index when it is done again.
        assert {finding.kind for finding in checked(zoo.zoo)} <= {"index", "latest"}
        checked(zoo.zoo, repair=True)
        assert checked(zoo.zoo) == []
        assert {(row["name"], row["version"]) for row in zoo.table()} == set(found.live)
    return tally


def assert_nothing_left(store: Store, found: Found) -> None:
    """Only what versions name is left, and nothing that unfinished work has put there."""
    named = {digest for record in found.live.values() for digest in record["blobs"]}
    blobs = {"blake3:" + stat.key.rpartition("/")[2] for stat in store.list("blobs/")}
    assert blobs == named
    assert list(store.list("intents/")) == []
    assert list(store.leftovers()) == []
    assert read_raw(store).problems == []


ONCE = {"retries": {"total_max_attempts": 1}}


def test_under_ten_percent_of_faults_nothing_that_was_said_is_untrue(
    s3_place: S3Place, proxy: FaultyProxy, tmp_path: Path
) -> None:
    mirror = made(s3_place, S3Place(s3_place.url + "-mirror", s3_place.storage_options))
    proxy.weather = Weather(1)
    with ExitStack() as stack:
        # One is patient, and one gives up at once, so that saves fail, too.
        patient, hasty, copy = (
            stack.enter_context(
                BrainManager(
                    where.url,
                    storage_options=behind(s3_place, proxy, **config),
                    cache=Cache(tmp_path / f"cache {n}"),
                )
            )
            for n, (where, config) in enumerate([(s3_place, {}), (s3_place, ONCE), (mirror, ONCE)])
        )
        workers = [Worker((patient, hasty)[n % 2], n + 1, copy) for n in range(4)]
        workers[0].collecting()
        with ThreadPoolExecutor(len(workers)) as threads:
            list(threads.map(lambda worker: [worker.step() for _ in range(6)], workers))
    proxy.wait_until_quiet()
    assert [wrong for worker in workers for wrong in worker.log.wrong] == []
    assert max(worker.log.slowest_s for worker in workers) < LONGEST_S
    saves = [save for worker in workers for save in worker.log.saves]
    came = assert_true(s3_place, saves, tmp_path / "direct")
    assert came.returned > 0
    assert_copied(s3_place, mirror)


def made(*places: S3Place) -> S3Place:
    """Make zoos by the direct way; return the last place."""
    for place in places:
        with BrainManager(place.url, storage_options=place.storage_options) as zoo:
            zoo.init()
    return places[-1]


def assert_copied(place: S3Place, mirror: S3Place) -> None:
    """What is in the mirror is whole, and the same as at the source."""
    store, copy = (open_store(each.url, each.storage_options) for each in (place, mirror))
    found = read_raw(copy)
    assert in_numbers(found.problems) == []
    for (name, number), record in found.live.items():
        body = json.loads(store.get(f"models/{name}/v{number}/manifest.json").body)
        assert record == body.get("record", body)
    store.close()
    copy.close()


STORMS = {
    "10% of all requests faulty": (0.1, {}),
    "10% of all requests faulty, each sent once": (0.1, ONCE),
    "30% of all requests faulty": (0.3, {}),
}


@pytest.mark.soak
@pytest.mark.parametrize(("chance", "config"), STORMS.values(), ids=STORMS)
def test_processes_in_a_storm_lose_nothing(
    s3_place: S3Place,
    proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    soak_s: float,
    tally: Callable[..., None],
    chance: float,
    config: dict[str, Any],
) -> None:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path / "cache"))
    made(s3_place)
    weather = proxy.weather = Weather(len(config), chance)
    each_s = soak_s / len(STORMS)
    tasks = [
        ("storm", {"seed": seed, "seconds": each_s, "collects": seed == 1}) for seed in range(1, 5)
    ]
    went = compete((s3_place.url, behind(s3_place, proxy, **config)), tasks)
    logs = [Log(**log) for each in went for log in each]
    proxy.wait_until_quiet()
    assert [wrong for log in logs for wrong in log.wrong] == []
    assert max(log.slowest_s for log in logs) < LONGEST_S
    came = assert_true(s3_place, [save for log in logs for save in log.saves], tmp_path / "direct")
    once = ", each sent once" if config else ""
    tally(
        f"16 workers in 4 processes on a bucket, {chance:.0%} of all requests faulty{once}",
        operations=sum(log.operations for log in logs),
        faults=weather.met.total(),
        lost=came.lost,
        unknown=came.unknown,
    )


# A server that takes a request, and never answers


Work = Callable[[BrainManager, str], object]
STALLS: dict[str, tuple[int, Work]] = {
    "save": (10, lambda zoo, name: zoo.save(name, params(2))),
    "load": (4, lambda zoo, name: zoo.load(name, as_numpy=True)),
    "list": (3, lambda zoo, name: zoo.list_models()),
    "alias": (6, lambda zoo, name: zoo.alias(f"{name}:1", "prod")),
    "delete": (9, lambda zoo, name: zoo.delete(f"{name}:1")),
}
SHORT_S = 0.4
CLEAR = r"Cannot (read|write|list|delete) .+ in s3://.+ time-out, no answer within 0\.4 s"


def stalled(place: S3Place, first: int, work: Work, cache: Path) -> BrainstoreError | None:
    """Do the work while the server stalls from its `first` request on; return the error."""
    name = cache.name
    with faulty_proxy(place.storage_options["endpoint_url"]) as proxy:
        proxy.weather = From(first, stall)
        options = behind(place, proxy, connect_timeout=SHORT_S, read_timeout=SHORT_S, **ONCE)
        with BrainManager(place.url, storage_options=options, cache=Cache(cache)) as zoo:
            try:
                work(zoo, name)
            except BrainstoreError as error:
                return error
    return None


def test_a_server_that_never_answers_ends_in_a_clear_time_out(
    s3_place: S3Place, tmp_path: Path
) -> None:
    cases = [
        (first, work, tmp_path / f"{kind}{first}")
        for kind, (last, work) in STALLS.items()
        for first in range(0, last, 2 if kind == "save" else 3)
    ]
    with BrainManager(s3_place.url, storage_options=s3_place.storage_options) as zoo:
        zoo.init()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda case: zoo.save(case[2].name, params(1)), cases))
    with ThreadPoolExecutor(12) as threads:
        errors = list(threads.map(lambda case: stalled(s3_place, *case), cases))
    for (first, _, folder), error in zip(cases, errors, strict=True):
        assert error is not None or first > 0
        if error is not None:
            assert isinstance(error, StoreUnavailable)
            assert re.search(CLEAR, str(error)), (folder.name, error)


def test_a_server_that_stops_reading_an_upload_ends_in_a_clear_time_out(
    s3_place: S3Place, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)
    options = behind(s3_place, proxy, connect_timeout=SHORT_S, read_timeout=SHORT_S, **ONCE)
    store = open_store(s3_place.url, options)
    proxy.weather = lambda exchange: stall_before_the_body if exchange.length > MIB else pass_on
    # More than the buffers of a connection hold.
    with pytest.raises(StoreUnavailable, match=r"blobs/00/b.*took nothing for 1.2 s"):
        store.put("blobs/00/b", bytes(48 * MIB), expect=ABSENT)
    store.close()


# Bits that flip on their way


def test_a_bit_that_flips_on_its_way_is_noticed(
    s3_place: S3Place, proxy: FaultyProxy, tmp_path: Path
) -> None:
    with BrainManager(s3_place.url, storage_options=s3_place.storage_options) as zoo:
        for seed in (1, 2):
            zoo.save("ppo", params(seed))
    cache = Cache(tmp_path / "cache")
    options = behind(s3_place, proxy)
    with BrainManager(s3_place.url, storage_options=options, cache=cache) as zoo:
        pinned = f"ppo:2@{zoo.resolve('ppo:2').digest}"
        # From the pointer, the manifest or the blob on: the digests of two are known before.
        for reference, requests in (("ppo", 3), (pinned, 2)):
            for first in range(requests):
                cache.prune(0)
                proxy.weather = From(first, flip_a_bit)
                with pytest.raises(BrainstoreError):
                    zoo.load(reference, as_numpy=True)
            proxy.weather = None
            assert same(zoo.load(reference, as_numpy=True)[0], params(2))


# A collection whose deletions get lost


def is_deletion(exchange: Exchange) -> bool:
    return exchange.command == "POST" and urlsplit(exchange.path).query == "delete"


def on_deletions(fault: Fault, times: int) -> Callable[[Exchange], Fault]:
    """Let the fault befall the first so many deletions of a collection, and nothing else."""
    left = [fault] * times

    def weather(exchange: Exchange) -> Fault:
        return left.pop() if left and is_deletion(exchange) else pass_on

    return weather


@pytest.fixture
def with_garbage(s3_place: S3Place, proxy: FaultyProxy, tmp_path: Path) -> Iterator[BrainManager]:
    """A zoo behind the proxy with ppo:2, the deleted ppo:1, and so a blob of garbage."""
    with BrainManager(
        s3_place.url, storage_options=behind(s3_place, proxy), cache=Cache(tmp_path / "cache")
    ) as zoo:
        for seed in (1, 2):
            zoo.save("ppo", params(seed))
        zoo.delete("ppo:1")
        yield zoo


LOST_DELETIONS = (
    "reply lost",
    "request lost",
    "500 though done",
    "503",
    "reply cut",
    "stalled",
    "later than the time-out",
)


def test_a_deletion_is_sent_once_and_again_only_when_it_cannot_come_late(
    with_garbage: BrainManager, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, store = with_garbage, with_garbage.zoo.store
    for number, fault in enumerate(LOST_DELETIONS, start=2):
        waits, deletions = [], [0]
        weather = on_deletions(FAULTS[fault], 1)

        def counting(
            exchange: Exchange, weather: Any = weather, deletions: list[int] = deletions
        ) -> Fault:
            deletions[0] += is_deletion(exchange)
            return weather(exchange)

        def wait(
            seconds: float, waits: list[Any] = waits, deletions: list[int] = deletions
        ) -> None:
            proxy.wait_until_quiet()
            waits.append((seconds, *deletions))

        proxy.weather = counting
        monkeypatch.setattr(collector, "time", SimpleNamespace(sleep=wait, time=time.time))
        done = collect(zoo.zoo, **AT_ONCE)
        assert (fault, waits, deletions) == (fault, [(collector.LATE_S, 1)], [2])
        assert len(done.blobs) == 1
        assert len(list(store.list("blobs/"))) == 1
        assert json.loads(store.get("gc/state.json").body)["state"] == "idle"
        zoo.save("ppo", params(number + 1))
        zoo.delete(f"ppo:{number}")
        finish(zoo)


def test_a_collection_whose_deletions_stay_lost_gives_up_when_none_can_come_late(
    with_garbage: BrainManager, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "LATE_S", 0.0)
    monkeypatch.setattr(turn, "LATE_S", 0.0)
    proxy.weather = on_deletions(lose_request, collector.LOST_REPLIES)
    with pytest.raises(StoreUnavailable, match=r"3 times in a row.*collect again"):
        collect(with_garbage.zoo, **AT_ONCE)
    assert with_garbage.save("ppo", params(1)) == "ppo_v3"
    with_garbage.delete("ppo:2")
    assert len(collect(with_garbage.zoo, **AT_ONCE).blobs) == 1
    assert same(with_garbage.load("ppo:3", as_numpy=True)[0], params(1))
    assert checked(with_garbage.zoo) == []


def test_a_collection_that_is_stopped_while_a_deletion_may_come_late_says_how_to_go_on(
    with_garbage: BrainManager, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    proxy.weather = on_deletions(lose_request, 1)
    monkeypatch.setattr(collector, "time", SimpleNamespace(sleep=press_ctrl_c, time=time.time))
    with pytest.raises(KeyboardInterrupt) as caught:
        collect(with_garbage.zoo, **AT_ONCE)
    assert "--take-over" in "".join(caught.value.__notes__)
    # Nobody relies on what may go at any moment.
    monkeypatch.setattr(commit, "COLLECTION_WAIT_S", 0.0)
    with pytest.raises(StoreUnavailable, match="collection"):
        with_garbage.save("ppo", params(1))
    assert with_garbage.save("ppo", params(3)) == "ppo_v3"
    with pytest.raises(Conflict, match="--take-over"):
        collect(with_garbage.zoo, **AT_ONCE)
    monkeypatch.setattr(collector, "LATE_S", 0.0)
    monkeypatch.setattr(turn, "LATE_S", 0.0)
    collect(with_garbage.zoo, take_over=True, **AT_ONCE)
    assert with_garbage.save("ppo", params(1)) == "ppo_v4"
    assert same(with_garbage.load("ppo:4", as_numpy=True)[0], params(1))
    assert checked(with_garbage.zoo) == []
