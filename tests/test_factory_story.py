"""Any sequence of saves, reports, policies and moves, held against a model in memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from zoos import params

from brainstore import BrainManager, Check, Conflict, GateFailed, NotFound, QualityReport, Rule
from brainstore.fsck import fsck
from brainstore.storage.memory import MemoryStore

STATIONS = st.sampled_from(["s3", "s4"])
VALUES = st.sampled_from([6.0, 7.0, 8.0, float("nan")])
LEAST = 7.0

Told = tuple[str, float]
"""Station and value of a report; its one check asks for LEAST."""


class Story(RuleBasedStateMachine):
    """One model in one zoo. `moves` are where prod went, and whether through a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.zoo = BrainManager(MemoryStore())
        self.zoo.init()
        self.told: list[list[Told]] = []
        self.deleted: set[int] = set()
        self.policy: list[tuple[list[str], float | None]] = []
        self.moves: list[tuple[int, bool]] = []

    def number(self, chosen: int) -> int:
        return chosen % len(self.told) + 1

    def meets(self, number: int) -> bool:
        told = self.told[number - 1]
        for stations, least in self.policy:
            newest = dict(told)
            if not all(newest.get(station, math.nan) >= LEAST for station in stations):
                return False
            values = [value for station, value in told if not stations or station in stations]
            if least is not None and not (values and values[-1] >= least):
                return False
        return bool(self.policy)

    @property
    def prod(self) -> int | None:
        return self.moves[-1][0] if self.moves else None

    def moved(self, number: int, gated: bool) -> None:
        was_gated = self.moves[-1][1] if self.moves else False
        if self.prod != number or (gated and not was_gated):
            self.moves.append((number, gated))

    @rule(station=STATIONS, value=VALUES, reported=st.booleans())
    def save(self, station: str, value: float, reported: bool) -> None:
        report = QualityReport(station, [Check("x", value, ">=", LEAST)]) if reported else None
        self.zoo.save("ppo", params(len(self.told)), report=report)
        self.told.append([(station, value)] if reported else [])

    @precondition(lambda self: self.told)
    @rule(chosen=st.integers(0, 99), station=STATIONS, value=VALUES)
    def report(self, chosen: int, station: str, value: float) -> None:
        number = self.number(chosen)
        report = QualityReport(station, [Check("x", value, ">=", LEAST)])
        if number in self.deleted:
            with pytest.raises(NotFound):
                self.zoo.add_report(f"ppo:{number}", report)
        else:
            self.zoo.add_report(f"ppo:{number}", report)
            self.told[number - 1].append((station, value))

    @rule(
        rules=st.lists(
            st.tuples(st.lists(STATIONS, unique=True), st.none() | VALUES.filter(math.isfinite)),
            max_size=2,
        )
    )
    def set_policy(self, rules: list[tuple[list[str], float | None]]) -> None:
        self.policy = [(stations, least) for stations, least in rules if stations or least]
        self.zoo.set_policy(
            [
                Rule("prod", stations=stations, checks=[f"x >= {least}"] if least else [])
                for stations, least in self.policy
            ]
        )

    @precondition(lambda self: self.told)
    @rule(chosen=st.integers(0, 99))
    def promote(self, chosen: int) -> None:
        number = self.number(chosen)
        expected: Any = NotFound if number in self.deleted else GateFailed
        if number in self.deleted or not self.meets(number):
            with pytest.raises(expected):
                self.zoo.promote(f"ppo:{number}", "prod")
        else:
            self.zoo.promote(f"ppo:{number}", "prod")
            self.moved(number, True)

    @precondition(lambda self: self.told)
    @rule(chosen=st.integers(0, 99), force=st.booleans())
    def alias(self, chosen: int, force: bool) -> None:
        number = self.number(chosen)
        passed = (number, True) in self.moves
        if number in self.deleted:
            with pytest.raises(NotFound):
                self.zoo.alias(f"ppo:{number}", "prod", force=force)
        elif self.policy and not passed and not force:
            with pytest.raises(GateFailed):
                self.zoo.alias(f"ppo:{number}", "prod")
        else:
            self.zoo.alias(f"ppo:{number}", "prod", force=force)
            self.moved(number, bool(self.policy) and passed)

    @precondition(lambda self: self.told)
    @rule(chosen=st.integers(0, 99))
    def delete(self, chosen: int) -> None:
        number = self.number(chosen)
        if number in self.deleted:
            self.zoo.undelete(f"ppo:{number}")
            self.deleted.remove(number)
        elif number == self.prod:
            with pytest.raises(Conflict):
                self.zoo.delete(f"ppo:{number}")
        else:
            self.zoo.delete(f"ppo:{number}")
            self.deleted.add(number)

    @invariant()
    def prod_is_where_it_was_moved(self) -> None:
        if self.told:
            assert self.zoo.aliases("ppo").get("prod") == self.prod

    @invariant()
    def reports_are_those_that_were_filed(self) -> None:
        for number, told in enumerate(self.told, 1):
            if number not in self.deleted:
                found = [(r.station, r.checks[0].value) for r in self.zoo.reports(f"ppo:{number}")]
                assert repr(found) == repr(told)

    def teardown(self) -> None:
        assert fsck(self.zoo.zoo) == []
        self.zoo.close()


def run(examples: int) -> None:
    run_state_machine_as_test(
        Story,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_story_ends_as_the_model_says() -> None:
    run(15)


@pytest.mark.soak
def test_many_stories_end_as_the_model_says() -> None:
    run(400)
