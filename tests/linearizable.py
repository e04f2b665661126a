"""Could this history have happened? A search for an order of effects that explains it.

A history is what several processes did to one object, with the time at which each
operation began and returned. It is explained if every operation can be given instants
between the two, so that what all of them returned is what one object, to which one thing
happens at a time, would have answered. What may happen to it is the specification's.

The search is that of Wing and Gong, with two thoughts of Lowe's: an effect is placed only
once some return asks for it, and worlds that are alike are looked at once. An operation
that never returned may have had all of its effects, the first of them, or none.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, Protocol

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


class Specification(Protocol):
    """What one object does, one effect at a time."""

    start: Hashable

    def plans(self, operation: Operation) -> Iterable[Plan]:
        """Return every course of effects that ends in what the operation returned."""

    def after(self, state: Any, effect: Effect) -> Any:
        """Return the state after the effect, or None where it cannot happen."""


def unexplained(history: Sequence[Operation], specification: Specification) -> str:
    """Return "" if the history is explained, or else the first return that is not."""
    return _unexplained(history, specification, lazy=True) and _unexplained(
        history, specification, lazy=False
    )


def _unexplained(history: Sequence[Operation], specification: Specification, lazy: bool) -> str:
    # What never returned is tried only where nothing else explains a return. That may be
    # too late, if seldom; then all is tried.
    unreturned = {index for index, each in enumerate(history) if each.end == inf}
    search = _Search(specification)
    worlds: set[World] = {(specification.start, NONE)}
    for index, is_return in _events(history):
        if not is_return:
            plans = frozenset(specification.plans(history[index]))
            worlds = {search.with_flight(world, (index, plans)) for world in worlds}
            continue
        before = worlds
        worlds = search.finished(before, index, unreturned) if lazy else set()
        worlds = worlds or search.finished(before, index)
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
        self._after = lru_cache(maxsize=2**16)(specification.after)

    def with_flight(self, world: World, flight: Flight) -> World:
        state, flights = world
        return state, flights | {self._read(state, flight)}

    def finished(self, worlds: set[World], index: int, without: Container[int] = ()) -> set[World]:
        """Return the worlds to which these lead in which the operation may return.

        Operations `without` which it can be done have no effect meanwhile.
        """
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
            for world in self._nexts(state, others | {(index, plans)}, without):
                if world not in seen:
                    seen.add(world)
                    open_worlds.append(world)
        return done

    def _nexts(
        self, state: Hashable, flights: frozenset[Flight], without: Container[int]
    ) -> Iterator[World]:
        for flight in flights:
            index, plans = flight
            if index in without:
                continue
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
