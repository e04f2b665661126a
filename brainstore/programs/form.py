"""What is stored of a program, and what is known of it without running it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from brainstore.errors import Unsupported
from brainstore.records import Record, prepare

PROGRAM = "program/policy.stablehlo"
DESCRIPTION = "program/policy.json"
PLATFORMS = ("cpu", "cuda", "tpu")
WINDOW_DAYS = 180
"""JAX promises to read programs of releases up to six months older (docs.jax.dev, jax.export)."""


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """One array that goes in or comes out; `b` in its shape stands for any number of rows."""

    path: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.path}: {self.dtype}[{', '.join(map(str, self.shape))}]".removeprefix(": ")


class Description(Record, frozen=True, kw_only=True):
    """What is known of a program without running it. Times are RFC 3339, in UTC."""

    jax: str
    jaxlib: str
    calling_convention_version: int
    platforms: tuple[str, ...]
    nr_devices: int
    created_at: str
    expires_at: str
    params: tuple[Signature, ...]
    inputs: tuple[Signature, ...]
    outputs: tuple[Signature, ...]


prepare(Description)


def expiry(created_at: str) -> str:
    """Return the end of the window that began then."""
    expires_at = datetime.fromisoformat(created_at) + timedelta(days=WINDOW_DAYS)
    return expires_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def signature(path: str, aval: Any) -> Signature:
    """Return the signature of an array that JAX knows by its shape and dtype."""
    shape = tuple(size if isinstance(size, int) else str(size) for size in aval.shape)
    return Signature(path=path, dtype=str(aval.dtype), shape=shape)


def abstract(array: Any, shape: tuple[Any, ...]) -> Any:
    """Return the jax.ShapeDtypeStruct of such an array, in a dtype that JAX has now."""
    import jax

    dtype = jax.dtypes.canonicalize_dtype(array.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]  # JAX's own


def jaxlib_version() -> str:
    """Return the version of jaxlib, by which JAX counts its window."""
    from jaxlib import version

    return version.__version__


def require_flatbuffers() -> None:
    """Raise Unsupported unless jax.export can write and read programs here."""
    try:
        import flatbuffers  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401
    except ImportError as error:
        raise Unsupported(
            "jax.export writes and reads programs with the package flatbuffers, which is not "
            "installed. Run: pip install flatbuffers"
        ) from error


def first_line(error: Exception) -> str:
    """Return what an error of JAX says, without the pages that may follow."""
    return (str(error).strip() or "no reason given").splitlines()[0].rstrip(".")
