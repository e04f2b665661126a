"""Arrays that were read -> leaves as a tree should hold them, on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brainstore import dtypes
from brainstore.dtypes import Array
from brainstore.errors import BadParams, Corrupt
from brainstore.pytree.structure import shown

_SCALARS: dict[str, Callable[[Any], Any]] = {
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
}


@dataclass(frozen=True, slots=True)
class HostLeaf:
    """A leaf that was read: what is recorded of it, and its array (see `tensors.view`)."""

    path: str
    dtype: str
    array: Array
    scalar: str | None = None


def place(
    leaves: Sequence[HostLeaf],
    *,
    device: Any = None,
    sharding: Any = None,
    dtype: Any = None,
    as_numpy: bool = False,
) -> list[Any]:
    """Return the leaves as a tree should hold them: JAX arrays, and scalars as they were.

    All arrays go to their devices in one transfer. On the CPU there is none: where the
    array lies at a multiple of 64 bytes, the JAX array is the same memory.

    Args:
        leaves: what was read.
        device: where to; the default device when neither this nor `sharding` is given.
        sharding: a jax Sharding for all arrays, or a sequence with one (or None) for each
            leaf.
        dtype: floating arrays are converted to it; scalars and all others stay as they are.
        as_numpy: return NumPy arrays instead, without a copy; PRNG keys as their key data.

    Raises:
        BadParams: a 64-bit array while JAX's 64-bit mode is off, a dtype that is not
            floating, or a sharding that does not fit an array.
        Corrupt: a leaf contradicts what is recorded of it.
    """
    if dtype is not None:
        floating = _floating(dtype)
        leaves = [_converted(leaf, floating) for leaf in leaves]
    if as_numpy:
        return [leaf.array if leaf.scalar is None else _scalar(leaf) for leaf in leaves]
    targets = _targets(len(leaves), device, sharding)
    arrays = [n for n, leaf in enumerate(leaves) if leaf.scalar is None]
    _refuse_wide([leaves[n] for n in arrays])
    placed = _put([leaves[n].array for n in arrays], [targets[n] for n in arrays])
    found = dict(zip(arrays, placed, strict=True))
    return [_finished(leaf, found.get(n)) for n, leaf in enumerate(leaves)]


def _floating(dtype: Any) -> str:
    try:
        found = dtypes.numpy_dtype(dtype) if isinstance(dtype, str) else dtype
        name = dtypes.logical_dtype(np.empty(0, found))
    except TypeError as error:
        raise BadParams(f"dtype={dtype!r:.60}: {error}; expected such as 'bfloat16'") from error
    if not dtypes.is_floating(name):
        raise BadParams(f"dtype={name}: expected a floating dtype such as 'bfloat16'")
    return name


def _converted(leaf: HostLeaf, dtype: str) -> HostLeaf:
    if leaf.scalar is not None or not dtypes.is_floating(leaf.dtype) or leaf.dtype == dtype:
        return leaf
    # As in JAX, what is too large becomes infinite without a word.
    with np.errstate(all="ignore"):
        return replace(leaf, dtype=dtype, array=leaf.array.astype(dtypes.numpy_dtype(dtype)))


def _targets(count: int, device: Any, sharding: Any) -> list[Any]:
    if device is not None and sharding is not None:
        raise BadParams("device= and sharding= both say where the arrays go; give one")
    if isinstance(sharding, Sequence):
        if len(sharding) != count:
            raise BadParams(f"sharding= has {len(sharding)} items for {count} leaves")
        return list(sharding)
    return [sharding if device is None else device] * count


def _refuse_wide(leaves: Sequence[HostLeaf]) -> None:
    wide = [f"{shown(leaf.path)} ({leaf.dtype})" for leaf in leaves if dtypes.is_wide(leaf.dtype)]
    if wide and not dtypes.x64_is_on():
        raise BadParams(
            f"64-bit leaves, while JAX's 64-bit mode is off: {', '.join(wide)}. Load with "
            "as_numpy=True, convert floating ones with dtype='float32', or enable "
            "jax_enable_x64"
        )


def _put(arrays: list[Array], targets: list[Any]) -> list[Any]:
    import jax

    try:
        placed: list[Any] = jax.device_put(arrays, targets, may_alias=True)
    except ValueError as error:
        raise BadParams(f"the arrays cannot be placed as asked: {error}") from error
    return placed


def _finished(leaf: HostLeaf, placed: Any) -> Any:
    impl = dtypes.key_impl(leaf.dtype)
    if leaf.scalar is not None:
        return _scalar(leaf)
    return placed if impl is None else _wrapped(leaf, impl, placed)


def _wrapped(leaf: HostLeaf, impl: str, key_data: Any) -> Any:
    import jax

    try:
        return jax.random.wrap_key_data(key_data, impl=impl)
    except (ValueError, TypeError) as error:
        raise BadParams(
            f"{shown(leaf.path)}: JAX makes no PRNG key of the kind {impl!r} from key data of "
            f"shape {list(leaf.array.shape)} ({error}). Load with as_numpy=True to see the data"
        ) from error


def _scalar(leaf: HostLeaf) -> Any:
    if leaf.array.shape == () and leaf.scalar == "numpy":
        return leaf.array[()]
    if leaf.array.shape == () and leaf.scalar == dtypes.family(leaf.dtype):
        return _SCALARS[leaf.scalar](leaf.array[()])
    raise Corrupt(
        f"{shown(leaf.path)}: recorded as a scalar of kind {leaf.scalar!r}, found "
        f"{leaf.dtype}{list(leaf.array.shape)}. Run: brainstore fsck"
    )
