"""A state dict of torch -> the variables of a Flax network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brainstore.dtypes import Array, Shape
from brainstore.errors import BadParams
from brainstore.migrate import matching
from brainstore.migrate.layers import RULES, Converted, Line, below, convert_line
from brainstore.migrate.mapping import LayerMap, Source
from brainstore.migrate.report import LayerReport, Report, leaf_report
from brainstore.migrate.state import open_state
from brainstore.migrate.tensors import folded
from brainstore.pytree.walk import walk

PARAMS, BATCH_STATS = "params", "batch_stats"

_MAX_SHOWN = 20


@dataclass(frozen=True)
class Conversion:
    """What a state dict became.

    Attributes:
        variables: of linen, the collections as its `init` gives them:
            {"params": …, "batch_stats": …}; of nnx, the state as nested dicts.
        report: how it came about.
    """

    variables: dict[str, Any]
    report: Report

    @property
    def params(self) -> dict[str, Any]:
        """The variables without linen's batch statistics."""
        return {key: tree for key, tree in self.variables.items() if key not in self.groups}

    @property
    def groups(self) -> dict[str, Any]:
        """linen's batch statistics, if there are any, as a group to save beside the params."""
        is_linen = set(self.variables) <= {PARAMS, BATCH_STATS}
        return {
            key: tree for key, tree in self.variables.items() if is_linen and key == BATCH_STATS
        }


def convert_torch_to_flax(
    state: Any, mapping: Source | LayerMap | None = None, target: Any = None
) -> dict[str, Any]:
    """Return the Flax variables that a state dict of torch stands for.

    Neither torch nor Flax is needed; the arrays are NumPy's, read-only, and of the state's
    dtypes. All tensors are converted, or none.

    Args:
        state: {name: tensor of torch, or array}, a dict that has such a dict somewhere, or
            what `read_checkpoint` returns.
        mapping: a map, as TOML file or dict, that says what becomes what.
        target: a pytree of arrays or jax.ShapeDtypeStruct whose shapes the result must
            have, such as linen's `init` gives, or an nnx Module. It also tells what
            becomes of the layers that the map has no line for. Without map and target,
            names and shapes do, if they can.

    Returns:
        {"params": …}, and {"batch_stats": …} where there is BatchNorm, as linen's `init`
        gives them; for nnx the state as nested dicts.

    Raises:
        BadParams: tensors are unmapped or missing, do not fit, or could be converted in
            more than one way. All problems are listed.
        Unsupported: JAX has no equal of a tensor.
    """
    return convert(state, mapping, target).variables


def convert(
    state: Any,
    mapping: Source | LayerMap | None = None,
    target: Any = None,
) -> Conversion:
    """Return the variables and how they came about. As `convert_torch_to_flax`."""
    layers = LayerMap.of(mapping)
    opened = open_state(state, layers.root)
    arrays, made = folded(opened.arrays)
    shapes, flavour = _target(target, layers.flavour)
    kept, dropped, problems = _without_dropped(arrays, layers.drop)
    lines = (*layers.lines, *_found_lines(kept, layers.lines, shapes, flavour))
    found = "names" if shapes is None else "target"
    how = [*(["map"] if layers.lines else []), *([found] if len(lines) > len(layers.lines) else [])]
    conversion = _Applied(kept, flavour, lines, problems)
    conversion.require_fit(shapes)
    report = Report(
        how=" and ".join(how),
        root=opened.root,
        stripped=list(opened.stripped),
        folded=list(made),
        layers=conversion.layers,
        dropped=[*dropped, *conversion.dropped],
        aside=list(opened.aside),
        tensors_read=len(opened.arrays),
        leaves_made=len(conversion.leaves),
        parameters=sum(leaf.size for leaf in conversion.leaves.values()),
    )
    return Conversion(_nested(conversion.leaves), report)


def _target(target: Any, flavour: str | None) -> tuple[dict[str, Shape] | None, str]:
    """Return the shapes of a target by path, and the flavour: linen has collections."""
    if target is None:
        return None, flavour or "linen"
    shapes = {path: _shape(path, leaf) for path, leaf in walk(target, "target")[1]}
    has_params = any(path.startswith(f"{PARAMS}/") for path in shapes)
    flavour = flavour or ("linen" if has_params else "nnx")
    return {path: shape for path, shape in shapes.items() if _is_learned(path, flavour)}, flavour


def _is_learned(path: str, flavour: str) -> bool:
    """Return whether a leaf comes from a checkpoint: no cache of linen, no random state of nnx."""
    segments = path.split("/")
    return segments[0] in (PARAMS, BATCH_STATS) if flavour == "linen" else "rngs" not in segments


def _shape(path: str, leaf: Any) -> Shape:
    shape = getattr(leaf, "shape", None)
    if not isinstance(shape, tuple):
        raise BadParams(f"target: {path}: expected an array or a jax.ShapeDtypeStruct")
    return shape


def _found_lines(
    arrays: Mapping[str, Array],
    given: tuple[Line, ...],
    shapes: Mapping[str, Shape] | None,
    flavour: str,
) -> tuple[Line, ...]:
    """Return the lines that the map does not have: those of the target, or of names alone."""
    if shapes is None:
        return () if given else matching.infer(arrays)
    settled = {name for line in given for name in below(arrays, line)}
    made = {path for line in given for path in _leaf_paths(arrays, line)}
    places = _without_collections(shapes, flavour)
    free = {path: shape for path, shape in places.items() if path not in made}
    return matching.match(arrays, free, flavour, settled)


