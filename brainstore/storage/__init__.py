"""Where zoos live: `open_store` turns a path or a URL into a `Store`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from brainstore.errors import BadParams, StoreUnavailable, Unsupported
from brainstore.storage.base import Store

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["open_store"]

_PROTOCOL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]+)://(?P<rest>.*)", re.IGNORECASE)


def open_store(
    where: str | os.PathLike[str] | tuple[AbstractFileSystem, str] | Store,
    storage_options: Mapping[str, Any] | None = None,
    *,
    single_writer: bool = False,
) -> Store:
    """Return the store at `where`; nothing is read or written yet.

    Args:
        where: a path; a URL (`file://`, `memory://`, `s3://`, or any that fsspec
            knows); an fsspec filesystem with a path in it; or a store, given back.
        storage_options: for the filesystem of a URL, as everywhere in fsspec.
        single_writer: your promise that nobody else writes there; see `GenericStore`.

    Raises:
        Unsupported: a package for this kind of URL is not installed.
        BadParams: `where` or `storage_options` do not fit.
    """
    if isinstance(where, Store):
        return where
    if isinstance(where, tuple) and len(where) == 2:
        return _open_in_filesystem(*where, single_writer=single_writer)
    if not _is_path(where):
        raise BadParams(f"store {where!r}: expected a path, a URL or (filesystem, path)")
    found = _PROTOCOL.fullmatch(os.fspath(where))
    if found is None:
        return _open_folder(os.fspath(where))
    return _open_url(found["protocol"].lower(), found["rest"], storage_options, single_writer)


def _is_path(where: object) -> TypeGuard[str | os.PathLike[str]]:
    if not isinstance(where, (str, os.PathLike)):
        return False
    text = os.fspath(where)
    return isinstance(text, str) and text != "" and "\0" not in text


def _open_url(
    protocol: str, rest: str, options: Mapping[str, Any] | None, single_writer: bool
) -> Store:
    if protocol in ("file", "local"):
        return _open_folder(rest.removeprefix("localhost") or "/")
    if protocol == "memory":
        from brainstore.storage.memory import MemoryStore

        return MemoryStore(f"memory://{rest}")
    if protocol in ("s3", "s3a"):
        return _open_bucket(f"s3://{rest}", options)
    return _open_other(f"{protocol}://{rest}", options, single_writer)


def _open_folder(path: str) -> Store:
    from brainstore.storage.local import LocalStore

    if os.path.isfile(path):
        raise BadParams(f"{path} is a file; expected the folder of a zoo, or a place for one")
    return LocalStore(path)


def _open_bucket(url: str, options: Mapping[str, Any] | None) -> Store:
    try:
        from brainstore.storage.s3 import S3Store
    except ImportError as error:
        raise Unsupported(
            f"{url} needs s3fs, which is not installed ({error}). Run: pip install 'brainstore[s3]'"
        ) from error
    return S3Store(url, options)


def _open_other(url: str, options: Mapping[str, Any] | None, single_writer: bool) -> Store:
    from fsspec.core import url_to_fs

    from brainstore.storage.generic import GenericStore

    try:
        fs, path = url_to_fs(url, **dict(options or {}))
    except ImportError as error:
        raise Unsupported(f"{url}: {error}. Install that package, then try again.") from error
    except ValueError as error:
        raise BadParams(f"{url}: {error}. Check the URL.") from error
    except OSError as error:
        raise StoreUnavailable(f"{url}: {error}. Check the URL and the connection.") from error
    return GenericStore(fs, path, single_writer=single_writer)


def _open_in_filesystem(fs: AbstractFileSystem, path: str, *, single_writer: bool) -> Store:
    from fsspec.implementations.local import LocalFileSystem

    from brainstore.storage.generic import GenericStore

    if type(fs) is LocalFileSystem:
        return _open_folder(fs._strip_protocol(path))
    if "s3" in fs.protocol and type(fs).__module__.startswith("s3fs"):
        return _open_bucket(fs.unstrip_protocol(path), fs.storage_options)
    return GenericStore(fs, path, single_writer=single_writer)
