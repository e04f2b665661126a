"""The lines of a map, found where none is given: from a target's shapes, or from names alone.

Nothing is guessed. A layer that could be converted in two ways, or could be two layers of
the target, is named in the error, with the line of the map that would settle it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from brainstore.dtypes import Array
from brainstore.errors import BadParams
from brainstore.migrate.layers import Line
from brainstore.migrate.modules import (
    Shapes,
    TorchModule,
    candidates,
    flax_modules,
    is_after_flatten,
    signature,
    torch_modules,
)

_NUMBERED = re.compile(r"(.*?)_?(\d+)")
_AUTO = {"ConvTranspose": "conv_transpose", "Conv": "conv"}
_MAX_SHOWN = 12

Options = dict[str, list[Line]]
"""By the Flax modules that fit a torch module: the rules by which they do."""


def match(
    state: Mapping[str, Array], target: Shapes, flavour: str, settled: Collection[str] = ()
) -> tuple[Line, ...]:
    """Return a line for each module of the state, so that the target's modules come out.

    Modules whose tensors are `settled`, by lines of a map, get none. Another goes to the one
    of the same name, else to the only one of its shapes, else, where both sides are numbered
    and the layers around them confirm the order, to the one that is as far in the row.

    Raises:
        BadParams: a module has no place, or more than one.
    """
    every = torch_modules(state)
    modules = [module for module in every if not set(module.names) & set(settled)]
    matcher = _Matcher(modules, _options(modules, state, target, flavour))
    matcher.by_name()
    while matcher.by_elimination() or matcher.by_number():
        pass
    return matcher.lines(flax_modules(target), every)


def _options(
    modules: Sequence[TorchModule], state: Mapping[str, Array], target: Shapes, flavour: str
) -> list[Options]:
    places = flax_modules(target)
    heads = {leaves["query/kernel"][1] for leaves in places.values() if _is_attention(leaves)}
    found: list[Options] = []
    for module in modules:
        fits: Options = {}
        for line, made in candidates(module, state, sorted(heads), flavour):
            for path, leaves in places.items():
                if made == signature(leaves) and _may_be(module, path, leaves):
                    fits.setdefault(path, []).append(_at(line, path))
        found.append(fits)
    return found


def _is_attention(leaves: Shapes) -> bool:
    return len(leaves.get("query/kernel", ())) == 3


def _may_be(module: TorchModule, path: str, leaves: Shapes) -> bool:
    # A parameter of the module's own says nothing but its name.
    return "" not in leaves or _segments(module.prefix, ".") == _segments(path, "/")


def _at(line: Line, path: str) -> Line:
    return Line(line.torch, path, line.rule, line.options)


def _segments(name: str, separator: str) -> list[str]:
    return [re.sub(r"^layers_(\d+)$", r"\1", part) for part in name.split(separator)]


class _Matcher:
    def __init__(self, modules: Sequence[TorchModule], options: Sequence[Options]) -> None:
        self.modules = modules
        self.all = options
        self.options = [dict(each) for each in options]
        self.chosen: dict[int, str] = {}

    def choose(self, index: int, path: str) -> None:
        self.chosen[index] = path
        for other, fits in enumerate(self.options):
            if other != index:
                fits.pop(path, None)
        self.options[index] = {path: self.all[index][path]}

    def open(self) -> Iterator[int]:
        return (index for index in range(len(self.modules)) if index not in self.chosen)

    def by_name(self) -> None:
        for index in list(self.open()):
            name = _segments(self.modules[index].prefix, ".")
            for path in list(self.options[index]):
                if _segments(path, "/") == name and not self.modules[index].options:
                    self.choose(index, path)

    def by_elimination(self) -> bool:
        for index in self.open():
            if len(self.options[index]) != 1:
                continue
            (path,) = self.options[index]
            if not any(path in self.options[other] for other in self.open() if other != index):
                self.choose(index, path)
                return True
        return False

    def by_number(self) -> bool:
        rows: dict[frozenset[str], list[int]] = {}
        for index in self.open():
            rows.setdefault(frozenset(self.options[index]), []).append(index)
        for paths, indices in rows.items():
            prefixes = [self.modules[index].prefix for index in indices]
            torch, flax = _row(prefixes, "."), _row(paths, "/")
            if len(torch) == len(flax) > 0 and self._is_confirmed(torch, flax):
                first = min(torch)
                self.choose(indices[prefixes.index(torch[first])], flax[min(flax)])
                return True
        return False

    def _is_confirmed(self, torch: dict[int, str], flax: dict[int, str]) -> bool:
        """Return whether layers of the same row that shapes told are in the same order.

        linen numbers modules as they are made, and of nested calls that is the outer first.
        """
        pairs = list(zip(sorted(torch), sorted(flax), strict=True))
        known = []
        for index, path in self.chosen.items():
            one = _number_in(self.modules[index].prefix, torch, ".")
            other = _number_in(path, flax, "/")
            known += [(one, other)] if one is not None and other is not None else []
        numbers = [number for _, number in sorted([*pairs, *known])]
        return bool(known) and numbers == sorted(numbers)

    def lines(self, places: Mapping[str, Shapes], every: list[TorchModule]) -> tuple[Line, ...]:
        """Return the lines, or raise BadParams with all that is not settled."""
        found, problems = [], []
        for index, module in enumerate(self.modules):
            fits = self.options[index]
            lines = [line for each in fits.values() for line in _of_kind(each)]
            if index in self.chosen and len(lines) == 1:
                problem = _flatten_problem(module, lines[0], every)
                found.append(lines[0])
            else:
                problem = _unsettled(module, lines)
            problems += [problem] if problem else []
        free = sorted(set(places) - set(self.chosen.values()))
        if problems:
            raise _ambiguous(problems, free)
        return tuple(found)


def _row(names: Collection[str], separator: str) -> dict[int, str]:
    """Return names that differ only in the number at their end, by that; {} if they do not."""
    found = {}
    stems = set()
    for name in names:
        numbered = _numbered(name, separator)
        if numbered is None or numbered[1] in found:
            return {}
        stems.add(numbered[0])
        found[numbered[1]] = name
    return found if len(stems) == 1 else {}


def _numbered(name: str, separator: str) -> tuple[tuple[str, str], int] | None:
    above, _, last = name.rpartition(separator)
    match = _NUMBERED.fullmatch(last)
    return None if match is None else ((above, match[1]), int(match[2]))


def _number_in(name: str, row: dict[int, str], separator: str) -> int | None:
    """Return the number of a name of the same row, and None of another."""
    one, other = _numbered(name, separator), _numbered(next(iter(row.values())), separator)
    return one[1] if one and other and one[0] == other[0] else None


def _of_kind(lines: list[Line]) -> list[Line]:
    """Return those whose rule is that of the module's name, where linen gave it."""
    if len(lines) < 2:
        return lines
    last = lines[0].flax.rpartition("/")[2]
    rule = next((rule for name, rule in _AUTO.items() if re.fullmatch(rf"{name}_\d+", last)), None)
    return [line for line in lines if line.rule == rule] if rule else lines


