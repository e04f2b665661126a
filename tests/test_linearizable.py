"""The checker of histories: what can have happened passes, what cannot is found."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from chronicle import operations
from crowd import Member
from linearizable import Operation
from promises import problems
from zoos import WrappedStore, opened

from brainstore import AlreadyExists, BrainManager, Conflict, deletion
from brainstore.address import LATEST, Alias, Fact
from brainstore.journal import Journal
from brainstore.pointers import Pointers, _new_pointer
from brainstore.records import FactBody
from brainstore.storage.base import ABSENT, ANYTHING, Body, Expect, Store, Token
from brainstore.storage.memory import MemoryStore
from brainstore.versions import Version


def did(
    start: float, end: float, kind: str, *arguments: Any, to: Any = None, outcome: str | None = "ok"
) -> Operation:
    """Return an operation that began and returned then; `to` is what it returned."""
    mark = "a" if kind == "load" else ""
    return Operation(kind, arguments, outcome, to, mark, start, end)


def saved(start: float, end: float, number: int) -> Operation:
    return did(start, end, "save", "a", to=number)


FIRST = saved(0, 1, 1)
SECOND = saved(2, 3, 2)

POSSIBLE = {
    "one after the other": [FIRST, SECOND, did(4, 5, "load", "latest", to=2)],
    "two saves at once, in either order": [saved(0, 9, 2), saved(1, 8, 1)],
    "a load during a save, of the version before": [
        *(FIRST, saved(2, 9, 2), did(3, 4, "load", 2, to=2), did(5, 6, "load", "latest", to=1)),
        did(7, 8, "load", "latest", to=2),
    ],
    "a number that is not listed yet and loads": [
        *(saved(0, 9, 1), did(1, 2, "load", 1, to=1), did(3, 4, "list", to=[])),
        did(5, 6, "list", to=[1]),
    ],
    "two lists at once that see two saves in two orders": [
        *(saved(0, 9, 1), saved(0, 9, 2), did(1, 2, "list", to=[1]), did(1, 2, "list", to=[2])),
    ],
    "a save that never returned, seen and never seen": [
        *(FIRST, saved(2, inf, 2), did(3, 4, "load", "latest", to=1), did(5, 6, "load", 2, to=2)),
        *(did(7, 8, "load", "latest", to=1), did(9, 10, "list", to=[1])),
    ],
    "a deletion under way: latest is gone, and then the one before": [
        *(FIRST, SECOND, did(4, 9, "delete", 2, False)),
        did(5, 6, "load", "latest", outcome="NotFound"),
        *(did(5, 6, "resolve", "latest", to=2), did(7, 8, "load", "latest", to=1)),
    ],
    "two deletions: latest passes by what the other deleted": [
        *(FIRST, SECOND, saved(4, 5, 3), did(6, 19, "delete", 3, False)),
        *(did(7, 12, "delete", 2, False), did(13, 14, "resolve", "latest", to=2)),
        did(20, 21, "resolve", "latest", to=1),
    ],
    "a deletion that bounced off an alias": [
        *(FIRST, did(2, 9, "alias", 1, 0), did(3, 8, "delete", 1, False, outcome="Conflict")),
        *(did(4, 5, "load", 1, outcome="NotFound"), did(6, 7, "load", 1, to=1)),
        did(10, 11, "load", "alias", to=1),
    ],
    "an alias that bounced off a deletion": [
        *(FIRST, SECOND, did(4, 5, "alias", 1, 0)),
        *(did(6, 15, "alias", 2, 1, outcome="NotFound"), did(7, 14, "delete", 2, True)),
        *(did(8, 9, "resolve", "alias", to=2), did(12, 13, "resolve", "alias", to=1)),
    ],
    "a forced deletion that lost against another, with the alias removed": [
        *(FIRST, did(2, 3, "alias", 1, 0), did(4, 9, "delete", 1, True, outcome="Conflict")),
        *(did(5, 8, "delete", 1, False), did(6, 7, "resolve", "alias", outcome="NotFound")),
    ],
    "a swap that lost": [
        *(FIRST, SECOND, did(4, 5, "alias", 1, 0)),
        *(did(6, 9, "alias", 2, 1), did(6, 9, "alias", 2, 0, outcome="Conflict")),
    ],
    "a deletion that never returned, and was never done": [
        *(FIRST, did(2, inf, "delete", 1, False, outcome=None), did(3, 4, "load", 1, to=1)),
    ],
    "deleted and restored": [
        *(FIRST, did(2, 3, "delete", 1, False), did(4, 5, "list", to=[])),
        *(did(6, 7, "undelete", 1), did(8, 9, "list", to=[1]), did(8, 9, "load", "latest", to=1)),
    ],
}

IMPOSSIBLE = {
    "a stale latest after a save returned": [
        *(FIRST, SECOND, did(4, 5, "load", "latest", to=1)),
    ],
    "a load that finds nothing after a save returned": [
        *(FIRST, did(2, 3, "load", 1, outcome="NotFound")),
    ],
    "a list that lacks what was saved": [FIRST, did(2, 3, "list", to=[])],
    "a list of what is not saved yet": [did(0, 1, "list", to=[1]), saved(2, 3, 1)],
    "the same number twice": [saved(0, 9, 1), saved(0, 9, 1)],
    "a number that was skipped": [FIRST, saved(2, 3, 3)],
    "a lower number after a higher one returned": [saved(0, 1, 2), saved(2, 3, 1)],
    "latest goes back": [
        *(FIRST, saved(2, 9, 2), did(3, 4, "load", "latest", to=2)),
        did(5, 6, "load", "latest", to=1),
    ],
    "a version that comes and goes": [
        *(saved(0, 9, 1), did(1, 2, "load", 1, to=1), did(3, 4, "load", 1, outcome="NotFound")),
    ],
    "a version that is listed and then is not": [
        *(saved(0, 9, 1), did(1, 2, "list", to=[1]), did(3, 4, "list", to=[])),
    ],
    "listed, and does not load": [
        *(saved(0, 9, 1), did(1, 2, "list", to=[1]), did(3, 4, "load", 1, outcome="NotFound")),
    ],
    "latest names what does not load": [
        *(saved(0, 9, 1), did(1, 2, "resolve", "latest", to=1)),
        did(3, 4, "load", 1, outcome="NotFound"),
    ],
    "a lost update: both swapped from the same state": [
        *(FIRST, SECOND, did(4, 9, "alias", 1, 0), did(4, 9, "alias", 2, 0)),
    ],
    "a swap that lost against nobody": [FIRST, did(2, 3, "alias", 1, 0, outcome="Conflict")],
    "an alias that moved by itself": [
        *(FIRST, SECOND, did(4, 5, "alias", 1, 0), did(6, 7, "resolve", "alias", to=2)),
    ],
    "a deletion that did not last": [
        *(FIRST, did(2, 3, "delete", 1, False), did(4, 5, "load", 1, to=1)),
    ],
    "latest stays on what was deleted": [
        *(FIRST, SECOND, did(4, 5, "delete", 2, False), did(6, 7, "resolve", "latest", to=2)),
    ],
    "latest passes the highest one that is left": [
        *(FIRST, SECOND, saved(4, 5, 3), did(6, 7, "delete", 3, False)),
        did(8, 9, "load", "latest", to=1),
    ],
    "deleted under an alias": [
        *(FIRST, did(2, 3, "alias", 1, 0), did(4, 5, "delete", 1, False)),
    ],
    "deleted twice": [FIRST, did(2, 9, "delete", 1, False), did(2, 9, "delete", 1, False)],
    "deleted, and listed": [FIRST, did(2, 3, "delete", 1, False), did(4, 5, "list", to=[1])],
    "restored by nobody": [
        *(FIRST, did(2, 3, "delete", 1, False), did(4, 9, "load", 1, outcome="NotFound")),
        did(10, 11, "load", 1, to=1),
    ],
    "seen of a save that never returned, and then not": [
        *(saved(0, inf, 1), did(1, 2, "load", 1, to=1)),
        did(3, 4, "load", 1, outcome="NotFound"),
    ],
}


@pytest.mark.parametrize("history", POSSIBLE.values(), ids=POSSIBLE.keys())
def test_what_can_have_happened_is_explained(history: list[Operation]) -> None:
    assert problems(history) == []


@pytest.mark.parametrize("history", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_what_cannot_have_happened_is_found(history: list[Operation]) -> None:
    assert problems(history)


def test_a_number_that_a_collector_closed_may_be_passed() -> None:
    history = [FIRST, saved(2, 3, 3)]
    assert problems(history, fences=[2]) == []
    assert problems([*history, did(4, 5, "undelete", 2)], fences=[2])


def test_params_of_another_save_are_found() -> None:
    other = Operation("save", ("b",), value=2, start=2, end=3)
    assert problems([FIRST, other, did(4, 5, "load", 2, to=2)])


def test_the_report_says_what_cannot_be_explained_and_from_where() -> None:
    found = problems([FIRST, SECOND, did(4, 9, "load", 1, to=1), did(5, 6, "load", "latest", to=1)])
    assert len(found) == 1
    assert found[0].startswith("0: load(latest) -> ok 1\n  beside: 0: load(1) -> ok 1\n  from: ")


Mutate = Callable[[pytest.MonkeyPatch], None]


def ignore_what_is_expected(patch: pytest.MonkeyPatch) -> None:
    alias = BrainManager.alias
    patch.setattr(BrainManager, "alias", lambda zoo, ref, to, expected=None: alias(zoo, ref, to))


def keep_latest_for_a_while(patch: pytest.MonkeyPatch) -> None:
    get_latest, kept = BrainManager.get_latest, dict[str, list[str | None]]()

    def stale(zoo: BrainManager, name: str) -> str | None:
        if not kept.get(name):
            kept[name] = [get_latest(zoo, name)] * 4
        return kept[name].pop()

    patch.setattr(BrainManager, "get_latest", stale)


def list_only_what_is_folded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "_facts", lambda journal: [])


def leave_latest_on_what_is_deleted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pointers, "retreat_latest", lambda pointers, version: None)


def let_latest_go_back(patch: pytest.MonkeyPatch) -> None:
    """An older version that comes back becomes the latest one."""

    def advance(pointers: Pointers, version: Version, write_id: str) -> None:
        pointers.forget_latest(version.name)
        found = pointers.latest(version.name)
        pointer = found[0] if found else _new_pointer(version.name, Alias(LATEST))
        newest = max(pointer.newest, version.version)
        pointers._swap_latest(found, pointer, version.version, version.digest, newest, write_id)

    patch.setattr(Pointers, "advance_latest", advance)


def delete_under_aliases(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deletion, "_aliases_naming", lambda registry, version: [])


def restore_without_telling(patch: pytest.MonkeyPatch) -> None:
    record = Journal.record

    def forgetful(journal: Journal, fact: Fact, body: FactBody) -> None:
        if fact.kind != "restore":
            record(journal, fact, body)

    patch.setattr(Journal, "record", forgetful)


def load_from_elsewhere(patch: pytest.MonkeyPatch) -> None:
    load = BrainManager.load

    def mixed_up(zoo: BrainManager, name: str, version: int | str, **options: Any) -> Any:
        tree, _ = load(zoo, name, 1, **options)
        return tree, load(zoo, name, version, **options)[1]

    patch.setattr(BrainManager, "load", mixed_up)


MUTANTS = [
    ignore_what_is_expected,
    keep_latest_for_a_while,
    list_only_what_is_folded,
    leave_latest_on_what_is_deleted,
    let_latest_go_back,
    delete_under_aliases,
    restore_without_telling,
    load_from_elsewhere,
]


class CheckingStore(WrappedStore):
    """Looks whether it may write, lets others do something, and writes all the same."""

    meanwhile: Callable[[], None] | None = None

    def put(self, key: str, body: bytes | Body, *, expect: Token | Expect = ANYTHING) -> Token:
        meanwhile = self.meanwhile
        if meanwhile is None or not key.startswith("models/") or expect is ANYTHING:
            return self.inner.put(key, body, expect=expect)
        found = self.inner.get(key)
        if (found.token if found else ABSENT) != expect:
            raise (AlreadyExists if expect is ABSENT else Conflict)(key)
        self.meanwhile = None
        meanwhile()
        return self.inner.put(key, body)


def played(store: Store, acts: int = 200) -> list[Operation]:
    """Return what two members, who take turns, did to a model in this store."""
    lines: list[list[dict[str, Any]]] = [[], []]
    members = [
        Member(lambda: BrainManager(store), lines[number].append, number, seed=number)
        for number in range(2)
    ]
    members[0].zoo.init()
    for turn in range(acts):
        members[turn % 2].act()
    for member in members:
        member.zoo.close()
    return told(lines)


def told(logs: list[list[dict[str, Any]]]) -> list[Operation]:
    return [each for number, log in enumerate(logs) for _, each in operations(log, number)]


def test_a_zoo_that_keeps_its_promises_is_explained() -> None:
    history = played(MemoryStore())
    assert problems(history) == []
    assert {each.outcome for each in history} == {"ok", "NotFound", "Conflict"}


@pytest.mark.parametrize("mutate", MUTANTS)
def test_a_zoo_that_breaks_a_promise_is_found(mutate: Mutate, monkeypatch: Any) -> None:
    mutate(monkeypatch)
    assert problems(played(MemoryStore()))


@pytest.mark.parametrize(
    ("kind", "arguments"), [("save", [("a",), ("b",)]), ("alias", [(2, 1), (3, 1)])]
)
def test_a_store_that_checks_and_then_writes_is_found(
    kind: str, arguments: list[tuple[Any, ...]]
) -> None:
    store, logs = CheckingStore(MemoryStore()), list[list[dict[str, Any]]]([[], []])
    with opened(store) as one, opened(store) as two:
        first, second = Member(lambda: one, logs[0].append), Member(lambda: two, logs[1].append)
        for mark in ("x", "y", "z"):
            first.do("save", "ppo", mark)
        first.do("alias", "ppo", 1, 0)
        store.meanwhile = lambda: second.do(kind, "ppo", *arguments[1])
        first.do(kind, "ppo", *arguments[0])
    assert [log[-1]["outcome"] for log in logs] == ["ok", "ok"]
    assert problems(told(logs))
