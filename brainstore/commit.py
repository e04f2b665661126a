"""Committing a version: blobs first, then one create-only write, then the pointers.

The order is the protocol, and `docs/design.md` says what a crash after each step
leaves. What the writer relies on against a collector that runs at the same time:
the intent is stored before the collector's state is read, and what the store holds
is learned after that read, or before it while the state stayed idle in the same
generation.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from brainstore import marker
from brainstore.address import BLOBS_PREFIX, GC_STATE_KEY, Digest, Name, manifest_key, new_ulid
from brainstore.blobs import Blob, Blobs, Upload
from brainstore.errors import (
    AlreadyExists,
    BrainstoreError,
    Conflict,
    Corrupt,
    NoZoo,
    ReadOnly,
    StoreUnavailable,
    Unsupported,
)
from brainstore.intents import (
    NUMBERS_PER_INTENT,
    finish_abandoned,
    put_intent,
    remove_intent,
)
from brainstore.journal import save_fact
from brainstore.records import GcState, Manifest, Target, Tombstone
from brainstore.registry import Registry
from brainstore.storage.base import ABSENT
from brainstore.threads import Threads
from brainstore.versions import Version

_log = logging.getLogger(__name__)

INTENTS_PER_SAVE = 8
COLLECTION_WAIT_S = 300.0
BUCKET_FOLD = 32


@dataclass(frozen=True)
class Known:
    """What a writer may rely on: blobs seen in the store while the collector stood like this."""

    gc: GcState
    present: set[Digest] = field(default_factory=set)


class Committer:
    """Commits versions to one zoo. May be used from many threads."""

    def __init__(self, registry: Registry, blobs: Blobs) -> None:
        self._registry = registry
        self._store = registry.store
        self._blobs = blobs
        self._known: Known | None = None
        self._judged: set[str] = set()
        self._pool = Threads(4, "brainstore-commit")

    def commit(
        self, name: Name, bodies: Sequence[Blob], draft_of: Callable[[], Manifest]
    ) -> tuple[Version, Manifest]:
        """Make the draft the next version of the model.

        `draft_of` is called once all bodies are hashed and many are stored already; in
        what it returns, `version`, `write_id`, `blobs` and `new_bytes` are filled in
        here. Atomic and durable once it returns: every later reader, on any machine, sees the whole
        version, and `latest` names it or a higher one. A lost reply is settled by the
        write id.

        Raises:
            Conflict: 64 other writers won in a row; nothing was committed.
            StoreUnavailable: the store failed. As for any exception, a note says what
                has become of the save.
        """
        with _told(name) as progress, self._blobs.upload(bodies) as upload:
            known, first = self._first_read(name)
            progress.text = _NOTHING_VISIBLE
            sizes = upload.start(known.present)
            draft = msgspec.structs.replace(draft_of(), blobs=sizes)
            for _ in range(INTENTS_PER_SAVE):
                draft = msgspec.structs.replace(draft, write_id=new_ulid())
                with self._removing_intent(draft.write_id, progress):
                    known = self._prepare(draft, first, upload, known)
                    draft = msgspec.structs.replace(draft, new_bytes=upload.sent_bytes)
                    taken = self._take_number(draft, first, progress)
                    if isinstance(taken, Version):
                        manifest = msgspec.structs.replace(draft, version=taken.version)
                        self.publish(taken, manifest)
                if isinstance(taken, Version):
                    self.tidy()
                    return taken, manifest
                first = self._number_after(name, taken)
            raise Conflict(
                f"{name}: {INTENTS_PER_SAVE * NUMBERS_PER_INTENT} other writers won in a "
                "row; nothing was committed. Try again"
            )

    @contextmanager
    def protecting(self, targets: Sequence[Target], digests: set[Digest]) -> Iterator[set[Digest]]:
        """Inside, no collection touches the digests; it gives a set for those seen there.

        The presence of blobs is to be learned inside. The intent is removed at the end,
        unless it failed: what was done then needs it still.

        Raises:
            StoreUnavailable: a collection holds some of the digests and does not end.
        """
        write_id = new_ulid()
        put_intent(self._registry, write_id, targets, digests, exact=True)
        yield self._settled(digests, self._read_gc()).present
        self._later(remove_intent, self._registry, write_id)

    def close(self) -> None:
        """Wait for what runs in the background."""
        self._pool.close()

    def _first_read(self, name: Name) -> tuple[Known, int]:
        """Return what is known of the store, and the first number to try."""
        reading = self._pool.submit(self._registry.pointers.latest, name)
        known = self._known
        if known is None:
            if not self._store.is_remote:
                # Free here. In a bucket, the collector's state alone vouches for the format.
                self._require_format()
            known = self._known = Known(self._read_gc())
        found = reading.result()
        return known, found[0].newest + 1 if found else 1

    def _require_format(self) -> None:
        with suppress(NoZoo):
            marker.require(self._store)

    @contextmanager
    def _removing_intent(self, write_id: str, progress: _Progress) -> Iterator[None]:
        """Remove the intent afterwards; not if a version may have been committed unpublished."""
        try:
            yield
        except Exception:
            if progress.text == _NOTHING_VISIBLE:
                self._later(remove_intent, self._registry, write_id)
            raise
        self._later(remove_intent, self._registry, write_id)

    def _number_after(self, name: Name, taken: int) -> int:
        """Return where to start again, having lost up to and including `taken`."""
        time.sleep(random.uniform(0, 0.05))
        self._registry.pointers.forget_latest(name)
        found = self._registry.pointers.latest(name)
        newest = found[0].newest if found else max(self._registry.versions.numbers(name))
        return max(newest, taken) + 1

    def _prepare(self, draft: Manifest, first: int, upload: Upload, known: Known) -> Known:
        """Store intent and blobs, in parallel; return what is known once both are there."""
        digests = set(draft.blobs)
        target = Target(name=draft.name, version=first)
        put_intent(self._registry, draft.write_id, [target], list(digests))
        # Blobs may still be on their way: what is seen of them after this read counts
        # as well as what was seen before it.
        state = self._read_gc()
        upload.wait()
        if state == known.gc and state.state == "idle":
            return known
        settled = self._settled(digests, state)
        upload.again(digests, settled.present)
        return settled

    def _settled(self, digests: set[Digest], state: GcState) -> Known:
        """Return what is known of the store in this state of the collector: nothing yet.

        `state` was read after the intent was stored. Waits for a collection that condemned
        any of the digests; one that is certainly dead is ended, and its garbage left to the
        next.
        """
        deadline, pause_s = time.monotonic() + COLLECTION_WAIT_S, 0.1
        while digests.intersection(state.condemned):
            is_dead = self._ended_if_dead()
            if not is_dead and time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"{self._store.url}: a collection has been {state.state} for "
                    f"{COLLECTION_WAIT_S:.0f} s and holds blobs of this save. Try again later; "
                    "should its process have died, finish it: brainstore gc --yes"
                )
            if not is_dead:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 5.0)
            state = self._read_gc()
        settled = Known(state)
        # Presence learned while a collection runs must not outlive this save.
        self._known = settled if state.state == "idle" else None
        return settled

    def _ended_if_dead(self) -> bool:
        """Make the collector's state idle if its process has died; return whether it is now.

        Only a lock tells that, which the kernel takes from the dead; so does nothing in a
        bucket, where also a request of the dead may still take effect.
        """
        with suppress(Conflict), self._store.sole(BLOBS_PREFIX) as is_sole:
            if is_sole and (found := self._store.get(GC_STATE_KEY)) is not None:
                state = GcState.decode(found.body, f"{self._store.url}/{GC_STATE_KEY}")
                # Another generation, in which nobody relies on what may be deleted by half.
                idle = GcState(generation=state.generation + 1, write_id=new_ulid())
                self._store.put(GC_STATE_KEY, idle.encode_readable(), expect=found.token)
                return True
        return False

    def _take_number(self, draft: Manifest, first: int, progress: _Progress) -> Version | int:
        """Commit at the first free number from `first` up, never skipping one.

        Returns the version, or the last number lost when a new intent is needed: after
        several losses, or at a tombstone, where a collection may have fenced us off.
        """
        number = first
        for number in range(first, first + NUMBERS_PER_INTENT):
            body = msgspec.structs.replace(draft, version=number).encode()
            version = Version(draft.name, number, Digest.of(body))
            with progress.unknown_unless_settled(version):
                winner = self._create(version, body)
                # A tombstone is ours when the reply was lost and we were deleted at once.
                if winner is None or draft.write_id in winner.write_ids:
                    progress.text = (
                        f"{version} is committed; should `latest` or the list lack it, the next "
                        "save mends that, or: brainstore fsck --repair"
                    )
                    return version
            if isinstance(winner, Tombstone):
                break
        return number

    def _create(self, version: Version, body: bytes) -> Manifest | Tombstone | None:
        """Create the manifest and return None, or return what has taken its number."""
        try:
            self._store.put(manifest_key(version.name, version.version), body, expect=ABSENT)
        except AlreadyExists:
            try:
                found = self._registry.versions.stored(version.name, version.version)
            except StoreUnavailable as error:
                # It may be ours, which somebody has deleted since.
                error.outcome_unknown = True
                raise
            if found is None:
                raise Corrupt(
                    f"{self._store.url}: the record of {version} vanished while it was read; "
                    "records are never removed. Run: brainstore fsck"
                ) from None
            return found.record
        return None

    def publish(self, version: Version, manifest: Manifest) -> None:
        """Put the fact and move `latest`, both at once. Safe to repeat."""
        fact = save_fact(manifest, version.digest)
        writing = self._pool.submit(self._registry.journal.record, *fact)
        self._registry.pointers.advance_latest(version, manifest.write_id)
        writing.result()

    def tidy(self) -> None:
        """Fold the journal when that is due: on disk always, of a bucket now and then."""
        if not self._store.is_remote:
            _quietly(self._fold, 1)
        elif random.random() < 1 / BUCKET_FOLD:
            self._later(self._fold, BUCKET_FOLD)

    def _fold(self, at_least: int) -> None:
        self._registry.journal.fold(at_least)
        if finish_abandoned(self._registry, judged=self._judged):
            self._registry.journal.fold(at_least)

    def _later(self, call: Callable[..., object], *arguments: object) -> None:
        self._pool.submit(_quietly, call, *arguments)

    def _read_gc(self) -> GcState:
        found = self._store.get(GC_STATE_KEY)
        if found is None:
            marker.create(self._store)
            return self._read_gc()
        return GcState.decode(found.body, f"{self._store.url}/{GC_STATE_KEY}")


_LEFT = "what it stored stays unseen, until `brainstore gc --yes` removes it, a day later"
_NOTHING_VISIBLE = f"nothing was committed; {_LEFT}"


class _Progress:
    def __init__(self) -> None:
        self.text = "nothing was committed"

    @contextmanager
    def unknown_unless_settled(self, version: Version) -> Iterator[None]:
        """Inside, the commit is under way; after it, the text is as before or as set."""
        before = self.text
        self.text = (
            f"it is not known whether {version} was committed; see: brainstore show {version}. "
            f"If it was not, {_LEFT}"
        )
        under_way = self.text
        try:
            yield
        except (ReadOnly, Unsupported):
            self.text = before
            raise
        except StoreUnavailable as error:
            if not error.outcome_unknown:
                self.text = before
            raise
        if self.text == under_way:
            self.text = before


@contextmanager
def _told(name: Name) -> Iterator[_Progress]:
    """Add to whatever goes wrong inside, Ctrl-C too, what has become of the save."""
    progress = _Progress()
    try:
        yield progress
    except BaseException as error:
        error.add_note(f"{name}: {progress.text}")
        raise


@contextmanager
def after_commit(version: Version) -> Iterator[None]:
    """Add to whatever goes wrong inside that the version is committed."""
    with _told(version.name) as progress:
        progress.text = f"{version} is committed"
        yield


def _quietly(call: Callable[..., object], *arguments: object) -> None:
    """Do some housekeeping; if it fails, a later save or fsck does it again."""
    try:
        call(*arguments)
    except BrainstoreError as error:
        _log.info("left for later: %s", error)
