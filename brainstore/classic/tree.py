"""A tree of plain files in the layout of the original brain manager, read and checked.

The layout is that of `brainstore.classic`. Of what the original wrote, only
`registry.json`, `params.safetensors` and perhaps `meta.json` are there. Its keys are
flat, and become nested dicts: by `/`, or by `.` where no key has a `/` and no array
would lie under another; otherwise they stay as they are. Only versions that the registry
lists are read, and nothing outside of the folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from brainstore import dtypes
from brainstore.address import LATEST, MARKER_KEY, Name, full_name, parse_version
from brainstore.classic.exporting import (
    EXPERTS,
    FILES,
    GROUP_NAME,
    LINEAGE,
    META,
    REGISTRY,
    REPORTS,
    SUFFIX,
)
from brainstore.classic.exporting import entry_name as entry_of
from brainstore.classic.tensorfile import leaf_paths, naming, nesting, read_entries
from brainstore.errors import BadParams, NotFound
from brainstore.groups import ALL, PARAMS
from brainstore.meta import BrainMeta, unmarked
from brainstore.pytree.placement import HostLeaf, place
from brainstore.pytree.structure import unflatten
from brainstore.quality import QualityReport
from brainstore.records import Pin

_log = logging.getLogger(__name__)

_META_FIELDS = frozenset(each.name for each in fields(BrainMeta))


class Trees(msgspec.Struct):
    """What our own export adds to `meta.json`, by group."""

    structure: dict[str, Any]
    carriers: dict[str, dict[str, str]] = {}
    scalars: dict[str, dict[str, str]] = {}


class Lineage(msgspec.Struct):
    station: str | None = None
    parents: tuple[Pin, ...] = ()
    frozen_experts: dict[str, Pin] = {}


@dataclass(frozen=True)
class Reported:
    """A report that our own export wrote, and whether it came with the save."""

    report: QualityReport
    came_with_save: bool


@dataclass(frozen=True)
class Found:
    """One version of the tree, checked. Its arrays are mapped when asked for, not before.

    `digest` is that of the manifest that was exported; None for what the original wrote.
    """

    name: Name
    version: int
    meta: BrainMeta
    digest: str | None
    trees: Trees
    lineage: Lineage
    reports: tuple[Reported, ...]
    files: dict[str, Path]
    groups: dict[str, Path]

    @property
    def full_name(self) -> str:
        return full_name(self.name, self.version)

    def leaves(self) -> dict[str, tuple[Any, list[HostLeaf]]]:
        """Return structure and mapped leaves of each group.

        Raises:
            BadParams: a file is damaged, or does not hold the leaves that it should.
        """
        return {name: self._group(name) for name in [*self.groups, *self._empty()]}

    def values(self) -> dict[str, Any]:
        """Return the pytree of each group. Errors as for `leaves`."""
        return {
            name: unflatten(structure, [_value(leaf) for leaf in leaves])
            for name, (structure, leaves) in self.leaves().items()
        }

    def _empty(self) -> list[str]:
        return [name for name in self.trees.structure if name not in self.groups]

    def _group(self, name: str) -> tuple[Any, list[HostLeaf]]:
        carriers, scalars = self.trees.carriers.get(name, {}), self.trees.scalars.get(name, {})
        carried = {entry_of(path): dtype for path, dtype in carriers.items()}
        arrays = read_entries(self.groups[name], carried) if name in self.groups else {}
        with naming(self.groups.get(name, f"{self.full_name}, {name}")):
            structure, names = self._structure(name, list(arrays))
            return structure, [
                HostLeaf(path, carriers.get(path) or dtypes.logical_dtype(array), array, scalar)
                for path, entry in names.items()
                for array, scalar in [(arrays[entry], scalars.get(path))]
            ]

    def _structure(self, name: str, entries: list[str]) -> tuple[Any, dict[str, str]]:
        """Return the structure of a group, and the entry of each leaf by its path."""
        if name not in self.trees.structure:
            return _nested(entries)
        structure = self.trees.structure[name]
        names = {path: entry_of(path) for path in leaf_paths(structure)}
        if strays := sorted(set(names.values()).symmetric_difference(entries)):
            raise BadParams(
                f"{META} and the tensors disagree on {len(strays)} leaves, {strays[0]!r} for one"
            )
        return structure, names


def _nested(entries: list[str]) -> tuple[Any, dict[str, str]]:
    if not any("/" in name for name in entries):
        try:
            return nesting(entries, ".")
        except BadParams:
            pass
    return nesting(entries, "/")


def _value(leaf: HostLeaf) -> Any:
    is_key = dtypes.key_impl(leaf.dtype) is not None
    return place([leaf], as_numpy=not is_key)[0]


def read_tree(folder: Path) -> list[Found]:
    """Return the versions that `registry.json` lists, by name and number, each checked.

    Raises:
        NotFound, BadReference, BadParams: as for `import_zoo`.
    """
    if (folder / MARKER_KEY).exists():
        raise BadParams(f"{folder} is a zoo itself, with {MARKER_KEY}; run: brainstore pull")
    path = folder / REGISTRY
    if not path.is_file():
        there = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        found = ", ".join(there[:8]) or "nothing"
        raise NotFound(f"{folder}: expected {REGISTRY} and a folder for each model, found {found}")
    registry = _object(_inside(folder, path))
    models = registry.get("models")
    if not isinstance(models, dict):
        raise BadParams(f'{path}: expected {{"models": {{full name: metadata}}}}')
    versions = [_checked(folder, key, entry) for key, entry in models.items()]
    versions.sort(key=lambda version: (version.name, version.version))
    _warn_of_latest(registry.get(LATEST), versions)
    return versions


def _warn_of_latest(told: Any, versions: list[Found]) -> None:
    newest = {version.name: version.full_name for version in versions}
    for name, key in told.items() if isinstance(told, dict) else ():
        if newest.get(name, key) != key:
            _log.warning("latest of %s was %s; here it is the highest, %s", name, key, newest[name])


def _checked(folder: Path, key: str, entry: Any) -> Found:
    with naming(f"{folder / REGISTRY}: {key!a:.80}"):
        if not isinstance(entry, dict):
            raise BadParams(f"expected metadata, found {type(entry).__name__}")
        name, number = _name_of(key, entry)
    with naming(f"{folder}, {full_name(name, number)}"):
        version = _found(folder, name, number, entry)
        # Maps every array once, and lets go of it: what cannot be read is known now.
        if not version.leaves()[PARAMS][1]:
            raise BadParams(f"{PARAMS}{SUFFIX} holds no tensor")
        version.values()
        return version


def _name_of(key: str, entry: dict[str, Any]) -> tuple[Name, int]:
    name, found, number = key.rpartition("_v")
    if not found or not number.isdigit():
        name, number = key, str(entry.get("version"))
    return Name(name), parse_version(number)


def _found(folder: Path, name: Name, number: int, entry: dict[str, Any]) -> Found:
    place = _inside(folder, folder / name / f"v{number}")
    files = {path.name: path for path in sorted(place.iterdir())} if place.is_dir() else {}
    if f"{PARAMS}{SUFFIX}" not in files:
        raise NotFound(f"expected {place / f'{PARAMS}{SUFFIX}'}, found no such file")
    told = _object(_inside(folder, files[META])) if META in files else {}
    is_ours = str(told.get("digest")).startswith("blake3:") and "structure" in told
    groups = {path.stem: _inside(folder, path) for path in files.values() if path.suffix == SUFFIX}
    lineage = _object(_inside(folder, files[LINEAGE])) if is_ours and LINEAGE in files else {}
    reports = _reports(_inside(folder, files[REPORTS])) if is_ours and REPORTS in files else ()
    trees = msgspec.convert(told, Trees) if is_ours else Trees({})
    _check_names([*groups, *trees.structure])
    written_at = datetime.fromtimestamp(int(groups[PARAMS].stat().st_mtime), UTC)
    return Found(
        name=name,
        version=number,
        meta=_meta({**entry, **told}, written_at, is_ours=is_ours),
        digest=told["digest"] if is_ours else None,
        trees=trees,
        lineage=msgspec.convert(lineage, Lineage, dec_hook=lambda kind, text: kind(text)),
        reports=reports,
        files=_files(folder, place, is_ours=is_ours),
        groups=groups,
    )


def _check_names(groups: Sequence[str]) -> None:
    for name in groups:
        if not GROUP_NAME.fullmatch(name) or name == ALL:
            raise BadParams(f"{name}{SUFFIX}: no group can have this name; rename the file")


def _meta(told: dict[str, Any], written_at: datetime, *, is_ours: bool) -> BrainMeta:
    """Return the metadata; fields that brainstore does not have are kept in its config."""
    told = {key: unmarked(value) for key, value in told.items() if key not in ("name", "version")}
    for key in ("digest", *Trees.__struct_fields__) if is_ours else ():
        told.pop(key, None)
    known = {key: value for key, value in told.items() if key in _META_FIELDS and value is not None}
    known.setdefault("created_at", written_at)
    meta = BrainMeta(**known)
    own = {key: value for key, value in told.items() if key not in _META_FIELDS}
    return replace(meta, config={**own, **meta.config})


def _files(folder: Path, place: Path, *, is_ours: bool) -> dict[str, Path]:
    """Return what travels as files: of the original's, the records that are its own."""
    kept = {path: path.relative_to(place / FILES) for path in _below(place / FILES)}
    for name in () if is_ours else (REPORTS, LINEAGE, EXPERTS):
        kept.update({path: path.relative_to(place) for path in _below(place / name)})
    return {name.as_posix(): _inside(folder, path) for path, name in kept.items()}


def _reports(path: Path) -> tuple[Reported, ...]:
    with naming(path):
        told = _object(path).get("reports")
        if not isinstance(told, list) or not all(isinstance(each, dict) for each in told):
            raise BadParams('expected {"reports": [a report each]}')
        return tuple(map(_reported, told))


def _reported(told: dict[str, Any]) -> Reported:
    """Return one report; whether it passes follows from what it holds, and is not read."""
    known = {key: told[key] for key in QualityReport.__struct_fields__ if key in told}
    checks = known.get("checks", [])
    for check in checks if isinstance(checks, list) else ():
        if isinstance(check, dict):
            check.pop("is_passed", None)
    report = QualityReport.of({**known, "checks": checks})
    return Reported(report, told.get("came_with_save") is True)


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())


def _inside(folder: Path, path: Path) -> Path:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadParams(f"{path} is a link to {path.resolve()}, outside of {folder}")
    return path


def _object(path: Path) -> dict[str, Any]:
    with naming(path):
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise BadParams(f"expected a JSON object, found {type(found).__name__}")
        return found
