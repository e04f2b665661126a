"""One collection, from the list of what may be garbage to its removal.

The order is the protocol. A writer stores its intent before it looks at the collector's
state; the collector stores its state before it looks at the intents: one of the two sees
the other. What a writer commits moves from its intent to a manifest; the collector reads
them in that order. `docs/design.md` has the whole of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from brainstore import marker
from brainstore.address import (
    BLOBS_PREFIX,
    GC_STATE_KEY,
    INTENTS_PREFIX,
    PROBE_PREFIX,
    Digest,
    blob_key,
    intent_key,
    new_ulid,
    parse_blob_key,
    parse_intent_key,
)
from brainstore.errors import (
    BadParams,
    Corrupt,
    ReadOnly,
    StoreUnavailable,
    Unsupported,
)
from brainstore.garbage.closing import give_up
from brainstore.garbage.collection import Collection, Garbage
from brainstore.garbage.live import Key, LiveSet
from brainstore.garbage.retention import Retention, choose, retire, told
from brainstore.garbage.turn import LATE_S, Turn, noting
from brainstore.intents import ABANDONED_S, finish_abandoned
from brainstore.records import Intent
from brainstore.storage.base import Stat, Store
from brainstore.zoo import Zoo

_log = logging.getLogger(__name__)

DAY_S = 86400.0
"""How long a blob stays that nothing names, and a deleted version can come back."""

KEYS_AT_ONCE = 1000

LOST_REPLIES = 3
"""After so many lost replies in a row a collection stops."""


def collect(
    zoo: Zoo,
    *,
    dry_run: bool = True,
    keep_last: int | None = None,
    keep_alias: Sequence[str] = (),
    older_than_s: float | None = None,
    take_over: bool = False,
    expiry_s: float = DAY_S,
) -> Collection:
    """Remove the blobs that nothing names; return what was removed, or would be.

    Safe beside saves, syncs, restorations and other collections, which it does not stop; a
    save that needs a blob that is being removed waits, and stores it again. Named by
    something is what a version that lives, or was deleted within the grace period, names,
    and what a save, sync or restoration under way has declared. Costs a listing, and a read
    of every record. Killed at any point it loses nothing, and the next one goes on.

    Args:
        dry_run: write nothing.
        keep_last: first delete all versions of each model but the last so many. Those that
            an alias names, or that are frozen experts of what stays, stay too. Their blobs
            go once the grace period is over.
        keep_alias: with `keep_last`, aliases of which also the former targets stay.
        older_than_s: the grace period, in seconds: the age of blobs, and of deletions. A
            day if not given. If given, `keep_last` leaves what was saved within it.
        take_over: go on with a collection in a bucket that died while it deleted. Its
            process must have ended an hour ago. In a folder this needs no telling.
        expiry_s: intents older than this are given up; their savers start again. Of that
            age, too, half-written files of killed writers are removed.

    Raises:
        BadParams: `keep_last`, `keep_alias` or `older_than_s` makes no sense.
        Conflict: another collection is under way; nothing was collected.
        Corrupt, Unsupported: a record cannot be read, and may name anything; no blob was
            removed.
        StoreUnavailable, ReadOnly: the store failed. A note says where it stands.
    """
    if older_than_s is not None and not older_than_s >= 0:
        raise BadParams(f"older_than: expected a number of seconds, found {older_than_s}")
    marker.require(zoo.store)
    now = store_time(zoo.store, may_write=not dry_run)
    saved_before = None if older_than_s is None else now - older_than_s
    retired = choose(zoo, keep_last, keep_alias, saved_before)
    grace_s = DAY_S if older_than_s is None else older_than_s
    run = _Collector(zoo, now, grace_s, expiry_s)
    if dry_run:
        return run.planned(retired)
    with zoo.store.sole(BLOBS_PREFIX) as is_sole:
        # Before anything is deleted, so that a second collection does nothing at all.
        run.take_up(is_sole=is_sole, take_over=take_over)
        retired = retire(zoo, retired)
        if retired.doomed:
            run.advance(store_time(zoo.store, may_write=True))
        with told(retired.doomed):
            return run.collected(retired)


def store_time(store: Store, *, may_write: bool) -> float:
    """Return the time by the clock that dates the store's objects, in seconds since 1970."""
    if not store.is_remote or not may_write:
        return time.time()
    key = PROBE_PREFIX + new_ulid()
    store.put(key, b"")
    try:
        found = store.stat(key)
    finally:
        store.delete(key)
    return found.modified_at if found else time.time()


