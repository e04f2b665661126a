"""Could this history have happened? A search for an order of effects that explains it.

A history is what several processes did to one model, with the time at which each
operation began and returned. It is explained if every operation can be given instants
between the two, so that what all of them returned is what one zoo, at which one thing
happens at a time, would have answered. The search is that of Wing and Gong, with Lowe's
order: an effect is placed only once some return asks for it, and worlds that are alike
are looked at once. An operation that never returned may have had any part of its effects.

Most operations are one instant: a load or alias that is read, a swap of an alias. Where
`docs/design.md` promises less, an operation is several, in this order:

- a save: the version is there; then `latest` is it, or a higher one;
- a deletion: the version is gone; then `latest` is the highest one left. Between the two,
  `latest` may name what is deleted, or any version that was the highest one meanwhile;
- a restoration: as a save;
- an alias moved to a version that is deleted at once: it moves, and moves back; a deletion
  of a version that an alias moves to at once: it is gone, and comes back.

So once an operation has returned, everybody sees all of it. A list tells of each version
by itself whether it is listed, at some instant of its own: a save or restoration is
listed, a deletion is not, before it returns, and never before it has happened.

Numbers are taken in order, without a gap; but a collector of garbage may have closed some.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol

Effect = tuple[Any, ...]
"""What happens at one instant, such as ("commit", 3); one that changes nothing is a read."""

Plan = tuple[Effect, ...]
"""The effects of one operation, in their order."""

Flight = tuple[int, frozenset[Plan]]
"""An operation under way, by its place in the history, and what may be left of it to do."""

World = tuple[Hashable, frozenset[Flight]]
"""A state that the zoo may be in, and what is under way there."""

NONE: frozenset[Any] = frozenset()


@dataclass(frozen=True)
class Operation:
    """One call: `outcome` is "ok", or the name of its exception; None when it is not known."""

    kind: str
    arguments: tuple[Any, ...] = ()
    outcome: str | None = "ok"
    value: Any = None
    mark: str = ""
    start: float = 0
    end: float = inf
    process: int = 0

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.arguments))
        value = "" if self.value is None else f" {self.value}"
        return f"{self.process}: {self.kind}({shown}) -> {self.outcome}{value}"


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


class Specification(Protocol):
    """What one object does, one effect at a time."""

    start: Hashable

    def plans(self, operation: Operation) -> Iterable[Plan]:
        """Return every course of effects that ends in what the operation returned."""

    def after(self, state: Any, effect: Effect) -> Any:
        """Return the state after the effect, or None where it cannot happen."""


def unexplained(history: Sequence[Operation], specification: Specification) -> str:
    """Return "" if the history is explained, or else the first return that is not."""
    search = _Search(specification)
    worlds: set[World] = {(specification.start, NONE)}
    for index, is_return in _events(history):
        if not is_return:
            plans = frozenset(specification.plans(history[index]))
            worlds = {search.with_flight(world, (index, plans)) for world in worlds}
            continue
        before, worlds = worlds, search.finished(worlds, index)
        if not worlds:
            beside = {other for _, flights in before for other, _ in flights} - {index}
            shown = "; ".join(str(history[other]) for other in sorted(beside))
            states = " or ".join({str(state) for state, _ in before})[:1000]
            return f"{history[index]}\n  beside: {shown or 'nothing'}\n  from: {states}"
    return ""


def _events(history: Sequence[Operation]) -> Iterator[tuple[int, bool]]:
    """Yield (place, is it a return) in the order of time; what is simultaneous overlaps."""
    calls = [(each.start, False, index) for index, each in enumerate(history)]
    returns = [(each.end, True, index) for index, each in enumerate(history) if each.end < inf]
    for _, is_return, index in sorted(calls + returns):
        yield index, is_return


class _Search:
    def __init__(self, specification: Specification) -> None:
        self._after = specification.after

    def with_flight(self, world: World, flight: Flight) -> World:
        state, flights = world
        return state, flights | {self._read(state, flight)}

    def finished(self, worlds: set[World], index: int) -> set[World]:
        """Return the worlds to which these lead in which the operation may return."""
        done, seen, open_worlds = set(), set(worlds), list(worlds)
        while open_worlds:
            state, flights = open_worlds.pop()
            plans = next(plans for other, plans in flights if other == index)
            others = flights - {(index, plans)}
            if () in plans:
                done.add((state, others))
                plans -= {()}
                if not plans:
                    continue
            for world in self._nexts(state, others | {(index, plans)}):
                if world not in seen:
                    seen.add(world)
                    open_worlds.append(world)
        return done

    def _nexts(self, state: Hashable, flights: frozenset[Flight]) -> Iterator[World]:
        for flight in flights:
            index, plans = flight
            for effect in {plan[0] for plan in plans if plan}:
                after = self._after(state, effect)
                if after is not None and after != state:
                    rest = frozenset(p[1:] for p in plans if p and p[0] == effect)
                    moved = (flights - {flight}) | {(index, rest)}
                    yield after, frozenset(self._read(after, each) for each in moved)

    def _read(self, state: Hashable, flight: Flight) -> Flight:
        # A read that can happen now may as well: nothing that comes later minds.
        index, plans = flight
        return index, frozenset(self._after_reads(state, plan) for plan in plans)

    def _after_reads(self, state: Hashable, plan: Plan) -> Plan:
        while plan and self._after(state, plan[0]) == state:
            plan = plan[1:]
        return plan


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
    if force:
        gone, bounced = [(bury, free, settle), (bury, unset, settle)], []
    if each.outcome == "ok":
        return gone
    if each.outcome == "NotFound":  # one that was interrupted is finished; or no way back
        return [(("is_gone", number),), (("is_gone", number), unset) if force else (bury, named)]
    if each.outcome == "Conflict":
        return [(("is_gone", number),), *_if(not force, named), *bounced]
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
        outcome = operation.outcome
        if operation.kind == "list":
            return [(("is_listed", self._number in operation.value),)]
        if operation.kind == "load":
            return [(("is_live", outcome == "ok"),)]
        if operation.kind == "save":
            return [self._turn(0)]
        first = 1 if operation.kind == "delete" else 2
        once = [self._turn(turn) for turn in range(first, self._turns + 1, 2)]
        if outcome in ("ok", None):
            return once
        bounces = (
            operation.kind == "delete" and outcome == "Conflict" and not operation.arguments[1]
        )
        return [(), *(((*plan, *self._turn(plan[0][1] + 1)) for plan in once) if bounces else ())]

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