def _leaf_paths(arrays: Mapping[str, Array], line: Line) -> list[str]:
    try:
        names = convert_line(arrays, line).leaves
    except BadParams:
        return []  # told when the lines are applied
    return ["/".join(part for part in (line.flax, name) if part) for name in names]


def _without_collections(shapes: Mapping[str, Shape], flavour: str) -> dict[str, Shape]:
    if flavour != "linen":
        return dict(shapes)
    return {path.partition("/")[2]: shape for path, shape in shapes.items()}


def _without_dropped(
    arrays: Mapping[str, Array], drop: tuple[str, ...]
) -> tuple[dict[str, Array], list[str], list[str]]:
    dropped: dict[str, None] = {}
    problems = []
    for prefix in drop:
        found = [name for name in arrays if name == prefix or name.startswith(f"{prefix}.")]
        if not found:
            problems.append(f"drop: there is no tensor {prefix!r:.80}")
        dropped |= dict.fromkeys(found)
    kept = {name: array for name, array in arrays.items() if name not in dropped}
    return kept, list(dropped), problems


class _Applied:
    """The lines of a map, applied to a state; problems are collected, not raised."""

    def __init__(
        self,
        state: Mapping[str, Array],
        flavour: str,
        lines: tuple[Line, ...],
        problems: list[str],
    ) -> None:
        self.leaves: dict[str, Array] = {}
        self.layers: list[LayerReport] = []
        self.dropped: list[str] = []
        self._state = state
        self._in_collections = flavour == "linen"
        self._problems = problems
        self._taken: dict[str, str] = {}
        self._nodes: set[str] = set()
        for line in lines:
            self._apply(line)
        unmapped = [name for name in state if name not in self._taken]
        if unmapped:
            self._problems.append(f"unmapped: {_listed(unmapped)}. Map them, or drop them")

    def require_fit(self, target: Mapping[str, Shape] | None) -> None:
        """Raise BadParams with all problems, unless there is none and the target is met."""
        problems = [*self._problems, *(self._misfits(target) if target is not None else [])]
        if problems:
            shown = "".join(f"\n  {problem}" for problem in problems[:_MAX_SHOWN])
            more = len(problems) - _MAX_SHOWN
            raise BadParams(
                f"nothing was converted:{shown}" + (f"\n  and {more} more" if more > 0 else "")
            )

    def _apply(self, line: Line) -> None:
        try:
            converted = convert_line(self._state, line)
        except BadParams as error:
            self._problems.append(f"{line}: {error}")
            self._taken |= dict.fromkeys(below(self._state, line), line.flax)
            return
        if self._in_collections and line.flax.partition("/")[0] in (PARAMS, BATCH_STATS):
            self._problems.append(f"{line}: flax is the path below params; leave that out")
        twice = [name for name in converted.taken if name in self._taken]
        if twice:
            self._problems.append(f"{line}: {_listed(twice)} is mapped twice")
        self._taken |= dict.fromkeys(converted.taken, line.flax)
        self.dropped += converted.dropped
        self._add(line, converted)

    def _add(self, line: Line, converted: Converted) -> None:
        leaves = {self._path(line, name): leaf for name, leaf in converted.leaves.items()}
        for path in leaves:
            above = set(_above(path))
            if (
                path in self.leaves
                or path in self._nodes
                or any(node in self.leaves for node in above)
            ):
                self._problems.append(f"{line}: {path} is made twice, or lies above another leaf")
            self._nodes |= above
        self.leaves |= leaves
        self.layers.append(_layer_report(line, converted, leaves, self._state))

    def _path(self, line: Line, name: str) -> str:
        is_stat = name in RULES[line.rule].stats
        collection = BATCH_STATS if is_stat else PARAMS
        parts = [collection] if self._in_collections else []
        return "/".join([*parts, *(part for part in (line.flax, name) if part)])

    def _misfits(self, target: Mapping[str, Shape]) -> list[str]:
        found = {path: leaf.shape for path, leaf in self.leaves.items()}
        missing = [path for path in target if path not in found]
        unexpected = [path for path in found if path not in target]
        wrong = [
            f"{path}: the target has {list(target[path])}, the checkpoint gives {list(shape)}"
            for path, shape in found.items()
            if path in target and target[path] != shape
        ]
        return [
            *([f"missing: {_listed(missing)}; no line makes them"] if missing else []),
            *([f"unexpected: {_listed(unexpected)}; the target lacks them"] if unexpected else []),
            *wrong,
        ]


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more


def _layer_report(
    line: Line, converted: Converted, leaves: Mapping[str, Array], state: Mapping[str, Array]
) -> LayerReport:
    dropped = set(converted.dropped)
    return LayerReport(
        torch={name: list(state[name].shape) for name in converted.taken if name not in dropped},
        rule=line.rule,
        flax=line.flax,
        options=dict(line.options),
        leaves=[leaf_report(path, leaf) for path, leaf in leaves.items()],
    )


def _nested(leaves: Mapping[str, Array]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, last = path.split("/")
        node = root
        for segment in above:
            node = node.setdefault(segment, {})
        node[last] = leaf
    return root
