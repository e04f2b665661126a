"""Any other filesystem that fsspec knows: always read, written by one process at most."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from brainstore.errors import (
    AlreadyExists,
    BrainstoreError,
    Conflict,
    Corrupt,
    NotFound,
    ReadOnly,
    StoreUnavailable,
    Unsupported,
)
from brainstore.storage.base import (
    ABSENT,
    ANYTHING,
    Body,
    Expect,
    Object,
    Stat,
    Store,
    Token,
    pieces,
    size_bytes,
)
from brainstore.storage.disk import LEFTOVER_PREFIX, token_of

_LOCAL_PROTOCOLS = {"file", "local", "memory"}
_MODIFIED_AT = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class GenericStore(Store):
    """A folder of an fsspec filesystem.

    fsspec has no create-only write and no compare-and-swap, so no shared writing can
    be built on it. `single_writer=True` is the caller's promise that nobody else, no
    other process and no other machine, writes there: then a lock within this process
    decides what may be written. Should the promise be broken, writes get lost.

    New objects get a temporary name first, and are moved: whole for every reader where
    the filesystem moves files whole. They are as durable as it makes them.
    """

    def __init__(self, fs: Any, root: str, *, single_writer: bool = False) -> None:
        self._fs = fs
        self._root = str(fs._strip_protocol(root)).rstrip("/")
        self._single_writer = single_writer
        self._lock = threading.Lock()
        self.is_remote = not _LOCAL_PROTOCOLS.intersection(_protocols(fs))
        self.url = str(fs.unstrip_protocol(self._root))
        self.requests = Counter()

    def get(self, key: str) -> Object | None:
        with self._explained("read", key):
            try:
                body = bytes(self._fs.cat_file(self._path(key)))
            except (FileNotFoundError, IsADirectoryError):
                return None
        return Object(body, token_of(body))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        with self._explained("read", key):
            try:
                body = bytes(self._fs.cat_file(self._path(key), start=start, end=stop))
            except (FileNotFoundError, IsADirectoryError):
                raise NotFound(f"{self.url} has no object {key}") from None
        # An empty range says nothing about where the object ends.
        if len(body) != stop - start or (start == stop and self._fs.size(self._path(key)) < stop):
            raise Corrupt(
                f"{key} in {self.url} is too short: expected the bytes {start:,} to {stop:,}, "
                f"found {len(body):,} of them. Run: brainstore fsck"
            )
        return body

    def put(self, key: str, body: bytes | Body, *, expect: Token | Expect = ANYTHING) -> Token:
        self._require_single_writer(key)
        with self._lock, self._explained("write", key):
            self._check(key, body, expect)
            self._write(key, body)
        return token_of(body)

    def stat(self, key: str) -> Stat | None:
        with self._explained("read", key):
            try:
                self._fs.invalidate_cache()
                found = self._fs.info(self._path(key))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return self._stat(key, found) if found["type"] == "file" else None

    def list(self, prefix: str) -> Iterator[Stat]:
        for key, entry in self._found(prefix):
            if f"/{LEFTOVER_PREFIX}" not in f"/{key}":
                yield self._stat(key, entry)

    def _found(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._explained("list", prefix):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path(prefix).rstrip("/"), detail=True)
            except FileNotFoundError:
                return
        keyed = {path[len(self._root) + 1 :]: entry for path, entry in found.items()}
        yield from ((key, keyed[key]) for key in sorted(keyed) if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self._require_single_writer(key)
        with self._lock, self._explained("delete", key), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def leftovers(self) -> Iterator[Stat]:
        for key, entry in self._found(""):
            if key.rpartition("/")[2].startswith(LEFTOVER_PREFIX):
                yield self._stat(key, entry)

    def discard(self, leftover: Stat) -> None:
        if not leftover.key.rpartition("/")[2].startswith(LEFTOVER_PREFIX):
            super().discard(leftover)
        self.delete(leftover.key)

    def _path(self, key: str) -> str:
        if key and any(s in ("", ".", "..") for s in key.removesuffix("/").split("/")):
            raise NotFound(f"{key!r} is no key of {self.url}: expected names joined by '/'")
        return f"{self._root}/{key}"

    def _require_single_writer(self, key: str) -> None:
        if not self._single_writer:
            raise Unsupported(
                f"{self.url} cannot be shared by writers: {type(self._fs).__name__} has no "
                f"atomic create and swap, so {key} was not written. Use a local folder or S3; or, "
                "if nobody else ever writes there, pass single_writer=True."
            )

    def _check(self, key: str, body: bytes | Body, expect: Token | Expect) -> None:
        if expect is ANYTHING:
            return
        found = self.get(key)
        if expect is ABSENT:
            if found is not None and found.token != token_of(body):
                raise AlreadyExists(
                    f"{key} exists in {self.url}, with other bytes than the "
                    f"{size_bytes(body):,} to create; nothing was written"
                )
        elif found is None or found.token != expect:
            raise Conflict(
                f"{key} in {self.url} is {'gone' if found is None else 'in another state'}: "
                f"expected state {str(expect)[:12]}. Load again and retry."
            )

    def _write(self, key: str, body: bytes | Body) -> None:
        file = self._path(key)
        folder = file.rpartition("/")[0]
        temporary = f"{folder}/{LEFTOVER_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        self._fs.makedirs(folder, exist_ok=True)
        try:
            with self._fs.open(temporary, "wb") as opened:
                for piece in pieces(body):
                    opened.write(piece)
            self._check_length(key, temporary, body)
            self._fs.mv(temporary, file)
        except BaseException:
            with suppress(Exception):
                self._fs.rm_file(temporary)
            raise

    def _check_length(self, key: str, temporary: str, body: bytes | Body) -> None:
        found = self._fs.size(temporary)
        if found != size_bytes(body):
            raise Corrupt(
                f"{key}: expected {size_bytes(body):,} bytes, found {found:,} written to "
                f"{self.url}; nothing was stored. Save again."
            )

    def _stat(self, key: str, found: dict[str, Any]) -> Stat:
        return Stat(key, int(found["size"]), _modified_at(found))

    @contextmanager
    def _explained(self, action: str, key: str) -> Iterator[None]:
        """Turn what a filesystem of unknown make raises into errors that say what to do."""
        where = f"Cannot {action} {key or 'the keys'} in {self.url}"
        try:
            yield
        except BrainstoreError:
            raise
        except NotImplementedError as error:
            raise Unsupported(f"{where}: {type(self._fs).__name__} cannot do that.") from error
        except PermissionError as error:
            if action in ("write", "delete"):
                raise ReadOnly(f"{where}: {error}. Check who may write there.") from error
            raise StoreUnavailable(f"{where}: {error}. Check the credentials.") from error
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise StoreUnavailable(f"{where}: {reason}. Check the connection, retry.") from error


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _modified_at(found: dict[str, Any]) -> float:
    for name in _MODIFIED_AT:
        value = found.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    # Unknown counts as new: nobody must take an object for old that may not be.
    return time.time()
