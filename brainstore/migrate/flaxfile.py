"""Flax's msgpack files -> nested dicts of arrays.

msgpack with three extension types, as `flax.serialization` writes them:

    1   an array: (shape, name of the dtype, bytes in C order)
    2   a complex number: (real, imaginary)
    3   a NumPy scalar, as an array without dimensions

An array of more than 1 GiB is a dict with `__msgpack_chunked_array__`, its `shape`, and its
flat `chunks`; tuples are dicts with the keys "0", "1", …
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from brainstore.dtypes import LOGICAL_DTYPES, Array, numpy_dtype
from brainstore.errors import BadParams

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAPS = frozenset([*range(0x81, 0x90), 0xDE, 0xDF])


def is_msgpack(head: bytes) -> bool:
    """Return whether a file that begins so may be a msgpack map."""
    return bool(head) and head[0] in _MAPS


def read_msgpack(buffer: memoryview) -> Any:
    """Return what was saved; arrays are read-only views of the file.

    Raises:
        BadParams: it is damaged, or no file of Flax.
    """
    try:
        return _joined(msgspec.msgpack.decode(buffer, ext_hook=_extension))
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, BadParams):
            raise
        raise not_a_checkpoint(f"read as msgpack: {error}") from error


def not_a_checkpoint(reason: str) -> BadParams:
    """Return the error of a file that is of none of the kinds that are read."""
    return BadParams(
        "this is no checkpoint: expected a zip archive of torch.save, a .safetensors file, or "
        f"Flax's msgpack; {reason}"
    )


def _extension(code: int, content: memoryview) -> Any:
    if code in (_ARRAY, _SCALAR):
        array = _array(content)
        return array if code == _ARRAY else array[()]
    if code == _COMPLEX:
        return complex(*msgspec.msgpack.decode(content, type=tuple[float, float]))
    raise not_a_checkpoint(f"read as msgpack, it has an extension type {code}")


def _array(content: memoryview) -> Array:
    shape, name, body = msgspec.msgpack.decode(
        content, type=tuple[tuple[int, ...], str, memoryview]
    )
    if name not in LOGICAL_DTYPES:
        raise BadParams(f"an array has the dtype {name!r:.40}, which JAX does not have")
    dtype = numpy_dtype(name)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != body.nbytes:
        raise BadParams(f"an array {name}{list(shape)} comes in {body.nbytes:,} bytes")
    flat = np.frombuffer(body, dtype) if body.nbytes else np.empty(0, dtype)
    return flat.reshape(shape)


def _joined(tree: Any) -> Any:
    """Return the tree with its chunked arrays whole. msgspec has bounded its depth."""
    if isinstance(tree, list):
        return [_joined(each) for each in tree]
    if not isinstance(tree, dict):
        return tree
    return _whole(tree) if _CHUNKED in tree else {key: _joined(each) for key, each in tree.items()}


def _whole(chunked: dict[Any, Any]) -> Array:
    try:
        shape = [chunked["shape"][str(n)] for n in range(len(chunked["shape"]))]
        chunks = [chunked["chunks"][str(n)] for n in range(len(chunked["chunks"]))]
        return np.concatenate(chunks).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise BadParams(f"an array in chunks is not whole: {error}") from error
