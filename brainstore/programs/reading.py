"""The files of a program -> one that this process can run, or the reason why it cannot."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from brainstore.blobs import Blobs
from brainstore.errors import Corrupt, NotFound, Unsupported
from brainstore.groups import PARAMS
from brainstore.programs.form import (
    DESCRIPTION,
    PROGRAM,
    Description,
    first_line,
    jaxlib_version,
    require_flatbuffers,
)
from brainstore.programs.running import Program
from brainstore.records import Group, Manifest


def opened(blobs: Blobs, manifest: Manifest, owner: str) -> Program:
    """Return the program that was saved with a version.

    Raises:
        NotFound: the version has none.
        Unsupported: JAX does not promise to read it (any more), or it was not made for the
            platform of this process.
        Corrupt: it is damaged, or belongs to other params.
    """
    description = describe(blobs, manifest, owner)
    require_flatbuffers()
    _require_window(description, owner)
    _require_platform(description, owner)
    body = _read(blobs, manifest, owner, PROGRAM)
    exported = _deserialized(body, description, owner)
    group = manifest.groups[PARAMS]
    _require_params(exported, group, owner)
    return Program(exported, description, manifest.files[PROGRAM].blob, group)


def describe(blobs: Blobs, manifest: Manifest, owner: str) -> Description:
    """Return what is recorded of the program that was saved with a version.

    Raises:
        NotFound: the version has none.
    """
    if not {PROGRAM, DESCRIPTION} <= manifest.files.keys():
        raise NotFound(
            f"{owner} has no program that runs without the network's class. Name the class, or add "
            "a program: manager.attach_export(ref, apply_fn, example_obs)"
        )
    return Description.decode(
        _read(blobs, manifest, owner, DESCRIPTION), f"{DESCRIPTION} of {owner}"
    )


def _read(blobs: Blobs, manifest: Manifest, owner: str, name: str) -> bytes:
    stored = manifest.files[name]
    # Always hashed: it is about to be run.
    wanted = {stored.blob: stored.size_bytes}
    return bytes(blobs.open(wanted, owner=owner, hashed=wanted)[stored.blob])


def _require_window(description: Description, owner: str) -> None:
    from jax import export

    lowest = export.minimum_supported_calling_convention_version
    highest = export.maximum_supported_calling_convention_version
    found = description.calling_convention_version
    # The same jaxlib reads what it wrote, whatever the date.
    here = jaxlib_version()
    if description.jaxlib != here and _is_over(description, owner):
        problem = f"JAX promised to read it until {description.expires_at[:10]}"
    elif not lowest <= found <= highest:
        problem = f"its calling convention is {found}, and this JAX reads {lowest} to {highest}"
    else:
        return
    raise Unsupported(
        f"the program of {owner} was made with jaxlib {description.jaxlib} at "
        f"{description.created_at[:10]}, here is jaxlib {here}, and {problem}. {_ways()}"
    )


def _is_over(description: Description, owner: str) -> bool:
    try:
        return datetime.now(UTC) > datetime.fromisoformat(description.expires_at)
    except (ValueError, TypeError) as error:
        raise Corrupt(
            f"{DESCRIPTION} of {owner} is damaged: expires_at is {description.expires_at!r:.40} "
            f"({error}). {_ways()}"
        ) from error


def _ways(options: str = "") -> str:
    return (
        "The params are there all the same: name the network's class, and renew the program with "
        f"manager.attach_export(ref, apply_fn, example_obs{options})"
    )


def _require_platform(description: Description, owner: str) -> None:
    import jax

    here = jax.export.default_export_platform()
    if here not in description.platforms:
        raise Unsupported(
            f"the program of {owner} is for {', '.join(description.platforms)}, and this process "
            f"computes on {here}. " + _ways(f", platforms=[{here!r}]")
        )


def _deserialized(body: bytes, description: Description, owner: str) -> Any:
    import jax

    try:
        return jax.export.deserialize(bytearray(body))
    except Exception as error:
        raise Corrupt(
            f"{PROGRAM} of {owner}, {len(body):,} bytes, is no program that jax "
            f"{jax.__version__} reads ({type(error).__name__}: {first_line(error)}); it says that "
            f"jax {description.jax} wrote it. {_ways()}"
        ) from error


def _require_params(exported: Any, group: Group, owner: str) -> None:
    expected = [tuple(leaf.shape) for leaf in group.leaves]
    found = [tuple(aval.shape) for aval in exported.in_avals]
    arguments, _ = exported.in_tree.unflatten(range(len(found)))
    is_ours = len(arguments) == 2 and arguments[0] == list(range(len(expected)))
    if not is_ours or found[: len(expected)] != expected:
        raise Corrupt(
            f"{PROGRAM} of {owner} does not take the {len(expected)} leaves of its params, so it "
            f"belongs to another brain. {_ways()}"
        )
