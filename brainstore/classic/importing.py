"""Plain files in the layout of the original brain manager -> versions of a zoo."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec

from brainstore.address import LATEST, Alias, Digest, Name, full_name, parse_reference
from brainstore.classic.exporting import LINEAGE
from brainstore.classic.tree import Found, read_tree
from brainstore.errors import BadParams, BadReference, NotFound
from brainstore.factory.reports import add_report, reports_on
from brainstore.groups import PARAMS
from brainstore.index import Row
from brainstore.meta import BrainMeta
from brainstore.pytree.placement import HostLeaf
from brainstore.quality import QualityReport
from brainstore.records import Manifest, Pin
from brainstore.tensors import Tensor
from brainstore.zoo import Zoo

_log = logging.getLogger(__name__)

IMPORTED_FROM = "imported_from"


def import_zoo(zoo: Zoo, folder: Path, save: Callable[..., str]) -> list[str]:
    """Save every version of the tree; return their full names here, in the tree's order.

    A version keeps its number where that is the next one of its model here. Otherwise it
    is appended, and its old full name kept as a tag and as `config["imported_from"]`. One
    that is here already, with equal params, groups and metadata, is not saved again. Reports
    in our own export that a version lacks here are filed on it. A pin of a version that is
    neither in the tree nor here is not made; `lineage.json` is then kept as a file.

    Args:
        save: `BrainManager.save`.

    Raises:
        NotFound: there is no such tree, or files of a listed version are missing.
        BadReference, BadParams: a name or version is not good, or cannot be read. As for
            NotFound, nothing was saved then.
    """
    versions = read_tree(folder)
    by_digest = {each.digest: each for each in versions if each.digest}
    origins = _origins(zoo.index().rows)
    names: dict[str, str] = {}
    for version in _in_order(versions, by_digest):
        here = _already_here(zoo, origins, version)
        pins = _Pins(zoo, by_digest, names)
        names[version.full_name] = here or save(**_arguments(zoo, version, pins))
        _add_reports(zoo, names[version.full_name], version)
    return [names[version.full_name] for version in versions]


@dataclass(frozen=True)
class _Pins:
    """Where the versions that others pin are now."""

    zoo: Zoo
    by_digest: Mapping[str, Found]
    names: Mapping[str, str]

    def reference(self, pin: Pin) -> str | None:
        if found := self.by_digest.get(pin.digest):
            return self.names[found.full_name]
        reference = f"{pin.name}:{pin.version}@{pin.digest}"
        try:
            self.zoo.resolve(reference)
        except NotFound:
            return None
        return reference

    def expert(self, pin: Pin) -> str | None:
        reference = self.reference(pin)
        return f"{reference}#{pin.subtree}" if reference and pin.subtree else reference

    def source(self, meta: BrainMeta) -> str | None:
        """Return the source checkpoint, under its name here if it came along."""
        key = _source_of(meta)
        return self.names.get(key, meta.source_checkpoint) if key else meta.source_checkpoint


def _in_order(versions: Sequence[Found], by_digest: Mapping[str, Found]) -> list[Found]:
    """Return the versions by number, and each after those that it is made from."""
    by_name = {version.full_name: version for version in versions}
    order: TopologicalSorter[str] = TopologicalSorter()
    newest: dict[Name, str] = {}
    for version in sorted(versions, key=lambda each: (each.name, each.version)):
        pins = [*version.lineage.parents, *version.lineage.frozen_experts.values()]
        needed = {by_digest[pin.digest].full_name for pin in pins if pin.digest in by_digest}
        if (source := _source_of(version.meta)) in by_name:
            needed.add(str(source))
        if version.name in newest:
            needed.add(newest[version.name])
        order.add(version.full_name, *sorted(needed - {version.full_name}))
        newest[version.name] = version.full_name
    try:
        return [by_name[key] for key in order.static_order()]
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise BadParams(f"these versions are made from each other: {circle}") from error


def _source_of(meta: BrainMeta) -> str | None:
    """Return the full name of the version that the source checkpoint names, if it does."""
    try:
        reference = parse_reference(meta.source_checkpoint)
    except BadReference:
        return None
    if reference.zoo or reference.version is None:
        return None
    return full_name(reference.name, reference.version)


def _arguments(zoo: Zoo, version: Found, pins: _Pins) -> dict[str, Any]:
    meta, files = replace(version.meta, source_checkpoint=pins.source(version.meta)), version.files
    if _next_number(zoo, version.name) != version.version:
        meta.config = {**meta.config, IMPORTED_FROM: version.full_name}
        meta.tags = list(dict.fromkeys([*meta.tags, version.full_name]))
    lineage = version.lineage
    parents = {pins.reference(pin): pin.relation for pin in lineage.parents}
    experts = {path: pins.expert(pin) for path, pin in lineage.frozen_experts.items()}
    own = next((each.report for each in version.reports if each.came_with_save), None)
    if None in parents or None in experts.values():
        _log.warning(
            "%s: a version that it pins is not here; see its %s", version.full_name, LINEAGE
        )
        files = {**files, LINEAGE: version.groups[PARAMS].with_name(LINEAGE)}
    values = version.values()
    return {
        "name": version.name,
        "params": values.pop(PARAMS),
        "meta": meta,
        "groups": values,
        "parents": {ref: relation for ref, relation in parents.items() if ref},
        "frozen_experts": {path: ref for path, ref in experts.items() if ref},
        "files": files,
        "station": lineage.station,
        "report": own,
    }


def _add_reports(zoo: Zoo, name: str, version: Found) -> None:
    """File the version's reports on the one of this full name, unless they are there."""
    if not version.reports:
        return
    here, manifest, _ = zoo.find(name)
    known = {_content(report) for report in reports_on(zoo, here, manifest)}
    for each in version.reports:
        if _content(each.report) not in known:
            add_report(zoo, zoo.own_reference(name), each.report)


