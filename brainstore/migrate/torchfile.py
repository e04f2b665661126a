"""Checkpoints of torch's zip format -> plain values, and tensors as views of the file.

    archive/data.pkl       the pickle of what was saved; tensors name their storages
    archive/data/0         the bytes of storage 0, uncompressed
    archive/byteorder      `little` or `big`; without it, little
    archive/version        of the format

Neither torch is needed, nor is anything imported that the file names: `KNOWN` below is all
that a pickle may ask for, and each entry is a constructor of ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from brainstore.dtypes import Array, Shape
from brainstore.errors import BadParams, Unsupported
from brainstore.migrate.archive import Archive, open_archive
from brainstore.migrate.constructors import PLAIN_VALUES, Budget, Constructor, sizes_of
from brainstore.migrate.unpickling import unpickle

PICKLE = "data.pkl"

_MAX_ELEMENTS = 1 << 56
_LEGACY = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "by torch before 1.6, or in its format")
_ZIP = b"PK"
_TAR = b"ustar"

DTYPES: dict[str, str | None] = {
    "float64": "float64", "double": "float64", "float32": "float32", "float": "float32",
    "float16": "float16", "half": "float16", "bfloat16": "bfloat16",
    "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2",
    "float8_e4m3fnuz": "float8_e4m3fnuz", "float8_e5m2fnuz": "float8_e5m2fnuz",
    "float8_e8m0fnu": "float8_e8m0fnu", "uint8": "uint8", "int8": "int8", "uint16": "uint16",
    "int16": "int16", "short": "int16", "uint32": "uint32", "int32": "int32", "int": "int32",
    "uint64": "uint64", "int64": "int64", "long": "int64", "bool": "bool",
    "complex64": "complex64", "cfloat": "complex64", "complex128": "complex128",
    "cdouble": "complex128", "complex32": None, "chalf": None, "qint8": None, "quint8": None,
    "qint32": None, "quint4x2": None, "quint2x4": None, "float4_e2m1fn_x2": None,
    "bits8": None, "bits16": None, "bits1x8": None, "bits2x4": None, "bits4x2": None,
}  # fmt: skip
"""The dtypes of torch by name, and what JAX calls them; None: JAX has none that is equal."""

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
}  # fmt: skip


def is_archive(head: bytes) -> bool:
    """Return whether a file that begins so is a zip archive."""
    return head.startswith(_ZIP)


def require_no_legacy(head: bytes) -> None:
    """Raise Unsupported where a file that begins so was written by an old torch."""
    if head.startswith(_LEGACY[0]) or head[257:262] == _TAR:
        raise Unsupported(
            f"this was written {_LEGACY[1]} (_use_new_zipfile_serialization=False). Load it with "
            "torch, and save it again with torch.save"
        )


def read_archive(path: Path, buffer: memoryview) -> Any:
    """Return what was saved: containers, plain values, `StoredTensor` and `Opaque`.

    Args:
        path, buffer: the file, and what it is mapped as.

    Raises:
        BadParams: the archive or its pickle is damaged, or asks for what no checkpoint needs.
        Unsupported: it is encrypted, compressed, or a TorchScript program.
    """
    archive = open_archive(path, buffer)
    if "constants.pkl" in archive.records or any(
        name.startswith("code/") for name in archive.records
    ):
        raise Unsupported(
            "this is a TorchScript archive, which holds a program. Load it with torch.jit.load, "
            "and save its state_dict() with torch.save"
        )
    if PICKLE not in archive.records:
        raise BadParams(f"the archive has no {PICKLE}, so it is no checkpoint of torch")
    return unpickle(bytes(archive.read(PICKLE)), KNOWN, _Storages(archive).find)


# What the pickle's tensors are made of


@dataclass(frozen=True, eq=False)
class Storage:
    """The elements of one or several tensors, in the archive."""

    archive: Archive
    key: str
    dtype: str
    size_bytes: int
    _read: dict[str, Array] = field(default_factory=dict, init=False, repr=False)

    def elements(self, dtype: str) -> Array:
        """Return all elements, checked, as an array of one dimension.

        A view of the file; a copy, made once, where the bytes are of another order, or of
        booleans, which must be 0 or 1.
        """
        if dtype not in self._read:
            view = self.archive.read(f"data/{self.key}")
            found = numpy_dtype(dtype)
            ordered = _in_order(view, _byte_order(self.archive), found)
            # An empty buffer is no buffer to np.frombuffer.
            flat = np.frombuffer(ordered, found) if len(view) else np.empty(0, found)
            self._read[dtype] = flat.view(np.uint8) != 0 if dtype == "bool" else flat
        return self._read[dtype]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that lies in a storage: strided, perhaps together with others.

    Attributes:
        dtype: as JAX calls it.
        offset, strides: in elements.
        conj, neg: whether torch was still to conjugate, or negate, the elements.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: Shape
    strides: Shape
    conj: bool = False
    neg: bool = False

    @property
    def nbytes(self) -> int:
        """How many bytes the tensor takes on its own."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize

    @property
    def place(self) -> tuple[Any, ...]:
        """Equal for tensors that are one, such as tied weights."""
        bits = self.conj, self.neg
        return (self.storage.key, self.dtype, self.offset, self.shape, self.strides, *bits)

    def array(self) -> Array:
        """Return the tensor as a read-only array: a view of the file where that can be.

        Raises:
            BadParams: the bytes do not match their CRC-32.
        """
        flat = self.storage.elements(self.dtype)
        if 0 in self.shape:
            return np.empty(self.shape, flat.dtype)
        steps = [stride * flat.itemsize for stride in self.strides]
        start = self.offset * flat.itemsize
        # Not np.lib.stride_tricks.as_strided, which checks no bounds and knows no fp8.
        view: Array = np.ndarray(self.shape, flat.dtype, flat.view(np.uint8), start, steps)
        view.flags.writeable = False
        view = view.conj() if self.conj else view
        return -view if self.neg else view


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype that JAX calls so."""
    return np.dtype(getattr(ml_dtypes, name, name))


def _byte_order(archive: Archive) -> bytes:
    order = bytes(archive.read("byteorder")) if "byteorder" in archive.records else b"little"
    if order not in (b"little", b"big"):
        raise BadParams(f"the byte order {order[:20]!r} is neither little nor big")
    return order


def _in_order(view: memoryview, order: bytes, dtype: np.dtype[Any]) -> Any:
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    if order == b"little" or width == 1:
        return view
    return np.frombuffer(view, f">u{width}").astype(f"<u{width}")


@dataclass(frozen=True)
class Opaque:
    """Something that torch saves and JAX has no equal of, such as a sparse tensor."""

    kind: str


@dataclass
class _Storages:
    archive: Archive
    _found: dict[str, Storage] = field(default_factory=dict)

    def find(self, identity: Any) -> Storage:
        """Return the storage that a persistent id of the pickle names."""
        match identity:
            case ("storage", Constructor(name=name), str(key), str(), int(count)):
                if key not in self._found:
                    self._found[key] = self._storage(key, _storage_dtype(name), count)
                return self._found[key]
        raise BadParams("the pickle refers to a storage in a way that torch never does")

    def _storage(self, key: str, dtype: str, count: int) -> Storage:
        size = self.archive.find(f"data/{key}").size_bytes
        jax_name = DTYPES[dtype]
        itemsize = numpy_dtype(jax_name).itemsize if jax_name else 0
        if jax_name and count * itemsize != size:
            raise BadParams(
                f"storage {key!r:.40} claims {count:,} elements of {dtype}, {count * itemsize:,} "
                f"bytes, and has {size:,}"
            )
        return Storage(self.archive, key, dtype, size)


def _storage_dtype(name: str) -> str:
    short = name.rpartition(".")[2].removesuffix("Storage")
    return _STORAGES.get(short, "uint8")  # of an untyped one, count is in bytes


# The constructors


def _tensor(
    budget: Budget,
    storage: Storage,
    offset: int,
    shape: Shape,
    strides: Shape,
    *rest: Any,
) -> StoredTensor | Opaque:
    """`_rebuild_tensor_v2`: requires_grad, hooks and metadata follow."""
    metadata = rest[2] if len(rest) > 2 else None
    return _placed(storage, storage.dtype, offset, shape, strides, metadata)


def _typed_tensor(
    budget: Budget,
    storage: Storage,
    offset: int,
    shape: Shape,
    strides: Shape,
    requires_grad: Any,
    hooks: Any,
    dtype: Constructor,
    metadata: Any = None,
) -> StoredTensor | Opaque:
    """`_rebuild_tensor_v3`: the storage is untyped, and the dtype stands beside it."""
    return _placed(storage, dtype.name.removeprefix("torch."), offset, shape, strides, metadata)


def _placed(
    storage: Any, dtype: str, offset: Any, shape: Any, strides: Any, metadata: Any
) -> StoredTensor | Opaque:
    if not isinstance(storage, Storage) or dtype not in DTYPES:
        raise BadParams("a tensor lies in what is no storage, or has no dtype")
    jax_name = DTYPES[dtype]
    if jax_name is None:
        return Opaque(f"a tensor of dtype {dtype}")
    count = storage.size_bytes // numpy_dtype(jax_name).itemsize
    sizes, steps = sizes_of("shape", shape), sizes_of("strides", strides)
    _require_inside(storage, count, offset, sizes, steps)
    bits = metadata if type(metadata) is dict else {}
    # The stride of a dimension of one element means nothing, and may be anything.
    steps = tuple(step if size > 1 else 0 for size, step in zip(sizes, steps, strict=True))
    if 0 in sizes:
        offset, steps = 0, (0,) * len(sizes)
    marks = {"conj": bits.get("conj") is True, "neg": bits.get("neg") is True}
    return StoredTensor(storage, jax_name, offset, sizes, steps, **marks)


def _require_inside(
    storage: Storage, count: int, offset: Any, shape: Shape, strides: Shape
) -> None:
    if type(offset) is not int or offset < 0 or len(shape) != len(strides):
        raise BadParams("a tensor has no place in its storage")
    if math.prod(size for size in shape if size) >= _MAX_ELEMENTS:
        raise BadParams(f"a tensor claims the shape {list(shape)}, more than any machine holds")
    last = offset + sum(
        (size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size
    )
    if 0 not in shape and last >= count:
        raise BadParams(
            f"a tensor of shape {list(shape)} and strides {list(strides)} reaches element "
            f"{last:,} of storage {storage.key!r:.40}, which has {count:,}"
        )


def _parameter(budget: Budget, value: Any, *_: Any) -> Any:
    if not isinstance(value, StoredTensor | Opaque):
        raise BadParams("a parameter of the pickle is no tensor")
    return value


def _of_type(budget: Budget, function: Constructor, kind: Any, arguments: Any, state: Any) -> Any:
    """`_rebuild_from_type_v2`: a tensor of a subclass, with attributes, which are dropped."""
    if not isinstance(function, Constructor) or function.build is _of_type:
        raise BadParams("the pickle rebuilds a tensor by what is no constructor of tensors")
    return function.call(budget, arguments)


def _opaque(kind: str) -> Any:
    def build(budget: Budget, *arguments: Any) -> Opaque:
        return Opaque(kind)

    return build


def _table() -> dict[str, Constructor]:
    builders: dict[str, Any] = {
        "torch.Tensor": None,
        "torch.nn.parameter.Parameter": _parameter,
        "torch.nn.Parameter": _parameter,
        "torch.nn.parameter.Buffer": _parameter,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch._tensor._rebuild_from_type_v2": _of_type,
        "torch._utils._rebuild_sparse_tensor": _opaque("a sparse tensor"),
        "torch._utils._rebuild_qtensor": _opaque("a quantized tensor"),
        "torch._utils._rebuild_nested_tensor": _opaque("a nested tensor"),
        "torch._utils._rebuild_meta_tensor_no_storage": _opaque("a tensor without values"),
    }
    names = [*(f"torch.{name}" for name in _names()), "torch.storage.UntypedStorage"]
    builders |= dict.fromkeys([*names, "torch.storage.TypedStorage"])
    ours = {name: Constructor(name, build) for name, build in builders.items()}
    return PLAIN_VALUES | ours


def _names() -> Iterable[str]:
    yield from DTYPES
    yield from ("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine")
    for name in ("Untyped", *_STORAGES):
        yield from (f"{name}Storage", f"cuda.{name}Storage")


KNOWN: Mapping[str, Constructor] = _table()
"""All that a checkpoint's pickle may name, and what we make of it."""
