"""The index: facts in any order, any number of times, folded at any point."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoos import WrappedStore

from brainstore.address import Alias, Fact, Name, new_ulid
from brainstore.errors import Conflict, Corrupt, NoZoo
from brainstore.index import Index, merge
from brainstore.journal import ROW_BYTES, Journal
from brainstore.marker import create
from brainstore.records import AliasRow, FactBody, Snapshot
from brainstore.storage.memory import MemoryStore

NAMES = [Name("a"), Name("a/b"), Name("ppo_swarm")]
ALIASES = [Alias("prod"), Alias("candidate")]


def row_of(name: Name, version: int) -> dict[str, Any]:
    return {"name": name, "version": version, "notes": f"{name} {version}"}


@st.composite
def histories(draw: st.DrawFn) -> list[Fact]:
    """What may happen to a few models: saves, deletions and restorations, moves."""
    facts = []
    for name in NAMES:
        for version in range(1, draw(st.integers(0, 4)) + 1):
            facts.append(Fact(new_ulid(), "save", name, version))
            for generation in range(1, draw(st.integers(0, 4)) + 1):
                kind = "delete" if generation % 2 else "restore"
                facts.append(Fact(new_ulid(), kind, name, version, generation))
        for alias in ALIASES:
            for generation in range(1, draw(st.integers(0, 3)) + 1):
                target = draw(st.integers(0, 4))
                facts.append(Fact(new_ulid(), "move", name, target, generation, alias))
    return facts


def applied(index: Index, facts: list[Fact]) -> Index:
    return merge(index, [(fact, row_of(fact.name, fact.version)) for fact in facts])


@given(histories(), st.data())
def test_facts_in_any_order_and_folded_at_any_point_give_the_same_index(
    history: list[Fact], data: st.DataObject
) -> None:
    expected = applied(Index(), history)
    if history:
        history = history + data.draw(st.lists(st.sampled_from(history)))
    shuffled = data.draw(st.permutations(history))
    index = Index()
    while shuffled:
        cut = data.draw(st.integers(1, len(shuffled)))
        index = applied(index, shuffled[:cut])
        stored = Snapshot.decode(index.snapshot().encode(), "registry.json")
        index, shuffled = Index.of(stored), shuffled[cut:]
    assert index == expected


@given(histories(), st.data())
def test_the_last_word_on_each_version_and_alias_holds(
    history: list[Fact], data: st.DataObject
) -> None:
    index = applied(Index(), data.draw(st.permutations(history)))
    for fact in history:
        key = fact.name, fact.version
        rivals = [f for f in history if f.kind != "move" and (f.name, f.version) == key]
        if fact.kind != "move":
            last = max(rivals, key=lambda rival: rival.generation)
            assert (key in index.rows) == (last.kind != "delete")
        else:
            moves = [f for f in history if (f.name, f.alias) == (fact.name, fact.alias)]
            last = max(moves, key=lambda move: move.generation)
            assert index.aliases[fact.name, fact.alias].version == (last.version or None)


@given(histories(), st.data())
def test_names_without_rows_are_those_with_rows(history: list[Fact], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(history))
    bare = merge(Index(), [(fact, {}) for fact in shuffled])
    assert bare.versions() == applied(Index(), history).versions()


@given(histories(), st.data())
def test_a_body_is_not_read_when_it_tells_nothing_new(
    history: list[Fact], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(history)))
    shuffled = data.draw(st.permutations(history))
    index = applied(Index(), shuffled[:cut])
    rest = shuffled[cut:]
    needed = {fact for fact in rest if index.needs_row(fact)}
    merge(index, [(f, row_of(f.name, f.version) if f in needed else {}) for f in rest])
    assert index == applied(Index(), history)


def test_a_model_is_not_its_prefix() -> None:
    facts = [Fact(new_ulid(), "save", Name(n), 1) for n in ("ppo", "ppo2", "ppo/x")]
    index = applied(Index(), facts)
    assert index.versions("ppo") == [(Name("ppo"), 1)]
    assert index.names() == ["ppo", "ppo/x", "ppo2"]


def test_versions_sort_as_numbers() -> None:
    index = applied(Index(), [Fact(new_ulid(), "save", Name("a"), n) for n in (10, 9, 100, 2)])
    assert [number for _, number in index.versions()] == [2, 9, 10, 100]
    assert list(index.snapshot().models) == ["a_v2", "a_v9", "a_v10", "a_v100"]


@pytest.mark.parametrize(
    "snapshot",
    [
        Snapshot(folded_at="", models={"../x_v1": {}}),
        Snapshot(folded_at="", models={"ppo": {}}),
        Snapshot(folded_at="", models={"ppo:3": {}}),
        Snapshot(folded_at="", tombstones={"ppo_v0": 1}),
        Snapshot(folded_at="", aliases={"PPO": {"prod": AliasRow(version=1, generation=1)}}),
        Snapshot(folded_at="", aliases={"a": {"3": None}}),
    ],
)
def test_a_hostile_snapshot_is_corrupt(snapshot: Snapshot) -> None:
    with pytest.raises(Corrupt, match="fsck --repair"):
        Index.of(snapshot)


@pytest.fixture
def journal() -> Journal:
    store = WrappedStore(MemoryStore())
    create(store)
    return Journal(store)


def record(journal: Journal, *facts: Fact) -> None:
    for fact in facts:
        journal.record(fact, FactBody(row=row_of(fact.name, fact.version)))


def saves(*numbers: int) -> list[Fact]:
    return [Fact(new_ulid(), "save", Name("a"), number) for number in numbers]


def test_a_fold_moves_all_facts_and_changes_nothing_that_is_seen(journal: Journal) -> None:
    record(journal, *saves(1, 2, 3), Fact(new_ulid(), "delete", Name("a"), 2, 1))
    before = journal.index()
    assert journal.fold() == 4
    assert list(journal._store.list("journal/")) == []
    assert journal.index() == before
    assert journal.fold() == 0


def test_names_cost_a_listing_and_one_read(journal: Journal) -> None:
    record(journal, *saves(*range(1, 40)))
    journal._store.calls.clear()
    assert len(journal.index(rows=False).rows) == 39
    assert journal._store.steps() == ["list fact", "get snapshot"]


def test_a_fold_waits_until_it_is_worth_it_and_reads_no_large_snapshot_before(
    journal: Journal,
) -> None:
    for fact in saves(*range(1, 251)):
        journal.record(fact, FactBody(row={"notes": "x" * ROW_BYTES}))
    assert journal.fold(at_least=251) == 0
    assert journal.fold(at_least=250) == 250
    record(journal, *saves(251, 252))
    journal._store.calls.clear()
    assert journal.fold() == 0
    assert journal._store.steps() == ["list fact", "stat snapshot"]
    record(journal, *saves(253))
    assert journal.fold() == 3


def test_a_reader_that_meets_a_fold_reads_again(journal: Journal) -> None:
    record(journal, *saves(1, 2))
    other, store = Journal(journal._store.inner), journal._store

    def fold_first(call: Any, proceed: Any) -> Any:
        if call.step == "get fact":
            other.fold()
        return proceed()

    store.around = fold_first
    assert [row["version"] for row in journal.index().rows.values()] == [1, 2]


def test_a_fold_that_meets_another_loses_nothing(journal: Journal) -> None:
    record(journal, *saves(1, 2))
    other, store = Journal(journal._store.inner), journal._store
    steps = iter(["list fact", "get snapshot", "put snapshot", "delete fact"])
    wanted = [next(steps)]

    def meddle(call: Any, proceed: Any) -> Any:
        if call.step == wanted[0]:
            wanted[0] = next(steps, "")
            result = proceed()
            record(other, *saves(len(store.calls) + 100))
            other.fold()
            return result
        return proceed()

    store.around = meddle
    journal.fold()
    store.around = None
    assert journal.fold() in (0, 1)
    numbers = [number for _, number in journal.index().versions()]
    assert numbers[:2] == [1, 2]
    assert len(numbers) >= 4
    assert all(journal.index().rows.values())


def test_a_fold_whose_reply_is_lost_is_repeated_and_loses_nothing(journal: Journal) -> None:
    record(journal, *saves(1, 2))
    lost = iter([True])

    def lose(call: Any, proceed: Any) -> Any:
        result = proceed()
        if call.step == "put snapshot" and next(lost, False):
            raise Conflict("the reply was lost, and the store settled it wrongly")
        return result

    journal._store.around = lose
    journal.fold()
    assert len(journal.index().rows) == 2
    assert list(journal._store.list("journal/")) == []


def test_a_stray_key_in_the_journal_disturbs_nobody(journal: Journal) -> None:
    ulid = new_ulid()
    for rest in ("save~a~03", "save~a~0", "save~../x~1", "hello", ".DS_Store"):
        journal._store.put(f"journal/{ulid}~{rest}", b"{}")
    record(journal, *saves(1))
    assert journal.index().versions() == [(Name("a"), 1)]
    journal.fold()
    assert journal.index().versions() == [(Name("a"), 1)]


def test_a_missing_snapshot_is_damage_and_an_empty_place_no_zoo(journal: Journal) -> None:
    with pytest.raises(NoZoo):
        Journal(MemoryStore()).index()
    journal._store.delete("registry.json")
    with pytest.raises(Corrupt, match="fsck --repair"):
        journal.index()
    record(journal, *saves(1))
    with pytest.raises(Corrupt, match="fsck --repair"):
        journal.fold()
    assert len(list(journal._store.list("journal/"))) == 1
