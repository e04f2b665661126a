"""Files of tensors that other programs wrote: .safetensors and .npz.

Their keys are flat. Those with `/`, as flax writes them, become nested dicts.
"""

from __future__ import annotations

import mmap
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from brainstore import dtypes
from brainstore.dtypes import Array
from brainstore.errors import BadParams, BadReference, Corrupt, NotFound
from brainstore.pytree.structure import LEAF, count_leaves, key_text, open_node, unflatten
from brainstore.tensors import Entry, parse_header, view

MOST_EXPANSION = 16
MOST_MORE_BYTES = 2**30
"""How much larger than an .npz file its arrays may be: so many times, and so many bytes."""

_FSCK_HINT = ". Run: brainstore fsck"
_BAD_FILE = (BadParams, Corrupt, OSError, ValueError, zipfile.BadZipFile, msgspec.MsgspecError)


def read_tensors(path: Path) -> Any:
    """Return the tensors of a file as nested dicts of read-only NumPy arrays.

    Those of a .safetensors file are mapped, not read. Nothing is ever unpickled.

    Raises:
        BadParams: it is no such file, is truncated, or holds what no leaf can be.
    """
    reader = {".safetensors": read_entries, ".npz": _read_npz}.get(path.suffix.lower())
    if reader is None:
        raise BadParams(f"{path}: expected a .safetensors or .npz file; convert it first")
    entries = reader(path)
    with naming(path):
        structure, names = nesting(entries, "/")
        return unflatten(structure, [entries[name] for name in names.values()])


def read_entries(path: Path, carriers: Mapping[str, str] | None = None) -> dict[str, Array]:
    """Return the entries of a .safetensors file as mapped, read-only arrays.

    Args:
        path: the file; it must not change while an array lives.
        carriers: the logical dtype of each entry that only carries one; see `dtypes`.

    Raises:
        BadParams: it is no such file, or is truncated.
    """
    with naming(path):
        buffer = _mapped(path)
        return {
            name: _array(buffer, entry, (carriers or {}).get(name))
            for name, entry in parse_header(buffer).items()
        }


def _array(buffer: memoryview, entry: Entry, dtype: str | None) -> Array:
    stored = dtypes.stored_dtype(entry.dtype)
    assert stored is not None
    shape = entry.shape[:-1] if dtype == "complex128" else entry.shape
    return view(buffer, entry, dtype or stored.name, shape)


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _read_npz(path: Path) -> dict[str, Array]:
    with naming(path):
        # NumPy would take a .npy or a pickle for what it is, whatever its name, and would
        # not close the file of a damaged one.
        if path.exists() and not zipfile.is_zipfile(path):
            raise BadParams("this is no .npz file, or it is truncated")
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            _refuse_bomb(archive.zip.infolist())
            entries = {name: archive[name] for name in archive.files}
    for name, array in entries.items():
        with naming(f"{path}: {name!r}"):
            if not isinstance(array, np.ndarray):  # the bytes of any other file in the archive
                raise BadParams("is no array")
            dtypes.logical_dtype(array)
            array.flags.writeable = False
    return entries


def _refuse_bomb(records: Sequence[zipfile.ZipInfo]) -> None:
    """Raise BadParams if the arrays would take far more memory than the file; none is read yet."""
    held = sum(record.compress_size for record in records)
    claimed = sum(record.file_size for record in records)
    if claimed > MOST_EXPANSION * held + MOST_MORE_BYTES:
        raise BadParams(
            f"its {held:,} bytes claim to hold arrays of {claimed:,}; if they are good, save them "
            "anew with np.savez, which does not compress"
        )


def nesting(names: Iterable[str], separator: str) -> tuple[Any, dict[str, str]]:
    """Return the structure of the dicts that flat names stand for, and {path: name}.

    Paths are as those of leaves, and in the order of the structure's leaves.

    Raises:
        BadParams: a name stands for an array and for a dict too.
    """
    root: dict[str, Any] = {}
    for name in names:
        *above, last = name.split(separator)
        node = root
        for segment in above:
            node = node.setdefault(segment, {})
            if node == LEAF:
                raise _ambiguous(name)
        if last in node:
            raise _ambiguous(name)
        node[last] = LEAF
    by_path = {"/".join(map(key_text, name.split(separator))): name for name in names}
    return root, {path: by_path[path] for path in leaf_paths(root)}


def leaf_paths(structure: Any) -> list[str]:
    """Return the paths of the leaves of a structure, in order.

    Raises:
        Corrupt: it is no structure, or is nested too deep.
    """
    count_leaves(structure)  # refuses what would recurse without an end
    return list(_paths(structure, ()))


def _paths(structure: Any, above: tuple[str, ...]) -> Iterator[str]:
    node = open_node(structure)
    if node is None:
        yield "/".join(above)
        return
    for key, child in node.children:
        yield from _paths(child, (*above, key_text(key)))


def _ambiguous(name: str) -> BadParams:
    return BadParams(f"{name!r} lies under, or above, another array of the file; rename one")


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Let whatever is wrong inside with a foreign file be an error that names it: BadParams."""
    try:
        yield
    except (BadReference, NotFound) as error:
        raise type(error)(f"{what}: {error}") from error
    except FileNotFoundError as error:
        raise BadParams(f"{what}: there is no such file") from error
    except _BAD_FILE as error:
        # The file is not in a zoo, where fsck could look.
        reason = str(error).replace(_FSCK_HINT, ". Was it copied whole?")
        raise BadParams(f"{what}: {reason}") from error
    except (EOFError, KeyError, RuntimeError, TypeError, MemoryError, zlib.error) as error:
        raise BadParams(f"{what}: cannot be read ({type(error).__name__}: {error})") from error
