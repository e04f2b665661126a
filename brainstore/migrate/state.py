"""The state dict of a network, found in a checkpoint; or all of its tensors, as they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainstore.dtypes import Array, logical_dtype
from brainstore.errors import BadParams, Unsupported
from brainstore.migrate.checkpoint import Checkpoint, Keys, array_of, is_tensor, walk
from brainstore.migrate.torchfile import Opaque, StoredTensor

_SLACK_BYTES = 1 << 30
_JSON_BITS = 63
_NO_NETWORK = ("optim", "opt_", "sched", "lr_", "scaler", "grad_scaler", "rng")


@dataclass(frozen=True)
class State:
    """The tensors of one network, by the names that its modules have.

    Attributes:
        arrays: by name, such as `encoder.0.weight`, in the order of the checkpoint.
        root: where in the checkpoint they were; "" for all of it.
        stripped: prefixes that wrappers had put before the names.
        aside: paths of what is not among the arrays: values that are no tensors, such as a
            number of steps, and what stands beside the root, such as an optimizer.
    """

    arrays: dict[str, Array]
    root: str
    stripped: tuple[str, ...]
    aside: tuple[str, ...]


def open_state(state: Any, root: str | None = None) -> State:
    """Return the state dict in a checkpoint.

    Args:
        state: a state dict, a dict that has one somewhere, or a `Checkpoint`, whose size
            bounds what its tensors may claim together.
        root: where it is, such as "model" or "agent.policy"; "" for the whole. Without it,
            the only one that there is, optimizers aside.

    Raises:
        BadParams: there is none, or several may be meant.
        Unsupported: JAX has no equal of one of its tensors.
    """
    tree, size_bytes = state, None
    if isinstance(state, Checkpoint):
        tree, size_bytes = state.tree, state.size_bytes
    found, above = _only_one(tree) if root is None else (_at(tree, root), _keys(root))
    values = [(path, value) for path, value in walk(found) if path]
    _require_numbers(values)
    tensors = {path: value for path, value in values if is_tensor(value)}
    if len({path for path, _ in values}) != len(values):
        raise BadParams("two keys of the checkpoint, a text and a number, read the same")
    if not tensors:
        raise BadParams(f"there is no tensor in {_named('.'.join(above))}")
    _require_bounded(list(tensors.values()), size_bytes)
    named, stripped = _without_wrappers(tensors)
    no_tensors = (path for path, value in values if not is_tensor(value))
    aside = (".".join(path) for path in [*_beside(tree, above), *no_tensors])
    return State(_arrays(named), ".".join(above), stripped, tuple(aside))


def _named(root: str) -> str:
    return f"{root!r:.80} of the checkpoint" if root else "the checkpoint"


def _keys(root: str) -> Keys:
    return tuple(root.split(".")) if root else ()


def _beside(tree: Any, above: Keys) -> Iterator[Keys]:
    """Yield where everything is that stands beside the way to the root."""
    for depth, chosen in enumerate(above):
        children = _children(tree)
        yield from ((*above[:depth], name) for name in children if name != chosen)
        tree = children[chosen]


def _at(tree: Any, root: str) -> Any:
    found = tree
    for segment in _keys(root):
        children = _children(found)
        if segment not in children:
            near = difflib.get_close_matches(segment, children, 3) or list(children)[:8]
            raise BadParams(
                f"root {root!r:.80}: there is no {segment!r:.80}; did you mean {', '.join(near)}?"
            )
        found = children[segment]
    return found


def _children(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        found = {str(key): child for key, child in value.items()}
        if len(found) != len(value):
            raise BadParams("two keys of the checkpoint, a text and a number, read the same")
        return found
    if isinstance(value, list | tuple):
        return {str(index): child for index, child in enumerate(value)}
    return {}


def _only_one(tree: Any) -> tuple[Any, Keys]:
    if not isinstance(tree, Mapping):
        raise BadParams(f"a checkpoint is a dict of tensors; this is {type(tree).__name__}")
    root: Keys = ()
    found = tree
    while isinstance(found, Mapping) and not any(is_tensor(each) for each in found.values()):
        counts = {name: _count(child) for name, child in _children(found).items()}
        networks = {
            name: count
            for name, count in counts.items()
            if count and not name.lower().startswith(_NO_NETWORK)
        }
        if len(networks) != 1:
            raise _not_one(networks, root)
        (name,) = networks
        found, root = _children(found)[name], (*root, name)
    return found, root


def _count(tree: Any) -> int:
    return sum(is_tensor(value) for _, value in walk(tree))


def _not_one(networks: Mapping[str, int], above: Sequence[str]) -> BadParams:
    if not networks:
        return BadParams("there is no tensor in the checkpoint")
    listed = ", ".join(f"{name} ({count} tensors)" for name, count in networks.items())
    first = ".".join([*above, next(iter(networks))])
    return BadParams(
        f"the checkpoint has several state dicts: {listed}. Name the one to convert, as "
        f'root = "{first}" in the map; root = "" takes all of them'
    )


def _require_numbers(values: Sequence[tuple[Keys, Any]]) -> None:
    for path, value in values:
        if isinstance(value, Opaque):
            raise Unsupported(
                f"{'.'.join(path)} is {value.kind}, which JAX has no equal of. Save it as a dense "
                "tensor first"
            )


def _require_bounded(tensors: Sequence[Any], size_bytes: int | None) -> None:
    if size_bytes is None:
        return
    distinct = {each.place: each.nbytes for each in tensors if isinstance(each, StoredTensor)}
    claimed = sum(distinct.values())
    if claimed > size_bytes + _SLACK_BYTES:
        raise BadParams(
            f"the tensors claim {claimed:,} bytes together, and the file has {size_bytes:,}; "
            "expanded tensors would be written out. Save them contiguous"
        )


def _without_wrappers(
    tensors: Mapping[Keys, Any],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the tensors by name, without what DataParallel and torch.compile put there."""
    names = [tuple(part for key in path for part in key.split(".")) for path in tensors]
    stripped = []
    if any("_orig_mod" in name for name in names):
        names = [tuple(part for part in name if part != "_orig_mod") or name for name in names]
        stripped.append("_orig_mod.")
    while all(name[0] == "module" and len(name) > 1 for name in names):
        names = [name[1:] for name in names]
        stripped.append("module.")
    found = {".".join(name): value for name, value in zip(names, tensors.values(), strict=True)}
    if len(found) != len(tensors):
        raise BadParams("two tensors of the checkpoint have the same name")
    return found, tuple(stripped)


