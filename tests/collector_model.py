"""The protocol of savers, copiers, deleters and collectors, small enough to try every order.

It says as a program what `docs/design.md` says in words. Here are the store, the rules and
the search; `model_writers.py` and `model_collector.py` have the actors. Each `steps` yields
what an actor may do next: one operation of the store, which is atomic. The steps of all
actors mix in every order. An actor may stop for ever after any step, and so may sleep as
long as it likes: an intent may be judged expired at any time once it is stored. No blob is
too young to be collected.

`search` visits every world that can come about, and returns the shortest way to one in
which a live version names a blob that is gone. The rules are what keeps that from
happening; a mutant is the protocol without one of them.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, Protocol

NUMBERS_PER_INTENT = 2
"""As in `brainstore.intents`, where it is 8."""

Blobs = frozenset[str]
NOTHING: frozenset[Any] = frozenset()


@dataclass(frozen=True)
class Rules:
    """What the actors keep to. All hold in the protocol, and each is needed."""

    # Who saves, copies or restores:
    reads_state_after_intent: bool = True
    trusts_only_an_idle_state: bool = True
    learns_anew_when_the_state_changed: bool = True
    waits_for_what_is_condemned: bool = True
    stops_at_tombstones: bool = True
    skips_no_number: bool = True
    looks_at_the_number_before_the_intent: bool = True
    marks_what_replaces_a_fence: bool = True
    restores_under_an_intent: bool = True
    # Who collects:
    reads_intents_before_manifests: bool = True
    fences_expired_intents: bool = True
    fences_beyond_deleted_versions: bool = True
    fences_as_far_as_a_saver_goes: bool = True
    changes_fences_of_exact_intents: bool = True
    changes_tombstones_of_exact_intents: bool = True
    stores_what_it_deletes: bool = True
    waits_for_lost_replies: bool = True
    raises_the_generation: bool = True
    signs_the_state: bool = True
    takes_over_deleting_only_from_the_dead: bool = True
    takes_over_after_the_last_request: bool = True
    signs_what_it_takes_over: bool = True


class Record(NamedTuple):
    """What stands at a number; `token` is another one after each write."""

    kind: str  # manifest; or a tombstone: fence, deleted, restored
    write_id: int
    blobs: Blobs
    token: int

    @property
    def is_live(self) -> bool:
        return self.kind in ("manifest", "restored")


class Intent(NamedTuple):
    """An intent. That of a save is not exact: it may commit at a later number, too."""

    write_id: int
    number: int
    blobs: Blobs
    is_exact: bool


class GcState(NamedTuple):
    status: str = "idle"  # condemned, deleting
    generation: int = 0
    condemned: Blobs = NOTHING
    owner: int = 0

    def __str__(self) -> str:
        return f"{self.status} ({self.generation})"


IDLE = GcState()


class World(NamedTuple):
    """What the store holds, and where each actor stands. Actors and numbers count from 1."""

    blobs: Blobs
    records: tuple[Record | None, ...]
    actors: tuple[Any, ...]
    gc: GcState = IDLE
    intents: frozenset[Intent] = NOTHING
    lock: int = 0  # the actor that holds the lock of a folder

    @property
    def numbers(self) -> range:
        return range(1, len(self.records) + 1)

    def at(self, number: int) -> Record | None:
        return self.records[number - 1]

    @property
    def highest(self) -> int:
        """The highest number that was ever taken."""
        return max((number for number in self.numbers if self.at(number)), default=0)

    def moved(self, who: int, to: Any, **changes: Any) -> World:
        """Return the world after a step of one actor."""
        actors = (*self.actors[: who - 1], to, *self.actors[who:])
        return self._replace(actors=actors, **changes)

    def written(self, number: int, kind: str, write_id: int, blobs: Blobs) -> dict[str, Any]:
        """Return the change that puts a record there; a number has one manifest for ever."""
        before = self.at(number)
        if before is not None and before.kind != "fence":
            assert before.write_id == write_id, f"v{number} was given to two manifests"
        record = Record(kind, write_id, blobs, before.token + 1 if before else 1)
        return {"records": (*self.records[: number - 1], record, *self.records[number:])}

    def with_intent(self, *intent: Any) -> dict[str, Any]:
        return {"intents": self.intents | {Intent(*intent)}}

    def without_intent(self, write_id: int) -> dict[str, Any]:
        return {"intents": frozenset(i for i in self.intents if i.write_id != write_id)}

    @property
    def losses(self) -> list[str]:
        return [
            f"lost: v{number} is live, and {shown(record.blobs - self.blobs)} is gone"
            for number, record in enumerate(self.records, 1)
            if record is not None and record.is_live and not record.blobs <= self.blobs
        ]


Steps = Iterator[tuple[str, World]]
Origin = tuple[World, str, str] | None


class Actor(Protocol):
    """Somebody at work on the store."""

    @property
    def name(self) -> str: ...

    def start(self, who: int) -> Any:
        """Return where it stands first; `at`, there, is "done" once it has succeeded."""

    def steps(self, world: World, who: int, rules: Rules) -> Steps:
        """Yield each step that it may take: what it does, in words, and the world after it."""


@dataclass(frozen=True)
class Scenario:
    """Who is at work, and what the store holds at first."""

    actors: Sequence[Actor]
    records: Sequence[Record | None]
    blobs: Blobs = frozenset("X")
    gc: GcState = IDLE

    def world(self) -> World:
        actors = tuple(actor.start(who) for who, actor in enumerate(self.actors, 1))
        return World(self.blobs, tuple(self.records), actors, self.gc)


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        states: how many worlds it has visited.
        successful: names of the actors that succeeded in one of them, at least.
        trace: the shortest way to a loss, a line for each step; None if there is none.
    """

    states: int
    successful: frozenset[str]
    trace: list[str] | None

    def __str__(self) -> str:
        return "\n".join(self.trace or ["nothing is lost"])


