"""Saved leaves in the form of a target: its containers, dtypes, shardings and scalars.

Two steps, so that only the arrays that the target needs are read: `match` compares what
is recorded with the target, `Plan.build` makes the tree once the arrays are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from brainstore import dtypes
from brainstore.dtypes import Array, Shape
from brainstore.errors import BadParams
from brainstore.pytree.placement import HostLeaf, place
from brainstore.pytree.structure import shown, unflatten
from brainstore.pytree.walk import walk, with_states

_PYTHON_SCALARS = {"bool": "bool", "int": "int64", "float": "float64", "complex": "complex128"}


class Spec(Protocol):
    """What is recorded of a saved leaf; `brainstore.records.Leaf` is one."""

    @property
    def path(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def scalar(self) -> str | None: ...


def abstract(structure: Any, specs: Sequence[Spec]) -> Any:
    """Return the tree with a jax.ShapeDtypeStruct for each leaf; nothing is read."""
    leaves = [_abstract_leaf(tuple(spec.shape), _jax_dtype(spec.dtype)) for spec in specs]
    return unflatten(structure, leaves)


def _abstract_leaf(shape: Shape, dtype: Any) -> Any:
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]  # JAX's own


@lru_cache
def _jax_dtype(dtype: str) -> Any:
    import jax

    impl = dtypes.key_impl(dtype)
    if impl is None:
        dtypes.carrier(dtype, ())  # refuses what is no dtype
        return dtypes.numpy_dtype(dtype)
    try:
        return jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype
    except ValueError as error:
        raise BadParams(f"JAX knows no PRNG keys of the kind {impl!r} ({error})") from error


class _Wanted(NamedTuple):
    """What a leaf of the target asks for; `own` is its value where it has one."""

    path: str
    dtype: str
    shape: Shape
    scalar: str | None = None
    sharding: Any = None
    own: Any = None

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}" if self.scalar is None else self.dtype

    @property
    def is_python_scalar(self) -> bool:
        return self.scalar in _PYTHON_SCALARS


@dataclass(frozen=True)
class Plan:
    """A target with the saved leaves that go into it.

    `needed` says which arrays to read, as indices into the specs given to `match`.
    """

    needed: tuple[int, ...]
    _fits: tuple[tuple[_Wanted, Spec | None], ...]
    _treedef: Any

    def build(
        self,
        arrays: Sequence[Array],
        *,
        device: Any = None,
        sharding: Any = None,
        dtype: Any = None,
        as_numpy: bool = False,
    ) -> Any:
        """Return the target's tree with the saved leaves.

        Args:
            arrays: the arrays that `needed` asks for, in its order (see `tensors.view`).
            device, sharding: where the arrays go, instead of where the target says.
            dtype: the dtype of floating arrays, instead of the target's.
            as_numpy: as for `place`.

        Raises:
            BadParams: as for `place`; or an integer does not fit into the target's dtype.
        """
        read = iter(arrays)
        saved = [(want, spec) for want, spec in self._fits if spec is not None]
        leaves = [_adapted(want, spec, next(read), dtype is not None) for want, spec in saved]
        if device is None and sharding is None:
            sharding = [want.sharding for want, _ in saved]
        placed = iter(
            place(leaves, device=device, sharding=sharding, dtype=dtype, as_numpy=as_numpy)
        )
        tree = [want.own if spec is None else next(placed) for want, spec in self._fits]
        return self._treedef.unflatten(tree)


def match(
    specs: Sequence[Spec],
    target: Any,
    *,
    strict: bool = True,
    where: str = "params",
) -> Plan:
    """Return how the saved leaves go into a target.

    Leaves are matched by path. A leaf fits where shape and dtype are equal; a floating
    dtype also becomes another one; and Python scalars, on either side, take any dtype of
    their kind. nnx Modules count as their state, and give one.

    Args:
        specs: what is recorded of the saved leaves.
        target: a tree of arrays, jax.ShapeDtypeStructs or scalars.
        strict: with False, saved leaves without a place in the target are passed over,
            and a leaf of the target that was not saved keeps its own value, if it has one.
        where: names the tree in errors.

    Raises:
        BadParams: names every leaf that is missing, unexpected or does not fit.
    """
    import jax

    wanted = [_wanted(path, leaf) for path, leaf in walk(target, where)[1]]
    saved = {spec.path: n for n, spec in enumerate(specs)}
    problems = list(_problems(wanted, {spec.path: spec for spec in specs}, strict))
    if problems:
        raise BadParams(_explained(problems, where))
    found = [saved.get(want.path) for want in wanted]
    fits = tuple(
        (want, None if n is None else specs[n]) for want, n in zip(wanted, found, strict=True)
    )
    treedef = jax.tree.structure(with_states(target))
    return Plan(tuple(n for n in found if n is not None), fits, treedef)


def _problems(wanted: list[_Wanted], saved: dict[str, Spec], strict: bool) -> Iterator[str]:
    for want in wanted:
        spec = saved.get(want.path)
        if spec is None and (strict or want.own is None):
            yield f"{shown(want.path)}: expected {want}, found nothing saved"
        elif spec is not None and not _is_fit(want, spec):
            yield f"{shown(want.path)}: expected {want}, found {_typed(spec)}"
    paths = {want.path for want in wanted}
    for path, spec in saved.items():
        if strict and path not in paths:
            yield f"{shown(path)}: expected nothing, found {_typed(spec)}"


def _typed(spec: Spec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"


def _explained(problems: list[str], where: str) -> str:
    lines = "\n".join(f"  {problem}" for problem in problems)
    return (
        f"{where}: the saved leaves do not fit the target, at {len(problems)} of them:\n{lines}\n"
        "Change the target, or load without one. strict=False passes over leaves that the "
        "target does not have, and keeps its own values for those that were not saved"
    )


def _is_fit(want: _Wanted, spec: Spec) -> bool:
    if tuple(spec.shape) != want.shape:
        return False
    if spec.dtype == want.dtype or (
        dtypes.is_floating(spec.dtype) and dtypes.is_floating(want.dtype)
    ):
        return True
    is_loose = want.is_python_scalar or spec.scalar in _PYTHON_SCALARS
    return is_loose and dtypes.family(spec.dtype) == dtypes.family(want.dtype)


def _wanted(path: str, leaf: Any) -> _Wanted:
    import jax

    if isinstance(leaf, np.generic):
        return _Wanted(path, leaf.dtype.name, (), "numpy", own=leaf)
    for kind, cls in (("bool", bool), ("int", int), ("float", float), ("complex", complex)):
        if isinstance(leaf, cls):
            return _Wanted(path, _PYTHON_SCALARS[kind], (), kind, own=leaf)
    if isinstance(leaf, np.ndarray):
        return _Wanted(path, leaf.dtype.name, leaf.shape, own=leaf)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        own = leaf if isinstance(leaf, jax.Array) else None
        return _Wanted(path, _logical(leaf.dtype), leaf.shape, None, _sharding(leaf), own)
    raise BadParams(
        f"target: {shown(path)} is of type {type(leaf).__name__}, expected an array, a "
        "jax.ShapeDtypeStruct or a number"
    )


def _logical(dtype: Any) -> str:
    import jax

    if not jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        return str(np.dtype(dtype).name)
    impls: list[str] = []
    # The public way from a key dtype to its kind needs a key; a traced one will do.
    keys = _abstract_leaf((), dtype)
    jax.eval_shape(lambda key: impls.append(str(jax.random.key_impl(key))), keys)
    return f"key<{impls[0]}>"


def _sharding(leaf: Any) -> Any:
    """Return where the target says that the array goes; None for the default device.

    A plain array on one device says nothing: it lies there because arrays do.
    """
    import jax

    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding
    is_spread = isinstance(leaf.sharding, jax.sharding.NamedSharding)
    return leaf.sharding if is_spread or len(leaf.sharding.device_set) > 1 else None


def _adapted(want: _Wanted, spec: Spec, array: Array, floats_change_later: bool) -> HostLeaf:
    if want.is_python_scalar:
        return HostLeaf(want.path, spec.dtype, array, want.scalar)
    scalar = want.scalar
    if want.own is None and spec.dtype == want.dtype:
        scalar = spec.scalar
    if floats_change_later and scalar is None and dtypes.is_floating(spec.dtype):
        return HostLeaf(want.path, spec.dtype, array)
    return HostLeaf(want.path, want.dtype, _cast(want, spec, array), scalar)


def _cast(want: _Wanted, spec: Spec, array: Array) -> Array:
    if want.dtype == spec.dtype:
        return array
    with np.errstate(all="ignore"):
        cast = array.astype(dtypes.numpy_dtype(want.dtype))
    if dtypes.family(want.dtype) == "int" and int(cast) != int(array):
        raise BadParams(
            f"{shown(want.path)}: the saved integer {array} does not fit into the target's "
            f"{want.dtype}"
        )
    return cast
