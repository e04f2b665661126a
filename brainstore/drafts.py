"""What the caller of a save gave, checked and turned into the draft of a manifest."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brainstore.address import LATEST, Alias, Name
from brainstore.blobs import Blob, FileBlob
from brainstore.errors import BadParams, BadReference, BrainstoreError, NotFound
from brainstore.factory.proofs import compare, leaf_forms, subtree_leaves
from brainstore.factory.reports import identified
from brainstore.groups import PARAMS, Encoding
from brainstore.meta import BrainMeta
from brainstore.provenance import author, provenance
from brainstore.quality import QualityReport
from brainstore.records import Group, Manifest, Pin, StoredFile, now
from brainstore.zoo import Zoo

_log = logging.getLogger(__name__)

Parents = str | Sequence[str] | Mapping[str, str]
Files = Mapping[str, str | os.PathLike[str] | bytes]


class Draft:
    """A version about to be committed. Everything that can be wrong with it is found here."""

    def __init__(
        self,
        zoo: Zoo,
        name: Name,
        meta: BrainMeta,
        trees: Mapping[str, Any],
        parents: Parents,
        frozen_experts: Mapping[str, str] | None,
        files: Files | None,
        station: str | None = None,
        report: object = None,
    ) -> None:
        """Check and flatten; nothing is written. Errors as for `BrainManager.save`."""
        self._name = name
        self._meta = meta
        self._encoding = Encoding(trees)
        sources = _mapping("files", files)
        self._files = {name: _file_blob(name, source) for name, source in sources.items()}
        self._parents = _pins(zoo, parents, meta.source_checkpoint)
        experts = _mapping("frozen_experts", frozen_experts)
        for path in experts:
            self._encoding.require_subtree(path)
        found = {path: _expert(zoo, ref) for path, ref in experts.items()}
        self._experts = {path: pin for path, (pin, _) in found.items()}
        self._expert_manifests = {path: manifest for path, (_, manifest) in found.items()}
        self._report = None if report is None else identified(QualityReport.of(report))
        self._station = None if station is None else QualityReport(station).station

    @property
    def bodies(self) -> list[Blob]:
        return [*self._encoding.blobs, *self._files.values()]

    def manifest(self) -> Manifest:
        """Return the manifest, without what only the commit can know.

        Warns:
            UserWarning: a subtree is not the frozen expert that it is declared to be.
        """
        groups = self._encoding.groups()
        self._warn_of_changed_experts(groups[PARAMS])
        stored = {
            name: StoredFile(blob=blob.digest, size_bytes=blob.size_bytes)
            for name, blob in self._files.items()
        }
        return Manifest(
            name=self._name,
            version=0,
            write_id="",
            created_at=now(),
            by=author(),
            meta=self._meta.record(),
            groups=groups,
            parents=tuple(self._parents),
            frozen_experts=self._experts,
            station=self._station,
            report=self._report,
            files=stored,
            blobs={},
            provenance=provenance(),
            size_bytes=self._encoding.size_bytes + sum(each.size_bytes for each in stored.values()),
        )

    def _warn_of_changed_experts(self, params: Group) -> None:
        for path, expert in self._expert_manifests.items():
            pin = self._experts[path]
            leaves = leaf_forms(params, path)
            differences = compare(leaves, expert, pin.subtree or "").differences()
            if differences:
                warnings.warn(
                    f"frozen_experts: {path!r} is not {pin.name}:{pin.version} leaf by leaf: "
                    f"{differences}. It is saved, and will not be proved",
                    UserWarning,
                    stacklevel=5,
                )


def movable(alias: object) -> Alias:
    """Return an alias that people may move.

    Raises:
        BadReference: it does not parse, or is `latest`.
    """
    if alias == LATEST:
        raise BadReference("alias 'latest' is reserved: it always is the highest live version")
    return Alias(alias)  # type: ignore[arg-type]  # it checks


def named_meta(meta: BrainMeta, name: Name, fields: Mapping[str, Any]) -> BrainMeta:
    """Return a copy of `meta` with these fields, under this name.

    Warns:
        UserWarning: the meta has another name; it is kept as a tag.
    """
    known = {each.name for each in dataclasses.fields(BrainMeta)}
    if unknown := sorted(set(fields) - known):
        raise BadParams(
            f"save() has no argument, and meta no field {', '.join(unknown)}; put your own under "
            "config=, metrics= or tags="
        )
    merged = dataclasses.replace(meta, **fields)
    if merged.name and merged.name != name:
        warnings.warn(
            f"meta.name is {merged.name!r}, and the version is saved as {str(name)!r}; the former "
            "is kept as a tag",
            UserWarning,
            stacklevel=4,
        )
        merged.tags = [*merged.tags, merged.name]
    merged.name, merged.version = str(name), 0
    return merged


def trees_of(params: Any, groups: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all pytrees of a save by the name of their group."""
    if groups is not None and not isinstance(groups, Mapping):
        raise BadParams(f"groups: expected a dict of pytrees, found {type(groups).__name__}")
    if groups and PARAMS in groups:
        raise BadParams("groups: 'params' is the second argument of save; it is given twice")
    return {PARAMS: params, **(groups or {})}


