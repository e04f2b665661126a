"""What a pickle may ask for: our own constructors, by the names that a pickle uses.

Nothing that a pickle names is imported or called. What is built is charged to a budget,
since a call may build more than the pickle is long.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from brainstore.dtypes import Array, Shape
from brainstore.errors import BadParams

MAX_BUILT_BYTES = 256 << 20

MALFORMED = (
    AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, struct.error,
)  # fmt: skip
"""What Python raises where values do not fit each other."""

_MAX_KEY_INTEGER = 1 << 60
_MAX_KEY_LENGTH = 4096
_MAX_KEY_PARTS = 16
_MAX_DIMENSIONS = 64
_PLAIN = frozenset([float, bool, type(None)])


class Budget:
    """What constructors may build from one pickle, in bytes."""

    def __init__(self) -> None:
        self._left = MAX_BUILT_BYTES

    def spend(self, size_bytes: int) -> None:
        """Raise BadParams once more than the budget has been spent."""
        self._left -= size_bytes
        if self._left < 0:
            raise BadParams(f"the pickle builds more than {MAX_BUILT_BYTES >> 20} MiB of values")


@dataclass(frozen=True)
class Constructor:
    """What stands for a name that a pickle may use.

    `build(budget, *arguments)` returns the value of a call; None: it cannot be called.
    """

    name: str
    build: Callable[..., Any] | None = None

    def call(self, budget: Budget, arguments: object) -> Any:
        """Return the value, or raise BadParams where the arguments do not fit."""
        if self.build is None or type(arguments) is not tuple:
            raise BadParams(f"the pickle calls {self.name} in a way that no checkpoint does")
        try:
            return self.build(budget, *arguments)
        except MALFORMED as error:
            if isinstance(error, BadParams):
                raise
            raise BadParams(f"the pickle calls {self.name} with what does not fit it") from error


class Draft:
    """A value that is complete only once BUILD has given it its state."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


def require_key(key: object) -> None:
    """Raise BadParams unless `key` is a plain value, or a tuple of some.

    So hashing and comparing keys takes no depth and no time to speak of, and there are no
    huge numbers that were made to collide.
    """
    parts = key if type(key) is tuple else (key,)
    if len(parts) > _MAX_KEY_PARTS or not all(map(_is_plain, parts)):
        raise BadParams(f"the pickle has a key that is no short plain value: {kind_of(key)}")


def _is_plain(part: object) -> bool:
    if type(part) is int:
        return abs(part) < _MAX_KEY_INTEGER
    if isinstance(part, str | bytes):
        return len(part) <= _MAX_KEY_LENGTH
    return type(part) in _PLAIN


def kind_of(value: object) -> str:
    """Return what to call a value in an error."""
    return value.name if isinstance(value, Constructor) else type(value).__name__


# Containers and plain values


def _dict(budget: Budget, items: Any = ()) -> dict[Any, Any]:
    budget.spend(100 * len(items))
    found = {}
    for key, value in items.items() if type(items) is dict else items:
        require_key(key)
        found[key] = value
    return found


def _default_dict(budget: Budget, factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    return _dict(budget, items)


def _set(budget: Budget, items: Any = ()) -> set[Any]:
    budget.spend(100 * len(items))
    for item in items:
        require_key(item)
    return set(items)


def _tuple(budget: Budget, items: Any = ()) -> tuple[Any, ...]:
    if type(items) not in (list, tuple):
        raise BadParams("a size of the pickle is no tuple")
    budget.spend(8 * len(items))
    return tuple(items)


def _complex(budget: Budget, real: float = 0.0, imag: float = 0.0) -> complex:
    if type(real) is not float or type(imag) is not float:
        raise BadParams("a complex number of the pickle is none")
    return complex(real, imag)


def _encoded(budget: Budget, text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode`: how protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise BadParams("the pickle encodes bytes in a way that no checkpoint does")
    budget.spend(len(text))
    return text.encode("latin-1")


def _no_bytes(budget: Budget) -> bytes:
    """`bytes()`: how protocol 2 writes empty ones."""
    return b""


def _byte_array(budget: Budget, content: Any = b"", encoding: str = "latin1") -> bytearray:
    content = _encoded(budget, content, encoding) if type(content) is str else content
    if type(content) is not bytes:  # of a number, Python would make that many zeros
        raise BadParams("the pickle makes a byte array of what is no bytes")
    budget.spend(len(content))
    return bytearray(content)


def sizes_of(what: str, found: Any) -> Shape:
    """Return a tuple of sizes from 0 up, or raise BadParams."""
    is_one = type(found) is tuple and len(found) <= _MAX_DIMENSIONS
    if not is_one or not all(type(size) is int and 0 <= size < 1 << 60 for size in found):
        raise BadParams(f"the {what} of a tensor is not a tuple of numbers from 0 up")
    sizes: Shape = found
    return sizes


# NumPy's scalars and arrays, which many a checkpoint has beside its tensors


@dataclass(eq=False)
class _Dtype(Draft):
    name: str
    order: Literal["<", ">", "|", "="] = "="

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise BadParams("a NumPy dtype of the pickle has a state that none has")
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.name).newbyteorder(self.order)


@dataclass(eq=False)
class ArrayDraft(Draft):
    """A NumPy array; its values come with BUILD."""

    value: Array | None = None

    def set_state(self, state: Any) -> None:
        match state:
            case (_, tuple(shape), _Dtype() as dtype, bool(in_fortran_order), bytes(content)):
                self.value = _array(dtype, sizes_of("shape", shape), content, in_fortran_order)
            case _:
                raise BadParams("a NumPy array of the pickle is not made of numbers")


def _array(dtype: _Dtype, shape: Shape, content: bytes, in_fortran_order: bool) -> Array:
    found = dtype.numpy()
    if math.prod(shape) * found.itemsize != len(content):
        raise BadParams(f"a NumPy array {found}{list(shape)} comes in {len(content):,} bytes")
    flat = np.frombuffer(content, found) if content else np.empty(0, found)
    return flat.reshape(shape, order="F" if in_fortran_order else "C")


def _numpy_dtype(budget: Budget, code: Any, *_: Any) -> _Dtype:
    text = code if type(code) is str else ""
    if text[:1] not in ("b", "i", "u", "f", "c") or text[1:] not in ("1", "2", "4", "8", "16"):
        raise BadParams(f"the pickle has NumPy values of dtype {text!r:.20}, which are no numbers")
    return _Dtype(np.dtype(text).name)


def _numpy_scalar(budget: Budget, dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype) or type(content) is not bytes:
        raise BadParams("a NumPy scalar of the pickle is no number")
    return _array(dtype, (), content, False)[()]


def _numpy_array(budget: Budget, *_: Any) -> ArrayDraft:
    return ArrayDraft()


def _text_of(budget: Budget, *arguments: Any) -> str:
    return " ".join(part for part in arguments if type(part) is str)


_BUILDERS: dict[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _default_dict,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _no_bytes,
    "builtins.bytearray": _byte_array,
    "builtins.complex": _complex,
    "builtins.dict": _dict,
    # Factories of a defaultdict, which are not called
    **dict.fromkeys(["builtins.list", "builtins.int", "builtins.float"]),
    "_codecs.encode": _encoded,
    "torch.Size": _tuple,
    "torch.device": _text_of,
    "torch.serialization._get_layout": _text_of,
    "numpy.dtype": _numpy_dtype,
    "numpy.ndarray": None,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray._reconstruct": _numpy_array,
}

PLAIN_VALUES = {name: Constructor(name, build) for name, build in _BUILDERS.items()}
"""Constructors of everything but tensors."""
