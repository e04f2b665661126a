"""What somebody was at when he died: no damage meanwhile, and finished by others later."""

from __future__ import annotations

import pytest
from aftermath import checked
from test_crash import MOST_CALLS, WORK, crash, three_versions
from zoos import memory_copy, opened, params

from brainstore import Conflict
from brainstore.fsck.survey import survey
from brainstore.intents import finish_abandoned
from brainstore.storage.memory import MemoryStore

__all__ = ["three_versions"]  # a fixture

CHANGES = [work for work in WORK if work != "fold"]


@pytest.mark.parametrize("work", CHANGES)
def test_what_somebody_was_at_when_he_died_is_no_damage_and_is_finished_by_others(
    three_versions: MemoryStore, work: str
) -> None:
    for at in range(MOST_CALLS):
        store = memory_copy(three_versions)
        if not crash(store, WORK[work], at, after=True):
            return
        with opened(store) as zoo:
            assert (at, checked(zoo)) == (at, [])
            finish_abandoned(zoo.zoo.registry, older_than_s=-1)
            index, records = zoo.zoo.index(), survey(zoo.zoo).index()
            assert (at, index.tombstones) == (at, records.tombstones)
            assert (at, index.aliases) == (at, records.aliases)
            committed = {key: row["digest"] for key, row in records.rows.items()}
            assert (at, {key: row["digest"] for key, row in index.rows.items()}) == (at, committed)
            numbers = [number for name, number in committed if name == "ppo"]
            assert zoo.get_latest("ppo") == f"ppo_v{max(numbers)}"


def test_nothing_is_left_of_an_intent_that_protects_nothing(three_versions: MemoryStore) -> None:
    store = memory_copy(three_versions)
    with opened(store) as zoo:
        zoo.alias("ppo:3", "prod")
        zoo.delete("ppo:1", force=True)
        with pytest.raises(Conflict, match="candidate, prod"):
            zoo.delete("ppo:3")
        zoo.save("ppo", params(9))
    assert list(store.list("intents/")) == []


def test_a_dead_mover_is_forgotten_once_the_move_is_told(three_versions: MemoryStore) -> None:
    for at in range(MOST_CALLS):
        store = memory_copy(three_versions)
        if not crash(store, WORK["move"], at, after=True):
            break
        with opened(store) as zoo:
            finish_abandoned(zoo.zoo.registry, older_than_s=-1)
        assert list(store.list("intents/")) == []
    assert at > 2
