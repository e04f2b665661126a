"""What a zoo promises to many who use one model at once, as effects at instants.

Most operations are one instant: a load, an alias that is read, a swap of an alias. Where
`docs/design.md` promises less, an operation is several, in this order:

- a save: the version is there; then `latest` is it, or a higher one;
- a deletion: the version is gone; then `latest` is the highest one left. Between the two,
  `latest` may name what is deleted, or any version that was the highest one meanwhile;
- a deletion with force: the alias is removed, if it names the version; then as above;
- a restoration: as a save;
- an alias that moves to a version that is deleted just then: it moves, and moves back; a
  deletion of a version that an alias moves to just then: it is gone, and comes back.

So once an operation has returned, everybody sees all of it. A list tells of each version
by itself whether it is listed, at some instant of its own: what a save or restoration did
is listed, and what was deleted is not, before the operation returns, and never before it
has happened.

Numbers are taken in order, without a gap; but a collector of garbage may have closed some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from linearizable import NONE, Effect, Operation, Plan, unexplained


def problems(history: Sequence[Operation], fences: Iterable[int] = ()) -> list[str]:
    """Return what of the history of one model cannot have happened; nothing, if all is well.

    `fences` are the numbers that a collector has closed. A load has the mark of the save.
    """
    own = [each for each in history if each.kind != "list"]
    found = [unexplained(own, Model(fences)), *_wrong_marks(own)]
    for number in sorted(_saved(own)):
        found.append(unexplained(*_of_version(history, number)))
    return [each for each in found if each]


def _saved(history: Sequence[Operation]) -> dict[int, str]:
    saves = [each for each in history if each.kind == "save" and each.outcome == "ok"]
    return {each.value: each.arguments[0] for each in saves}


def _wrong_marks(history: Sequence[Operation]) -> Iterator[str]:
    saved = _saved(history)
    for each in history:
        is_loaded = each.kind == "load" and each.outcome == "ok"
        if is_loaded and saved.get(each.value) != each.mark:
            yield f"{each}, with the params of {each.mark}"


def _of_version(history: Sequence[Operation], number: int) -> tuple[list[Operation], Listing]:
    turning = [e for e in history if "delete" in e.kind and e.arguments[0] == number]
    others = [
        each
        for each in history
        if each.kind == "list"
        or (each.kind == "save" and each.value == number)
        or (each.kind == "load" and each.arguments[0] == number)
    ]
    return turning + others, Listing(number, turns=2 * len(turning))


class State(NamedTuple):
    """A model. `published` are the versions of which `latest` is the highest."""

    highest: int = 0
    live: frozenset[int] = NONE
    published: frozenset[int] = NONE
    passed: frozenset[int] = NONE
    alias: int = 0
    alias_before: int = 0

    @property
    def latest(self) -> int:
        return max(self.published, default=0)

    def changed(self, **fields: Any) -> State:
        """Return the state with these fields; `passed` is what a deletion may pass by."""
        after = self._replace(**fields)
        if after.latest == 0 or after.latest in after.live:
            return after._replace(passed=NONE)
        return after._replace(passed=after.passed | {max(after.live, default=0)})


class Model:
    """A model without its list: numbers, versions, `latest` (0: none) and one alias."""

    start = State()

    def __init__(self, fences: Iterable[int] = ()) -> None:
        """`fences` are the numbers that a collector has closed."""
        self._fences = frozenset(fences)

    def plans(self, operation: Operation) -> list[Plan]:
        return _PLANS[operation.kind](operation)

    def after(self, state: State, effect: Effect) -> State | None:
        return getattr(self, "_" + effect[0])(state, *effect[1:])

    def _commit(self, state: State, number: int) -> State | None:
        between = range(state.highest + 1, number)
        if number <= state.highest or not self._fences.issuperset(between):
            return None
        return state.changed(highest=number, live=state.live | {number})

    # These two may find nothing to do. Whoever changes that later does it itself.

    def _publish(self, state: State, number: int) -> State:
        is_live = number in state.live
        return state.changed(published=state.published | {number}) if is_live else state

    def _settle(self, state: State, number: int) -> State:
        is_live = number in state.live
        return state if is_live else state.changed(published=state.published - {number})

    def _flash(self, state: State, number: int) -> State | None:
        is_live = number in state.live
        return None if is_live else state.changed(published=state.published | {number})

    def _bury(self, state: State, number: int) -> State | None:
        if number not in state.live:
            return None
        return state.changed(live=state.live - {number})

    def _restore(self, state: State, number: int) -> State | None:
        if number in state.live or number > state.highest or number in self._fences:
            return None
        return state.changed(live=state.live | {number})

    def _move(self, state: State, to: int, expected: int | None) -> State | None:
        if to == state.alias or expected not in (None, state.alias):
            return None
        return state._replace(alias=to, alias_before=state.alias)

    def _back(self, state: State, number: int) -> State | None:
        return self._move(state, state.alias_before, number)

    def _is_live(self, state: State, number: int) -> State | None:
        return state if number in state.live else None

    def _is_gone(self, state: State, number: int) -> State | None:
        return None if number in state.live else state

    def _latest_is(self, state: State, number: int) -> State | None:
        return state if number == state.latest or number in state.passed else None

    def _latest_is_gone(self, state: State) -> State | None:
        return None if state.latest in state.live else state

    def _alias_is(self, state: State, number: int) -> State | None:
        return state if number == state.alias else None

    def _alias_is_not(self, state: State, number: int | None) -> State | None:
        return None if number == state.alias else state

    def _alias_is_gone(self, state: State) -> State | None:
        return None if state.alias in state.live else state


def _save(each: Operation) -> list[Plan]:
    if each.outcome != "ok":
        return [()]
    return _visible("commit", each.value)


def _visible(how: str, number: int) -> list[Plan]:
    """Return how a version becomes visible, also where it is deleted just then."""
    flashed: Plan = ((how, number), ("flash", number), ("settle", number))
    return [((how, number), ("publish", number)), flashed]


def _load(each: Operation) -> list[Plan]:
    ref = each.arguments[0]
    if each.outcome == "blob gone":  # found, and then deleted and collected before it was read
        return [(*_found(ref, each.value), ("is_gone", each.value))]
    if each.outcome == "ok":
        return [_found(ref, each.value)]
    return [(("is_gone", ref) if isinstance(ref, int) else (f"{ref}_is_gone",),)]


def _found(ref: int | str, number: int) -> Plan:
    return (("is_live", number),) if isinstance(ref, int) else ((f"{ref}_is", number),)


def _resolve(each: Operation) -> list[Plan]:
    return [_found(each.arguments[0], each.value if each.outcome == "ok" else 0)]


def _alias(each: Operation) -> list[Plan]:
    to, expected = each.arguments
    moved: Plan = (("is_live", to), ("move", to, expected))
    backs: list[Plan] = [
        (*moved, ("is_gone", to), back) for back in (("back", to), ("move", 0, to))
    ]
    if each.outcome == "ok":
        stayed = _if(expected in (None, to), ("is_live", to), ("alias_is", to))
        return [(*moved, ("is_live", to)), *stayed]
    if each.outcome == "NotFound":
        return [(("is_gone", to),), *backs]
    if each.outcome == "Conflict":  # which may also come from the way back
        refused: Plan = (("alias_is_not", expected),)
        return [refused, (*moved, ("is_gone", to))]
    return [moved, *backs]


def _if(is_so: bool, *plan: Effect) -> list[Plan]:
    return [plan] if is_so else []


def _unalias(each: Operation) -> list[Plan]:
    if each.outcome == "NotFound":
        return [(("alias_is", 0),)]
    return [(("alias_is_not", 0), end) for end in (("move", 0, None), ("alias_is", 0))]


def _delete(each: Operation) -> list[Plan]:
    number, force = each.arguments
    bury, settle, unset = ("bury", number), ("settle", number), ("move", 0, number)
    named, free = ("alias_is", number), ("alias_is_not", number)
    gone: list[Plan] = [(free, bury, free, settle)]
    bounced: list[Plan] = [(bury, named, *plan) for plan in _visible("restore", number)]
    bounced.append((bury, named, ("is_live", number)))
    lost: list[Plan] = [(("is_gone", number),)]
    if force:
        gone = [(one, bury, other, settle) for one in (free, unset) for other in (free, unset)]
        lost, bounced = [(one, *lost[0]) for one in (free, unset)], []
    if each.outcome == "ok":
        return gone
    if each.outcome == "NotFound":  # one that was interrupted is finished; or no way back
        return [(("is_gone", number),), (("is_gone", number), unset) if force else (bury, named)]
    if each.outcome == "Conflict":
        return [*lost, *_if(not force, named), *bounced]
    return gone + bounced


def _undelete(each: Operation) -> list[Plan]:
    number = each.arguments[0]
    if each.outcome == "NotFound":  # fences, and versions whose blobs are collected
        return [(("is_gone", number),)]
    if each.outcome == "Conflict":  # with a collector, which changes the tombstone
        return [()]
    return _visible("restore", number)


_PLANS: dict[str, Callable[[Operation], list[Plan]]] = {
    "save": _save,
    "load": _load,
    "resolve": _resolve,
    "alias": _alias,
    "unalias": _unalias,
    "delete": _delete,
    "undelete": _undelete,
}


class Listing:
    """One version and whether it is listed: its state is (turn, turn that is listed).

    A version turns at every deletion and restoration; the save is turn 0, odd ones are
    deletions. The list goes by the highest turn that it was told of.
    """

    start = (-1, -1)

    def __init__(self, number: int, turns: int) -> None:
        self._number = number
        self._turns = turns

    def plans(self, operation: Operation) -> list[Plan]:
        if operation.kind == "list":
            return [(("is_listed", self._number in operation.value),)]
        if operation.kind == "load":
            return [(("is_live", operation.outcome == "ok"),)]
        if operation.kind == "save":
            return [self._turn(0)]
        if operation.kind == "undelete":
            restored = [self._turn(turn) for turn in range(2, self._turns + 1, 2)]
            return restored if operation.outcome in ("ok", None) else [()]
        buried = [self._turn(turn) for turn in range(1, self._turns + 1, 2)]
        bounced = [(*self._turn(turn), *self._turn(turn + 1)) for turn in range(1, self._turns, 2)]
        if operation.outcome in ("ok", None):
            return buried if operation.outcome else bounced
        return [()] if operation.arguments[1] else [(), *buried, *bounced]

    def _turn(self, turn: int) -> Plan:
        return (("turn", turn), ("tell", turn))

    def after(self, state: tuple[int, int], effect: Effect) -> tuple[int, int] | None:
        (turn, told), (what, value) = state, effect
        if what == "turn":
            return (value, told) if turn == value - 1 else None
        if what == "tell":
            return (turn, max(told, value))
        seen = told if what == "is_listed" else turn
        return state if value == (seen % 2 == 0) else None
