"""Files of torch, written by torch or byte by byte, for the tests of brainstore.migrate."""

from __future__ import annotations

import contextlib
import io
import pickle
import tracemalloc
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from brainstore.migrate import migrate

MEBIBYTE = 1 << 20


class Asks:
    """When it is pickled, asks for a call: the function of that name, with these arguments."""

    def __init__(self, module: str, name: str, *arguments: Any, state: Any = None) -> None:
        self.call = (module, name, arguments, state)


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one written in Python
    def save(self, found: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(found, Asks):
            module, name, arguments, state = found.call
            return self.save_reduce(_Callable(module, name), arguments, state)
        if isinstance(found, _Callable):
            return self.write(f"c{found.module}\n{found.name}\n".encode())
        return super().save(found, save_persistent_id)


class _Callable:
    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:
        raise AssertionError("a pickle in the tests names it, and nothing calls it")


def pickled(value: Any, protocol: int = 2) -> bytes:
    """Return the pickle of a value that may hold `Asks`."""
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def write_archive(
    path: Path, body: bytes, records: Mapping[str, bytes] = {}, **options: Any
) -> Path:
    """Write a zip archive as torch does, with this pickle and these records."""
    with zipfile.ZipFile(path, "w", options.pop("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", b"3\n")
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return path


def saved(path: Path, value: Any) -> Path:
    """Save a value with torch; return the path."""
    torch.save(value, path)
    return path


def read(path: Path) -> Any:
    """Read all that a checkpoint has, its tensors too."""
    return migrate(path, as_is=True).params


@contextlib.contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """Check that no more memory is allocated inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size_bytes, f"{peak:,} bytes"
