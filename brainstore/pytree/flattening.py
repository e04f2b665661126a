"""A pytree -> its structure and its leaves, on the host."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainstore import dtypes
from brainstore.dtypes import Array
from brainstore.errors import BadParams
from brainstore.pytree.structure import class_name, shown
from brainstore.pytree.walk import walk
from brainstore.tensors import Tensor

_SCALARS = ((bool, "bool"), (int, "int"), (float, "float"), (complex, "complex"))


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of a tree.

    Attributes:
        path: its keys joined by `/`, unique in the tree; "" where the tree is one leaf.
        tensor: the array, on the host.
        scalar: "bool", "int", "float" or "complex" for a Python scalar, "numpy" for a
            NumPy one, None for an array.
    """

    path: str
    tensor: Tensor
    scalar: str | None = None


@dataclass(frozen=True, slots=True)
class Flat:
    """A pytree as a structure (see `brainstore.pytree.structure`) and leaves in JAX's order."""

    structure: Any
    leaves: tuple[Leaf, ...]

    def __len__(self) -> int:
        return len(self.leaves)


def flatten(tree: Any, *, where: str = "params") -> Flat:
    """Return the structure and the leaves of any tree that JAX can flatten.

    nnx Modules count as their state; nnx Variables and linen boxes as their value. All
    transfers from devices are under way before the first is waited for; arrays on the CPU
    are not copied. The tree is not changed. `where` names it in errors.

    Warns:
        UserWarning: 64-bit arrays while JAX's 64-bit mode is off, which will not let them
            be loaded as they are. Names them.

    Raises:
        BadParams: a leaf is no array or number that JAX has, or is not at hand (deleted,
            traced, on other hosts); or see `brainstore.pytree.walk.walk`.
    """
    structure, found = walk(tree, where)
    _start_transfers([value for _, value in found])
    leaves = tuple(_leaf(path, value, where) for path, value in found)
    _warn_of_wide(leaves, where)
    return Flat(structure, leaves)


def _start_transfers(values: list[Any]) -> None:
    import jax

    for value in values:
        if isinstance(value, jax.Array) and not _why_not_at_hand(value):
            value.copy_to_host_async()


def _leaf(path: str, value: Any, where: str) -> Leaf:
    try:
        return Leaf(path, _tensor(value), _scalar_kind(value))
    except BadParams as error:
        raise BadParams(f"{where}: {shown(path)}: {error}") from error


def _scalar_kind(value: Any) -> str | None:
    # NumPy first: np.float64 is a float too.
    if isinstance(value, np.generic):
        return "numpy"
    return next((kind for cls, kind in _SCALARS if isinstance(value, cls)), None)


def _tensor(value: Any) -> Tensor:
    import jax

    if isinstance(value, np.ndarray | np.generic):
        return Tensor.of(value if isinstance(value, np.ndarray) else np.asarray(value))
    if isinstance(value, jax.Array):
        return _tensor_of_jax(value)
    kind = _scalar_kind(value)
    if kind is None:
        raise BadParams(
            f"is of type {class_name(type(value))}, expected an array or a number. Take it out "
            "of the tree, or keep it in meta.config or meta.notes"
        )
    return Tensor.of(_number(value, kind))


def _number(value: Any, kind: str) -> Array:
    if kind != "int":
        return np.asarray(value, {"bool": "bool", "float": "float64"}.get(kind, "complex128"))
    if not -(2**63) <= value < 2**64:
        raise BadParams(
            f"an integer of {value.bit_length()} bits does not fit into 64 bits; keep it in "
            "meta.config"
        )
    return np.asarray(value, "int64" if value < 2**63 else "uint64")


def _tensor_of_jax(value: Any) -> Tensor:
    import jax

    problem = _why_not_at_hand(value)
    if problem:
        raise BadParams(problem)
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        key_data = np.asarray(jax.random.key_data(value))
        return Tensor.of_key(str(jax.random.key_impl(value)), value.shape, key_data)
    return Tensor.of(np.asarray(value))


def _why_not_at_hand(value: Any) -> str | None:
    import jax

    if isinstance(value, jax.core.Tracer):
        return "is traced, not computed: save outside of jit, grad, vmap and scan"
    if value.is_deleted():
        return (
            "was deleted, most likely donated to a jitted function; save what that function "
            "returned"
        )
    if not value.is_fully_addressable:
        return (
            "lies partly on other hosts. Gather it first: "
            "jax.experimental.multihost_utils.process_allgather(tree, tiled=True)"
        )
    return None


def _warn_of_wide(leaves: tuple[Leaf, ...], where: str) -> None:
    wide = [leaf for leaf in leaves if leaf.scalar is None and dtypes.is_wide(leaf.tensor.dtype)]
    if wide and not dtypes.x64_is_on():
        named = ", ".join(f"{shown(leaf.path)} ({leaf.tensor.dtype})" for leaf in wide)
        warnings.warn(
            f"{where}: 64-bit arrays are saved while JAX's 64-bit mode is off: {named}. They "
            "will not load as JAX arrays unless jax_enable_x64 is on; as_numpy=True gives "
            "them back, dtype= converts floating ones",
            UserWarning,
            stacklevel=_levels_inside(),
        )


def _levels_inside() -> int:
    """Return how many frames of brainstore lie above the caller of this function, and one."""
    frame, levels = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("brainstore."):
        frame, levels = frame.f_back, levels + 1
    return levels
