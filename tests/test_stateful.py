"""Any sequence of operations, with crashes, against a model of what must be in the zoo."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from zoos import Found, crash, finish, params, read_raw, same

from brainstore import BrainManager, Conflict, GateFailed, NotFound
from brainstore.address import GC_STATE_KEY
from brainstore.fsck import fsck
from brainstore.garbage import collect
from brainstore.garbage.turn import LATE_S
from brainstore.intents import finish_abandoned
from brainstore.storage.base import Store
from brainstore.storage.memory import MemoryStore

ALIASES = ["prod", "best"]
GUARDED = "gold"
POLICY = [{"alias": GUARDED, "models": "ppo", "stations": ["night"]}]
REPORT = {
    "station": "night",
    "checks": [{"metric": "return", "value": 2.0, "op": ">=", "threshold": 1.0}],
}
SEEDS = st.integers(1, 3)
NUMBERS = st.integers(1, 6)

Job = Callable[[BrainManager], Any]


def findings(zoo: BrainManager) -> list[Any]:
    found = fsck(zoo.zoo, repair=True)
    return [each for each in found if not (each.is_harmless or each.repaired)]


def trees(seed: int) -> dict[str, Any]:
    """Return groups that share leaves and blobs with those of other seeds."""
    tied = params(seed)["dense"]["kernel"]
    return {
        "params": {**params(seed), "tied": tied},
        "opt_state": {"mu": tied, "nu": params(seed // 2)["dense"]},
    }


def save(zoo: BrainManager, seed: int) -> str:
    groups = trees(seed)
    return zoo.save("ppo", groups.pop("params"), groups=groups, files={"notes": bytes([seed % 2])})


def collected(zoo: BrainManager, *, keep_last: int | None = None) -> None:
    """Collect at once what nothing names; a collection that died is taken over.

    Twice: to give up a dead sync or restoration, the tombstone that it may replace is written
    anew, and is as good as new until the next collection.
    """
    options: dict[str, Any] = {"dry_run": False, "older_than_s": 0, "expiry_s": 0}
    for _ in range(2):
        collect(zoo.zoo, keep_last=keep_last, take_over=True, **options)


def blob_keys(store: Store) -> set[str]:
    return {stat.key for stat in store.list("blobs/")}


def keys_of(record: dict[str, Any]) -> set[str]:
    return {f"blobs/{digest[7:9]}/{digest[7:]}" for digest in record["blobs"]}


def tried(job: Job, zoo: BrainManager) -> None:
    """Do it, unless there is a reason not to, or it is done already."""
    with contextlib.suppress(Conflict, NotFound, GateFailed):
        job(zoo)


class Zoo(RuleBasedStateMachine):
    """Two zoos on memory stores, and what must be in them according to what was acknowledged.

    `versions` maps numbers to seeds, `deleted` holds those that are not live, `blobs` what
    each one names, and `present` the blobs that were stored and not collected since.
    `copied` and `dropped` are the versions of the second zoo, and those deleted there. After
    a crash, what was under way is read from the store: it happened or it did not; and what
    stopped half way is finished by doing it again.
    """

    @initialize()
    def make(self) -> None:
        self.store, self.other_store = MemoryStore(), MemoryStore()
        self.versions: dict[int, int] = {}
        self.deleted: set[int] = set()
        self.blobs: dict[int, set[str]] = {}
        self.present: set[str] = set()
        self.aliases: dict[str, int] = {}
        self.moves: dict[str, list[int]] = {}
        self.copied: set[int] = set()
        self.dropped: set[int] = set()
        self.reported: set[int] = set()
        self.is_guarded = False
        self.open()
        self.zoo.init()
        self.other.init()

    def open(self) -> None:
        """Open both zoos; of the first, a second manager that learns nothing meanwhile."""
        self.zoo, self.idle = BrainManager(self.store), BrainManager(self.store)
        self.other = BrainManager(self.other_store)
        self.loaded: set[tuple[str, int]] = set()

    def close(self) -> None:
        for manager in (self.zoo, self.idle, self.other):
            manager.close()

    def teardown(self) -> None:
        if hasattr(self, "zoo"):
            self.close()

    @property
    def live(self) -> list[int]:
        return [number for number in self.versions if number not in self.deleted]

    # Versions

    @rule(seed=SEEDS)
    def save(self, seed: int) -> None:
        number = self.next_number()
        assert save(self.zoo, seed) == f"ppo_v{number}"
        self.learn(self.seen(), seed)
        assert number in self.live

    def next_number(self) -> int:
        """Return the number after all that were taken: by versions, and by fences."""
        found = self.seen()
        return max([number for _, number in [*found.live, *found.deleted]], default=0) + 1

    def seen(self) -> Found:
        """Return what is in the first zoo, once nothing runs in the background."""
        finish(self.zoo)
        return read_raw(self.store)

    def learn(self, found: Found, seed: int) -> None:
        """Take what is new in the store for saves of this seed."""
        for (_, number), record in sorted(found.live.items(), key=lambda item: item[0]):
            if number not in self.versions:
                self.versions[number], self.blobs[number] = seed, keys_of(record)
                self.present |= self.blobs[number]

    @rule(number=NUMBERS, force=st.booleans())
    def delete(self, number: int, force: bool) -> None:
        if number not in self.live:
            with pytest.raises(NotFound):
                self.zoo.delete(f"ppo:{number}", force=force)
        elif number in self.aliases.values() and not force:
            with pytest.raises(Conflict):
                self.zoo.delete(f"ppo:{number}")
        else:
            self.zoo.delete(f"ppo:{number}", force=force)
            self.gone(number)

    def gone(self, number: int) -> None:
        self.deleted.add(number)
        for alias in [alias for alias, at in self.aliases.items() if at == number]:
            self.moved(alias, 0)

    @rule(number=NUMBERS)
    def undelete(self, number: int) -> None:
        if number in self.deleted and self.blobs[number] <= self.present:
            self.zoo.undelete(f"ppo:{number}")
            self.deleted.discard(number)
        else:
            with pytest.raises((Conflict, NotFound)):
                self.zoo.undelete(f"ppo:{number}")

    # Aliases, reports, policy

    @rule(number=NUMBERS, alias=st.sampled_from(ALIASES))
    def alias(self, number: int, alias: str) -> None:
        if number not in self.live:
            with pytest.raises(NotFound):
                self.zoo.alias(f"ppo:{number}", alias)
            return
        self.zoo.alias(f"ppo:{number}", alias, expected=self.aliases.get(alias, 0))
        self.moved(alias, number)

    def moved(self, alias: str, number: int) -> None:
        if self.aliases.get(alias, 0) != number:
            self.moves.setdefault(alias, []).append(number)
        self.aliases.pop(alias, None)
        if number:
            self.aliases[alias] = number

    @rule(alias=st.sampled_from(ALIASES), number=NUMBERS)
    def alias_with_wrong_expectation(self, alias: str, number: int) -> None:
        if number in self.live and self.aliases.get(alias) != 99:
            with pytest.raises(Conflict):
                self.zoo.alias(f"ppo:{number}", alias, expected=99)

    @rule(alias=st.sampled_from([*ALIASES, GUARDED]))
    def unalias(self, alias: str) -> None:
        if alias not in self.aliases:
            with pytest.raises(NotFound):
                self.zoo.unalias("ppo", alias)
            return
        self.zoo.unalias("ppo", alias)
        self.moved(alias, 0)

    @rule(alias=st.sampled_from(ALIASES))
    def rollback(self, alias: str) -> None:
        past = self.moves.get(alias, [])
        target = past[-2] if len(past) > 1 else 0
        if alias not in self.aliases or target not in self.live:
            with pytest.raises(NotFound):
                self.zoo.rollback("ppo", alias)
            return
        assert self.zoo.rollback("ppo", alias).version == target
        self.moved(alias, target)

    @rule(number=NUMBERS)
    def report(self, number: int) -> None:
        if number not in self.live:
            with pytest.raises(NotFound):
                self.zoo.add_report(f"ppo:{number}", REPORT)
            return
        self.zoo.add_report(f"ppo:{number}", REPORT)
        self.reported.add(number)

    @rule(on=st.booleans())
    def set_policy(self, on: bool) -> None:
        self.zoo.set_policy(POLICY if on else [])
        self.is_guarded = on

    @rule(number=NUMBERS)
    def promote(self, number: int) -> None:
        if number not in self.live:
            expected: type[Exception] | None = NotFound
        else:
            is_let = self.is_guarded and number in self.reported
            expected = None if is_let else GateFailed
        if expected is not None:
            with pytest.raises(expected):
                self.zoo.promote(f"ppo:{number}", GUARDED)
            return
        self.zoo.promote(f"ppo:{number}", GUARDED)
        self.moved(GUARDED, number)

    # Housekeeping

    @rule()
    def fold(self) -> None:
        self.zoo.zoo.registry.journal.fold()

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open()

    @rule()
    def let_the_other_manager_go_on(self) -> None:
        """It knows the store as it was when it last did anything."""
        self.zoo, self.idle = self.idle, self.zoo

    @rule()
    def collect(self) -> None:
        collected(self.zoo)
        self.only_live_blobs_are_left()

    @rule(keep_last=st.integers(1, 3))
    def collect_old_versions(self, keep_last: int) -> None:
        collected(self.zoo, keep_last=keep_last)
        self.retired(keep_last)
        self.only_live_blobs_are_left()

    def retired(self, keep_last: int) -> None:
        named = set(self.aliases.values())
        self.deleted |= {number for number in self.live[:-keep_last] if number not in named}

    def only_live_blobs_are_left(self) -> None:
        self.present = set().union(*(self.blobs[number] for number in self.live))
        assert blob_keys(self.store) == self.present

    @rule()
    def collect_within_the_grace_period(self) -> None:
        before = blob_keys(self.store)
        assert collect(self.zoo.zoo, dry_run=False).blobs == ()
        assert blob_keys(self.store) == before

    @rule()
    def repair(self) -> None:
        assert findings(self.zoo) == []

    # The second zoo

    @rule(delete=st.booleans())
    def push(self, delete: bool) -> None:
        self.zoo.push(self.other, delete=delete)
        self.pushed(delete)

    def pushed(self, delete: bool) -> None:
        self.copied |= set(self.live)
        if delete:
            self.dropped |= self.deleted & self.copied

    @rule()
    def pull(self) -> None:
        """What was copied from here is here, or was deleted here, which stays so."""
        self.zoo.pull(self.other)

    @rule(number=NUMBERS)
    def drop(self, number: int) -> None:
        if number in self.copied - self.dropped:
            self.other.delete(f"ppo:{number}")
            self.dropped.add(number)

    @rule()
    def collect_there(self) -> None:
        collected(self.other)
        kept = [self.blobs[number] for number in self.copied - self.dropped]
        assert blob_keys(self.other_store) == set().union(*kept)

    # Crashes

    @rule(
        at=st.integers(0, 45), after=st.booleans(), number=NUMBERS, seed=SEEDS,
        work=st.sampled_from([
            "save", "alias", "new alias", "unalias", "delete", "undelete", "fold", "collect",
            "collect old versions", "report", "policy", "promote", "push", "push there", "repair",
        ]),
    )  # fmt: skip
    @precondition(lambda self: self.live)
    def crash(self, at: int, after: bool, number: int, seed: int, work: str) -> None:
        """Stop the world at any call; what was acknowledged stays; then do it again."""
        number = number if work == "undelete" or number in self.live else self.live[-1]
        job, done = self.jobs(number, seed)[work]
        self.close()
        place = self.other_store if work == "push there" else self.store
        crash(place, lambda zoo: tried(job, zoo), at, after=after)
        assert read_raw(self.store).problems == []
        self.as_if_an_hour_had_passed()
        self.open()
        finish_abandoned(self.zoo.zoo.registry, older_than_s=-1)
        self.learn(self.seen(), seed)
        self.present |= blob_keys(self.store)
        other = self.other if work == "push there" else self.zoo
        tried(job, other)
        finish(other)
        done()

    def jobs(self, number: int, seed: int) -> dict[str, tuple[Job, Callable[[], object]]]:
        """Return what may be stopped, and what the model learns once it is done again."""
        ref, source, other = f"ppo:{number}", self.store, self.other_store
        is_let = number in self.live and self.is_guarded and number in self.reported
        comes_back = number in self.deleted and self.blobs[number] <= self.present

        def nothing() -> None:
            return

        return {
            "save": (lambda zoo: save(zoo, seed), lambda: self.learn(self.seen(), seed)),
            "alias": (lambda zoo: zoo.alias(ref, "prod"), lambda: self.moved("prod", number)),
            "new alias": (lambda zoo: zoo.alias(ref, "best"), lambda: self.moved("best", number)),
            "unalias": (lambda zoo: zoo.unalias("ppo", "prod"), lambda: self.moved("prod", 0)),
            "delete": (lambda zoo: zoo.delete(ref, force=True), lambda: self.gone(number)),
            "undelete": (
                lambda zoo: zoo.undelete(ref),
                lambda: self.deleted.discard(number) if comes_back else None,
            ),
            "fold": (lambda zoo: zoo.zoo.registry.journal.fold(), nothing),
            "collect": (collected, self.only_live_blobs_are_left),
            "collect old versions": (
                lambda zoo: collected(zoo, keep_last=2),
                lambda: (self.retired(2), self.only_live_blobs_are_left()),
            ),
            "report": (
                lambda zoo: zoo.add_report(ref, REPORT),
                lambda: self.reported.add(number),
            ),
            "policy": (
                lambda zoo: zoo.set_policy([] if self.is_guarded else POLICY),
                lambda: setattr(self, "is_guarded", not self.is_guarded),
            ),
            "promote": (
                lambda zoo: zoo.promote(ref, GUARDED),
                lambda: self.moved(GUARDED, number) if is_let else None,
            ),
            "push": (lambda zoo: zoo.push(other, delete=True), lambda: self.pushed(True)),
            "push there": (lambda zoo: zoo.pull(source, delete=True), lambda: self.pushed(True)),
            "repair": (findings, nothing),
        }

    def as_if_an_hour_had_passed(self) -> None:
        """A collection that died may be taken over only when nothing of it is under way."""
        for store in (self.store, self.other_store):
            body, _ = store._shelf.objects[GC_STATE_KEY]
            store._shelf.objects[GC_STATE_KEY] = body, time.time() - 2 * LATE_S

    # What must be so after every step

    @invariant()
    def the_zoo_is_as_it_must_be(self) -> None:
        if not hasattr(self, "zoo"):
            return
        found = self.seen()
        assert found.problems == []
        assert sorted(n for _, n in found.live) == self.live
        assert self.zoo.list_models() == [f"ppo_v{number}" for number in self.live]
        assert self.zoo.get_latest("ppo") == (f"ppo_v{self.live[-1]}" if self.live else None)
        latest = {"latest": self.live[-1]} if self.live else {}
        assert self.zoo.aliases("ppo") == {**self.aliases, **latest}
        assert self.zoo.zoo.index().aliases_of("ppo") == self.aliases
        assert self.present <= blob_keys(self.store)
        for number in self.live:
            assert bool(self.zoo.reports(f"ppo:{number}")) == (number in self.reported)
        self.loads("here", self.zoo, self.live)

    @invariant()
    def so_is_the_other(self) -> None:
        if not hasattr(self, "zoo"):
            return
        finish(self.other)
        found = read_raw(self.other_store)
        # What was deleted before it was ever copied leaves a gap.
        assert [each for each in found.problems if "skipped" not in each] == []
        live = sorted(self.copied - self.dropped)
        assert sorted(n for _, n in found.live) == live
        assert self.other.get_latest("ppo") == (f"ppo_v{live[-1]}" if live else None)
        self.loads("there", self.other, live)

    def loads(self, where: str, zoo: BrainManager, live: list[int]) -> None:
        """Load what was not loaded since the zoo was opened; `read_raw` hashes all of it."""
        for number in live:
            if (where, number) not in self.loaded:
                tree, meta = zoo.load("ppo", number, groups="all", as_numpy=True, verify=True)
                assert same(tree, trees(self.versions[number]))
                assert meta.version == number
                self.loaded.add((where, number))


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Zoo,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_sequence_of_operations_and_crashes() -> None:
    run(examples=25, steps=25)


@pytest.mark.soak
def test_very_many_sequences_of_operations_and_crashes(
    soak_s: float, tally: Callable[..., None]
) -> None:
    deadline, sequences = time.monotonic() + soak_s, 0
    while time.monotonic() < deadline:
        run(examples=20, steps=50)
        sequences += 20
    tally("sequences of operations with crashes between any two calls", cases=sequences, lost=0)
