"""Promotion: the policy decides, says what is missing, and no race gets past it."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import S3Place
from contender import compete
from zoos import (
    Call,
    Crash,
    CrashingStore,
    Proceed,
    WrappedStore,
    finish,
    memory_copy,
    objects,
    opened,
    params,
)

from brainstore import (
    BadParams,
    BadReference,
    BrainManager,
    Check,
    Conflict,
    Corrupt,
    GateFailed,
    NotFound,
    QualityReport,
    Rule,
    StoreUnavailable,
)
from brainstore.address import POLICY_KEY, Alias, Name, pointer_key
from brainstore.errors import NoZoo
from brainstore.fsck import fsck
from brainstore.records import Move, Pointer
from brainstore.storage.memory import MemoryStore

NAN = float("nan")
RULE = Rule("prod", stations=["s3"], checks=["return >= 7.0"])
PROD = pointer_key(Name("ppo"), Alias("prod"))


def report(value: float = 7.5, station: str = "s3", **fields: Any) -> QualityReport:
    return QualityReport(station, [Check("return", value, ">=", 7.0)], **fields)


@pytest.fixture
def zoo() -> Iterator[BrainManager]:
    """A zoo whose policy guards prod; of four versions of ppo the first two have passed."""
    with opened(MemoryStore()) as zoo:
        for seed in range(4):
            zoo.save("ppo", params(seed), report=report() if seed < 2 else None)
        zoo.set_policy([RULE])
        finish(zoo)
        yield zoo


def pointer(zoo: BrainManager, alias: str = "prod") -> Pointer:
    found = zoo.zoo.registry.pointers.pointer(Name("ppo"), Alias(alias))
    assert found is not None
    return found[0]


def moves(zoo: BrainManager) -> list[tuple[int | None, int | None]]:
    return [(move.from_version, move.to_version) for move in pointer(zoo).moves]


def last_move(zoo: BrainManager) -> Move:
    return pointer(zoo).moves[-1]


def missing(zoo: BrainManager, ref: str, alias: str = "prod") -> list[str]:
    """Return what a promotion that must be refused misses; it must change nothing."""
    before = objects(zoo)
    with pytest.raises(GateFailed) as failure:
        zoo.promote(ref, alias)
    assert objects(zoo) == before
    assert all(str(each) in str(failure.value) or each.what == "policy"
               for each in failure.value.missing)  # fmt: skip
    return [each.what for each in failure.value.missing]


# What the policy asks for


def test_a_version_that_meets_the_policy_is_promoted_with_policy_and_reports_recorded(
    zoo: BrainManager,
) -> None:
    version = zoo.promote("ppo:1", "prod", why="first")
    assert (version, zoo.aliases("ppo")["prod"]) == (zoo.resolve("ppo:1"), 1)
    move, [own] = last_move(zoo), zoo.reports("ppo:1")
    assert move.gate is not None
    assert (move.why, move.gate.generation, move.gate.reports) == ("first", 1, (own.id,))
    assert move.gate.policy == zoo_digest(zoo)
    zoo.set_policy([])
    [move] = pointer(zoo).moves
    assert move.gate is not None
    assert move.gate.rules == (RULE,)
    assert fsck(zoo.zoo) == []


def zoo_digest(zoo: BrainManager) -> str:
    from brainstore.address import Digest

    return Digest.of(objects(zoo)[POLICY_KEY])


def test_a_version_without_reports_misses_everything_and_the_alias_stays(
    zoo: BrainManager,
) -> None:
    zoo.promote("ppo:1", "prod")
    assert missing(zoo, "ppo:3") == ["station s3", "metric return"]
    assert zoo.aliases("ppo")["prod"] == 1


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        ([report(7.0)], []),
        ([report(6.0)], ["station s3", "metric return"]),
        ([report(NAN)], ["station s3", "metric return"]),
        ([QualityReport("s3")], ["station s3", "metric return"]),
        ([report(station="s4")], ["station s3", "metric return"]),
        ([report(9.0), report(6.0)], ["station s3", "metric return"]),
        ([report(6.0), report(9.0)], []),
        ([report(9.0), report(6.0, station="s4")], []),
        (
            [QualityReport("s3", [Check("return", 6, ">", 0)]), report(9.0, station="s4")],
            ["metric return"],
        ),
        ([report(9.0), QualityReport("s3", [Check("loss", 1, "<", 2)])], []),
        (
            [QualityReport("s3", [Check("return", 9, ">", 0), Check("return", 6, ">", 0)])],
            ["metric return"],
        ),
        ([QualityReport("s3", [Check("return", 6, ">", 0)])], ["metric return"]),
    ],
)
def test_the_newest_report_of_each_station_and_on_each_metric_decides(
    zoo: BrainManager, given: list[QualityReport], lacks: list[str]
) -> None:
    for each in given:
        zoo.add_report("ppo:3", each)
    if lacks:
        assert missing(zoo, "ppo:3") == lacks
    else:
        zoo.promote("ppo:3", "prod")


def test_a_rule_without_stations_takes_a_metric_from_whoever_measured_it_last(
    zoo: BrainManager,
) -> None:
    zoo.set_policy([Rule("prod", checks=["return >= 7"])])
    zoo.add_report("ppo:3", report(9.0, station="s4"))
    zoo.promote("ppo:3", "prod")
    zoo.add_report("ppo:3", report(6.0, station="s5"))
    assert missing(zoo, "ppo:3") == ["metric return"]


def test_a_condition_may_name_its_station(zoo: BrainManager) -> None:
    condition = {"metric": "return", "op": ">=", "threshold": 7, "station": "s4"}
    zoo.set_policy([{"alias": "prod", "checks": [condition]}])
    assert missing(zoo, "ppo:1") == ["metric return at s4"]
    zoo.add_report("ppo:1", report(station="s4"))
    zoo.add_report("ppo:1", report(1.0, station="s3"))
    zoo.promote("ppo:1", "prod")


def test_reports_must_be_fresh_and_not_from_the_future(zoo: BrainManager) -> None:
    zoo.set_policy([Rule("prod", stations=["s3"], max_age_s=3600)])
    now = datetime.now(UTC)
    zoo.add_report("ppo:3", report(at=now - timedelta(hours=2)))
    assert missing(zoo, "ppo:3") == ["station s3"]
    zoo.add_report("ppo:3", report(at=now + timedelta(hours=2)))
    assert missing(zoo, "ppo:3") == ["station s3"]
    zoo.add_report("ppo:3", report(at=now - timedelta(minutes=30)))
    zoo.promote("ppo:3", "prod")


def test_a_report_that_does_not_say_when_is_not_fresh(zoo: BrainManager) -> None:
    zoo.set_policy([Rule("prod", stations=["s3"], max_age_s=1e12)])
    zoo.add_report("ppo:3", report())
    [key] = [key for key in objects(zoo) if "/reports/" in key]
    record = json.loads(objects(zoo)[key])
    record["report"]["at"] = ""
    zoo.zoo.store.put(key, json.dumps(record).encode())
    assert missing(zoo, "ppo:3") == ["station s3"]


def test_frozen_experts_must_be_proved_where_a_rule_says_so(zoo: BrainManager) -> None:
    zoo.set_policy([Rule("prod", frozen_experts=True)])
    fused = {"nav": params(0), "head": params(9)}
    zoo.save("fused", fused, frozen_experts={"nav": "ppo:1"})
    with pytest.warns(UserWarning, match="dense/bias"):
        zoo.save("fused", {**fused, "nav": params(5)}, frozen_experts={"nav": "ppo:1"})
    zoo.promote("fused:1", "prod")
    with pytest.raises(GateFailed, match=r"expert nav: expected ppo:1 unchanged, found changed"):
        zoo.promote("fused:2", "prod")


def test_every_rule_that_fits_must_be_met_and_others_do_not_count(zoo: BrainManager) -> None:
    zoo.set_policy(
        [
            RULE,
            Rule("prod", "pp*", stations=["s5"]),
            Rule("prod", "dial", stations=["s6"]),
            Rule("candidate", stations=["s7"]),
        ]
    )
    assert missing(zoo, "ppo:1") == ["station s5"]
    zoo.add_report("ppo:1", report(station="s5"))
    zoo.promote("ppo:1", "prod")


def test_without_a_rule_nothing_is_promoted(zoo: BrainManager) -> None:
    assert missing(zoo, "ppo:1", "candidate") == ["policy"]
    zoo.set_policy([])
    assert missing(zoo, "ppo:1") == ["policy"]
    zoo.alias("ppo:3", "prod")


def test_a_report_that_cannot_be_read_stops_a_promotion(zoo: BrainManager) -> None:
    zoo.add_report("ppo:1", report())
    [key] = [key for key in objects(zoo) if "/reports/" in key]
    zoo.zoo.store.put(key, b"{}")
    with pytest.raises(Corrupt, match="fsck"):
        zoo.promote("ppo:1", "prod")
    assert "prod" not in zoo.aliases("ppo")


def test_a_policy_that_cannot_be_read_stops_every_guarded_move_and_is_found(
    zoo: BrainManager,
) -> None:
    zoo.zoo.store.put(POLICY_KEY, b'{"format": 1}')
    for call in (zoo.promote, zoo.alias):
        with pytest.raises(Corrupt, match="policy"):
            call("ppo:1", "prod")
    assert [each.kind for each in fsck(zoo.zoo)] == ["policy"]


@pytest.mark.parametrize("ref", ["ppo:9", "nobody:1"])
def test_what_does_not_exist_is_not_promoted(zoo: BrainManager, ref: str) -> None:
    with pytest.raises(NotFound):
        zoo.promote(ref, "prod")


def test_latest_is_never_promoted(zoo: BrainManager) -> None:
    with pytest.raises(BadReference, match="reserved"):
        zoo.promote("ppo:1", "latest")


# Moves by hand


def test_a_guarded_alias_is_not_moved_by_hand_unless_forced_and_the_force_is_recorded(
    zoo: BrainManager,
) -> None:
    with pytest.raises(GateFailed, match="brainstore promote ppo:3 prod"):
        zoo.alias("ppo:3", "prod")
    zoo.alias("ppo:3", "candidate")
    zoo.alias("ppo:3", "prod", force=True)
    gate = last_move(zoo).gate
    assert gate is not None
    assert (gate.is_forced, gate.generation, gate.reports) == (True, 1, ())
    zoo.unalias("ppo", "prod")


def test_a_save_does_not_set_a_guarded_alias_and_saves_nothing(zoo: BrainManager) -> None:
    before = objects(zoo)
    with pytest.raises(GateFailed, match="promote ppo prod"):
        zoo.save("ppo", params(9), report=report(), aliases=["candidate", "prod"])
    assert objects(zoo) == before
    zoo.save("ppo", params(9), aliases="candidate")


def test_the_way_back_to_what_was_promoted_is_free_and_keeps_its_gate(zoo: BrainManager) -> None:
    zoo.promote("ppo:1", "prod")
    first = last_move(zoo).gate
    zoo.promote("ppo:2", "prod")
    zoo.add_report("ppo:1", report(1.0))
    assert zoo.rollback("ppo", "prod") == zoo.resolve("ppo:1")
    assert last_move(zoo).gate == first
    zoo.alias("ppo:2", "prod")
    assert moves(zoo) == [(None, 1), (1, 2), (2, 1), (1, 2)]


def test_the_way_back_to_what_was_forced_needs_force_again(zoo: BrainManager) -> None:
    zoo.alias("ppo:3", "prod", force=True)
    zoo.promote("ppo:1", "prod")
    with pytest.raises(GateFailed):
        zoo.rollback("ppo", "prod")
    assert zoo.rollback("ppo", "prod", force=True) == zoo.resolve("ppo:3")


def test_promoting_what_the_alias_names_adds_a_gate_once(zoo: BrainManager) -> None:
    zoo.alias("ppo:1", "prod", force=True)
    zoo.promote("ppo:1", "prod")
    zoo.promote("ppo:1", "prod")
    assert moves(zoo) == [(None, 1), (1, 1)]
    zoo.promote("ppo:2", "prod")
    assert zoo.rollback("ppo", "prod") == zoo.resolve("ppo:1")
    assert zoo.resolve("ppo:prod~1") == zoo.resolve("ppo:2")


# Races


def raced(
    zoo: BrainManager, at: Callable[[Call], bool], meanwhile: Callable[[BrainManager], object],
    *, after: Exception | None = None,
) -> BrainManager:  # fmt: skip
    """Return a manager on the same zoo: before its first such call another one acts.

    With `after`, the call takes effect first, and then fails like that.
    """
    done: list[Call] = []

    def around(call: Call, proceed: Proceed) -> Any:
        if done or not at(call):
            return proceed()
        done.append(call)
        if after is not None:
            proceed()
        meanwhile(zoo)
        if after is not None:
            raise after
        return proceed()

    return BrainManager(WrappedStore(zoo.zoo.store, around))


def is_swap(call: Call) -> bool:
    return call.method == "put" and call.key == PROD


def test_of_two_promotions_that_race_the_slower_gets_a_conflict(zoo: BrainManager) -> None:
    with (
        raced(zoo, is_swap, lambda other: other.promote("ppo:2", "prod")) as slow,
        pytest.raises(Conflict, match="moved by somebody else"),
    ):
        slow.promote("ppo:1", "prod")
    assert moves(zoo) == [(None, 2)]


def test_an_alias_that_moved_away_and_back_while_it_was_judged_is_a_conflict(
    zoo: BrainManager,
) -> None:
    zoo.promote("ppo:1", "prod")

    def there_and_back(other: BrainManager) -> None:
        other.alias("ppo:3", "prod", force=True)
        other.rollback("ppo", "prod")

    with raced(zoo, is_swap, there_and_back) as slow, pytest.raises(Conflict):
        slow.promote("ppo:2", "prod")
    assert zoo.aliases("ppo")["prod"] == 1


def test_an_alias_that_moved_before_the_judgement_ended_is_a_conflict(zoo: BrainManager) -> None:
    def reads_reports(call: Call) -> bool:
        return call.method == "list" and call.key.endswith("/reports/")

    with (
        raced(zoo, reads_reports, lambda other: other.promote("ppo:2", "prod")) as slow,
        pytest.raises(Conflict),
    ):
        slow.promote("ppo:1", "prod")
    assert moves(zoo) == [(None, 2)]


def test_a_promotion_whose_reply_was_lost_and_that_was_overtaken_still_counts(
    zoo: BrainManager,
) -> None:
    def overtake(other: BrainManager) -> None:
        other.promote("ppo:2", "prod")

    with raced(zoo, is_swap, overtake, after=Conflict("412 against its own success")) as slow:
        assert slow.promote("ppo:1", "prod") == zoo.resolve("ppo:1")
    assert moves(zoo) == [(None, 1), (1, 2)]


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda other: other.set_policy([Rule("prod", stations=["s9"])]),
        lambda other: other.set_policy([]),
        lambda other: other.add_report("ppo:2", report(1.0)),
        lambda other: other.zoo.store.put(POLICY_KEY, b"{}"),
    ],
)
def test_what_a_policy_or_report_changes_before_the_swap_counts_and_the_alias_steps_back(
    zoo: BrainManager, meanwhile: Callable[[BrainManager], object]
) -> None:
    zoo.promote("ppo:1", "prod")
    refused = pytest.raises((GateFailed, Corrupt))
    with raced(zoo, is_swap, meanwhile) as slow, refused as failure:
        slow.promote("ppo:2", "prod")
    assert failure.value.__notes__ == ["ppo:prod is back where it was"]
    assert zoo.aliases("ppo")["prod"] == 1
    assert moves(zoo) == [(None, 1), (1, 2), (2, 1)]
    gate = last_move(zoo).gate
    assert gate is not None
    assert gate.reports == (zoo.reports("ppo:1")[0].id,)
    zoo.zoo.store.delete(POLICY_KEY)
    assert fsck(zoo.zoo) == []
    zoo.set_policy([RULE])
    for again in (lambda: zoo.alias("ppo:2", "prod"), lambda: zoo.rollback("ppo", "prod")):
        with pytest.raises(GateFailed):
            again()


def test_a_gate_that_is_taken_back_from_where_the_alias_was_leaves_it_there_without_one(
    zoo: BrainManager,
) -> None:
    zoo.alias("ppo:1", "prod", force=True)
    stricter = [Rule("prod", stations=["s9"])]
    with (
        raced(zoo, is_swap, lambda other: other.set_policy(stricter)) as slow,
        pytest.raises(GateFailed),
    ):
        slow.promote("ppo:1", "prod")
    assert moves(zoo) == [(None, 1), (1, 1), (1, 1)]
    assert last_move(zoo).gate is None
    assert pointer(zoo).passed(1, zoo.resolve("ppo:1").digest) is None


def test_a_store_that_fails_after_the_swap_is_told_with_where_the_alias_is(
    zoo: BrainManager,
) -> None:
    swapped: list[Call] = []

    def around(call: Call, proceed: Proceed) -> Any:
        if swapped and call.key == POLICY_KEY:
            raise StoreUnavailable("the store is down")
        swapped.extend([call] if is_swap(call) else [])
        return proceed()

    with opened(WrappedStore(zoo.zoo.store, around)) as other:
        with pytest.raises(StoreUnavailable) as failure:
            other.promote("ppo:1", "prod")
        assert failure.value.__notes__ == ["ppo:prod names ppo:1, which had met the policy before"]
    assert zoo.aliases("ppo")["prod"] == 1


def test_a_version_that_is_deleted_before_the_swap_is_not_what_the_alias_names(
    zoo: BrainManager,
) -> None:
    with (
        raced(zoo, is_swap, lambda other: other.delete("ppo:2")) as slow,
        pytest.raises(NotFound, match="deleted"),
    ):
        slow.promote("ppo:2", "prod")
    assert "prod" not in zoo.aliases("ppo")


@pytest.mark.parametrize("after", [False, True])
def test_a_promotion_that_dies_at_any_call_is_finished_by_the_next(
    zoo: BrainManager, after: bool
) -> None:
    zoo.promote("ppo:2", "prod")
    finish(zoo)
    before = zoo.zoo.store
    assert isinstance(before, MemoryStore)
    for at in range(100):
        copy = memory_copy(before)
        dying = CrashingStore(copy, at, after=after)
        with contextlib.suppress(Crash), opened(dying) as other:
            other.promote("ppo:1", "prod")
        with opened(copy) as other:
            assert moves(other) in ([(None, 2)], [(None, 2), (2, 1)])
            assert all(move.gate for move in pointer(other).moves)
            other.promote("ppo:1", "prod")
            assert moves(other) == [(None, 2), (2, 1)]
            assert other.zoo.index().aliases_of("ppo") == {"prod": 1}
            assert fsck(other.zoo) == []
        if not dying.has_crashed:
            return
    pytest.fail("a promotion makes more calls than expected")


def test_expected_is_held_against_what_the_alias_names(zoo: BrainManager) -> None:
    with pytest.raises(Conflict, match="expected version 3"):
        zoo.promote("ppo:1", "prod", expected=3)
    zoo.promote("ppo:1", "prod", expected=0)
    zoo.promote("ppo:2", "prod", expected=1)


def test_of_many_threads_that_promote_at_once_each_moves_or_gets_a_conflict(
    zoo: BrainManager,
) -> None:
    def attempt(number: int) -> int:
        with opened(zoo.zoo.store) as other:
            try:
                other.promote(f"ppo:{number % 2 + 1}", "prod")
            except Conflict:
                return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        won = sum(pool.map(attempt, range(24)))
    told = pointer(zoo).moves
    assert 1 <= len(told) <= won
    assert all(move.gate and move.gate.reports for move in told)
    for before, after in itertools.pairwise(told):
        assert before.to_version == after.from_version


def test_processes_that_promote_at_once_lose_no_move(tmp_path: Path) -> None:
    last = 6
    with opened(tmp_path) as zoo:
        for seed in range(last):
            zoo.save("ppo", params(seed), report=report())
        zoo.set_policy([RULE])
        task = ("chain", {"name": "ppo", "alias": "prod", "to": last, "by_gate": True})
        movers = compete((str(tmp_path), {}), [task] * 3)
        assert sorted(move for own in movers for move in own) == list(range(1, last + 1))
        assert moves(zoo) == list(zip([None, *range(1, last)], range(1, last + 1), strict=True))
        for move in pointer(zoo).moves:
            assert move.gate is not None
            assert move.gate.reports == (zoo.reports(f"ppo:{move.to_version}")[0].id,)


# The policy itself


def test_a_policy_is_changed_only_from_the_generation_that_was_seen(zoo: BrainManager) -> None:
    with pytest.raises(Conflict, match="generation 1, expected 0"):
        zoo.set_policy([], expected=0)
    assert zoo.set_policy([RULE], expected=1, why="same").generation == 2
    policy = zoo.policy()
    assert policy is not None
    assert policy.rules == (RULE,)
    assert [(each.generation, each.why) for each in policy.changes] == [(1, ""), (2, "same")]


def test_a_change_of_the_policy_whose_reply_was_lost_is_made_once(zoo: BrainManager) -> None:
    def is_change(call: Call) -> bool:
        return call.step == "put probe" and call.key == POLICY_KEY

    stricter = Rule("prod", stations=["s9"])
    lost = Conflict("412 against its own success")
    with raced(zoo, is_change, lambda other: other.set_policy([RULE]), after=lost) as slow:
        found = slow.set_policy([stricter], why="mine")
    assert [each.why for each in found.changes] == ["", "mine", ""]
    assert found == zoo.policy()
    assert found.rules == (RULE,)


def test_changes_of_the_policy_at_once_are_all_made(zoo: BrainManager) -> None:
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda n: zoo.set_policy([RULE], why=str(n)), range(20)))
    policy = zoo.policy()
    assert policy is not None
    assert policy.generation == 21
    assert sorted(int(each.why) for each in policy.changes[1:]) == list(range(20))


def test_the_last_32_changes_of_the_policy_are_kept(zoo: BrainManager) -> None:
    for _ in range(40):
        zoo.set_policy([RULE])
    policy = zoo.policy()
    assert policy is not None
    assert [each.generation for each in policy.changes] == list(range(10, 42))


@pytest.mark.parametrize(
    "rules", [5, "prod", [5], {"rules": 5}, {"rule": []}, [{"alias": "prod"}], [{"models": "x"}]]
)
def test_a_bad_policy_is_refused_and_the_one_before_stays(zoo: BrainManager, rules: Any) -> None:
    before = objects(zoo)
    with pytest.raises(BadParams):
        zoo.set_policy(rules)
    assert objects(zoo) == before


def test_a_place_that_is_no_zoo_gets_no_policy() -> None:
    with opened(MemoryStore()) as nowhere:
        assert nowhere.policy() is None
        with pytest.raises(NoZoo):
            nowhere.set_policy([RULE])


# Elsewhere


def test_a_sync_moves_an_alias_only_if_the_targets_policy_is_met(zoo: BrainManager) -> None:
    zoo.alias("ppo:3", "prod", force=True)
    with opened(MemoryStore()) as target:
        target.init()
        target.set_policy([RULE])
        [conflict] = zoo.push(target, aliases=True).conflicts
        assert "station s3" in conflict.detail
        assert "prod" not in target.aliases("ppo")
        zoo.add_report("ppo:3", report())
        assert [x.status for x in zoo.push(target, aliases=True).outcomes][-1] == "moved"
        gate = last_move(target).gate
        assert gate is not None
        assert gate.reports == (zoo.reports("ppo:3")[0].id,)


def test_a_policy_stays_in_its_zoo(zoo: BrainManager) -> None:
    with opened(MemoryStore()) as target:
        zoo.push(target)
        assert target.policy() is None


def test_the_log_tells_of_reports_promotions_and_policies(zoo: BrainManager) -> None:
    zoo.add_report("ppo:3", report(6.0))
    zoo.promote("ppo:1", "prod", why="good")
    zoo.alias("ppo:3", "prod", force=True)
    told = [(each.what, each.ref, each.grounds) for each in zoo.history()]
    assert ("reported s3 passed", "ppo:1", "return 7.5 >= 7") in told
    assert ("reported s3 failed", "ppo:3", "return 6 >= 7") in told
    assert ("set policy 1", "policy", "") in told
    assert [each for each in told if each[1] == "ppo:prod"] == [
        ("promoted nothing → 1", "ppo:prod", "good; by policy 1 and 1 report"),
        ("moved 1 → 3", "ppo:prod", "forced past policy 1"),
    ]
    assert not any(each.ref == "policy" for each in zoo.history("ppo"))
    zoo.zoo.store.put(POLICY_KEY, b"")
    assert [each.ref for each in zoo.history() if each.what == "unreadable"] == ["policy"]


def test_a_pointer_with_gates_is_plain_json(zoo: BrainManager) -> None:
    zoo.promote("ppo:1", "prod")
    [move] = json.loads(objects(zoo)[PROD])["moves"]
    assert set(move["gate"]) == {"policy", "generation", "rules", "reports"}
    zoo.alias("ppo:3", "candidate")
    body = objects(zoo)[pointer_key(Name("ppo"), Alias("candidate"))]
    assert "gate" not in json.loads(body)["moves"][0]


@pytest.mark.s3
def test_reports_policy_and_promotion_work_in_a_bucket(s3_place: S3Place, tmp_path: Path) -> None:
    options = s3_place.storage_options
    with opened(s3_place.url, storage_options=options, cache=tmp_path / "a") as zoo:
        zoo.save("ppo", params(1))
        zoo.set_policy([RULE], expected=0)
        zoo.add_report("ppo:1", report(NAN))
        with pytest.raises(GateFailed):
            zoo.promote("ppo:1", "prod")
        with opened(s3_place.url, storage_options=options, cache=tmp_path / "b") as other:
            other.add_report("ppo:1", report())
            with pytest.raises(Conflict):
                other.set_policy([], expected=0)
        zoo.promote("ppo:1", "prod", expected=0)
        assert [each.is_passed for each in zoo.reports("ppo:prod")] == [False, True]
        assert fsck(zoo.zoo) == []
