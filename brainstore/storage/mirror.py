"""A remote store whose records are kept on this machine, to be read when offline."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from brainstore import settings
from brainstore.address import BLOBS_PREFIX
from brainstore.errors import StoreUnavailable
from brainstore.storage.base import ANYTHING, Body, Expect, Object, Stat, Store, Token

_LISTING = ".listing.json"
_NO_TOKEN = Token("offline")
# Made here, by one thread: see `records.prepare`.
_STATS = msgspec.json.Decoder(list[Stat])


class MirroredStore(Store):
    """`inner`, and a copy of every small object that was read through it.

    While BRAINSTORE_OFFLINE is set, nothing reaches `inner`: reads are answered from
    `folder`, and what it lacks, like every write, is StoreUnavailable. Blobs are not
    mirrored; the cache holds them by digest.
    """

    def __init__(self, inner: Store, folder: Path) -> None:
        self._inner = inner
        self._folder = folder
        self.url = inner.url
        self.parallelism = inner.parallelism
        self.is_remote = inner.is_remote
        self.requests = inner.requests

    def get(self, key: str) -> Object | None:
        if settings.is_offline():
            return Object(self._remembered(key, self._place(key)), _NO_TOKEN)
        found = self._inner.get(key)
        if not key.startswith(BLOBS_PREFIX):
            self._remember(self._place(key), found.body if found else None)
        return found

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        self._require_online(key)
        return self._inner.get_range(key, start, stop)

    def put(self, key: str, body: bytes | Body, *, expect: Token | Expect = ANYTHING) -> Token:
        self._require_online(key)
        token = self._inner.put(key, body, expect=expect)
        if isinstance(body, bytes) and not key.startswith(BLOBS_PREFIX):
            self._remember(self._place(key), body)
        return token

    def stat(self, key: str) -> Stat | None:
        self._require_online(key)
        return self._inner.stat(key)

    def settle(self, key: str) -> Stat | None:
        self._require_online(key)
        return self._inner.settle(key)

    def list(self, prefix: str) -> Iterator[Stat]:
        if settings.is_offline():
            yield from self._listed(prefix)
            return
        found = list(self._inner.list(prefix))
        if not prefix.startswith(BLOBS_PREFIX):
            self._remember(self._listing(prefix), msgspec.json.encode(found))
            self._forget_all_but(prefix, {entry.key for entry in found})
        yield from found

    def delete(self, key: str) -> None:
        self._require_online(key)
        self._inner.delete(key)
        self._remember(self._place(key), None)

    def leftovers(self) -> Iterator[Stat]:
        self._require_online("")
        return self._inner.leftovers()

    def discard(self, leftover: Stat) -> None:
        self._require_online(leftover.key)
        self._inner.discard(leftover)

    def delete_all(self, keys: Sequence[str]) -> None:
        self._require_online(keys[0] if keys else "")
        self._inner.delete_all(keys)
        for key in keys:
            self._remember(self._place(key), None)

    def sole(self, prefix: str) -> AbstractContextManager[bool]:
        return self._inner.sole(prefix)

    def path(self, key: str) -> Path | None:
        return self._inner.path(key)

    def access(self) -> dict[str, str]:
        return self._inner.access()

    def open(self, key: str) -> int | None:
        return self._inner.open(key)

    def close(self) -> None:
        self._inner.close()

    def _require_online(self, key: str) -> None:
        if settings.is_offline():
            raise StoreUnavailable(
                f"{self.url}/{key}: BRAINSTORE_OFFLINE is set, and this needs the store itself. "
                "Unset it to go on"
            )

    def _place(self, key: str) -> Path | None:
        """Return where the copy of an object lies, or None if its key could lead elsewhere.

        A bucket may list any text as a key. None that brainstore makes has an empty
        segment, a backslash, or a segment that begins with a dot.
        """
        if "\\" in key or "\0" in key or any(s[:1] in ("", ".") for s in key.split("/")):
            return None
        return self._folder / key

    def _listing(self, prefix: str) -> Path | None:
        folder = self._place(prefix.removesuffix("/")) if prefix else self._folder
        return None if folder is None else folder / _LISTING

    def _listed(self, prefix: str) -> Iterator[Stat]:
        """Yield the last listing, and what this machine has written since."""
        body = self._remembered(prefix, self._listing(prefix))
        try:
            found = {stat.key: stat for stat in _STATS.decode(body)}
        except msgspec.MsgspecError:
            found = {}  # the machine lost power while it was written
        for key, path in self._copies(prefix):
            with contextlib.suppress(FileNotFoundError):  # another process forgot it
                kept = path.stat()
                found.setdefault(key, Stat(key, kept.st_size, kept.st_mtime))
        yield from (found[key] for key in sorted(found))

    def _copies(self, prefix: str) -> Iterator[tuple[str, Path]]:
        for path in (self._folder / prefix).rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(self._folder).as_posix(), path

    def _remembered(self, key: str, path: Path | None) -> bytes:
        try:
            if path is None:
                raise FileNotFoundError(key)
            return path.read_bytes()
        except OSError:
            raise StoreUnavailable(
                f"{self.url}/{key}: BRAINSTORE_OFFLINE is set, and the cache lacks this record. "
                "Read it once while online, or unset the variable"
            ) from None

    def _forget_all_but(self, prefix: str, keys: set[str]) -> None:
        with contextlib.suppress(OSError):
            for key, path in self._copies(prefix):
                if key not in keys:
                    path.unlink()

    def _remember(self, path: Path | None, body: bytes | None) -> None:
        if path is None:
            return
        # A machine without room for a copy still works online.
        with contextlib.suppress(OSError):
            if body is None:
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != body:
                path.parent.mkdir(parents=True, exist_ok=True)
                hidden = path.with_name(f".tmp-{secrets.token_hex(8)}")
                hidden.write_bytes(body)
                os.replace(hidden, path)
