"""The collector's state in the store: whose turn it is to collect, and how far that is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from brainstore.address import GC_STATE_KEY, Digest, new_ulid
from brainstore.errors import BrainstoreError, Conflict, Corrupt
from brainstore.records import GcState, Stage
from brainstore.storage.base import Store, Token

LATE_S = 3600.0
"""How long a request may take to have its effect, at most."""


class Turn:
    """The state as one collection has read or made it; every swap is from there."""

    def __init__(self, store: Store) -> None:
        self.state = GcState()
        self._store = store
        self._token = Token("")
        self._own_write_ids: set[str] = set()

    def read(self) -> None:
        """Take the state that stands in the store."""
        self.state, self._token = self._read()

    def _read(self) -> tuple[GcState, Token]:
        found = self._store.get(GC_STATE_KEY)
        if found is None:
            raise Corrupt(
                f"{self._store.url}: {GC_STATE_KEY} is missing. Run: brainstore fsck --repair"
            )
        return GcState.decode(found.body, f"{self._store.url}/{GC_STATE_KEY}"), found.token

    def require_dead(self, now: float, *, take_over: bool) -> None:
        """Raise Conflict unless the collection that stands in the state can do no more.

        `now` is the time by the store's clock.
        """
        stat = self._store.stat(GC_STATE_KEY)
        age_s = now - stat.modified_at if stat else 0.0
        under_way = (
            f"{self._store.url}: another collection has been {self.state.state} for "
            f"{age_s / 60:.0f} minutes"
        )
        if self.state.state == "condemned":
            # It has removed nothing, and cannot any more once the state is another.
            if not take_over and age_s < LATE_S:
                raise Conflict(f"{under_way}. Wait for it, or run: brainstore gc --yes --take-over")
        elif not take_over:
            raise Conflict(
                f"{under_way}. Wait for it. If its process has been dead for an hour, run: "
                "brainstore gc --yes --take-over"
            )
        elif age_s < LATE_S:
            raise Conflict(
                f"{under_way}, and a request of it may still take effect. Take over when its "
                "process has been dead for an hour"
            )

    def swap(self, state: Stage, condemned: set[Digest], *, generation: int | None = None) -> None:
        """Swap the collector's state, from the one that this collection has made or read.

        Raises:
            Conflict: another collection, or a repair, has swapped it.
        """
        after = GcState(
            state=state,
            generation=self.state.generation if generation is None else generation,
            condemned=tuple(sorted(condemned)),
            write_id=new_ulid(),
        )
        self._own_write_ids.add(after.write_id)
        try:
            token = self._store.put(GC_STATE_KEY, after.encode_readable(), expect=self._token)
        except Conflict:
            raise Conflict(
                f"{self._store.url}: another collection has begun, or fsck repaired something; "
                "this one stops, and nothing is lost. Run it again"
            ) from None
        self.state, self._token = after, token

    @contextmanager
    def idle_at_the_end(self) -> Iterator[None]:
        """Make the state idle after what is done inside, unless requests may be under way."""
        try:
            yield
        except BaseException as error:
            if self._may_be_late(error):
                error.add_note(_STOPPED)
            else:
                self._free(error)
            raise
        with noting(_NOT_IDLE):
            self.swap("idle", set())

    def _free(self, error: BaseException) -> None:
        """Make the state idle after an error, and note on it if that fails, too."""
        try:
            self._step_back()
        except Conflict:
            pass  # another collection has the state now
        except BrainstoreError:
            error.add_note(_NOT_IDLE)

    def _step_back(self) -> None:
        """Make the state idle if it is of this collection, also if nobody told us that it is."""
        self.read()
        if self.state.write_id in self._own_write_ids:
            self.swap("idle", set())

    def _may_be_late(self, error: BaseException) -> bool:
        """Return whether a deletion that was sent may still take effect."""
        if self.state.state != "deleting" or not self._store.is_remote:
            return False
        return not isinstance(error, BrainstoreError) or getattr(error, "outcome_unknown", False)


_STOPPED = (
    "the collection stopped while it deleted, and a request may be under way. Nothing that is "
    "needed is lost; saves that need what it removes wait. An hour from now, run: "
    "brainstore gc --yes --take-over"
)
_NOT_IDLE = (
    "the collection has ended, and could not say so: saves that need what it condemned wait until "
    "another one has run, in a bucket an hour from now: brainstore gc --yes --take-over"
)


@contextmanager
def noting(text: str) -> Iterator[None]:
    """Add to whatever goes wrong inside, unless another collection has taken over."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Conflict):
            error.add_note(text)
        raise
