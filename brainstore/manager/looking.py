"""What a zoo holds, told from its records: nothing is loaded and nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from brainstore.address import LATEST, Alias, Name, full_name
from brainstore.errors import NotFound
from brainstore.records import Manifest
from brainstore.table import Row, best_row, matching, rows_of
from brainstore.versions import Version
from brainstore.zoo import Zoo

if TYPE_CHECKING:
    from brainstore.diff import Diff
    from brainstore.history import Happening


class Looking:
    """Names, versions, rows and records of one zoo."""

    zoo: Zoo

    def resolve(self, ref: str, version: int | str | None = None) -> Version:
        """Return name, version and manifest digest of what `ref` names, loading nothing."""
        return self.zoo.resolve(ref, version)

    def manifest(self, ref: str, version: int | str | None = None) -> Manifest:
        """Return the whole record of a version."""
        return self.zoo.find(ref, version)[1]

    def abstract(self, ref: str, version: int | str | None = None) -> Any:
        """Return the params' tree with a jax.ShapeDtypeStruct for each array; none is read."""
        from brainstore import pytree
        from brainstore.groups import PARAMS, Reader

        reference, owner = self.zoo.reference(ref, version)
        found, manifest = owner.registry.find(reference, from_cache=True)
        group = Reader(manifest, owner.blobs, str(found), verify=False).group(PARAMS)
        structure, chosen = pytree.subtree(group.structure, reference.subtree or "")
        return pytree.abstract(structure, group.leaves[chosen])

    def file(self, ref: str, name: str) -> bytes:
        """Return a file that was saved with the version, verified.

        Raises:
            NotFound: the version has no such file; those that it has are listed.
        """
        found, manifest, owner = self.zoo.find(ref)
        stored = manifest.files.get(name)
        if stored is None:
            raise NotFound(f"{found} has no file {name!r}; it has {sorted(manifest.files)}")
        wanted = {stored.blob: stored.size_bytes}
        return bytes(owner.blobs.open(wanted, owner=str(found), hashed=wanted)[stored.blob])

    def list_models(self) -> list[str]:
        """Return the full names of all versions, in the order of names and numbers."""
        return [full_name(*key) for key in self.zoo.index(rows=False).versions()]

    def get_latest(self, name: str) -> str | None:
        """Return the full name of the highest live version, or None if there is none."""
        found = self.zoo.registry.pointers.pointer(Name(name), Alias(LATEST))
        number = found[0].version if found else None
        return None if number is None else full_name(name, number)

    def table(
        self,
        name: str | None = None,
        where: Mapping[str, Any] | Callable[[Row], bool] | None = None,
    ) -> list[Row]:
        """Return a dict for each version, from the index alone; pandas.DataFrame takes them.

        Args:
            name: only this model.
            where: only rows with these values, such as {"brain_type": "ppo",
                "metrics.return": 7.2}, or only those for which a function is true.
        """
        return matching(rows_of(self.zoo.index(), None if name is None else Name(name)), where)

    def best(self, name: str, metric: str, mode: str = "max") -> Row | None:
        """Return the row of the version with the highest ("min": lowest) value of a metric.

        Versions that lack it, or have NaN, do not count; None if none is left.
        """
        return best_row(self.table(name), metric, mode)

    def aliases(self, name: str) -> dict[str, int]:
        """Return {alias: version} of a model, `latest` among them."""
        pointers = self.zoo.registry.pointers.all_of(Name(name))
        return {str(each.ref): each.version for each in pointers if each.version is not None}

    def history(self, name: str | None = None) -> list[Happening]:
        """Return who saved, deleted, restored and moved what, oldest first."""
        from brainstore.history import history

        return history(self.zoo.registry, None if name is None else Name(name))

    def diff(self, old: str, new: str) -> Diff:
        """Return what differs between two versions: metadata first, then leaf by leaf."""
        from brainstore.diff import diff

        return diff(self.zoo, old, new)
