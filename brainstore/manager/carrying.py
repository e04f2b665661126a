"""Versions to and from other zoos and plain files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainstore.address import parse_reference
from brainstore.manager.saving import Saving
from brainstore.zoo import Where, Zoo, require_whole

if TYPE_CHECKING:
    from brainstore.sync import SyncReport


class Carrying(Saving):
    """Push and pull, export and import."""

    def push(
        self, target: Where | Carrying, refs: Sequence[str] = (), **options: Any
    ) -> SyncReport:
        """Copy versions of this zoo to another, verbatim; all of them if `refs` names none.

        Options and errors as for `brainstore.sync.sync`.
        """
        from brainstore.sync import sync

        with _opened(target) as other:
            return sync(self.zoo, other, refs, **options)

    def pull(
        self, source: Where | Carrying, refs: Sequence[str] = (), **options: Any
    ) -> SyncReport:
        """Copy versions of another zoo to this one. As `push`, the other way round."""
        from brainstore.sync import sync

        with _opened(source) as other:
            return sync(other, self.zoo, refs, **options)

    def export(self, ref: str, folder: str | os.PathLike[str]) -> Path:
        """Write one version into `folder` as the original laid it out; return its folder."""
        from brainstore.classic import export

        require_whole(parse_reference(ref))
        version, _, owner = self.zoo.find(ref)
        return export(owner, [version], Path(folder))[0]

    def export_all(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write every version, `registry.json` and `latest` links; return their folders."""
        from brainstore.classic import export

        keys = self.zoo.index(rows=False).versions()
        versions = [self.zoo.registry.by_number(*key)[0] for key in keys]
        return export(self.zoo, versions, Path(folder))

    def import_zoo(self, folder: str | os.PathLike[str]) -> list[str]:
        """Save every version of a tree that the original, or `export_all`, wrote.

        Everything is checked before anything is saved. A version keeps its number where
        that is the next one here; otherwise it is appended, and its old full name kept as
        a tag and as `config["imported_from"]`. What is here already is not saved again.

        Returns:
            The full name that each version has here, in the order of the tree.

        Raises:
            NotFound: there is no `registry.json`, or a version that it lists has no files.
            BadParams, BadReference: a version cannot be read, or a name is not good.
        """
        from brainstore.classic import import_zoo

        return import_zoo(self.zoo, Path(folder), self.save)

    def import_file(
        self, path: str | os.PathLike[str], name: str, meta: Any = None, **meta_fields: Any
    ) -> str:
        """Save the tensors of a .safetensors or .npz file as the next version of `name`."""
        from brainstore.classic import read_tensors

        meta_fields.setdefault("source_checkpoint", os.fspath(path))
        return self.save(name, read_tensors(Path(path)), meta, **meta_fields)


def _opened(where: Where | Carrying) -> contextlib.AbstractContextManager[Zoo]:
    """Return a context for the zoo at that place; one that was open before stays open."""
    return contextlib.nullcontext(where.zoo) if isinstance(where, Carrying) else Zoo(where)
