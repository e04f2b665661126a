"""The protocol of saves and collections loses nothing, in any order; and each rule is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from random import Random

import pytest
from collector_model import NOTHING, GcState, Record, Rules, Scenario, World, search, wander
from model_collector import Collector
from model_writers import Copier, Deleter, Restorer, Rival, Saver

Tally = Callable[..., None]

LIVE = Record("manifest", 1, frozenset("X"), 1)
DELETED = Record("deleted", 1, frozenset("X"), 2)
FENCE = Record("fence", 0, NOTHING, 1)

COLLECTOR = Collector("the collector")
BUCKET = COLLECTOR, Collector("the second collector")
FOLDER = Collector("the collector", True), Collector("the second collector", True)
SAVER = Saver("the saver")
RIVAL = Rival("the rival", 1)
DELETER = Deleter("the deleter", 1)
RESTORER = Restorer("the restorer", 1)

# Where there is no version at first, X is garbage that a save may find.
SCENARIOS = {
    "a save that reuses a blob of a deleted version": Scenario(
        [Saver("the saver", first=2), COLLECTOR], [DELETED, None, None]
    ),
    "a save of two blobs, one of them of a live version": Scenario(
        [Saver("the saver", first=2, blobs=frozenset("XY")), COLLECTOR],
        [LIVE, None, None],
        blobs=frozenset("XY"),
    ),
    "two saves that remember, over two collections": Scenario(
        [Saver("the saver", saves=2), Collector("the collector", rounds=2)], [None] * 3
    ),
    "a save whose number is taken, and freed of its manifest": Scenario(
        [SAVER, RIVAL, DELETER, COLLECTOR], [None] * 4
    ),
    "two savers of one blob": Scenario([SAVER, Saver("the other saver"), COLLECTOR], [None]),
    "two collections at once in a bucket": Scenario([SAVER, *BUCKET], [None]),
    "two collections at once in a folder": Scenario([SAVER, *FOLDER], [None] * 2),
    "a collection that died while it deleted": Scenario(
        [SAVER, *BUCKET, Collector("the dead one", is_dead=True)],
        [None] * 2,
        gc=GcState("deleting", 1, frozenset("X"), 4),
    ),
    "a sync and a save to one number": Scenario(
        [SAVER, Copier("the sync", 1), COLLECTOR], [None] * 2
    ),
    "a sync over the fence that was to stop a save": Scenario(
        [SAVER, Copier("the sync", 1, blobs=NOTHING), COLLECTOR], [None] * 2
    ),
    "a sync over a fence, and two collections": Scenario([Copier("the sync", 1), *BUCKET], [FENCE]),
    "a restoration, and two collections": Scenario([RESTORER, DELETER, *BUCKET], [LIVE]),
    "a restoration and a save": Scenario(
        [Saver("the saver", first=2), RESTORER, DELETER, COLLECTOR], [LIVE, None]
    ),
}

LARGE = {
    "two savers of one blob, and a deleter": Scenario(
        [SAVER, Saver("the other saver"), DELETER, COLLECTOR], [None] * 3
    ),
    "a sync and a save, over two collections": Scenario(
        [SAVER, Copier("the sync", 1, blobs=NOTHING), Collector("the collector", rounds=2)],
        [None] * 2,
    ),
    "a restoration and a save, over two collections": Scenario(
        [Saver("the saver", first=2), RESTORER, DELETER, Collector("the collector", rounds=2)],
        [LIVE, None],
    ),
    "a save whose number is taken, and two collections": Scenario(
        [SAVER, RIVAL, DELETER, *BUCKET], [None] * 2
    ),
}

EVERYBODY = Scenario(
    [
        Saver("the saver", saves=2, blobs=frozenset("XY")),
        Saver("the other saver", saves=2),
        Copier("the sync", 3, blobs=frozenset("Y")),
        Deleter("the deleter", 1),
        Deleter("the second deleter", 2),
        Restorer("the restorer", 1),
        Collector("the collector", rounds=2),
        Collector("the second collector", rounds=2),
    ],
    [LIVE, *[None] * 6],
    blobs=frozenset("XY"),
)

REUSE = SCENARIOS["a save that reuses a blob of a deleted version"]
RIVALRY = SCENARIOS["a save whose number is taken, and freed of its manifest"]
COLLECTIONS = SCENARIOS["two collections at once in a bucket"]
SYNC = Scenario([Copier("the sync", 1), COLLECTOR], [FENCE])
RESTORATION = Scenario([RESTORER, COLLECTOR], [DELETED])

NEEDED_IN = {
    "reads_state_after_intent": REUSE,
    "trusts_only_an_idle_state": REUSE,
    "learns_anew_when_the_state_changed": REUSE,
    "waits_for_what_is_condemned": REUSE,
    "stops_at_tombstones": REUSE,
    "skips_no_number": RIVALRY,
    "looks_at_the_number_before_the_intent": SYNC,
    "marks_what_replaces_a_fence": SCENARIOS["a sync over the fence that was to stop a save"],
    "restores_under_an_intent": RESTORATION,
    "reads_intents_before_manifests": REUSE,
    "fences_expired_intents": REUSE,
    "fences_beyond_deleted_versions": RIVALRY,
    "fences_as_far_as_a_saver_goes": RIVALRY,
    "changes_fences_of_exact_intents": SYNC,
    "changes_tombstones_of_exact_intents": RESTORATION,
    "stores_what_it_deletes": COLLECTIONS,
    "waits_for_lost_replies": REUSE,
    "raises_the_generation": REUSE,
    "signs_the_state": COLLECTIONS,
    "takes_over_deleting_only_from_the_dead": COLLECTIONS,
    "takes_over_after_the_last_request": COLLECTIONS,
    "signs_what_it_takes_over": SCENARIOS["a collection that died while it deleted"],
}


def names_of(scenario: Scenario) -> set[str]:
    return {actor.name for actor in scenario.actors} - {"the dead one"}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_nothing_is_lost_in_any_order(scenario: Scenario, tally: Tally) -> None:
    found = search(scenario)
    assert found.trace is None, str(found)
    assert found.successful == names_of(scenario)
    tally("orders of a save and a collection, all searched", cases=found.states, lost=0)


@pytest.mark.parametrize("rule", NEEDED_IN)
def test_without_any_one_of_the_rules_something_is_lost(rule: str, tally: Tally) -> None:
    found = search(NEEDED_IN[rule], Rules(**{rule: False}))
    assert found.trace is not None
    assert found.trace[-1].endswith("X is gone")
    tally("rules of the protocol, each left out and found to be needed", cases=1)


def test_every_rule_is_tried() -> None:
    assert list(NEEDED_IN) == [field.name for field in fields(Rules)]


def test_a_loss_is_told_step_by_step() -> None:
    found = search(RESTORATION, Rules(restores_under_an_intent=False))
    assert str(found).splitlines() == [
        "the restorer looks at v1",
        "the collector lists X",
        "the collector reads that the state is idle (0)",
        "the collector condemns X",
        "the collector lists the intents",
        "the collector lists the manifests",
        "the collector reads v1, and keeps nothing",
        "the restorer makes v1 a restored version",
        "the collector finds that X is garbage",
        "the collector asks to delete X",
        "the collector has deleted X",
        "lost: v1 is live, and X is gone",
    ]


def test_a_number_that_gets_two_manifests_is_noticed() -> None:
    world = World(NOTHING, (LIVE,), ())
    world.written(1, "deleted", LIVE.write_id, NOTHING)
    with pytest.raises(AssertionError, match="v1 was given to two manifests"):
        world.written(1, "manifest", LIVE.write_id + 1, NOTHING)


def test_everybody_at_once_loses_nothing_on_ways_taken_at_random(tally: Tally) -> None:
    choice, steps, successful = Random(4), 0, set[str]()
    for _ in range(200):
        found = wander(EVERYBODY, choice)
        assert found.trace is None, str(found)
        steps += found.states
        successful |= found.successful
    assert successful == names_of(EVERYBODY)
    tally("steps of everybody at once, in orders taken at random", cases=steps, lost=0)


def test_ways_taken_at_random_come_to_a_loss_too() -> None:
    choice, rules = Random(4), Rules(fences_expired_intents=False)
    ways = (wander(EVERYBODY, choice, rules) for _ in range(2000))
    assert any(found.trace for found in ways)


@pytest.mark.soak
@pytest.mark.parametrize("scenario", LARGE.values(), ids=LARGE)
def test_nothing_is_lost_in_any_order_of_a_large_scenario(scenario: Scenario, tally: Tally) -> None:
    test_nothing_is_lost_in_any_order(scenario, tally)


@pytest.mark.soak
def test_everybody_at_once_loses_nothing_for_long(soak_s: float, tally: Tally) -> None:
    choice, steps, until = Random(), 0, time.monotonic() + soak_s
    while time.monotonic() < until:
        found = wander(EVERYBODY, choice)
        assert found.trace is None, str(found)
        steps += found.states
    tally("steps of everybody at once, in orders taken at random", cases=steps, lost=0)
