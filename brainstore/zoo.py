"""One opened zoo: its store, cache, blobs, registry and committer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from brainstore import settings
from brainstore.address import Reference, parse_reference
from brainstore.blobs import Blobs
from brainstore.cache import Cache
from brainstore.commit import Committer
from brainstore.errors import BadReference, NoZoo
from brainstore.index import Index
from brainstore.provenance import author
from brainstore.records import Manifest
from brainstore.registry import Registry
from brainstore.storage import open_store
from brainstore.storage.base import Store
from brainstore.storage.mirror import MirroredStore
from brainstore.versions import Version

T = TypeVar("T")
R = TypeVar("R")
Where = str | os.PathLike[str] | tuple[Any, str] | Store


class Zoo:
    """The parts of a zoo that the rooms above share. Opening it sends no request."""

    def __init__(
        self,
        where: Where | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        single_writer: bool = False,
        cache: Cache | str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the zoo at `where`; arguments and errors as for `BrainManager`."""
        where = settings.zoo_url() if where is None else where
        self._options = storage_options
        self._neighbours: dict[str, Zoo] = {}
        store = open_store(where, storage_options, single_writer=single_writer)
        if isinstance(cache, str | os.PathLike):
            cache = Cache(Path(cache))
        self.cache = (cache or Cache()) if store.is_remote else None
        if self.cache is not None:
            store = MirroredStore(store, self.cache.zoo_folder(store.identity))
        self.store = store
        self.blobs = Blobs(store, self.cache)
        self.registry = Registry(store, self.cache, author())
        self.committer = Committer(self.registry, self.blobs)

    @property
    def url(self) -> str:
        return self.store.url

    def index(self, *, rows: bool = True) -> Index:
        """Return what exists; a place that nobody saved to yet is an empty zoo."""
        try:
            return self.registry.journal.index(rows=rows)
        except NoZoo:
            return Index()

    def in_parallel(self, call: Callable[[T], R], values: Sequence[T]) -> list[R]:
        """Return `call(value)` for each, as many at once as the store is good for."""
        if len(values) < 2:
            return [call(value) for value in values]
        with ThreadPoolExecutor(self.store.parallelism) as pool:
            return list(pool.map(call, values))

    def reference(self, ref: object, version: object = None) -> tuple[Reference, Zoo]:
        """Return the parsed reference, and the zoo that it names: this one, or another.

        Raises:
            BadReference: it does not parse, or `version` is no number and no alias.
        """
        if version is not None and not isinstance(version, str) and not _is_integer(version):
            raise BadReference(
                f"version: expected a number or an alias, found {type(version).__name__}; did you "
                "mean target=?"
            )
        reference = parse_reference(ref, version)
        if reference.zoo is None or reference.zoo == self.url:
            return reference, self
        neighbour = self._neighbour(reference.zoo)
        return reference, self if neighbour.url == self.url else neighbour

    def own_reference(self, ref: object) -> Reference:
        """Return the parsed reference, which must be one of this zoo."""
        reference, owner = self.reference(ref)
        if owner is not self:
            raise BadReference(f"'{reference}' is in another zoo; open that one to change it")
        require_whole(reference)
        return reference

    def resolve(self, ref: object, version: object = None) -> Version:
        """Return the version that `ref` names, in whichever zoo."""
        reference, owner = self.reference(ref, version)
        return owner.registry.resolve(reference)

    def find(self, ref: object, version: object = None) -> tuple[Version, Manifest, Zoo]:
        """Return the version that `ref` names, its manifest and its zoo."""
        reference, owner = self.reference(ref, version)
        return *owner.registry.find(reference, from_cache=True), owner

    def _neighbour(self, url: str) -> Zoo:
        """Return another zoo, opened once; one of the same kind is reached the same way."""
        if url not in self._neighbours:
            alike = url.partition("://")[0] == self.url.partition("://")[0]
            options = self._options if alike else None
            self._neighbours[url] = Zoo(url, storage_options=options, cache=self.cache)
        return self._neighbours[url]

    def close(self) -> None:
        """Finish what runs in the background, and let go of connections."""
        for neighbour in self._neighbours.values():
            neighbour.close()
        self.committer.close()
        self.blobs.close()
        self.store.close()

    def __enter__(self) -> Zoo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_whole(reference: Reference) -> None:
    """Raise BadReference if it names only a part of the params."""
    if reference.subtree:
        raise BadReference(f"'{reference}': a whole version is meant here; drop '#' and the rest")


def _is_integer(value: object) -> bool:
    return hasattr(value, "__index__") and getattr(value, "ndim", 0) == 0
