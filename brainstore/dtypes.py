"""The dtypes that a leaf may have, and how safetensors carries each of them.

A *logical dtype* is the name under which JAX knows a dtype ("float32", "int4",
"key<threefry2x32>"). Its *carrier* is the safetensors dtype and the shape that hold
the same bits. Most logical dtypes are carried by themselves. The others:

| logical                              | carrier | bits                                  |
| ------------------------------------ | ------- | ------------------------------------- |
| int2, int4                           | I8      | the value, sign-extended              |
| uint2, uint4                         | U8      | the value, zero-extended              |
| float4_e2m1fn                        | U8      | in the lower four bits, the rest zero |
| float8_e3m4, _e4m3, _e4m3b11fnuz     | U8      | as they are                           |
| complex128                           | F64     | real, imaginary: one more dimension   |
| key<impl>                            | U32     | the key data: trailing dimensions     |

The packed sub-byte dtypes of safetensors (F4, F6) are never used.
"""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np

from brainstore.errors import BadParams, Corrupt

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_NATIVE = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
_NARROW = {"int2": "I8", "int4": "I8", "uint2": "U8", "uint4": "U8", "float4_e2m1fn": "U8"}
_AS_BITS = {"float8_e3m4": "U8", "float8_e4m3": "U8", "float8_e4m3b11fnuz": "U8"}
_CARRIERS = {**_NATIVE, **_NARROW, **_AS_BITS, "complex128": "F64"}
_KEY = re.compile(r"key<([A-Za-z0-9_.-]{1,64})>")
_FAMILIES = (
    ("bool", "bool"),
    ("int", "int"),
    ("uint", "int"),
    ("float", "float"),
    ("bfloat", "float"),
    ("complex", "complex"),
    ("key<", "key"),
)
_WIDE = frozenset(["int64", "uint64", "float64", "complex128"])

LOGICAL_DTYPES = tuple(_CARRIERS)
"""Every logical dtype but the PRNG keys."""


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a logical dtype; uint32 for a PRNG key."""
    if key_impl(dtype):
        return np.dtype(np.uint32)
    return _dtype_named(dtype)


def _dtype_named(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


_STORED = {code: _dtype_named(name) for name, code in _NATIVE.items()}


def stored_dtype(code: str) -> np.dtype[Any] | None:
    """Return the NumPy dtype of the safetensors dtype `code`, or None when it is unknown."""
    return _STORED.get(code)


def key_impl(dtype: str) -> str | None:
    """Return "threefry2x32" of "key<threefry2x32>", and None of any other dtype."""
    match = _KEY.fullmatch(dtype)
    return match[1] if match else None


def is_floating(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def is_wide(dtype: str) -> bool:
    """Return whether JAX has this dtype only while its 64-bit mode is on."""
    return dtype in _WIDE


def x64_is_on() -> bool:
    """Return whether JAX's 64-bit mode is on, here and now."""
    import jax

    return bool(jax.dtypes.canonicalize_dtype(np.int64) == np.int64)


def family(dtype: str) -> str:
    """Return "bool", "int", "float", "complex" or "key"."""
    return next(found for prefix, found in _FAMILIES if dtype.startswith(prefix))


def logical_dtype(array: Array) -> str:
    """Return the logical dtype of a NumPy array of any byte order.

    Raises:
        BadParams: no leaf can have this dtype (text, objects, dates, long doubles, …).
    """
    name = array.dtype.name
    if name not in _CARRIERS:
        raise BadParams(
            f"dtype {array.dtype} cannot be stored; expected one that JAX has: "
            f"{', '.join(_CARRIERS)} or a PRNG key. Convert the array, or keep it in meta"
        )
    return str(name)


def carrier(dtype: str, shape: Shape) -> tuple[str, Shape]:
    """Return the safetensors dtype and shape that hold an array.

    For a PRNG key, `shape` is that of the key data, trailing dimensions included.

    Raises:
        Corrupt: there is no such logical dtype.
    """
    if key_impl(dtype):
        return "U32", shape
    if dtype not in _CARRIERS:
        raise Corrupt(
            f"dtype {dtype!r} of a leaf is unknown; expected one of {', '.join(_CARRIERS)} "
            "or key<impl>. A newer brainstore may know it"
        )
    return _CARRIERS[dtype], (*shape, 2) if dtype == "complex128" else shape


def is_direct(dtype: str) -> bool:
    """Return whether an array's own bytes are those of its carrier."""
    return dtype not in _NARROW


def to_carrier(array: Array, dtype: str) -> Array:
    """Return `array` with the canonical bits of its carrier; a copy only where they differ."""
    if dtype == "float4_e2m1fn":
        return array.view(np.uint8) & np.uint8(0x0F)
    if dtype in _NARROW:
        return array.astype(_STORED[_NARROW[dtype]])
    return array


def from_carrier(stored: Array, dtype: str) -> Array:
    """Return a view of a C-contiguous carrier array as the logical dtype."""
    viewed = stored.view(numpy_dtype(dtype))
    return viewed[..., 0] if dtype == "complex128" else viewed
