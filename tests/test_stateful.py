"""Any sequence of operations, with crashes, against a model of what must be in the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from zoos import crash, params, read_raw, same

from brainstore import BrainManager, Conflict, NotFound
from brainstore.intents import finish_abandoned
from brainstore.storage.base import Store
from brainstore.storage.memory import MemoryStore


class Zoo(RuleBasedStateMachine):
    """A zoo on the memory store, and what must be in it according to what was acknowledged.

    `versions` maps numbers to seeds, `deleted` holds those that are not live. After a
    crash, what was under way is read from the store: it happened or it did not.
    """

    numbers = st.integers(1, 6)

    @initialize()
    def make(self) -> None:
        self.store = MemoryStore()
        self.versions: dict[int, int] = {}
        self.deleted: set[int] = set()
        self.aliases: dict[str, int] = {}
        self.moves: dict[str, list[int]] = {}
        self.seed = 0
        self.open(self.store)
        self.zoo.init()

    def open(self, store: Store) -> None:
        self.zoo = BrainManager(store)
        self.loaded: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "zoo"):
            self.zoo.close()

    @property
    def live(self) -> list[int]:
        return [number for number in self.versions if number not in self.deleted]

    @rule()
    def save(self) -> None:
        self.seed += 1
        number = len(self.versions) + 1
        assert self.zoo.save("ppo", params(self.seed)) == f"ppo_v{number}"
        self.versions[number] = self.seed

    @rule()
    def save_the_same(self) -> None:
        number = len(self.versions) + 1
        self.zoo.save("ppo", params(self.seed))
        self.versions[number] = self.seed

    @rule(number=numbers, alias=st.sampled_from(["prod", "best"]))
    def alias(self, number: int, alias: str) -> None:
        if number not in self.live:
            with pytest.raises(NotFound):
                self.zoo.alias(f"ppo:{number}", alias)
            return
        self.zoo.alias(f"ppo:{number}", alias, expected=self.aliases.get(alias, 0))
        self._moved(alias, number)

    @rule(alias=st.sampled_from(["prod", "best"]), number=numbers)
    def alias_with_wrong_expectation(self, alias: str, number: int) -> None:
        if number in self.live and self.aliases.get(alias) != 99:
            with pytest.raises(Conflict):
                self.zoo.alias(f"ppo:{number}", alias, expected=99)

    @rule(alias=st.sampled_from(["prod", "best"]))
    def unalias(self, alias: str) -> None:
        if alias not in self.aliases:
            with pytest.raises(NotFound):
                self.zoo.unalias("ppo", alias)
            return
        self.zoo.unalias("ppo", alias)
        self._moved(alias, 0)

    @rule(alias=st.sampled_from(["prod", "best"]))
    def rollback(self, alias: str) -> None:
        past = self.moves.get(alias, [])
        target = past[-2] if len(past) > 1 else 0
        if alias not in self.aliases or target not in self.live:
            with pytest.raises(NotFound):
                self.zoo.rollback("ppo", alias)
            return
        assert self.zoo.rollback("ppo", alias).version == target
        self._moved(alias, target)

    def _moved(self, alias: str, number: int) -> None:
        if self.aliases.get(alias, 0) != number:
            self.moves.setdefault(alias, []).append(number)
        self.aliases.pop(alias, None)
        if number:
            self.aliases[alias] = number

    @rule(number=numbers, force=st.booleans())
    def delete(self, number: int, force: bool) -> None:
        if number not in self.live:
            with pytest.raises(NotFound):
                self.zoo.delete(f"ppo:{number}", force=force)
        elif number in self.aliases.values() and not force:
            with pytest.raises(Conflict):
                self.zoo.delete(f"ppo:{number}")
        else:
            self.zoo.delete(f"ppo:{number}", force=force)
            self.deleted.add(number)
            for alias in [alias for alias, at in self.aliases.items() if at == number]:
                self._moved(alias, 0)

    @rule(number=numbers)
    def undelete(self, number: int) -> None:
        if number in self.deleted:
            self.zoo.undelete(f"ppo:{number}")
            self.deleted.discard(number)
        else:
            with pytest.raises((Conflict, NotFound)):
                self.zoo.undelete(f"ppo:{number}")

    @rule()
    def fold(self) -> None:
        self.zoo.zoo.registry.journal.fold()

    @rule()
    def reopen(self) -> None:
        self.zoo.close()
        self.open(self.store)

    @rule(at=st.integers(0, 20), after=st.booleans(), work=st.sampled_from(["save", "alias"]))
    @precondition(lambda self: self.live)
    def crash(self, at: int, after: bool, work: str) -> None:
        self.zoo.close()
        self.seed += 1
        target = self.live[-1]
        jobs: dict[str, Callable[[BrainManager], Any]] = {
            "save": lambda zoo: zoo.save("ppo", params(self.seed)),
            "alias": lambda zoo: zoo.alias(f"ppo:{target}", "prod"),
        }
        crash(self.store, jobs[work], at, after=after)
        found = read_raw(self.store)
        self.open(self.store)
        number = len(self.versions) + 1
        if ("ppo", number) in found.live:
            self.versions[number] = self.seed
        if found.pointers.get(("ppo", "prod"), {}).get("version") == target:
            self._moved("prod", target)
        # What a later save or fold mends is mended here, as if an hour had passed.
        finish_abandoned(self.zoo.zoo.registry, older_than_s=-1)
        if work == "alias":
            self.zoo.alias(f"ppo:{target}", "prod")
            self._moved("prod", target)

    @invariant()
    def the_zoo_is_as_it_must_be(self) -> None:
        if not hasattr(self, "zoo"):
            return
        found = read_raw(self.store)
        assert found.problems == []
        assert sorted(n for _, n in found.live) == self.live
        assert self.zoo.list_models() == [f"ppo_v{number}" for number in self.live]
        assert self.zoo.get_latest("ppo") == (f"ppo_v{self.live[-1]}" if self.live else None)
        latest = {"latest": self.live[-1]} if self.live else {}
        assert self.zoo.aliases("ppo") == {**self.aliases, **latest}
        assert self.zoo.zoo.index().aliases_of("ppo") == self.aliases
        for number in self.live:
            if number not in self.loaded:
                tree, meta = self.zoo.load("ppo", number, as_numpy=True)
                assert same(tree, params(self.versions[number]))
                assert meta.version == number
                self.loaded.add(number)


def test_any_sequence_of_operations_and_crashes() -> None:
    run_state_machine_as_test(
        Zoo,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.soak
def test_very_many_sequences_of_operations_and_crashes() -> None:
    run_state_machine_as_test(
        Zoo,
        settings=settings(
            max_examples=2000,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
