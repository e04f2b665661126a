"""The modules of a torch state dict and of a Flax tree, found from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from brainstore.dtypes import Array, Shape
from brainstore.errors import BadParams
from brainstore.migrate.layers import Line, convert_line
from brainstore.migrate.recurrent import CELLS

_CELL_NAME = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)(?:_l(\d+)(_reverse)?)?")
_PLAIN = frozenset(["weight", "bias", "running_mean", "running_var", "num_batches_tracked"])
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_ATTENTION = frozenset([*_PROJECTIONS, "in_proj_bias", "bias_k", "bias_v"])
_LEAVES = frozenset(["kernel", "bias", "scale", "embedding", "mean", "var", "negative_slope"])
_COMPOSITES = (
    {"query", "key", "value", "out"},
    {"dense_i", "dense_h"},
    {"hi", "hg", "ho"},
    {"hr", "hz", "hn"},
)

Shapes = Mapping[str, Shape]
Signature = frozenset[tuple[str, Shape]]


@dataclass(frozen=True)
class TorchModule:
    """A layer of torch: its prefix, and its tensors by the rest of their names.

    Attributes:
        kind: "plain", "cell", "attention", or "own" for a parameter that stands alone.
        options: of a cell, which layer and direction.
    """

    prefix: str
    kind: str
    shapes: Shapes
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The whole names of its tensors."""
        return [".".join(part for part in (self.prefix, rest) if part) for rest in self.shapes]

    def line(self, flax: str, rule: str, **options: Any) -> Line:
        return Line((self.prefix,), flax, rule, {**self.options, **options})


def torch_modules(state: Mapping[str, Array]) -> list[TorchModule]:
    """Return the modules of a state dict, in its order."""
    found: dict[tuple[str, str, int, bool], dict[str, Shape]] = {}
    for name, array in state.items():
        key, rest = _torch_place(name, state)
        found.setdefault(key, {})[rest] = array.shape
    return [
        TorchModule(prefix, kind, shapes, _cell_options(kind, layer, reverse))
        for (prefix, kind, layer, reverse), shapes in found.items()
    ]


def _torch_place(name: str, state: Mapping[str, Array]) -> tuple[tuple[str, str, int, bool], str]:
    prefix, _, last = name.rpartition(".")
    if match := _CELL_NAME.fullmatch(last):
        return (prefix, "cell", int(match[1] or 0), bool(match[2])), last
    if last in _ATTENTION:
        return (prefix, "attention", 0, False), last
    above, _, inner = prefix.rpartition(".")
    if inner == "out_proj" and _is_attention(above, state):
        return (above, "attention", 0, False), f"out_proj.{last}"
    if last in _PLAIN:
        return (prefix, "plain", 0, False), last
    return (name, "own", 0, False), ""


def _is_attention(prefix: str, state: Mapping[str, Array]) -> bool:
    dotted = f"{prefix}." if prefix else ""
    return any(f"{dotted}{name}" in state for name in _PROJECTIONS)


def _cell_options(kind: str, layer: int, reverse: bool) -> dict[str, Any]:
    if kind != "cell":
        return {}
    return {**({"layer": layer} if layer else {}), **({"reverse": True} if reverse else {})}


def flax_modules(leaves: Shapes) -> dict[str, dict[str, Shape]]:
    """Return the modules of a Flax tree: {path: {leaf below it: shape}}.

    A parameter of a module's own is one by itself, at its path, with the leaf "".
    """
    children: dict[str, set[str]] = {}
    for path in leaves:
        parts = path.split("/")
        for depth in range(len(parts)):
            children.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    found: dict[str, dict[str, Shape]] = {}
    for path, shape in leaves.items():
        module, leaf = _flax_place(path, children)
        found.setdefault(module, {})[leaf] = shape
    return found


def _flax_place(path: str, children: Mapping[str, set[str]]) -> tuple[str, str]:
    module, _, leaf = path.rpartition("/")
    if leaf not in _LEAVES:
        return path, ""
    above, _, inner = module.rpartition("/")
    for names in _COMPOSITES:
        if module and names <= children[above]:
            return above, f"{inner}/{leaf}"
    return module, leaf


def signature(leaves: Shapes) -> Signature:
    """Return what two modules have in common that may hold each other's leaves."""
    return frozenset(leaves.items())


def candidates(
    module: TorchModule, state: Mapping[str, Array], heads: Iterable[int], flavour: str
) -> list[tuple[Line, Signature]]:
    """Return every rule by which the module may be converted, and what that would make."""
    found = []
    for rule, options in _rules(module, heads, flavour):
        line = module.line("", rule, **options)
        try:
            leaves = convert_line(state, line).leaves
        except BadParams:
            continue  # the rule is not for this kind of module
        found.append((line, signature({name: leaf.shape for name, leaf in leaves.items()})))
    return found


def _rules(
    module: TorchModule, heads: Iterable[int], flavour: str
) -> list[tuple[str, dict[str, Any]]]:
    if module.kind == "own":
        return [("copy", {})]
    if module.kind == "attention":
        return [("attention", {"heads": count}) for count in heads]
    if module.kind == "cell":
        cells = [cell for cell in CELLS if cell.startswith(flavour)]
        return [(_kind_of(cell), {"cell": cell}) for cell in cells]
    return _plain_rules(module)


def _kind_of(cell: str) -> str:
    return "gru" if cell.endswith("GRUCell") else "lstm"


def _plain_rules(module: TorchModule) -> list[tuple[str, dict[str, Any]]]:
    weight, bias = module.shapes.get("weight"), module.shapes.get("bias")
    if "running_mean" in module.shapes:
        return [("batch_norm", {})]
    if weight is None:
        return []
    found: list[tuple[str, dict[str, Any]]] = []
    if bias in (None, weight):
        found.append(("layer_norm", {}))
    if bias is None and weight == (1,):
        found.append(("prelu", {}))
    if bias is None and len(weight) == 2:
        found.append(("embedding", {}))
    if len(weight) == 2:
        found.append(("linear", {}))
    if len(weight) > 2:
        found += [("conv", {}), ("conv_transpose", {}), ("conv_transpose", _TRANSPOSED)]
    return found


_TRANSPOSED: dict[str, Any] = {"transpose_kernel": True}


def is_after_flatten(module: TorchModule, modules: list[TorchModule]) -> bool:
    """Return whether a linear layer may follow a Flatten of the convolution before it.

    torch and Flax flatten channels in another order, which no shape shows.
    """
    shape = module.shapes.get("weight", ())
    if len(shape) != 2:
        return False
    for before in reversed(modules[: modules.index(module)]):
        weight = before.shapes.get("weight", ())
        if len(weight) == 2:
            return False
        if len(weight) > 2:
            counts = {weight[0], weight[1]}  # out channels, of a Conv and of a ConvTranspose
            return any(shape[1] > count > 0 == shape[1] % count for count in counts)
    return False
