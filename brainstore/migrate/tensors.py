"""The tensors under one torch prefix, as a rule takes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from brainstore.dtypes import Array
from brainstore.errors import BadParams

Leaves = dict[str, Array]
Options = Mapping[str, Any]

_CELL = re.compile(r"((?:weight|bias)_(?:ih|hh|hr))_l(\d+)(_reverse)?")


class Parts:
    """The tensors under a prefix; a rule takes them by the rest of their names."""

    def __init__(
        self, state: Mapping[str, Array], prefix: str, rule: str, options: Options
    ) -> None:
        self.prefix = prefix
        self.rule = rule
        self.taken: list[str] = []
        self.dropped: list[str] = []
        self._state = state
        self._of_cell = ""
        if rule in ("lstm", "gru"):
            self._of_cell = self._cell_suffix(options)

    def name(self, rest: str) -> str:
        """Return the whole name of a tensor."""
        rest += self._of_cell if rest.startswith(("weight_", "bias_")) else ""
        return ".".join(part for part in (self.prefix, rest) if part)

    def find(self, rest: str) -> Array | None:
        """Take a tensor that the layer may have."""
        name = self.name(rest)
        if name in self._state:
            self.taken.append(name)
        return self._state.get(name)

    def take(self, rest: str, dimensions: int | Iterable[int] = ()) -> Array:
        """Take a tensor that the layer must have, with that many dimensions.

        Raises:
            BadParams: it is missing, or has another number.
        """
        found = self.find(rest)
        if found is None:
            below = [name.removeprefix(f"{self.prefix}.") for name in self.below()][:6]
            raise BadParams(
                f"{self.name(rest)} is missing, which rule {self.rule} needs; under "
                f"{self.prefix!r} there is {', '.join(below) or 'nothing'}"
            )
        expected = [dimensions] if isinstance(dimensions, int) else list(dimensions)
        if expected and found.ndim not in expected:
            raise BadParams(
                f"{self.name(rest)} has the shape {list(found.shape)}; rule {self.rule} expects "
                f"{' or '.join(map(str, expected))} dimensions"
            )
        return found

    def drop(self, rest: str) -> None:
        """Take a tensor that Flax has no use for."""
        if self.find(rest) is not None:
            self.dropped.append(self.name(rest))

    def split(self, array: Array, count: int, rest: str) -> list[Array]:
        """Return the array in `count` equal parts of its first dimension."""
        if array.ndim not in (1, 2) or len(array) % count:
            raise BadParams(
                f"{self.name(rest)} has the shape {list(array.shape)}; rule {self.rule} expects "
                f"{count} equal parts"
            )
        return np.split(array, count)

    def below(self) -> list[str]:
        """Return the names under the prefix; of a recurrent layer, those of this cell."""
        dotted = f"{self.prefix}." if self.prefix else ""
        names = [name for name in self._state if name == self.prefix or name.startswith(dotted)]
        if not self._of_cell:
            return names
        return [name for name in names if self._is_of_cell(name.removeprefix(dotted))]

    def require_all_taken(self) -> None:
        """Raise BadParams where a tensor under the prefix was not taken."""
        left = sorted(set(self.below()) - set(self.taken))
        if left:
            raise BadParams(
                f"rule {self.rule} has no use for {', '.join(left[:6])}; it is another kind of "
                "layer, or the prefix is too short"
            )

    def _cell_suffix(self, options: Options) -> str:
        """Return what the names of the cell end in; "" for a torch.nn.LSTMCell."""
        dotted = f"{self.prefix}." if self.prefix else ""
        if f"{dotted}weight_ih" in self._state:
            return ""
        reverse = "_reverse" if options.get("reverse") else ""
        return f"_l{options.get('layer', 0)}{reverse}"

    def _is_of_cell(self, rest: str) -> bool:
        match = _CELL.fullmatch(rest)
        return match is None or f"_l{match[2]}{match[3] or ''}" == self._of_cell


def whole(array: Array) -> Array:
    """Return a read-only array in C order; a copy only where it is in another."""
    # Not np.ascontiguousarray, which would give a scalar a dimension.
    found = np.asarray(array, order="C")
    if found.flags.writeable:
        found = found.view()
        found.flags.writeable = False
    return found


def folded(state: Mapping[str, Array]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return the state with each weight that was split into length and direction as one.

    torch's weight_norm keeps `weight_g` and `weight_v`, or, as a parametrization,
    `original0` and `original1`: the weight is g · v / ‖v‖, the norm taken over the dimensions
    in which g has one element.

    Returns:
        The state, and the names that were made.

    Raises:
        BadParams: a weight is parametrized in another way, such as spectral_norm.
    """
    found, made = dict(state), []
    for name in state:
        pair = _pair(name)
        if pair and pair[0] in state and pair[1] in state:
            found[pair[2]] = _product(pair[2], found.pop(pair[0]), found.pop(pair[1]))
            made.append(pair[2])
    others = [name for name in found if _is_parametrized(name, found)]
    if others:
        raise BadParams(
            f"{', '.join(others[:4])}: the weight is parametrized in a way that has no rule. Make "
            "it plain in torch first: torch.nn.utils.parametrize.remove_parametrizations, or "
            "remove_spectral_norm"
        )
    return _as_before(state, found), tuple(made)


def _pair(name: str) -> tuple[str, str, str] | None:
    """Return the names of length and direction, and of the weight, if `name` is the first."""
    if match := re.fullmatch(r"(|.*\.)parametrizations\.(\w+)\.original0", name):
        return name, f"{name[:-1]}1", f"{match[1]}{match[2]}"
    if match := re.fullmatch(r"(.*weight\w*)_g", name):
        return name, f"{match[1]}_v", match[1]
    return None


def _product(name: str, length: Array, direction: Array) -> Array:
    axes = tuple(range(direction.ndim)) if length.ndim == 0 else None
    if axes is None and length.ndim == direction.ndim:
        axes = tuple(axis for axis, size in enumerate(length.shape) if size == 1)
    if axes is None:
        raise BadParams(f"{name}: its length {length.shape} does not fit {direction.shape}")
    exact = direction.astype(np.float64)
    norm = np.sqrt(np.sum(exact * exact, axes, keepdims=True))
    if length.ndim and norm.shape != length.shape:
        raise BadParams(f"{name}: its length {length.shape} does not fit {direction.shape}")
    if not norm.all():
        raise BadParams(f"{name}: a direction of weight_norm is zero, which has no length")
    return np.asarray(exact * (length.astype(np.float64) / norm), dtype=direction.dtype)


def _is_parametrized(name: str, state: Mapping[str, Array]) -> bool:
    if ".parametrizations." in f".{name}":
        return True
    match = re.fullmatch(r"(.*)_orig", name)
    return match is not None and f"{match[1]}_u" in state


def _as_before(state: Mapping[str, Array], found: Mapping[str, Array]) -> dict[str, Array]:
    """Return `found` with what was made where its parts were: the order tells the layers."""
    ordered = {}
    for name in state:
        pair = _pair(name)
        made = pair[2] if pair and pair[2] in found else name
        if made in found:
            ordered[made] = found[made]
    return ordered