def _unsettled(module: TorchModule, lines: Sequence[Line]) -> str:
    name = module.prefix or "the top"
    shapes = ", ".join(f"{rest}{list(shape)}" for rest, shape in module.shapes.items())
    if not lines:
        return f"{name} ({shapes}): no module of the target fits it"
    choices = " or ".join(map(str, lines[:4])) + (" or …" if len(lines) > 4 else "")
    return f"{name} ({shapes}) may be {choices}"


def _flatten_problem(module: TorchModule, line: Line, modules: list[TorchModule]) -> str | None:
    if line.rule != "linear" or not is_after_flatten(module, modules):
        return None
    shape = list(module.shapes["weight"])
    return (
        f"{module.prefix} (weight{shape}) may follow a Flatten of channels, which Flax orders in "
        f"another way: {str(line)[:-2]}, flatten = [C, H, W] }}, or without flatten if it does not"
    )


def _ambiguous(problems: Sequence[str], free: Sequence[str] = ()) -> BadParams:
    shown = [f"\n  {problem}" for problem in problems[:_MAX_SHOWN]]
    more = len(problems) - len(shown)
    left = f"\n  free in the target: {', '.join(free[:_MAX_SHOWN])}" if free else ""
    return BadParams(
        "how the layers correspond does not follow from names and shapes. Settle it by lines "
        f"under layers = [ … ] of a map:{''.join(shown)}"
        + (f"\n  and {more} more" if more else "")
        + left
    )


# Without a target


def infer(state: Mapping[str, Array]) -> tuple[Line, ...]:
    """Return a line for each module, from names and shapes alone.

    Kinds that these tell are linear layers with a bias, BatchNorm with its statistics, a
    convolution of images that can be no transposed one, and parameters of a module's own. Paths are
    torch's; a number at the end becomes Flax's own name, `Dense_0` for the first.

    Raises:
        BadParams: there is another kind of layer.
    """
    modules = torch_modules(state)
    lines, problems = [], []
    counts: dict[tuple[str, str], int] = {}
    for module in modules:
        rule = _certain(module)
        if rule is None:
            problems.append(_unknown(module))
            continue
        line = module.line(_flax_path(module, rule, counts), rule)
        problem = _flatten_problem(module, line, modules)
        problems += [problem] if problem else []
        lines.append(line)
    if problems:
        raise _ambiguous(problems)
    return tuple(lines)


_NAMES = {"linear": "Dense", "conv": "Conv", "batch_norm": "BatchNorm"}


def _flax_path(module: TorchModule, rule: str, counts: dict[tuple[str, str], int]) -> str:
    above, _, last = module.prefix.rpartition(".")
    if rule != "copy" and (last.isdecimal() or not last):
        number = counts.get((above, rule), 0)
        counts[above, rule] = number + 1
        last = f"{_NAMES[rule]}_{number}"
    return "/".join([*above.split("."), last] if above else [last])


def _certain(module: TorchModule) -> str | None:
    if module.kind == "own":
        return "copy"
    weight, bias = module.shapes.get("weight", ()), module.shapes.get("bias")
    if {"running_mean", "running_var"} <= set(module.shapes):
        return "batch_norm"
    if module.kind != "plain" or bias is None or bias != weight[:1]:
        return None
    if len(weight) == 2:
        return "linear"
    # A transposed one of g groups has weight (I, O/g, k…) and a bias of O; and three
    # dimensions are those of a bilinear layer, too.
    return "conv" if len(weight) > 3 and weight[1] and weight[0] % weight[1] else None


def _unknown(module: TorchModule) -> str:
    shapes = ", ".join(f"{rest}{list(shape)}" for rest, shape in module.shapes.items())
    if list(module.shapes) == ["bias"]:
        line = Line((f"{module.prefix}.bias".lstrip("."),), "…", "copy")
    else:
        line = module.line("…", " or ".join(_possible(module)))
    return f"{module.prefix or 'the top'} ({shapes}): {line}"


def _possible(module: TorchModule) -> list[str]:
    weight, bias = module.shapes.get("weight", ()), module.shapes.get("bias")
    if module.kind == "attention":
        return ["attention"]
    if module.kind == "cell":
        return ["lstm", "gru"]
    if len(weight) == 1:
        return ["layer_norm", "group_norm"] if bias else ["rms_norm", "prelu"]
    return ["linear", "embedding"] if len(weight) == 2 else ["conv", "conv_transpose"]
