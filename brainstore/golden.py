"""Golden behaviour: inputs of a network, and the outputs that it gave when it was saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainstore.architecture import Apply, Params, called
from brainstore.dtypes import Array, family, logical_dtype
from brainstore.errors import BadParams
from brainstore.pytree.structure import shown
from brainstore.pytree.walk import walk

GROUP = "golden"
ATOL = 1e-5
RTOL = 1e-4


@dataclass(frozen=True, eq=False)
class Golden:
    """Inputs, the outputs that belong to them, and how far off another machine may be.

    An output fits where |found - expected| <= atol + rtol * |expected|; integers and
    booleans must be equal. A version keeps it as the group `golden`.

    Attributes:
        inputs: what the network takes after its params: an array led by a batch
            dimension; a tuple of inputs goes by position, a dict by keyword.
        outputs: any tree of arrays.

    Raises:
        BadParams: a tolerance is no number from 0 up, or the outputs have no leaf or a NaN.
    """

    inputs: Any
    outputs: Any
    atol: float = ATOL
    rtol: float = RTOL

    def __post_init__(self) -> None:
        for name in ("atol", "rtol"):
            object.__setattr__(self, name, _tolerance(name, getattr(self, name)))
        leaves = _leaves(self.outputs)
        if not leaves:
            raise BadParams("golden: the outputs have no array, so nothing can be compared")
        for path, value in leaves.items():
            if _has_nan(value):
                raise BadParams(
                    f"golden: output {shown(path)} has a NaN; behaviour that is no number cannot "
                    "be checked"
                )

    @classmethod
    def of(cls, function: Apply, params: Params, inputs: Any) -> Golden:
        """Return what `function(params, …)` gives for these inputs, here and now."""
        return cls(inputs, play(function, params, inputs))

    @classmethod
    def of_group(cls, group: object, owner: str) -> Golden:
        """Return what the group `golden` of a version holds.

        Raises:
            BadParams: it is a group of another kind.
        """
        names = {"inputs", "outputs", "atol", "rtol"}
        if not isinstance(group, Mapping) or set(group) != names:
            raise BadParams(
                f"the group 'golden' of {owner} holds no golden behaviour: expected a dict of "
                f"{', '.join(sorted(names))}; save it with golden="
            )
        return cls(**group)

    def group(self) -> dict[str, Any]:
        """Return the pytree that a version keeps, in the dtypes that JAX has."""
        import jax

        inputs, outputs = jax.tree.map(jax.numpy.asarray, (self.inputs, self.outputs))
        return {"inputs": inputs, "outputs": outputs, "atol": self.atol, "rtol": self.rtol}

    def deviations(self, outputs: Any) -> list[Deviation]:
        """Return, for each output, how far it is from the golden one."""
        expected, found = _leaves(self.outputs), _leaves(outputs)
        return [
            *(self._deviation(path, value, found.get(path)) for path, value in expected.items()),
            *_unexpected(expected, found),
        ]

    def _deviation(self, path: str, expected: Array, found: Array | None) -> Deviation:
        if found is None or _kind(found) != _kind(expected):
            text = "nothing" if found is None else _typed(found)
            return Deviation(path, f"expected {_typed(expected)}, found {text}")
        wide = np.complex128 if expected.dtype.kind == "c" else np.float64
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            error = np.abs(found.astype(wide) - expected.astype(wide))
            # The difference of equal infinities is a NaN.
            error = np.where(found == expected, 0.0, error)
            share = np.where(error == 0.0, 0.0, error / self._allowed(expected))
        return Deviation(path, max_error=_highest(error), share=_highest(share))

    def _allowed(self, expected: Array) -> Array:
        if family(logical_dtype(expected)) not in ("float", "complex"):
            return np.zeros(expected.shape)
        size = np.abs(expected.astype(np.complex128))
        return np.where(np.isfinite(size), self.atol + self.rtol * size, 0.0)


@dataclass(frozen=True)
class Deviation:
    """How far one output is off.

    Attributes:
        path: of the output in its tree.
        problem: why the two cannot be compared; "" if they can.
        max_error: the largest difference; None if they cannot be compared.
        share: the largest difference as a share of what was allowed there; 1 still fits.
    """

    path: str
    problem: str = ""
    max_error: float | None = None
    share: float | None = None

    @property
    def fits(self) -> bool:
        return self.share is not None and self.share <= 1.0

    def __str__(self) -> str:
        if self.max_error is None or self.share is None:
            return self.problem
        if math.isnan(self.max_error):
            return "NaN, where a number is expected"
        return f"at most {self.max_error:.3g} off, {self.share:.3g} times what is allowed"


def play(function: Apply, params: Params, inputs: Any) -> Any:
    """Return `function(params, …)`, compiled as it will be played; see `architecture.called`."""
    import jax

    return jax.jit(lambda params, inputs: called(function, params, inputs))(params, inputs)


def _tolerance(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise BadParams(f"golden: {name} must be a number from 0 up, found {value!r:.60}")
    return number


def _leaves(tree: Any) -> dict[str, Array]:
    return {path: np.asarray(leaf) for path, leaf in walk(tree, "golden outputs")[1]}


def _unexpected(expected: Mapping[str, Array], found: Mapping[str, Array]) -> Iterator[Deviation]:
    for path, value in found.items():
        if path not in expected:
            yield Deviation(path, f"expected nothing, found {_typed(value)}")


def _has_nan(value: Array) -> bool:
    return family(logical_dtype(value)) == "float" and bool(np.isnan(value).any())


def _kind(value: Array) -> tuple[tuple[int, ...], str]:
    return value.shape, family(logical_dtype(value))


def _typed(value: Array) -> str:
    return f"{value.dtype}{list(value.shape)}"


def _highest(values: Array) -> float:
    # A NaN is the highest of all.
    return float(np.max(values, initial=0.0))
