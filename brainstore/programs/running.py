"""A program that was read: calling it like the network that it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from brainstore import pytree
from brainstore.address import Digest
from brainstore.architecture import Params
from brainstore.errors import BadParams, Unsupported
from brainstore.programs.form import Description, Signature, signature
from brainstore.pytree.structure import shown
from brainstore.pytree.walk import walk
from brainstore.records import Group


class Program:
    """A program that this process can run. It holds no params."""

    def __init__(self, exported: Any, description: Description, digest: Digest, group: Group):
        """`exported` is what jax.export read, `group` the params that it goes with."""
        import jax

        self.description = description
        self.digest = digest
        (_, self.inputs), _ = exported.in_tree.unflatten(exported.in_avals)
        self._order = _Order(group, exported.in_avals)
        self._has_rows = [_is_batched(aval) for aval in exported.out_avals]
        self._input_tree: Any = jax.tree.structure(self.inputs)
        self._signatures = [signature(*each) for each in walk(self.inputs, "inputs")[1]]
        rows_in = [bool(each.shape) for each in self._signatures]
        self._run = _without_derivative(_with_vmap(exported.call, rows_in, self._has_rows))

    def apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Return the network's outputs, plain containers of arrays; for jit, vmap and scan.

        Args:
            params: as `load` gives them.
            args, kwargs: the inputs, each with any leading dimensions, the same for all;
                outputs that depend on the batch have them too.

        Raises:
            BadParams: params or inputs are of another structure, shape or dtype.
            Unsupported: the outputs are differentiated.
        """
        import jax

        rows, lead = self._rows(self._given(args, kwargs))
        count = math.prod(lead)
        if count == 0:
            # A program takes one row or more.
            rows = [_one_row(leaf) for leaf in rows]
        inputs = jax.tree.unflatten(self._input_tree, rows)
        values, tree = jax.tree.flatten(self._run(self._order.leaves(params), inputs))
        outputs = [
            value[:count].reshape(*lead, *value.shape[1:]) if has_rows else value
            for value, has_rows in zip(values, self._has_rows, strict=True)
        ]
        return jax.tree.unflatten(tree, outputs)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.inputs, tuple):
            return args
        return kwargs or (args[0] if len(args) == 1 else args)

    def _rows(self, given: Any) -> tuple[list[Any], tuple[int, ...]]:
        """Return the inputs with one leading dimension, and the leading dimensions given."""
        import jax

        leaves: list[Any] = jax.tree.leaves(given)
        if jax.tree.structure(given) != self._input_tree:
            raise BadParams(
                f"the program takes {', '.join(map(str, self._signatures))}; found inputs of the "
                f"structure {jax.tree.structure(given)}"
            )
        pairs = list(zip(leaves, self._signatures, strict=True))
        leads = {_lead(leaf, expected) for leaf, expected in pairs if expected.shape}
        if len(leads) > 1:
            raise BadParams(f"the inputs have different leading dimensions: {sorted(leads)}")
        lead: tuple[int, ...] = next(iter(leads), ())
        return [_as_rows(leaf, lead) if expected.shape else leaf for leaf, expected in pairs], lead


def _lead(leaf: Any, expected: Signature) -> tuple[int, ...]:
    """Return the leading dimensions of an input."""
    import jax

    own = expected.shape[1:]
    kept = leaf.ndim - len(own)
    dtype = str(jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))
    if kept < 0 or leaf.shape[kept:] != own or dtype != expected.dtype:
        wanted = f"{expected.dtype}[{', '.join(['...', *map(str, own)])}]"
        raise BadParams(
            f"input {shown(expected.path)}: expected {wanted}, found {dtype}{list(leaf.shape)}"
        )
    return tuple(leaf.shape[:kept])


def _as_rows(leaf: Any, lead: tuple[int, ...]) -> Any:
    return leaf.reshape(math.prod(lead), *leaf.shape[len(lead) :])


def _one_row(leaf: Any) -> Any:
    from jax import numpy as jnp

    return jnp.zeros((1, *leaf.shape[1:]), leaf.dtype) if leaf.shape else leaf


def _is_batched(aval: Any) -> bool:
    return bool(aval.shape) and not isinstance(aval.shape[0], int)


