"""The collector, in the model; in brainstore it is `garbage/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from collector_model import (
    IDLE,
    NOTHING,
    NUMBERS_PER_INTENT,
    Blobs,
    GcState,
    Intent,
    Record,
    Rules,
    Steps,
    World,
    shown,
)


class Collecting(NamedTuple):
    at: str = "begin"
    candidates: Blobs = NOTHING
    state: GcState = IDLE  # as it has read or stored it
    kept: Blobs = NOTHING
    listed: frozenset[int] = NOTHING  # intents or numbers that are to be read still
    read: frozenset[int] = NOTHING
    expired: frozenset[int] = NOTHING
    judged: Intent | None = None
    number: int = 0
    doomed: Blobs = NOTHING
    sent: Blobs = NOTHING  # deletions that may take effect at any time
    rounds: int = 0


@dataclass(frozen=True)
class Collector:
    """Collects garbage, once or more.

    In a folder it holds a lock meanwhile, which the kernel frees when it dies; in a bucket
    several may run at once, and a person says which of them is dead.
    """

    name: str
    in_folder: bool = False
    rounds: int = 1
    is_dead: bool = False

    def start(self, who: int) -> Collecting:
        return Collecting(at="dead" if self.is_dead else "begin")

    def steps(self, world: World, who: int, rules: Rules) -> Steps:
        me: Collecting = world.actors[who - 1]
        for blob in me.sent:
            there = world.blobs - {blob}
            after = me._replace(sent=me.sent - {blob})
            yield f"has deleted {blob}", world.moved(who, after, blobs=there)
        # Otherwise a death is only a sleep that does not end.
        if world.lock == who or (me.at == "delete" and world.gc.status == "deleting"):
            yield "dies", self._left(world, who, Collecting(at="dead", sent=me.sent))
        if step := self._stages.get(me.at):
            yield from step(self, world, who, me, rules)

    def _begin(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        if not (self.in_folder and world.lock):
            after = me._replace(at="read state", candidates=world.blobs)
            lock = who if self.in_folder else world.lock
            yield f"lists {shown(world.blobs)}", world.moved(who, after, lock=lock)

    def _read_state(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        after, text = me._replace(state=world.gc), f"reads that the state is {world.gc}"
        if world.gc.status != "deleting":
            # Also where another has condemned: its next swap will fail.
            yield text, world.moved(who, after._replace(at="condemn"))
        elif self._may_take_over(world, rules):
            after = after._replace(at="take over", candidates=NOTHING)
            yield text, world.moved(who, after)

    def _may_take_over(self, world: World, rules: Rules) -> bool:
        if not rules.takes_over_deleting_only_from_the_dead:
            return True
        if not world.gc.owner:
            return False
        owner: Collecting = world.actors[world.gc.owner - 1]
        may_be_late = owner.sent and rules.takes_over_after_the_last_request
        return owner.at == "dead" and not may_be_late

    def _take_over(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        after = me._replace(at="delete", doomed=me.state.condemned)
        if rules.signs_what_it_takes_over:
            signed = me.state._replace(owner=who)
            yield from self._swap(world, who, after, signed, "takes over")
        else:
            yield "takes over", world.moved(who, after)

    def _condemn(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        in_order = rules.reads_intents_before_manifests
        after = me._replace(at="list intents" if in_order else "list manifests")
        owner = who if rules.signs_the_state else 0
        state = GcState("condemned", me.state.generation + 1, me.candidates, owner)
        yield from self._swap(world, who, after, state, f"condemns {shown(me.candidates)}")

    def _list_intents(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        listed = frozenset(intent.write_id for intent in world.intents)
        after = me._replace(at="read intents", listed=listed, read=NOTHING)
        yield "lists the intents", world.moved(who, after)

    def _read_intents(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        # Those that are stored while the listing goes on may be in it or not.
        for intent in world.intents:
            if (write_id := intent.write_id) in me.read:
                continue
            seen = me._replace(read=me.read | {write_id}, listed=me.listed - {write_id})
            kept = intent.blobs & me.candidates
            text = f"reads intent {write_id}"
            fresh = seen._replace(kept=me.kept | kept)
            yield f"{text}, and keeps {shown(kept)}", world.moved(who, fresh)
            expired = seen._replace(expired=me.expired | {write_id})
            if rules.fences_expired_intents:
                expired = expired._replace(at="fence", judged=intent, number=intent.number)
            yield f"{text}, which has expired", world.moved(who, expired)
        if not any(intent.write_id in me.listed for intent in world.intents):
            after = me._replace(listed=NOTHING, read=NOTHING)
            in_order = rules.reads_intents_before_manifests
            then = self._list_manifests if in_order else self._doom
            yield from then(world, who, after, rules)

    def _fence(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        """Close the number at which whoever sleeps would commit."""
        intent, number = me.judged, me.number
        assert intent is not None
        over = me._replace(at="read intents", judged=None, number=0)
        found = world.at(number) if number in world.numbers else None
        if number not in world.numbers:
            yield "has no more numbers to close", world.moved(who, over)
        elif found is None:
            fence = world.written(number, "fence", 0, NOTHING)
            yield f"puts a fence at v{number}", world.moved(who, over, **fence)
        elif self._must_change(found, intent, rules):
            changed = world.written(number, *found[:3])
            text = f"writes the tombstone of v{number} anew"
            yield text, world.moved(who, over, **changed)
        elif self._may_be_past(found, intent, number, rules):
            after = me._replace(number=number + 1)
            yield f"looks past v{number}, which is {found.kind}", world.moved(who, after)
        else:
            yield f"leaves v{number}, which is {found.kind}", world.moved(who, over)

    def _must_change(self, found: Record, intent: Intent, rules: Rules) -> bool:
        """True where who has read the tombstone would replace it."""
        if not intent.is_exact or found.is_live:
            return False
        if found.kind == "fence":
            return rules.changes_fences_of_exact_intents
        return rules.changes_tombstones_of_exact_intents

    def _may_be_past(self, found: Record, intent: Intent, number: int, rules: Rules) -> bool:
        """True where the saver may have been, and gone on to the next number."""
        tried = NUMBERS_PER_INTENT if rules.fences_as_far_as_a_saver_goes else 1
        is_last = number + 1 == intent.number + tried
        if intent.is_exact or is_last or found.kind == "fence":
            return False
        if found.write_id == intent.write_id:
            return False
        # What is deleted now was a manifest when the saver came by.
        return found.kind == "manifest" or rules.fences_beyond_deleted_versions

    def _list_manifests(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        listed = frozenset(number for number in world.numbers if world.at(number))
        after = me._replace(at="read manifests", listed=listed, read=NOTHING)
        yield "lists the manifests", world.moved(who, after)

    def _read_manifests(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        for number in world.numbers:
            found = world.at(number)
            if found is None or number in me.read:
                continue
            live = found.blobs & me.candidates if found.is_live else NOTHING
            after = me._replace(read=me.read | {number}, listed=me.listed - {number})
            text = f"reads v{number}, and keeps {shown(live)}"
            yield text, world.moved(who, after._replace(kept=me.kept | live))
        if not me.listed:
            after = me._replace(read=NOTHING)
            in_order = rules.reads_intents_before_manifests
            then = self._doom if in_order else self._list_intents
            yield from then(world, who, after, rules)

    def _doom(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        doomed = me.candidates - me.kept
        after = me._replace(at="delete", candidates=NOTHING, kept=NOTHING, doomed=doomed)
        text = f"finds that {shown(doomed)} is garbage"
        if rules.stores_what_it_deletes:
            state = me.state._replace(status="deleting", condemned=doomed)
            yield from self._swap(world, who, after, state, text)
        else:
            yield text, world.moved(who, after)

    def _delete(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        for blob in me.doomed:
            after = me._replace(doomed=me.doomed - {blob}, sent=me.sent | {blob})
            yield f"asks to delete {blob}", world.moved(who, after)
        if not me.doomed and not (me.sent and rules.waits_for_lost_replies):
            generation = me.state.generation - (not rules.raises_the_generation)
            state = GcState("idle", generation, NOTHING, me.state.owner)
            yield from self._swap(world, who, me._replace(at="clean"), state, "is idle again")

    def _clean(self, world: World, who: int, me: Collecting, rules: Rules) -> Steps:
        for write_id in me.expired:
            after = me._replace(expired=me.expired - {write_id})
            removed = world.without_intent(write_id)
            yield f"removes intent {write_id}", world.moved(who, after, **removed)
        if not me.expired:
            at = "done" if me.rounds + 1 == self.rounds else "begin"
            after = Collecting(at=at, sent=me.sent, rounds=me.rounds + 1)
            yield "has finished", self._left(world, who, after)

    def _swap(self, world: World, who: int, me: Collecting, to: GcState, text: str) -> Steps:
        """Swap the collector's state, or stop where another has changed it.

        A client may send a swap twice, and is told that it failed, against its own success.
        So it reads the state then: what it was to store has been stored, by whomever.
        """
        if world.gc in (me.state, to):
            yield text, world.moved(who, me._replace(state=to), gc=to)
        else:
            stopped = Collecting(at="stopped", sent=me.sent)
            yield "sees that another has changed the state", self._left(world, who, stopped)

    def _left(self, world: World, who: int, me: Collecting) -> World:
        return world.moved(who, me, lock=0 if world.lock == who else world.lock)

    _stages: ClassVar[dict[str, Any]] = {
        "begin": _begin,
        "read state": _read_state,
        "take over": _take_over,
        "condemn": _condemn,
        "list intents": _list_intents,
        "read intents": _read_intents,
        "fence": _fence,
        "list manifests": _list_manifests,
        "read manifests": _read_manifests,
        "delete": _delete,
        "clean": _clean,
    }
