"""The checker of histories: what can have happened passes, what cannot is found."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from linearizable import Operation, problems


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
