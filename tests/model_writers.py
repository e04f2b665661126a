"""Who commits versions, in the model: savers, copiers, restorers; and deleters.

What they answer to in brainstore: `commit.py`, `sync/copying.py` and `deletion.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from collector_model import (
    IDLE,
    NOTHING,
    NUMBERS_PER_INTENT,
    Blobs,
    GcState,
    Record,
    Rules,
    Steps,
    World,
)

INTENTS_PER_SAVE = 2


class Saving(NamedTuple):
    at: str = "read state"
    known: tuple[str, int] = ("", 0)
    present: Blobs = NOTHING
    state: GcState = IDLE
    write_id: int = 0
    first: int = 0
    number: int = 0
    intents: int = 0
    saves: int = 0


@dataclass(frozen=True)
class Saver:
    """Saves the same blobs, once or more; in between, it remembers what it has learned.

    Its `first` number is what it remembers of `latest`; it may have been taken long ago.
    Blobs are stored from the first read on, beside all that comes before the commit.
    What another thread of its process has learned adds nothing: it could have learned
    the same by itself, and slept.
    """

    name: str
    first: int = 1
    saves: int = 1
    blobs: Blobs = frozenset("X")

    def start(self, who: int) -> Saving:
        return Saving(first=self.first, write_id=10 * who)

    def steps(self, world: World, who: int, rules: Rules) -> Steps:
        me: Saving = world.actors[who - 1]
        if me.at in ("put intent", "read again", "uploads", "learn anew"):
            for blob in self.blobs - me.present:
                after = self._settled(me._replace(present=me.present | {blob}), rules)
                there = world.blobs | {blob}
                yield f"stores {blob}, or sees it there", world.moved(who, after, blobs=there)
        if me.at == "read state":
            at = "put intent" if rules.reads_state_after_intent else "read again"
            after = me._replace(at=at, known=(world.gc.status, world.gc.generation))
            yield f"reads that the state is {world.gc}", world.moved(who, after)
        elif me.at == "put intent":
            yield from self._put_intent(world, who, me, rules)
        elif me.at == "read again":
            at = "uploads" if rules.reads_state_after_intent else "put intent"
            after = self._settled(me._replace(at=at, state=world.gc), rules)
            yield f"reads that the state is {world.gc}", world.moved(who, after)
        elif me.at == "wait":
            after = self._judged(me._replace(state=world.gc), rules)
            yield f"reads again that the state is {world.gc}", world.moved(who, after)
        elif me.at == "commit":
            yield from self._commit(world, who, me, rules)
        elif me.at == "lost":
            yield from self._begin_again(world, who, me)
        elif me.at == "committed":
            removed = world.without_intent(me.write_id)
            yield "removes its intent", world.moved(who, self._next(me), **removed)

    def _put_intent(self, world: World, who: int, me: Saving, rules: Rules) -> Steps:
        at = "read again" if rules.reads_state_after_intent else "uploads"
        after = me._replace(at=at, write_id=me.write_id + 1, number=me.first)
        after = self._settled(after._replace(intents=me.intents + 1), rules)
        stored = world.with_intent(after.write_id, me.first, self.blobs, False)
        text = f"puts intent {after.write_id}, from v{me.first} on"
        yield text, world.moved(who, after, **stored)

    def _settled(self, me: Saving, rules: Rules) -> Saving:
        """Return where it is, which is further if the last blob has been stored."""
        if me.present < self.blobs:
            return me
        if me.at == "uploads":
            return self._judged(me, rules)
        return me._replace(at="commit") if me.at == "learn anew" else me

    def _judged(self, me: Saving, rules: Rules) -> Saving:
        """Return where it is after a read of the state, which tells what knowledge is good for."""
        now, state = me.state[:2], me.state
        me = me._replace(state=IDLE)
        is_idle = state.status == "idle" or not rules.trusts_only_an_idle_state
        if me.at == "uploads" and now == me.known and is_idle:
            return me._replace(at="commit")
        if self.blobs & state.condemned and rules.waits_for_what_is_condemned:
            return me._replace(at="wait")
        if not rules.learns_anew_when_the_state_changed:
            return me._replace(at="commit", known=now)
        return self._settled(me._replace(at="learn anew", known=now, present=NOTHING), rules)

    def _commit(self, world: World, who: int, me: Saving, rules: Rules) -> Steps:
        if me.number > len(world.records):
            return
        found, text = world.at(me.number), f"tries to create v{me.number}, and finds"
        if found is None:
            record = world.written(me.number, "manifest", me.write_id, self.blobs)
            after = me._replace(at="committed", first=0)
            if me.saves + 1 == self.saves:
                after = Saving(at="committed", write_id=me.write_id, saves=me.saves)
            yield f"creates v{me.number}", world.moved(who, after, **record)
        elif found.kind != "manifest" and rules.stops_at_tombstones:
            yield f"{text} a tombstone", world.moved(who, me._replace(at="lost"))
        else:
            number = me.number + 1 if rules.skips_no_number else world.highest + 1
            after = me._replace(number=number)
            if number == me.first + NUMBERS_PER_INTENT and rules.skips_no_number:
                after = me._replace(at="lost")
            yield f"{text} another's {found.kind}", world.moved(who, after)

    def _begin_again(self, world: World, who: int, me: Saving) -> Steps:
        if me.intents == INTENTS_PER_SAVE:
            return
        for first in {me.number + 1, world.highest + 1}:
            after = me._replace(at="put intent", first=first, number=0)
            removed = world.without_intent(me.write_id)
            yield f"removes its intent, to begin at v{first}", world.moved(who, after, **removed)
            # It does so in the background, and may come to it late or never.
            yield f"begins again at v{first}", world.moved(who, after)

    def _next(self, me: Saving) -> Saving:
        if me.saves + 1 == self.saves:
            return Saving(at="done")
        if me.known[0] == "idle":
            me = me._replace(at="put intent")
        else:
            me = me._replace(at="read state", present=NOTHING)
        return me._replace(first=me.number + 1, number=0, intents=0, saves=me.saves + 1)


class Replacing(NamedTuple):
    at: str = "look"
    token: int = 0
    present: Blobs = NOTHING
    write_id: int = 0
    intents: int = 0


@dataclass(frozen=True)
class Copier:
    """Syncs a version to exactly this number, if nothing or a fence stands there."""

    name: str
    number: int
    blobs: Blobs = frozenset("X")

    def start(self, who: int) -> Replacing:
        return Replacing(write_id=10 * who)

    def steps(self, world: World, who: int, rules: Rules) -> Steps:
        me: Replacing = world.actors[who - 1]
        if me.at == "look" and self.may_replace(world.at(self.number)):
            after = me._replace(at="put intent", token=self._token(world))
            yield f"looks at v{self.number}", world.moved(who, after)
        elif me.at == "put intent":
            after = me._replace(at="read state", write_id=me.write_id + 1, intents=me.intents + 1)
            stored = world.with_intent(after.write_id, self.number, self.blobs, True)
            text = f"puts intent {after.write_id}, for exactly v{self.number}"
            yield text, world.moved(who, after, **stored)
        elif me.at == "read state" and not self.blobs & world.gc.condemned:
            after = me._replace(at="learn" if self.blobs else "swap")
            yield f"reads that the state is {world.gc}", world.moved(who, after)
        elif me.at == "learn":
            yield from self.learn(world, who, me)
        elif me.at == "swap":
            yield from self.swap(world, who, me, rules)
        elif me.at in ("committed", "lost"):
            removed = world.without_intent(me.write_id)
            yield "removes its intent", world.moved(who, self._next(me), **removed)

    def may_replace(self, found: Record | None) -> bool:
        return found is None or found.kind == "fence"

    def learn(self, world: World, who: int, me: Replacing) -> Steps:
        for blob in self.blobs - me.present:
            there = world.blobs | {blob}
            after = self.learned(me, blob)
            yield f"stores {blob}, or sees it there", world.moved(who, after, blobs=there)

    def learned(self, me: Replacing, blob: str) -> Replacing:
        present = me.present | {blob}
        return me._replace(at="swap" if present == self.blobs else "learn", present=present)

    def swap(self, world: World, who: int, me: Replacing, rules: Rules) -> Steps:
        found, expected = world.at(self.number), me.token
        if not rules.looks_at_the_number_before_the_intent and self.may_replace(found):
            expected = self._token(world)
        if self._token(world) != expected:
            text = f"tries to swap v{self.number}, which was changed meanwhile"
            yield text, world.moved(who, me._replace(at="lost"))
            return
        kind, write_id = self.made_from(found, 10 * who, rules)
        record = world.written(self.number, kind, write_id, self.blobs)
        after = me._replace(at="committed")
        yield f"makes v{self.number} a {kind} version", world.moved(who, after, **record)

    def made_from(self, found: Record | None, write_id: int, rules: Rules) -> tuple[str, int]:
        """Return the kind and the write id of what it puts there."""
        # A saver that walks must stop there, as it would have at the fence.
        is_marked = found is not None and rules.marks_what_replaces_a_fence
        return "restored" if is_marked else "manifest", write_id

    def _token(self, world: World) -> int:
        found = world.at(self.number)
        return found.token if found else 0

    def _next(self, me: Replacing) -> Replacing:
        if me.at == "committed":
            return Replacing(at="done")
        return me._replace(at="look" if me.intents < 2 else "gave up", present=NOTHING)


class Restorer(Copier):
    """Brings the deleted version of this number back: an undelete, or a deleter's step back."""

    def steps(self, world: World, who: int, rules: Rules) -> Steps:
        me: Replacing = world.actors[who - 1]
        if me.at == "put intent" and not rules.restores_under_an_intent:
            return self.swap(world, who, me, rules)
        return super().steps(world, who, rules)

    def may_replace(self, found: Record | None) -> bool:
        return found is not None and found.kind == "deleted"

    def learn(self, world: World, who: int, me: Replacing) -> Steps:
        for blob in (self.blobs - me.present) & world.blobs:
            yield f"sees that {blob} is there", world.moved(who, self.learned(me, blob))

    def made_from(self, found: Record | None, write_id: int, rules: Rules) -> tuple[str, int]:
        assert found is not None
        return "restored", found.write_id


class Once(NamedTuple):
    at: str = "begin"


@dataclass(frozen=True)
class Rival:
    """A save of no blobs, of which nothing matters but that it takes this number."""

    name: str
    number: int

    def start(self, who: int) -> Once:
        return Once()

    def steps(self, world: World, who: int, rules: Rules) -> Steps:
        if world.actors[who - 1].at == "begin" and world.at(self.number) is None:
            record = world.written(self.number, "manifest", 10 * who, NOTHING)
            yield f"creates v{self.number}", world.moved(who, Once("done"), **record)


@dataclass(frozen=True)
class Deleter:
    """Swaps the live version of this number for a tombstone."""

    name: str
    number: int

    def start(self, who: int) -> Once:
        return Once()

    def steps(self, world: World, who: int, rules: Rules) -> Steps:
        found = world.at(self.number)
        if world.actors[who - 1].at == "begin" and found is not None and found.is_live:
            record = world.written(self.number, "deleted", found.write_id, found.blobs)
            yield f"deletes v{self.number}", world.moved(who, Once("done"), **record)
