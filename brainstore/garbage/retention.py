"""Which versions are beyond `keep_last`, and what keeps some of them all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from brainstore import deletion
from brainstore.address import Alias, Reference, parse_reference
from brainstore.errors import BadParams, BadReference, Conflict, NotFound
from brainstore.garbage.live import Key, versions
from brainstore.index import Index, Row
from brainstore.versions import Version
from brainstore.zoo import Zoo

_PER_INDEX = 100
"""After so many deletions the index is read again, for who may need the next ones by now."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Versions to delete, users before their experts, and (version, what keeps it)."""

    doomed: tuple[Version, ...] = ()
    kept: tuple[tuple[Version, str], ...] = ()


def choose(
    zoo: Zoo, keep_last: int | None, keep_alias: Sequence[str], saved_before: float | None
) -> Retention:
    """Return which versions go: those beyond the last of their model that nothing needs.

    Args:
        keep_last: how many versions of each model stay in any case; None: all.
        keep_alias: aliases whose kept moves count too, so that they can be rolled back.
        saved_before: what was saved later (the store's clock, seconds since 1970) stays.

    Raises:
        BadParams: `keep_last` is below 1, or `keep_alias` is given without it.
    """
    aliases = [Alias(alias) for alias in keep_alias]
    if keep_last is None:
        if aliases:
            raise BadParams("keep_alias: only with keep_last; without it, nothing is deleted")
        return Retention()
    if keep_last < 1:
        raise BadParams(f"keep_last: expected 1 or more, found {keep_last}")
    index = zoo.index()
    beyond = {key for name in index.names() for key in index.versions(name)[:-keep_last]}
    reasons = dict(_named(zoo, beyond, aliases))
    if saved_before is not None:
        reasons |= _young(zoo, beyond - set(reasons), saved_before)
    _keep_experts(index, beyond, reasons)
    doomed = _users_first(index, beyond - set(reasons))
    keys = [*doomed, *reasons]
    found = zoo.in_parallel(lambda key: zoo.registry.versions.live(*key), keys)
    live = dict(zip(keys, found, strict=True))
    return Retention(
        doomed=tuple(version for key in doomed if (version := live[key])),
        kept=tuple(
            (version, why) for key, why in sorted(reasons.items()) if (version := live[key])
        ),
    )


def retire(zoo: Zoo, retention: Retention) -> Retention:
    """Delete the doomed versions; return what was deleted, and what turned out to be needed."""
    deleted, kept = list[Version](), list(retention.kept)
    with told(deleted):
        for start in range(0, len(retention.doomed), _PER_INDEX):
            index = zoo.index()
            for version in retention.doomed[start : start + _PER_INDEX]:
                _retire(zoo, version, index, deleted, kept)
    return Retention(tuple(deleted), tuple(kept))


def _retire(
    zoo: Zoo,
    version: Version,
    index: Index,
    deleted: list[Version],
    kept: list[tuple[Version, str]],
) -> None:
    reference = Reference(version.name, version.version, digest=version.digest.hex)
    try:
        deletion.delete(zoo, reference, why="beyond what `gc` was told to keep", index=index)
        deleted.append(version)
    except Conflict as error:
        kept.append((version, str(error)))
        return
    except NotFound:
        pass  # somebody else deleted it
    index.rows.pop((version.name, version.version), None)


@contextmanager
def told(deleted: Sequence[Version]) -> Iterator[None]:
    """Add to whatever goes wrong inside which versions were deleted before."""
    try:
        yield
    except BaseException as error:
        if deleted:
            error.add_note(
                f"{len(deleted):,} versions were deleted before, {deleted[-1]} the last; see: "
                "brainstore log"
            )
        raise


def _named(zoo: Zoo, beyond: set[Key], aliases: Sequence[Alias]) -> Iterator[tuple[Key, str]]:
    for name in {name for name, _ in beyond}:
        for pointer in zoo.registry.pointers.all_of(name):
            past = [move.to_version for move in pointer.moves] if pointer.ref in aliases else []
            for number in filter(None, [*past, pointer.version]):
                if (name, number) in beyond:
                    told = "names it" if number == pointer.version else "named it before"
                    yield (name, number), f"{name}:{pointer.ref} {told}"


def _young(zoo: Zoo, keys: set[Key], saved_before: float) -> dict[Key, str]:
    return {
        key: "it was saved too lately"
        for stat, key in versions(zoo)
        if key in keys and stat.modified_at > saved_before
    }


def _keep_experts(index: Index, beyond: set[Key], reasons: dict[Key, str]) -> None:
    """Keep the frozen experts of what stays, and theirs."""
    open_keys = [key for key in index.rows if key not in beyond or key in reasons]
    while open_keys:
        user = open_keys.pop()
        for expert in _experts(index.rows[user]):
            if expert in beyond and expert not in reasons:
                reasons[expert] = f"it is a frozen expert of {user[0]}:{user[1]}"
                open_keys.append(expert)


def _users_first(index: Index, keys: set[Key]) -> list[Key]:
    """Return the keys so that nothing that is deleted is an expert of what still lives."""
    ordered: list[Key] = []
    while keys:
        needed = {expert for key in keys for expert in _experts(index.rows[key])}
        # In a circle, which no save makes, everything is needed.
        free = keys - needed or keys
        ordered += sorted(free)
        keys = keys - free
    return ordered


def _experts(row: Row) -> Iterator[Key]:
    listed = row.get("experts", ())
    for text in listed if isinstance(listed, list | tuple) else ():
        # What does not parse, no save has written.
        with suppress(BadReference):
            reference = parse_reference(text)
            if reference.version is not None:
                yield reference.name, reference.version
