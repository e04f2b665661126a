"""BrainManager: the zoo as Python sees it. It composes the other rooms and decides nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brainstore import marker
from brainstore.address import full_name, parse_reference
from brainstore.cache import Cache
from brainstore.errors import BadParams
from brainstore.manager.carrying import Carrying
from brainstore.manager.judging import Judging
from brainstore.manager.loading import Loading
from brainstore.meta import BrainMeta
from brainstore.records import Marker
from brainstore.table import html
from brainstore.zoo import Where, Zoo

__all__ = ["BrainManager", "load"]


class BrainManager(Carrying, Judging, Loading):
    """One zoo: a folder, a bucket, or any fsspec URL.

    Opening reads and writes nothing. The first save, or `init`, makes the place a zoo.
    May be used from many threads; other processes and machines may use the zoo at once.
    """

    def __init__(
        self,
        storage_dir: Where | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        single_writer: bool = False,
        cache: Cache | str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the zoo at `storage_dir`.

        Args:
            storage_dir: a path, a URL such as `s3://team/zoo`, or `(filesystem, path)`;
                else BRAINSTORE_ZOO, else `brains` in the current folder.
            storage_options: for the filesystem of a URL, as everywhere in fsspec.
            single_writer: your promise that only this process writes, for stores that
                do not decide conditional writes.
            cache: the folder where blobs of a remote zoo are kept; else BRAINSTORE_CACHE.

        Raises:
            BadParams, Unsupported: there can be no store at this place.
        """
        self.zoo = Zoo(
            storage_dir,
            storage_options=storage_options,
            single_writer=single_writer,
            cache=cache,
        )

    def init(self) -> Marker:
        """Make the place a zoo, if it is not one yet; return its format marker.

        Raises:
            Unsupported: the store ignores conditional writes, so no zoo can be shared there.
        """
        return marker.create(self.zoo.store)

    @property
    def storage_dir(self) -> Path | str:
        """Where the zoo is: a Path for a folder, a URL otherwise."""
        return self.zoo.store.path("") or self.zoo.url

    @property
    def registry(self) -> dict[str, Any]:
        """The index as plain data: metadata by full name, and the latest of each model."""
        index = self.zoo.index()
        return {
            "models": {full_name(*key): index.rows[key] for key in index.versions()},
            "latest": {str(name): full_name(name, number) for name, number in index.versions()},
        }

    def close(self) -> None:
        """Finish what runs in the background, and let go of connections."""
        self.zoo.close()

    def __enter__(self) -> BrainManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BrainManager({self.zoo.url!r})"

    def _repr_html_(self) -> str:
        return html(self.zoo.url, self.table())


def require_manager(manager: object) -> None:
    """Raise BadParams unless it is a BrainManager, and not the path of a zoo."""
    if not isinstance(manager, BrainManager):
        raise BadParams(
            f"manager: expected a BrainManager, found {type(manager).__name__}; open the zoo: "
            "BrainManager('brains/')"
        )


def load(ref: str, **options: Any) -> tuple[Any, BrainMeta]:
    """Return `(params, meta)` of a reference with its zoo: `s3://team/zoo::ppo_swarm:prod`.

    Without a zoo, that of BRAINSTORE_ZOO, or ./brains. Options and errors as for
    `BrainManager.load`; `storage_options` is for the zoo's filesystem.
    """
    storage_options = options.pop("storage_options", None)
    # Maps of what was loaded outlive the manager.
    with BrainManager(parse_reference(ref).zoo, storage_options=storage_options) as manager:
        return manager.load(ref.rpartition("::")[2], **options)