def _content(report: QualityReport) -> str:
    """Return all of a report but its id, which is another in every zoo. NaN equals itself."""
    return repr(msgspec.structs.replace(report, id=""))


def _next_number(zoo: Zoo, name: Name) -> int:
    found = zoo.registry.pointers.pointer(name, Alias(LATEST))
    return found[0].newest + 1 if found else 1


Origins = Mapping[str, Sequence[tuple[Name, int]]]


def _origins(rows: Mapping[tuple[Name, int], Row]) -> Origins:
    """Return the versions here by each full name that they have, or were imported from."""
    found: dict[str, list[tuple[Name, int]]] = {}
    for key, row in rows.items():
        config = row.get("config")
        told = config.get(IMPORTED_FROM) if isinstance(config, dict) else None
        for origin in {full_name(*key), str(told)}:
            found.setdefault(origin, []).append(key)
    return found


def _already_here(zoo: Zoo, origins: Origins, version: Found) -> str | None:
    """Return the full name of a version that was made from this one, or it from."""
    for name, number in origins.get(version.full_name, ()):
        same_model = name == version.name
        if same_model and _is_same(version, zoo.registry.by_number(name, number)[1]):
            return full_name(name, number)
    return None


def _is_same(version: Found, manifest: Manifest) -> bool:
    metas = [
        _essence(meta, version.full_name)
        for meta in (version.meta, BrainMeta.of_manifest(manifest))
    ]
    if metas[0] != metas[1]:
        return False
    stored = {
        name: {leaf.path: (leaf.dtype, leaf.digest) for leaf in group.leaves}
        for name, group in manifest.groups.items()
    }
    return stored == {
        name: {leaf.path: (leaf.dtype, _digest(leaf)) for leaf in leaves}
        for name, (_, leaves) in version.leaves().items()
    }


def _essence(meta: BrainMeta, name: str) -> dict[str, Any]:
    """Return the metadata without what an import may change."""
    record = {**meta.record(), "source_checkpoint": None}
    config = {key: value for key, value in meta.config.items() if key != IMPORTED_FROM}
    tags = [tag for tag in meta.tags if tag != name]
    return {**record, "config": config, "tags": tags}


def _digest(leaf: HostLeaf) -> Digest:
    return Tensor(leaf.dtype, leaf.array.shape, leaf.array).digest
