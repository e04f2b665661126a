"""Pointers: `latest`, which follows the versions, and aliases, which people move."""

from __future__ import annotations

from brainstore.address import (
    LATEST,
    MODELS_PREFIX,
    Alias,
    Digest,
    Fact,
    Name,
    intent_key,
    new_ulid,
    parse_pointer_key,
    pointer_key,
)
from brainstore.errors import AlreadyExists, BadReference, Conflict, Corrupt, NotFound
from brainstore.journal import Journal
from brainstore.quality import Gate
from brainstore.records import FactBody, Intent, Pointer, Target, now
from brainstore.storage.base import ABSENT, Store, Token
from brainstore.versions import Version, Versions

SWAP_ATTEMPTS = 64


class _Unread:
    """In place of a pointer that was not read; None stands for one that is not there."""


_UNREAD = _Unread()


class Pointers:
    """The pointers of one zoo. Every move is one compare-and-swap."""

    def __init__(self, store: Store, journal: Journal, versions: Versions, by: str) -> None:
        self._store = store
        self._journal = journal
        self._versions = versions
        self._by = by
        self._latest: dict[Name, tuple[Pointer, Token] | None] = {}

    def pointer(self, name: Name, alias: Alias) -> tuple[Pointer, Token] | None:
        """Return the pointer and the token of its state, or None when there never was one."""
        key = pointer_key(name, alias)
        found = self._store.get(key)
        if found is None:
            return None
        pointer = Pointer.decode(found.body, f"{self._store.url}/{key}")
        if (pointer.name, pointer.ref) != (name, alias):
            raise Corrupt(
                f"{self._store.url}/{key} holds the pointer {pointer.name}:{pointer.ref}. "
                "Run: brainstore fsck"
            )
        return pointer, found.token

    def all_of(self, name: Name) -> list[Pointer]:
        """Return every pointer of the model, `latest` among them, as they are now."""
        found = []
        for entry in self._store.list(f"{MODELS_PREFIX}{name}/refs/"):
            parsed = parse_pointer_key(entry.key)
            pointer = self.pointer(*parsed) if parsed and parsed[0] == name else None
            if pointer is not None:
                found.append(pointer[0])
        return found

    def latest(self, name: Name) -> tuple[Pointer, Token] | None:
        """Return `latest` as this process last saw it, or as it is now if it never did."""
        found = self._latest.get(name, _UNREAD)
        if isinstance(found, _Unread):
            # Another thread may forget it meanwhile: what was read here counts here.
            found = self._latest[name] = self.pointer(name, Alias(LATEST))
        return found

    def forget_latest(self, name: Name) -> None:
        self._latest.pop(name, None)

    def advance_latest(self, version: Version, write_id: str) -> None:
        """Make `latest` name `version`, unless it names a higher one. Safe to repeat."""
        for _ in range(SWAP_ATTEMPTS):
            found = self.latest(version.name)
            if found is not None and found[0].newest >= version.version:
                # Only what `latest` says now is a reason to leave it as it is.
                self.forget_latest(version.name)
                found = self.latest(version.name)
            pointer = found[0] if found else _new_pointer(version.name, Alias(LATEST))
            if (pointer.version or 0) >= version.version:
                return
            # A higher `newest` means that a deleter, or the saver of a version that is
            # deleted by now, was here first; it may have been ours that was deleted.
            was_passed = pointer.newest >= version.version
            if was_passed and not self._versions.is_live(version):
                return
            newest = max(pointer.newest, version.version)
            if self._swap_latest(found, pointer, version.version, version.digest, newest, write_id):
                # Then a deleter need not have touched the pointer, which we swap.
                if was_passed and not self._versions.is_live(version):
                    self.retreat_latest(version)
                return
        raise Conflict(f"{version}: `latest` kept moving. It is committed; run: brainstore fsck")

    def retreat_latest(self, deleted: Version) -> None:
        """Make `latest` name the highest live version, if it named the deleted one."""
        gone: int | None = deleted.version
        for _ in range(SWAP_ATTEMPTS):
            self.forget_latest(deleted.name)
            found = self.latest(deleted.name)
            pointer = found[0] if found else _new_pointer(deleted.name, Alias(LATEST))
            newest = max(pointer.newest, deleted.version)
            if pointer.version != gone and newest == pointer.newest:
                return
            to = None if pointer.version is None else current(pointer)
            if pointer.version == gone:
                to = self._versions.highest_live(deleted.name)
            number, digest = (to.version, to.digest) if to else (None, None)
            if not self._swap_latest(found, pointer, number, digest, newest, new_ulid()):
                continue
            # Whoever deletes or restores a lower version reads the pointer after that, we
            # read the versions after our swap: one of us sees the other.
            if pointer.version != gone:
                return
            if self._versions.highest_live(deleted.name) == to:
                return
            gone = number
        raise Conflict(f"{deleted}: `latest` kept moving. Run: brainstore fsck --repair")

    def _swap_latest(
        self,
        found: tuple[Pointer, Token] | None,
        pointer: Pointer,
        number: int | None,
        digest: Digest | None,
        newest: int,
        write_id: str,
    ) -> bool:
        moved = pointer.moved(number, digest, newest=newest, by=self._by, why="", write_id=write_id)
        key = pointer_key(pointer.name, pointer.ref)
        try:
            token = self._store.put(
                key, moved.encode_readable(), expect=found[1] if found else ABSENT
            )
        except (Conflict, AlreadyExists):
            self.forget_latest(pointer.name)
            return False
        self._latest[pointer.name] = (moved, token)
        return True

    def move_alias(
        self,
        name: Name,
        alias: Alias,
        to: Version | None,
        *,
        expected: int | None = None,
        generation: int | None = None,
        why: str = "",
        gate: Gate | None = None,
    ) -> Pointer:
        """Make the alias name `to`, or nothing; return the pointer as it is then.

        Atomic: with `expected` (0 for an alias that is not set), only if it names that
        version now; with `generation`, only if it has not moved since it had that one.
        The move is recorded, with its gate, in the pointer and in the journal.

        Raises:
            Conflict: the alias does not name `expected`, or has moved since `generation`.
            NotFound: the version was deleted meanwhile; the alias is back where it was.
        """
        if alias == LATEST:
            raise BadReference("alias 'latest' is reserved: it always is the highest live version")
        before, after = self._swap_alias(
            name, alias, to, expected=expected, generation=generation, why=why, gate=gate
        )
        # Also when it names that already: who moved it may have died before this line.
        if after.generation:
            self._record_move(after)
        if before == after:
            return after
        # A deleter reads the pointers after its tombstone; one of us sees the other.
        is_gone = to is not None and not self._versions.is_live(to)
        if to is not None and is_gone:
            self.step_back(after, to, f"{to} is deleted")
        self._store.delete(intent_key(after.write_id))
        if is_gone:
            raise NotFound(f"{to} was deleted while {alias} moved to it; {alias} is back")
        return after

    def step_back(self, moved: Pointer, to: Version, why: str) -> None:
        """Undo the move to `to` that made the pointer `moved`.

        Raises:
            Conflict: the alias has moved on since; it is left where it is.
        """
        back, undone = self._before_move(moved), moved.moves[-1].write_id
        _, after = self._swap_alias(
            moved.name,
            moved.ref,
            back,
            expected=to.version,
            generation=moved.generation,
            why=why,
            gate=moved.passed(back.version, back.digest, but=undone) if back else None,
            undoes=undone,
        )
        self._record_move(after)
        self._store.delete(intent_key(after.write_id))

    def _before_move(self, pointer: Pointer) -> Version | None:
        """Return where the pointer was before its last move, if that is live still."""
        number = pointer.moves[-1].from_version
        return None if number is None else self._versions.live(pointer.name, number)

    def record_all_again(self, name: Name) -> None:
        """Record the last move of every alias of the model once more. Safe to repeat."""
        for pointer in self.all_of(name):
            if pointer.ref != LATEST:
                self._record_move(pointer)

    def record_again(self, name: Name, alias: Alias) -> None:
        """Record the last move once more: who made it may have died before it was."""
        found = self.pointer(name, alias)
        if found is not None:
            self._record_move(found[0])

    def _swap_alias(
        self,
        name: Name,
        alias: Alias,
        to: Version | None,
        *,
        expected: int | None,
        generation: int | None,
        why: str,
        gate: Gate | None,
        undoes: str | None = None,
    ) -> tuple[Pointer | None, Pointer]:
        write_id = new_ulid()
        for _ in range(SWAP_ATTEMPTS):
            found = self.pointer(name, alias)
            before = found[0] if found else _new_pointer(name, alias)
            if any(move.write_id == write_id for move in before.moves):
                return None, before  # our swap was accepted, and its reply was lost
            if expected is not None and (before.version or 0) != expected:
                raise Conflict(
                    f"{name}:{alias} names {_version_text(before.version)}, expected "
                    f"{_version_text(expected or None)}. Look again: brainstore show {name}"
                )
            if generation is not None and before.generation != generation:
                raise Conflict(
                    f"{name}:{alias} was moved by somebody else meanwhile, and names "
                    f"{_version_text(before.version)}. Look again: brainstore log {name}"
                )
            number, digest = (to.version, to.digest) if to else (None, None)
            is_there = (before.version, before.digest) == (number, digest)
            if is_there and undoes is None and not _is_news(before, gate):
                return before, before
            moved = before.moved(
                number,
                digest,
                newest=0,
                by=self._by,
                why=why,
                write_id=write_id,
                gate=gate,
                undoes=undoes,
            )
            self._announce(moved, {before.version, number})
            try:
                expect = found[1] if found else ABSENT
                self._store.put(pointer_key(name, alias), moved.encode_readable(), expect=expect)
            except (Conflict, AlreadyExists):
                self._store.delete(intent_key(write_id))
                continue
            return before, moved
        raise Conflict(f"{name}:{alias} kept moving; nothing of ours was stored. Try again")

    def _announce(self, moved: Pointer, numbers: set[int | None]) -> None:
        """Say what is about to move: should we die before the move is recorded, others do it."""
        targets = tuple(Target(name=moved.name, version=n) for n in numbers if n is not None)
        intent = Intent(
            write_id=moved.write_id,
            created_at=now(),
            by=self._by,
            targets=targets,
            digests=(),
            exact=True,
        )
        self._store.put(intent_key(moved.write_id), intent.encode())

    def _record_move(self, pointer: Pointer) -> None:
        fact = Fact(
            new_ulid(), "move", pointer.name, pointer.version or 0, pointer.generation, pointer.ref
        )
        self._journal.record(fact, FactBody(at=now(), by=self._by))


def _is_news(pointer: Pointer, gate: Gate | None) -> bool:
    """True when the pointer names its version without a gate, and now there is one."""
    last = pointer.moves[-1].gate if pointer.moves else None
    return gate is not None and not gate.is_forced and (last is None or last.is_forced)


def current(pointer: Pointer) -> Version:
    """Return the version that the pointer names."""
    if pointer.version is None or pointer.digest is None:
        raise Corrupt(f"{pointer.name}:{pointer.ref} names no version. Run: brainstore fsck")
    return Version(pointer.name, pointer.version, pointer.digest)


def _new_pointer(name: Name, alias: Alias) -> Pointer:
    return Pointer(
        name=name, ref=alias, version=None, digest=None, generation=0, write_id=new_ulid()
    )


def _version_text(number: int | None) -> str:
    return f"version {number}" if number else "nothing"
