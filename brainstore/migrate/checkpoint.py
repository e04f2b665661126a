"""A checkpoint file, whatever wrote it, and what stands in its tree."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator, Mapping
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
_HEAD_BYTES = 512
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
        return TORCH, read_archive(path, buffer)
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
    if isinstance(value, StoredTensor | ArrayDraft | np.ndarray) or _is_torch(value):
        return True
    return type(value).__module__.startswith("jax") and hasattr(value, "__array__")


def _is_torch(value: object) -> bool:
    # Who has a tensor of torch has imported it.
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
    # A copy: a live tensor goes on learning. NumPy has no bfloat16 that torch knows of; the
    # bits are the same.
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().clone().reshape(-1)
    if not plain.numel():
        return np.empty(tuple(tensor.shape), numpy_dtype(name))
    raw: Array = plain.view(sys.modules["torch"].uint8).numpy()
    return raw.view(numpy_dtype(name)).reshape(tuple(tensor.shape))


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