def _file_blob(name: str, source: str | os.PathLike[str] | bytes) -> FileBlob:
    parts = Path(name).parts if isinstance(name, str) else ()
    if not parts or parts[0] == "/" or ".." in parts or not name.isprintable():
        raise BadParams(f"files: {name!r} cannot be the name of a file; use such as 'notes.md'")
    if not isinstance(source, bytes) and os.path.isdir(source):
        raise BadParams(f"files: {name!r}: {source} is a folder; name a file")
    try:
        return FileBlob(source if isinstance(source, bytes) else Path(source))
    except (BadParams, TypeError) as error:
        raise BadParams(f"files: {name!r}: {error}") from error


def _pins(zoo: Zoo, parents: Parents, source: str | None) -> list[Pin]:
    named = parents if isinstance(parents, Mapping) else dict.fromkeys(texts("parents", parents))
    pins = [_pin(zoo, ref, relation) for ref, relation in named.items()]
    found = _source_pin(zoo, source) if source else None
    known = {pin.digest for pin in pins}
    return pins if found is None or found.digest in known else [*pins, found]


def _pin(zoo: Zoo, ref: str, relation: str | None) -> Pin:
    version = zoo.resolve(ref)
    return Pin(name=version.name, version=version.version, digest=version.digest, relation=relation)


def _expert(zoo: Zoo, ref: str) -> tuple[Pin, Manifest]:
    """Return the pin of an expert, of which `#` may name a part, and its manifest."""
    reference, _ = zoo.reference(ref)
    version, manifest, _ = zoo.find(ref)
    subtree_leaves(manifest, reference.subtree or "")  # which it must have
    pin = Pin(
        name=version.name,
        version=version.version,
        digest=version.digest,
        subtree=reference.subtree,
    )
    return pin, manifest


def _source_pin(zoo: Zoo, source: str) -> Pin | None:
    """Return the pin of a source checkpoint, or None where it is a file or anything else."""
    if os.path.exists(source):
        return None
    try:
        # Most others are paths too. The error of `resolve` offers near names, which costs an index.
        reference, owner = zoo.reference(source)
        known = owner.registry.may_have(reference)
        return _pin(zoo, source, "source_checkpoint") if known else None
    except (BadReference, NotFound):
        return None
    except BrainstoreError as error:
        # It is free text; that another zoo cannot be asked must not stop a save.
        if "::" not in source:
            raise
        _log.warning("source_checkpoint %r is not recorded as a parent: %s", source, error)
        return None


def texts(argument: str, given: object) -> list[str]:
    """Return one text, or several, as a list; `argument` names it in the error."""
    if isinstance(given, str):
        return [given]
    found: list[Any] = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(each, str) for each in found):
        raise BadParams(f"{argument}: expected text, or a list of texts, found {given!r:.60}")
    return found


def _mapping(argument: str, given: object) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise BadParams(f"{argument}: expected a dict, found {type(given).__name__}")
    return given
