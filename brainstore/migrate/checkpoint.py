"""A checkpoint file, whatever wrote it, and the state dict that is found in it."""

from __future__ import annotations

import difflib
import mmap
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from brainstore.address import Digest
from brainstore.classic.tensorfile import naming, read_entries
from brainstore.dtypes import Array, numpy_dtype
from brainstore.errors import BadParams, Unsupported
from brainstore.migrate.constructors import ArrayDraft
from brainstore.migrate.flaxfile import is_msgpack, not_a_checkpoint, read_msgpack
from brainstore.migrate.torchfile import (
    DTYPES,
    Opaque,
    StoredTensor,
    is_archive,
    read_archive,
    require_no_legacy,
)

TORCH, FLAX = "torch", "flax"

Keys = tuple[str, ...]
"""Where in a checkpoint something is: the keys of dicts, the indices of lists."""

_MAX_DEPTH = 32
_MAX_VALUES = 1 << 20
_SLACK_BYTES = 1 << 30
_HEAD_BYTES = 512
_NO_NETWORK = ("optim", "opt_", "sched", "lr_", "scaler", "grad_scaler", "rng")
_FLAX_LEAVES = frozenset(["kernel", "embedding", "scale"])


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: the file; it must not change while an array of it lives.
        kind: "torch" where names and layouts are torch's, "flax" where they are Flax's.
        tree: containers, plain values, and tensors; see `walk`.
        digest, size_bytes: of the whole file.
    """

    path: Path
    kind: str
    tree: Any
    digest: Digest
    size_bytes: int


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return what a checkpoint holds. Nothing in it is run, and its tensors are mapped.

    torch's zip files, .safetensors, and Flax's msgpack are told by what they hold.

    Raises:
        BadParams: it is none of them, is damaged, or asks for what no checkpoint needs.
        Unsupported: it is of a kind that must be converted first; the message says how.
    """
    path = Path(path)
    try:
        with naming(path):
            buffer = _mapped(path)
            kind, tree = _opened(path, buffer)
            digest = Digest("blake3:" + blake3(buffer, max_threads=blake3.AUTO).hexdigest())
            return Checkpoint(path, kind, tree, digest, len(buffer))
    except Unsupported as error:
        raise Unsupported(f"{path}: {error}") from error


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            raise BadParams("the file is empty")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _opened(path: Path, buffer: memoryview) -> tuple[str, Any]:
    head = bytes(buffer[:_HEAD_BYTES])
    require_no_legacy(head)
    if path.suffix.lower() == ".npz":
        raise Unsupported(f"an .npz file has no layers to convert. Run: brainstore import {path}")
    if is_archive(head):
        return TORCH, read_archive(buffer)
    if path.suffix.lower() == ".safetensors" or head[8:10] == b'{"':
        entries = read_entries(path)
        return (FLAX, _nested(entries)) if _is_named_by_flax(entries) else (TORCH, entries)
    if is_msgpack(head):
        return FLAX, read_msgpack(buffer)
    raise not_a_checkpoint(f"it begins with {head[:8]!r}")


def _is_named_by_flax(names: Mapping[str, Any]) -> bool:
    ends = {name.replace(".", "/").rpartition("/")[2] for name in names}
    return any("/" in name for name in names) or bool(ends & _FLAX_LEAVES)


def _nested(entries: Mapping[str, Array]) -> dict[str, Any]:
    separator = "/" if any("/" in name for name in entries) else "."
    root: dict[str, Any] = {}
    for name, array in entries.items():
        *above, last = name.split(separator)
        node = root
        for segment in above:
            node = node.setdefault(segment, {})
            if not isinstance(node, dict):
                raise BadParams(f"{name!r:.80} lies under another array")
        if last in node:
            raise BadParams(f"{name!r:.80} lies above another array")
        node[last] = array
    return root


# What stands in a tree


def is_tensor(value: object) -> bool:
    """Return whether a value is an array, or a tensor of torch or of its files."""
    if isinstance(value, StoredTensor | np.ndarray) or _is_torch(value):
        return True
    return isinstance(value, ArrayDraft) or type(value).__module__.startswith("jax")


def _is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def array_of(value: Any) -> Array:
    """Return a tensor as a NumPy array of the same values and dtype, bfloat16 included.

    Raises:
        BadParams: it is damaged.
        Unsupported: NumPy has no such tensor (sparse, quantized).
    """
    if isinstance(value, StoredTensor):
        return value.array()
    if isinstance(value, ArrayDraft):
        if value.value is None:
            raise BadParams("a NumPy array of the pickle has no values")
        return value.value
    return _of_torch(value) if _is_torch(value) else np.asarray(value)


def _of_torch(tensor: Any) -> Array:
    name = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if name is None or tensor.is_sparse or tensor.is_quantized or tensor.is_meta:
        raise Unsupported(f"JAX has no tensor such as torch's {tensor.layout}, {tensor.dtype}")
    import torch

    # A copy: a live tensor goes on learning. NumPy has no bfloat16 that torch knows of; the
    # bits are the same.
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().clone().reshape(-1)
    flat = plain.view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8)
    return flat.view(numpy_dtype(name)).reshape(tuple(tensor.shape))


def walk(tree: Any) -> Iterator[tuple[Keys, Any]]:
    """Yield path and value of everything in a tree that is no container.

    Raises:
        BadParams: it is nested too deep, or has too many values (shared ones count as
            often as they stand there).
    """
    # Not by recursion: each value would pass through as many generators as it lies deep.
    pending: list[Iterator[tuple[Keys, Any]]] = [iter([((), tree)])]
    count = 0
    while pending:
        item = next(pending[-1], None)
        if item is None:
            pending.pop()
            continue
        count += 1
        if count > _MAX_VALUES:
            raise BadParams(f"the checkpoint has more than {_MAX_VALUES:,} values")
        if isinstance(item[1], Mapping | list | tuple):
            pending.append(_opened_node(*item))
        else:
            yield item


def _opened_node(path: Keys, value: Any) -> Iterator[tuple[Keys, Any]]:
    if len(path) >= _MAX_DEPTH:
        raise BadParams(f"the checkpoint is nested deeper than {_MAX_DEPTH} levels")
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return (((*path, str(key)), child) for key, child in items)


# The state dict of a network


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


def open_state(tree: Any, root: str | None = None, size_bytes: int | None = None) -> State:
    """Return the state dict in a checkpoint.

    Args:
        tree: a state dict, or a dict that has one somewhere.
        root: where it is, such as "model" or "agent.policy"; "" for the whole. Without it,
            the only one that there is, optimizers aside.
        size_bytes: of the file, which bounds what its tensors may claim together.

    Raises:
        BadParams: there is none, or several may be meant.
        Unsupported: JAX has no equal of one of its tensors.
    """
    found, above = _only_one(tree) if root is None else (_at(tree, root), _keys(root))
    values = [(path, value) for path, value in walk(found) if path]
    _require_numbers(values)
    tensors = {path: value for path, value in values if is_tensor(value)}
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
        return {str(key): child for key, child in value.items()}
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
    tensors: Mapping[tuple[str, ...], Any],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the tensors by name, without what DataParallel and torch.compile put there."""
    names = [tuple(part for key in path for part in key.split(".")) for path in tensors]
    stripped = []
    if any("_orig_mod" in name for name in names):
        names = [tuple(part for part in name if part != "_orig_mod") for name in names]
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
    plain = {
        "/".join(path): value
        for path, value in values
        if not is_tensor(value) and isinstance(value, str | int | float | bool)
    }
    return kept, plain


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