def search(scenario: Scenario, rules: Rules = Rules()) -> Found:
    """Visit every world that the scenario can lead to, or those up to the first loss."""
    # Worlds hold each other in no circle; looking for circles takes a third of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _search(scenario, rules)
    finally:
        if was_enabled:
            gc.enable()


def _search(scenario: Scenario, rules: Rules) -> Found:
    start = scenario.world()
    came_from: dict[World, Origin] = {start: None}
    frontier = deque([start])
    while frontier:
        world = frontier.popleft()
        for who, actor in enumerate(scenario.actors, 1):
            for text, after in actor.steps(world, who, rules):
                origin = world, actor.name, text
                if came_from.setdefault(after, origin) is not origin:
                    continue
                if after.losses:
                    trace = [*_way_to(after, came_from), *after.losses]
                    return Found(len(came_from), _successful(scenario, came_from), trace)
                frontier.append(after)
    return Found(len(came_from), _successful(scenario, came_from), None)


def wander(scenario: Scenario, choice: Random, rules: Rules = Rules()) -> Found:
    """Follow one way at random to its end; for scenarios that are too large to search."""
    world, way = scenario.world(), list[str]()
    while not world.losses:
        # Whoever is chosen goes on, in however many ways others could.
        actors = list(enumerate(scenario.actors, 1))
        choice.shuffle(actors)
        ways = ((actor, _changes(actor, world, who, rules)) for who, actor in actors)
        actor, steps = next(((actor, steps) for actor, steps in ways if steps), (None, []))
        if actor is None:
            return Found(len(way), _successful(scenario, [world]), None)
        text, world = choice.choice(steps)
        way.append(f"{actor.name} {text}")
    return Found(len(way), _successful(scenario, [world]), [*way, *world.losses])


def _changes(actor: Actor, world: World, who: int, rules: Rules) -> list[tuple[str, World]]:
    # Who waits for another looks again and again.
    return [(text, after) for text, after in actor.steps(world, who, rules) if after != world]


def _way_to(world: World, came_from: dict[World, Origin]) -> list[str]:
    texts: list[str] = []
    while origin := came_from[world]:
        world, name, text = origin
        texts.append(f"{name} {text}")
    return texts[::-1]


def _successful(scenario: Scenario, worlds: Iterable[World]) -> frozenset[str]:
    done = {who for world in worlds for who, x in enumerate(world.actors) if x.at == "done"}
    return frozenset(scenario.actors[who].name for who in done)


def shown(blobs: Blobs) -> str:
    return ", ".join(sorted(blobs)) or "nothing"