class _Collector:
    """One collection of one zoo."""

    def __init__(self, zoo: Zoo, now: float, grace_s: float, expiry_s: float) -> None:
        self._zoo = zoo
        self._store = zoo.store
        self._grace_s = grace_s
        self._expiry_s = expiry_s
        self.advance(now)
        self._sizes: dict[Digest, int] = {}
        self._turn = Turn(zoo.store)

    def advance(self, now: float) -> None:
        """Go by this time, of the store's clock."""
        self._now = now
        self._garbage_before = now - self._grace_s
        self._dead_before = now - self._expiry_s

    def planned(self, retired: Retention) -> Collection:
        """Return what a collection would do now."""
        # Those that would be deleted first could come back until the grace is over.
        gone = () if self._grace_s > 0 else retired.doomed
        live = self._live(but=frozenset((each.name, each.version) for each in gone))
        candidates = self._candidates()
        fresh, dead = self._intents()
        live.read()
        garbage = candidates - live.blobs - _digests(fresh)
        return self._told(retired, garbage, dead, self._leftovers(), dry_run=True)

    def take_up(self, *, is_sole: bool, take_over: bool) -> None:
        """Make sure that no other collection is under way; finish one that died.

        Raises:
            Conflict: one is, or may be.
        """
        self._turn.read()
        if self._turn.state.state == "idle":
            return
        if not is_sole:
            self._turn.require_dead(self._now, take_over=take_over)
        if self._turn.state.state == "condemned":
            # It has removed nothing. Should this collection stop early, saves need not wait.
            self._turn.swap("idle", set())
            return
        garbage = set(self._turn.state.condemned)
        self._require_garbage(garbage)
        with self._turn.idle_at_the_end():
            self._turn.swap("deleting", garbage, generation=self._turn.state.generation + 1)
            self._delete(garbage)

    def collected(self, retired: Retention) -> Collection:
        """Collect; return what was done. After `take_up`."""
        live = self._live()
        candidates = self._candidates()
        live.read()
        self._intents()  # refuses one that cannot be read, before anything is condemned
        with self._turn.idle_at_the_end():
            condemned = candidates - live.blobs
            self._turn.swap("condemned", condemned, generation=self._turn.state.generation + 1)
            fresh, dead = self._intents()
            for intent in dead:
                give_up(self._zoo.registry, intent)
            # Only now: what has been committed meanwhile may have left the intents.
            live.read()
            garbage = condemned - live.blobs - _digests(fresh)
            if garbage:
                self._turn.swap("deleting", garbage)
                self._delete(garbage)
        with noting(f"{len(garbage):,} blobs of garbage were removed; {_TIDYING}"):
            self._remove_intents(dead)
            leftovers = self._leftovers()
            for leftover in leftovers:
                self._store.discard(leftover)
        return self._told(retired, garbage, dead, leftovers, dry_run=False)

    def _require_garbage(self, condemned: set[Digest]) -> None:
        """Raise Corrupt if a version names any of them.

        What a collection has condemned is garbage still: who needs any of it waits for the
        state to be idle. So then it was no collection that wrote the state.
        """
        live = LiveSet(self._zoo, deleted_before=math.inf)
        live.read()
        if needed := sorted(condemned & live.blobs):
            raise Corrupt(
                f"{self._store.url}: {GC_STATE_KEY} condemns {len(needed)} blobs that versions "
                f"need, {needed[0].short}… for one; nothing was removed. Make sure that no "
                "collection runs, remove this object, then: brainstore fsck --repair"
            )

    def _delete(self, garbage: set[Digest]) -> None:
        """Remove the blobs. Where a reply is lost, wait until the request must be over."""
        keys = [blob_key(digest) for digest in sorted(garbage)]
        for start in range(0, len(keys), KEYS_AT_ONCE):
            self._delete_some(keys[start : start + KEYS_AT_ONCE])

    def _delete_some(self, keys: Sequence[str]) -> None:
        for _ in range(LOST_REPLIES):
            try:
                return self._store.delete_all(keys)
            except StoreUnavailable as error:
                if not error.outcome_unknown:
                    raise
                problem = error
            _log.warning("%s Waiting %.0f s, then trying again", problem, LATE_S)
            time.sleep(LATE_S)
        raise StoreUnavailable(
            f"{LOST_REPLIES} times in a row: {problem} Some of the garbage is left; collect again"
        )

    def _live(self, *, but: frozenset[Key] = frozenset()) -> LiveSet:
        return LiveSet(self._zoo, deleted_before=self._garbage_before, but=but)

    def _candidates(self) -> set[Digest]:
        """Return the blobs that are old enough to go, and keep the sizes of all."""
        old = set()
        for stat in self._store.list(BLOBS_PREFIX):
            if digest := parse_blob_key(stat.key):
                self._sizes[digest] = stat.size_bytes
                if stat.modified_at <= self._garbage_before:
                    old.add(digest)
        return old

    def _intents(self) -> tuple[list[Intent], list[Intent]]:
        """Return the intents of those at work, and of those that are taken for dead.

        Raises:
            Corrupt, Unsupported: one cannot be read.
        """
        fresh: list[Intent] = []
        dead: list[Intent] = []
        for stat in self._store.list(INTENTS_PREFIX):
            if parse_intent_key(stat.key) is None:
                continue  # somebody else's object; fsck names it
            if (intent := self._intent(stat)) is not None:
                (dead if stat.modified_at <= self._dead_before else fresh).append(intent)
        return fresh, dead

    def _intent(self, stat: Stat) -> Intent | None:
        """Return the intent, or None if it is gone: it was of use, or is of none any more."""
        found = self._store.get(stat.key)
        if found is None:
            return None
        where = f"{self._store.url}/{stat.key}"
        try:
            intent = Intent.decode(found.body, where)
        except Corrupt as error:
            raise Corrupt(f"{error}. {_UNREADABLE}") from error
        if intent_key(intent.write_id) != stat.key:
            raise Corrupt(f"{where} holds the intent {intent.write_id!r:.40}. {_UNREADABLE}")
        return intent

    def _remove_intents(self, dead: Sequence[Intent]) -> None:
        # What was committed under one, and not told to the index, is told first.
        finish_abandoned(self._zoo.registry, older_than_s=min(self._expiry_s, ABANDONED_S))
        for intent in dead:
            self._store.delete(intent_key(intent.write_id))

    def _leftovers(self) -> list[Stat]:
        try:
            found = list(self._store.leftovers())
        except (StoreUnavailable, ReadOnly, Unsupported) as error:
            # To list uploads is a right of its own, and not every server can.
            _log.warning("unfinished writes cannot be listed, and stay: %s", error)
            return []
        return [stat for stat in found if stat.modified_at <= self._dead_before]

    def _told(
        self,
        retired: Retention,
        garbage: set[Digest],
        dead: Sequence[Intent],
        leftovers: Sequence[Stat],
        *,
        dry_run: bool,
    ) -> Collection:
        live = [size for digest, size in self._sizes.items() if digest not in garbage]
        return Collection(
            dry_run=dry_run,
            deleted=retired.doomed,
            kept=retired.kept,
            blobs=tuple(Garbage(digest, self._sizes[digest]) for digest in sorted(garbage)),
            leftovers=tuple((stat.key, stat.size_bytes) for stat in leftovers),
            intents=tuple(intent_key(intent.write_id) for intent in dead),
            live_blobs=len(live),
            live_bytes=sum(live),
        )


_TIDYING = "intents and half-written files of the dead were not, or not all. Run it again"
_UNREADABLE = (
    "It may name anything, so nothing is collected. Once no save of its time can be running, "
    "remove it"
)


def _digests(intents: Sequence[Intent]) -> set[Digest]:
    return {digest for intent in intents for digest in intent.digests}