class _Order:
    """From a tree as `load` gives it to its leaves in the order of the manifest."""

    def __init__(self, group: Group, avals: Sequence[Any]) -> None:
        import jax

        count = len(group.leaves)
        numbers, self._tree = jax.tree.flatten(pytree.unflatten(group.structure, range(count)))
        self._positions = sorted(range(count), key=numbers.__getitem__)
        self._specs = [(leaf.path, aval) for leaf, aval in zip(group.leaves, avals, strict=False)]

    def leaves(self, params: Params) -> list[Any]:
        import jax

        found: list[Any] = jax.tree.leaves(params)
        tree: Any = jax.tree.structure(params)
        if tree != self._tree:
            raise BadParams(
                f"params: expected the structure that load gives, {self._tree}, found {tree}"
            )
        ordered = [found[position] for position in self._positions]
        return [_fitting(leaf, *spec) for leaf, spec in zip(ordered, self._specs, strict=True)]


def _fitting(leaf: Any, path: str, expected: Any) -> Any:
    """Return the leaf as JAX's; numbers take the dtype that the program has for them."""
    from jax import numpy as jnp

    if not hasattr(leaf, "aval"):
        leaf = jnp.asarray(leaf, expected.dtype)
    if (leaf.shape, leaf.dtype) != (expected.shape, expected.dtype):
        raise BadParams(
            f"params: {path}: the program takes {expected.dtype}{list(expected.shape)}, found "
            f"{leaf.dtype}{list(leaf.shape)}"
        )
    return leaf


Run = Callable[[list[Any], Any], Any]


def _with_vmap(call: Run, rows_in: Sequence[bool], rows_out: Sequence[bool]) -> Run:
    """Return `call` for vmap too: rows fold into its batch, all else takes turns.

    JAX has no batching rule for exported programs. `rows_in` and `rows_out` say which
    inputs and outputs are led by the batch.
    """
    import jax

    run = jax.custom_batching.custom_vmap(call)

    @run.def_vmap
    def rule(size: int, mapped: Any, leaves: list[Any], inputs: Any) -> tuple[Any, Any]:
        flags: list[bool] = jax.tree.leaves(mapped)
        of_params, of_inputs = flags[: len(leaves)], flags[len(leaves) :]
        folds = all(rows or not flag for rows, flag in zip(rows_in, of_inputs, strict=True))
        if any(of_params) or not folds:
            return _in_turn(run, flags, leaves, inputs)
        flat, tree = jax.tree.flatten(inputs)
        folded = [
            _folded(size, leaf, flag) if rows else leaf
            for leaf, rows, flag in zip(flat, rows_in, of_inputs, strict=True)
        ]
        return _unfolded(size, run(leaves, jax.tree.unflatten(tree, folded)), rows_out)

    return run  # type: ignore[no-any-return, unused-ignore]


def _without_derivative(run: Run) -> Run:
    """Return `run`, which says so when it is differentiated; JAX's own error does not."""
    import jax

    played = jax.custom_jvp(run)

    @played.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise Unsupported(
            "a stored program has no derivative. Play the brain by its network's class to train it"
        )

    return played


def _folded(size: int, leaf: Any, is_mapped: bool) -> Any:
    from jax import numpy as jnp

    spread = leaf if is_mapped else jnp.broadcast_to(leaf, (size, *leaf.shape))
    return spread.reshape(size * spread.shape[1], *spread.shape[2:])


def _unfolded(size: int, outputs: Any, rows_out: Sequence[bool]) -> tuple[Any, Any]:
    """Return the outputs by the mapped axis, and which of them have it."""
    import jax

    values, tree = jax.tree.flatten(outputs)
    unfolded = [
        value.reshape(size, value.shape[0] // size, *value.shape[1:]) if rows else value
        for value, rows in zip(values, rows_out, strict=True)
    ]
    return jax.tree.unflatten(tree, unfolded), jax.tree.unflatten(tree, list(rows_out))


def _in_turn(run: Run, flags: Sequence[bool], leaves: list[Any], inputs: Any) -> tuple[Any, Any]:
    """Return the outputs for each item of the mapped arguments, and that all have the axis."""
    import jax

    flat, tree = jax.tree.flatten((leaves, inputs))

    def once(items: list[Any]) -> Any:
        turn = iter(items)
        arguments = [next(turn) if flag else x for x, flag in zip(flat, flags, strict=True)]
        return run(*jax.tree.unflatten(tree, arguments))

    outputs = jax.lax.map(once, [x for x, flag in zip(flat, flags, strict=True) if flag])
    return outputs, jax.tree.map(lambda _: True, outputs)