def _arrays(tensors: Mapping[str, Any]) -> dict[str, Array]:
    arrays = {}
    for name, value in tensors.items():
        try:
            arrays[name] = array_of(value)
            logical_dtype(arrays[name])
        except (BadParams, Unsupported) as error:
            raise type(error)(f"{name}: {error}") from error
    return arrays


def tensors_as_they_are(tree: Any, size_bytes: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Return the tree with its tensors as arrays and nothing else, and its plain values.

    Names stay as they are; a container without a tensor is left out, and a list becomes a
    dict by index.

    Returns:
        The tree, and {path: value} of its numbers and texts.

    Raises:
        BadParams, Unsupported: as for `open_state`.
    """
    values = list(walk(tree))
    _require_numbers(values)
    _require_bounded([value for _, value in values], size_bytes)
    kept = _pruned(tree)
    if kept is None:
        raise BadParams("there is no tensor in the checkpoint")
    texts = (("/".join(path), value) for path, value in values if not is_tensor(value))
    return kept, {path: _plain(value) for path, value in texts if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | int | float | np.number | np.bool_) and value == value


def _plain(value: Any) -> Any:
    """Return a number or text as JSON has it; hexadecimal where an integer is too long."""
    if isinstance(value, np.generic):
        value = value.item()
    is_long = type(value) is int and value.bit_length() > _JSON_BITS
    return hex(value) if is_long else str(value) if isinstance(value, complex) else value


def _pruned(value: Any) -> Any:
    if is_tensor(value):
        return array_of(value)
    if not isinstance(value, Mapping | list | tuple):
        return None
    # JAX orders keys, so they are of one type.
    if isinstance(value, Mapping) and all(type(key) is int for key in value):
        kept = {key: _pruned(child) for key, child in value.items()}
    else:
        kept = {key: _pruned(child) for key, child in _children(value).items()}
    return {key: child for key, child in kept.items() if child is not None} or None
