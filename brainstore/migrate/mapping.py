"""The map of a conversion: which torch prefix becomes which Flax module, by which rule.

A TOML file, or a dict of the same form:

    root = "model"                    # where in the checkpoint the state dict is
    flavour = "linen"                 # or "nnx"
    drop = ["decoder"]                # prefixes that are left out
    layers = [
      { torch = "net.0", flax = "Dense_0", rule = "linear" },
      { torch = ["token", "payload"], flax = "heads", rule = "linear" },
      { torch = "rnn", flax = "rnn", rule = "lstm", layer = 1 },
    ]

All of it may be left out. Layers that no line is about are found from the target, if there
is one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainstore.errors import BadParams
from brainstore.migrate.layers import RULES, Line
from brainstore.migrate.recurrent import CELLS

FLAVOURS = ("linen", "nnx")

_KEYS = ("root", "flavour", "drop", "layers")
_LINE_KEYS = ("torch", "flax", "rule")
_MAX_FILE_BYTES = 1 << 20

Source = Mapping[str, Any] | str | os.PathLike[str]


@dataclass(frozen=True)
class LayerMap:
    """A map, read and checked.

    Attributes:
        root: where the state dict is in the checkpoint; None: the only one that there is.
        flavour: "linen", whose leaves stand below collections such as `params`, or "nnx".
        drop: prefixes of tensors that are left out.
        lines: what becomes what; none: to be found.
    """

    root: str | None = None
    flavour: str | None = None
    drop: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()

    @classmethod
    def of(cls, source: Source | LayerMap | None) -> LayerMap:
        """Return the map that a file, a dict, or nothing stands for.

        Raises:
            BadParams: it cannot be read, or has a key that no map has.
        """
        if isinstance(source, cls):
            return source
        if source is None:
            return cls()
        if isinstance(source, Mapping):
            return _layer_map(source, "map")
        if isinstance(source, str | os.PathLike):
            return _layer_map(_parsed(Path(source)), os.fspath(source))
        raise BadParams(
            f"map: expected a TOML file or a dict of its form, found {type(source).__name__}"
        )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BadParams(f"{path} is no map: it is larger than {_MAX_FILE_BYTES:,} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadParams(f"{path} cannot be read as a map: {error}") from error


def _layer_map(found: Mapping[str, Any], where: str) -> LayerMap:
    _require_known(found, _KEYS, where)
    root = _checked(found.get("root"), str, f"{where}: root", 'text such as "model"')
    flavour = found.get("flavour")
    if flavour not in (None, *FLAVOURS):
        raise BadParams(f"{where}: flavour is {flavour!r:.40}, expected {' or '.join(FLAVOURS)}")
    drop = found.get("drop", [])
    layers = found.get("layers", [])
    _checked(layers, list, f"{where}: layers", "a list of tables")
    lines = tuple(_line(line, f"{where}: layers[{n}]") for n, line in enumerate(layers))
    return LayerMap(root, flavour, _names(drop, f"{where}: drop"), lines)


def _line(found: Any, where: str) -> Line:
    _checked(found, Mapping, where, 'a table such as { torch = "0", flax = "Dense_0", … }')
    rule = found.get("rule")
    if rule not in RULES:
        raise BadParams(
            f"{where}: rule is {rule!r:.40}, expected one of {', '.join(RULES)}"
            + _nearest(str(rule), RULES)
        )
    _require_known(found, (*_LINE_KEYS, *sorted(RULES[rule].options)), where)
    if "torch" not in found or "flax" not in found:
        raise BadParams(f"{where}: a line needs torch and flax")
    torch, flax = _names(found["torch"], f"{where}: torch"), found["flax"]
    _checked(flax, str, f"{where}: flax", 'a path such as "encoder/Dense_0"')
    options = {key: _option(key, found[key], where) for key in found if key not in _LINE_KEYS}
    if not torch or flax is None:
        raise BadParams(f"{where}: a line needs at least one prefix of torch, and a path of Flax")
    return Line(torch, _path(flax, rule, where), rule, options)


def _path(flax: str, rule: str, where: str) -> str:
    path = flax.strip("/")
    if "" in path.split("/") and (path or rule == "copy"):
        raise BadParams(f'{where}: flax is {flax!r:.80}, expected a path such as "encoder/Dense_0"')
    return path


def _is_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(type(each) is int and each > 0 for each in value)
    )


_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "flatten": (_is_sizes, "channels and sizes before the Flatten, such as [64, 7, 7]"),
    "heads": (lambda value: type(value) is int and value > 0, "a number of heads"),
    "groups": (lambda value: type(value) is int and value > 0, "a number of groups"),
    "layer": (lambda value: type(value) is int and value >= 0, "a number from 0 up"),
    "reverse": (lambda value: type(value) is bool, "true or false"),
    "transpose_kernel": (lambda value: type(value) is bool, "true or false"),
    "cell": (lambda value: value in CELLS, f"one of {', '.join(CELLS)}"),
}


def _option(key: str, value: Any, where: str) -> Any:
    fits, expected = _OPTIONS[key]
    if not fits(value):
        raise BadParams(f"{where}: {key} is {value!r:.60}, expected {expected}")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names):
        raise BadParams(f"{where}: expected a prefix, or a list of prefixes, found {value!r:.60}")
    return tuple(names)


def _checked(value: Any, kind: type, where: str, expected: str) -> Any:
    if value is not None and not isinstance(value, kind):
        raise BadParams(f"{where} is {value!r:.60}, expected {expected}")
    return value


def _require_known(found: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = tuple(known)
    for key in found:
        if key not in known:
            raise BadParams(
                f"{where}: unknown key {key!r:.60}; expected {', '.join(known)}"
                + _nearest(str(key), known)
            )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f". Did you mean {near[0]}?" if near else ""
