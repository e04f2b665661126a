"""What one sync does, and in which order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from brainstore import deletion, marker
from brainstore.address import LATEST, MARKER_KEY, Alias, Digest, Name, Reference
from brainstore.errors import BadParams, Conflict, Corrupt, GateFailed, NotFound, NoZoo
from brainstore.factory.gates import synced_gate
from brainstore.index import Index
from brainstore.pointers import current
from brainstore.records import Pointer, Tombstone
from brainstore.sync.copying import Copying
from brainstore.sync.plan import (
    Item,
    Key,
    Wanted,
    gather,
    in_order,
    in_parallel,
    item_at,
    judged,
    wanted,
)
from brainstore.sync.report import Ledger, Outcome, Step, SyncReport
from brainstore.sync.reports import Reporting
from brainstore.versions import Version
from brainstore.zoo import Zoo


def sync(
    source: Zoo,
    target: Zoo,
    refs: Sequence[str] = (),
    *,
    aliases: bool = False,
    delete: bool = False,
    dry_run: bool = False,
    progress: Callable[[Step], None] | None = None,
) -> SyncReport:
    """Make the target have these versions of the source, byte for byte; return what was done.

    Reports that were filed on them come along; the zoo's policy does not. Safe to repeat, to
    kill, and to run several times at once. Blobs are verified before they are stored. One
    version that cannot be copied does not stop the others. The target becomes a zoo if it
    is none.

    Args:
        refs: `name` is every version of the model, `name:3` and `name:prod` are one; what
            they were made from and contain comes along, as far as the source has it. All
            blobs of what is named are looked for, so this also mends a target that has
            lost some. Without refs, everything, except for what both indexes agree on.
        aliases: also move aliases whose version is there then. One that names something
            else at the target is moved only if the source's once named that too, so
            that what was decided at the target stays; else it is a conflict. So is one
            that the target's own policy guards, if that is not met there.
        delete: also delete what was deleted at the source, if it has the same digest, and
            remove aliases that were removed there (with `aliases`).
        dry_run: write nothing; the report says what would be done. Whether something
            needs a version that is to be deleted, and whether a policy lets an alias
            move, is not looked at.
        progress: called with each step, from several threads, one at a time.

    Raises:
        NotFound: a reference names nothing in the source; nothing was copied.
        BadReference: one does not parse; nothing was copied.
        BadParams: source and target are the same place.
        StoreUnavailable, ReadOnly, Unsupported: one of the stores failed. A note says how
            much was done; run the same again to go on.
    """
    marker.require(source.store)
    refuse_same_place(source, target)
    index = source.index()
    wants = wanted(source, refs, index, deleted=delete)
    there = _prepared(target, dry_run)
    settled = {} if refs else _agreed(index, there)
    items, failed = gather(source, wants.live, settled)
    ledger = Ledger(dry_run=dry_run, progress=progress)
    ledger.outcomes += [Outcome(*key, "present") for key in sorted(settled)]
    ledger.outcomes += failed
    try:
        copying = Copying(source, target, there, {*items, *settled}, ledger)
        copying.run(judged(target, in_order(items)))
        # Before the aliases, which the target's policy may judge by them.
        digests = {**settled, **{key: item.version.digest for key, item in items.items()}}
        Reporting(source, target, ledger).run(
            {key: digests[key] for key in ledger.there(digests)}, everything=not refs
        )
        following = _Following(source, target, there, ledger)
        if aliases:
            following.move_aliases(index, wants, delete)
        following.delete(sorted(wants.deleted))
    except BaseException as error:
        error.add_note(f"sync: {len(ledger.report().copied)} versions were copied; run it again")
        raise
    if not dry_run:
        target.committer.tidy()
    return ledger.report()


def refuse_same_place(source: Zoo, target: Zoo) -> None:
    """Raise BadParams if both zoos are one."""
    paths = [zoo.store.path("") for zoo in (source, target)]
    if None not in paths:
        same = os.path.realpath(str(paths[0])) == os.path.realpath(str(paths[1]))
    else:
        # Two servers may have buckets of the same name.
        same = source.url == target.url and _marker(source) == _marker(target)
    if same:
        raise BadParams(f"{source.url} is both source and target; name two zoos")


def _marker(zoo: Zoo) -> bytes | None:
    found = zoo.store.get(MARKER_KEY)
    return found.body if found else None


def _prepared(target: Zoo, dry_run: bool) -> Index:
    """Make the target a zoo, and return its index; one that is damaged counts as empty."""
    try:
        marker.require(target.store) if dry_run else marker.create(target.store)
        return target.index()
    except NoZoo:
        return Index()
    except Corrupt:
        # Only saves time; what is really there is read version by version then.
        return Index()


def _agreed(index: Index, there: Index) -> dict[Key, Digest]:
    """Return the versions that both indexes have with the same digest."""
    return {
        key: row["digest"]
        for key, row in index.rows.items()
        if row.get("digest") and there.rows.get(key, {}).get("digest") == row["digest"]
    }


class _Following:
    """What of the source's changes the target follows, once the versions are there."""

    def __init__(self, source: Zoo, target: Zoo, there: Index, ledger: Ledger) -> None:
        """`there` is the target's index, which tells what a sync that was killed had not told."""
        self._source = source
        self._target = target
        self._there = there
        self._ledger = ledger

    def move_aliases(self, index: Index, wants: Wanted, delete: bool) -> None:
        """Let aliases at the target follow those of the source."""
        names = {*wants.names, *(outcome.name for outcome in self._ledger.outcomes)}
        statuses = {(each.name, each.version): each.status for each in self._ledger.outcomes}
        for name, alias in sorted(index.aliases):
            found = self._source.registry.pointers.pointer(name, alias) if name in names else None
            if found is None or alias == LATEST:
                continue
            pointer = found[0]
            if pointer.version is None:
                if delete and name in wants.whole:
                    self._move(pointer, None)
            elif status := statuses.get((name, pointer.version)):
                if status in ("copied", "present"):
                    self._move(pointer, current(pointer))
                else:
                    problem = f"{name}:{alias} names it, and it is not there"
                    self._ledger.tell(name, pointer.version, "conflict", problem)

    def _move(self, pointer: Pointer, to: Version | None) -> None:
        name, alias, number = pointer.name, pointer.ref, pointer.version or 0
        found = self._target.registry.pointers.pointer(name, alias)
        there = (found[0].version, found[0].digest) if found else None
        if there == (pointer.version, pointer.digest) or (there is None and to is None):
            self._tell_again(name, alias, found[0].generation if found else 0)
            return
        past = {(move.to_version, move.to_digest) for move in pointer.moves}
        if there is not None and there not in past:
            names = f"names version {there[0]}" if there[0] else "was removed"
            self._ledger.tell(name, number, "conflict", f"{name}:{alias} {names} there")
            return
        try:
            if not self._ledger.dry_run:
                self._swap_alias(name, alias, to, there[0] if there else None)
        except (Conflict, NotFound, GateFailed) as error:
            self._ledger.tell(name, number, "conflict", str(error))
        else:
            self._ledger.tell(name, number, "moved", f"{name}:{alias}")

    def _tell_again(self, name: Name, alias: Alias, generation: int) -> None:
        known = self._there.aliases.get((name, alias))
        if (
            generation
            and not self._ledger.dry_run
            and (known is None or known.generation < generation)
        ):
            self._target.registry.pointers.record_again(name, alias)

    def _swap_alias(self, name: Name, alias: Alias, to: Version | None, now: int | None) -> None:
        why = f"synced from {self._source.url}"
        gate = synced_gate(self._target, to, alias) if to else None
        self._target.registry.pointers.move_alias(
            name, alias, to, expected=now or 0, why=why, gate=gate
        )

    def delete(self, keys: Sequence[Key]) -> None:
        """Delete at the target what was deleted at the source; what needs others goes first."""
        found = in_parallel(self._target, lambda key: item_at(self._target, key), keys)
        items = {item.key: item for item in found if isinstance(item, Item)}
        for item in reversed(in_order(items)):
            stored = self._source.registry.versions.stored(*item.key)
            tombstone = stored.record if stored else None
            if not isinstance(tombstone, Tombstone) or not tombstone.is_deleted:
                continue
            if tombstone.replaced_digest == item.version.digest:
                self._delete(item.version, tombstone.why)
            elif not tombstone.is_fence:
                problem = "another version of this number was deleted at the source"
                self._ledger.tell(*item.key, "conflict", problem)
        self._finish_deletions(key for key in keys if key not in items)

    def _finish_deletions(self, gone: Iterable[Key]) -> None:
        """Tell again what is deleted at the target and listed there still."""
        for key in gone:
            digest = self._there.rows.get(key, {}).get("digest")
            if digest and not self._ledger.dry_run:
                with suppress(NotFound, Conflict):  # not found, as it should be, and the rest done
                    reference = Reference(*key, digest=Digest(digest).hex)
                    deletion.delete(self._target, reference)

    def _delete(self, version: Version, why: str) -> None:
        reference = Reference(version.name, version.version, digest=version.digest.hex)
        why = why or f"deleted in {self._source.url}"
        try:
            if not self._ledger.dry_run:
                deletion.delete(self._target, reference, why=why)
        except Conflict as error:
            self._ledger.tell(version.name, version.version, "conflict", str(error))
        except NotFound:
            return
        else:
            self._ledger.tell(version.name, version.version, "deleted", why)
