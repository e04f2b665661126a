"""Pointers and versions that people move, remove, and bring back; what is left of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from brainstore import deletion
from brainstore.address import Alias, Name, Reference, parse_version
from brainstore.errors import NotFound
from brainstore.manager.looking import Looking
from brainstore.versions import Version

if TYPE_CHECKING:
    from brainstore.garbage import Collection, Why


class Changing(Looking):
    """Aliases, deletion and restoration, garbage."""

    def alias(
        self,
        ref: str,
        alias: str,
        expected: int | None = None,
        *,
        why: str = "",
        force: bool = False,
    ) -> Version:
        """Make the alias name the version that `ref` names, atomically; return the version.

        Raises:
            Conflict: `expected` is given, and the alias names another version by now
                (0: names any).
            GateFailed: the zoo's policy guards the alias (unless `force`, which the move
                records), and the version was not promoted to it before.
        """
        from brainstore.drafts import movable
        from brainstore.factory.gates import hand_gate

        pointer = movable(alias)
        if expected is not None and (isinstance(expected, str) or expected != 0):
            expected = parse_version(expected)
        version = self.zoo.registry.resolve(self.zoo.own_reference(ref))
        gate = hand_gate(self.zoo, version, pointer, force=force)
        self._move(pointer, version, expected=expected, why=why, gate=gate)
        return version

    def unalias(self, name: str, alias: str) -> None:
        """Remove an alias. Its history stays in the zoo.

        Raises:
            NotFound: the model has no such alias.
        """
        from brainstore.drafts import movable

        model, pointer = Name(name), movable(alias)
        pointers = self.zoo.registry.pointers
        try:
            self.zoo.registry.resolve(Reference(model, alias=pointer))
        except NotFound:
            pointers.record_again(model, pointer)
            raise
        pointers.move_alias(model, pointer, None)
        self.zoo.committer.tidy()

    def rollback(self, name: str, alias: str, *, force: bool = False) -> Version:
        """Move an alias back to where it pointed before; return that version.

        Raises:
            GateFailed: as for `alias`.
        """
        current = self.resolve(f"{name}:{alias}")
        return self.alias(
            f"{name}:{alias}~1", alias, current.version, why="rolled back", force=force
        )

    def delete(self, ref: str, *, why: str = "", force: bool = False) -> Version:
        """Delete a version; `undelete` brings it back until its blobs are collected.

        Raises:
            Conflict: an alias or a frozen expert needs it (unless `force`).
        """
        reference = self.zoo.own_reference(ref)
        version = deletion.delete(self.zoo, reference, why=why, force=force)
        self.zoo.committer.tidy()
        return version

    def undelete(self, ref: str) -> Version:
        """Bring a deleted version back, byte for byte; return it.

        Raises:
            NotFound: it never was, or its blobs have been collected.
            Conflict: it is not deleted.
        """
        version = deletion.undelete(self.zoo, self.zoo.own_reference(ref))
        self.zoo.committer.tidy()
        return version

    def gc(
        self,
        *,
        dry_run: bool = True,
        keep_last: int | None = None,
        keep_alias: Sequence[str] = (),
        older_than: float | timedelta | None = None,
        take_over: bool = False,
    ) -> Collection:
        """Remove blobs that nothing names; return what was removed, or would be.

        Safe beside everything else that is going on. Blobs and deleted versions stay for
        the grace period, a day.

        Args:
            dry_run: only say what would be done.
            keep_last: delete all but so many versions of each model first, except those
                that an alias names or that are frozen experts of what stays.
            keep_alias: with `keep_last`, keep also what these aliases named before.
            older_than: another grace period, in seconds or as a timedelta; with
                `keep_last`, versions saved within it stay, too.
            take_over: go on with a collection in a bucket that died while it deleted, and
                has been dead for an hour.

        Raises:
            Conflict: another collection is under way.
            Corrupt, Unsupported: a record cannot be read, and may name anything; no blob
                was removed.
        """
        from brainstore.garbage import collect

        older_than_s = (
            older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
        )
        collection = collect(
            self.zoo,
            dry_run=dry_run,
            keep_last=keep_last,
            keep_alias=keep_alias,
            older_than_s=older_than_s,
            take_over=take_over,
        )
        if not dry_run:
            self.zoo.committer.tidy()
        return collection

    def why(self, digest: str) -> Why:
        """Return what keeps a blob, or a leaf, of this digest; eight hex digits will do.

        Raises:
            NotFound: there is none.
            BadReference: it is no digest, or several blobs begin like that.
        """
        from brainstore.garbage import why

        return why(self.zoo, digest)

    def _move(self, alias: Alias, to: Version, **options: Any) -> None:
        self.zoo.registry.pointers.move_alias(to.name, alias, to, **options)
        self.zoo.committer.tidy()
