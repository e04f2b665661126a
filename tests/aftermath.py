"""What must be true of a zoo in a folder after a crash, whatever was under way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from zoos import Found, opened, params, read_raw, same

from brainstore import BrainManager, Conflict, NotFound
from brainstore.address import Name
from brainstore.fsck import Finding, fsck
from brainstore.storage.local import LocalStore

SEED = 77
"""Of the params that are saved next."""


def has(zoo: BrainManager, reference: str, seed: int, size: int = 6) -> bool:
    """Return whether the version loads, and is what `params(seed, size)` were."""
    tree, _ = zoo.load(reference, as_numpy=True, verify=True)
    return same(tree, params(seed, size))


def checked(zoo: BrainManager, *, repair: bool = False) -> list[Finding]:
    """Return what fsck finds, but for leftovers."""
    return [each for each in fsck(zoo.zoo, repair=repair) if not each.is_harmless]


def problems(folder: Path, before: Mapping[str, int]) -> list[str]:
    """Return what is wrong with a zoo after a crash; nothing, as it should be.

    What was saved before loads bit for bit (references by number, and the seeds of their
    params), and so does all that is listed; what a reader without brainstore sees is whole;
    fsck finds leftovers at most; the next save gets the next number and is `latest`.
    """
    return _told(folder, lambda zoo: [*_what_is_there(zoo, folder, before), *_what_is_next(zoo)])


def unfinished(
    folder: Path, do: Callable[[BrainManager], object], holds: Callable[[BrainManager], bool]
) -> list[str]:
    """Return what is wrong once somebody has done again what the crash has interrupted."""
    return _told(folder, lambda zoo: _what_is_done_again(zoo, do, holds))


def broken(folder: Path, holds: Callable[[BrainManager], bool]) -> list[str]:
    """Return what is wrong with the promise of a work that had returned."""
    text = "what was promised does not hold"
    return _told(folder, lambda zoo: [] if holds(zoo) else [text])


def _told(folder: Path, look: Callable[[BrainManager], Iterable[str]]) -> list[str]:
    try:
        with opened(folder) as zoo:
            return [*look(zoo), *read_raw(LocalStore(folder)).problems]
    except Exception as error:  # noqa: BLE001  # whatever it is, it is a problem
        return [f"{type(error).__name__}: {error}"]


def _what_is_there(zoo: BrainManager, folder: Path, before: Mapping[str, int]) -> Iterator[str]:
    found = read_raw(LocalStore(folder))
    yield from found.problems
    yield from _unloadable(zoo, before, found)
    yield from _unloadable(zoo, {n.replace("_v", ":"): None for n in zoo.list_models()}, found)
    # Where nothing was made yet, fsck says so, and that is no damage either.
    if any(LocalStore(folder).list("")):
        yield from map(str, checked(zoo))


def _what_is_done_again(
    zoo: BrainManager, do: Callable[[BrainManager], object], holds: Callable[[BrainManager], bool]
) -> Iterator[str]:
    with contextlib.suppress(Conflict, NotFound):  # it was done
        do(zoo)
    if not holds(zoo):
        yield "doing it again has not finished it"
    yield from map(str, checked(zoo))


def _what_is_next(zoo: BrainManager) -> Iterator[str]:
    numbers = zoo.zoo.registry.versions.numbers(Name("ppo"))
    expected = f"ppo_v{max(numbers, default=0) + 1}"
    saved, latest = zoo.save("ppo", params(SEED)), zoo.get_latest("ppo")
    if (saved, latest) != (expected, expected):
        yield f"the next save is {saved}, and latest {latest}; expected {expected}"
    if not has(zoo, "ppo", SEED):
        yield "the next save does not load"
    yield from map(str, checked(zoo))


def _unloadable(
    zoo: BrainManager, versions: Mapping[str, int | None], found: Found
) -> Iterator[str]:
    for reference, seed in versions.items():
        name, _, number = reference.rpartition(":")
        try:
            tree, _ = zoo.load(reference, as_numpy=True, verify=True)
        except NotFound as error:
            # A deletion that stopped half way may still be listed, and is seen to be deleted.
            if (name, int(number)) not in found.deleted or "undelete" not in str(error):
                yield f"{reference}: {error}"
        else:
            if seed is not None and not same(tree, params(seed)):
                yield f"{reference} is not what was saved"
