"""Versions -> plain files."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import msgspec

from brainstore import dtypes
from brainstore.address import LATEST, MARKER_KEY, full_name, new_ulid
from brainstore.errors import BadParams, Conflict, Corrupt, ReadOnly, StoreUnavailable
from brainstore.factory.reports import reports_on
from brainstore.groups import Reader
from brainstore.meta import BrainMeta
from brainstore.quality import QualityReport, number_as_json
from brainstore.records import Group, Manifest, Pin
from brainstore.storage.disk import fsync_file
from brainstore.tensors import ALIGNMENT, Tensor, blob_of
from brainstore.versions import Version
from brainstore.zoo import Zoo

REGISTRY = "registry.json"
META = "meta.json"
LINEAGE = "lineage.json"
REPORTS = "quality_report.json"
EXPERTS = "frozen_experts"
FILES = "files"
SUFFIX = ".safetensors"

GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

_VERSION_FOLDER = re.compile(r"v([1-9]\d{0,17})")


def entry_name(path: str) -> str:
    """Return the entry of the leaf at a path: the path, but for a name that is reserved."""
    return "%5F_metadata__" if path == "__metadata__" else path


def export(zoo: Zoo, versions: Sequence[Version], folder: Path) -> list[Path]:
    """Write the versions into `folder` as plain files; return the folder of each.

    A version appears whole or not at all, and one that is there already stays, but for the
    reports filed on it since. They are verified, and written one after the other; then
    `registry.json` and the `latest` links. After a crash, exporting again completes the tree.

    Raises:
        Conflict: another version of that name and number is there.
        BadParams: `folder` is a zoo, or cannot take a model of that name.
        Corrupt, NotFound, StoreUnavailable: a version cannot be read.
        ReadOnly, StoreUnavailable: the folder cannot be written.
    """
    if (folder / MARKER_KEY).exists():
        raise BadParams(f"{folder} is a zoo itself; export into another folder")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        rows: dict[Version, Any] = {}
        for version in versions:
            manifest = zoo.registry.manifest(version)
            place = _place(folder, version)
            _export(zoo, version, manifest, place)
            _write_reports(zoo, version, manifest, place)
            rows[version] = _row(manifest)
        _write_registry(folder, rows)
        for name in dict.fromkeys(version.name for version in versions):
            _write_latest(folder / name)
    return [folder / version.name / f"v{version.version}" for version in versions]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise BadParams(f"{folder} is no folder; name another place ({error.strerror})") from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ReadOnly(f"{folder} cannot be written: {error}") from error
        raise StoreUnavailable(f"{folder} cannot be written: {error}. Export again") from error


def _place(folder: Path, version: Version) -> Path:
    """Return where the version goes; no link on the way may lead it elsewhere."""
    place = folder
    for segment in (*version.name.split("/"), f"v{version.version}"):
        place = place / segment
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise BadParams(
                f"{version} cannot be exported: {place} is no folder. Remove it, or export into "
                "another folder"
            )
    return place


def _export(zoo: Zoo, version: Version, manifest: Manifest, place: Path) -> None:
    if place.exists():
        _require_same(place, version)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{place.name}-{new_ulid()}")
    draft.mkdir()
    try:
        _write_version(zoo, version, manifest, draft)
        _rename(draft, place, version)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _rename(draft: Path, place: Path, version: Version) -> None:
    try:
        draft.rename(place)
    except OSError:
        if not place.exists():
            raise
        _require_same(place, version)  # somebody else was faster


def _require_same(place: Path, version: Version) -> None:
    try:
        found = json.loads((place / META).read_bytes())["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = None
    if found != version.digest:
        raise Conflict(
            f"{place} holds another {version} (digest {str(found)[:15]}, expected "
            f"{version.digest.short}…). Move it away, or export into another folder"
        )


def _write_version(zoo: Zoo, version: Version, manifest: Manifest, folder: Path) -> None:
    # meta.json last: a leaf or file that cannot be read is found before it.
    for name, group in manifest.groups.items():
        if not GROUP_NAME.fullmatch(name):
            raise Corrupt(f"{version}: {name!r:.80} cannot be a group. Run: brainstore fsck")
        _write_group(zoo, manifest, group, folder / f"{name}{SUFFIX}")
    _write_files(zoo, version, manifest, folder / FILES)
    experts = manifest.frozen_experts
    for path, pin in experts.items():
        told = _pin(pin)
        part = {"expert_subtree": told.pop("subtree")} if pin.subtree else {}
        where = {"subtree": path, **told, **part, "folder": f"{pin.name}/v{pin.version}"}
        _write_json(folder / EXPERTS / f"{quote(path, safe='')}.json", where)
    station = {"station": manifest.station} if manifest.station else {}
    lineage = {
        **station,
        "parents": [_pin(pin) for pin in manifest.parents],
        "frozen_experts": {path: _pin(pin) for path, pin in experts.items()},
    }
    _write_json(folder / LINEAGE, lineage)
    _write_json(folder / META, {**_row(manifest), "digest": version.digest, **_trees(manifest)})


def _write_reports(zoo: Zoo, version: Version, manifest: Manifest, folder: Path) -> None:
    """Write all reports on the version, if there are any and the file does not say so yet."""
    reports = [_report(each, manifest) for each in reports_on(zoo, version, manifest)]
    found = {"digest": str(version.digest), "reports": reports}
    path = folder / REPORTS
    if reports and (not path.exists() or path.read_bytes() != _json(found)):
        _replace(path, found)


def _report(report: QualityReport, manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(report, enc_hook=number_as_json)
    checks = [
        {**plain, "is_passed": check.is_passed}
        for plain, check in zip(found["checks"], report.checks, strict=True)
    ]
    return {
        **found,
        "checks": checks,
        "is_passed": report.is_passed,
        "came_with_save": manifest.report is not None and report.id == manifest.report.id,
    }


def _write_group(zoo: Zoo, manifest: Manifest, group: Group, path: Path) -> None:
    """Write the leaves as one safetensors file, each at a multiple of its item size."""
    if not group.leaves:
        return  # the structure tells all
    owner = f"{manifest.name}:{manifest.version}"
    arrays = Reader(manifest, zoo.blobs, owner, verify=True).arrays(group.leaves)
    entries = {
        entry_name(leaf.path): Tensor(leaf.dtype, tuple(leaf.shape), array)
        for leaf, array in zip(group.leaves, arrays, strict=True)
    }
    if len(entries) != len(arrays):
        raise Corrupt(f"{manifest.name}:{manifest.version}: two leaves have the same path")
    names = sorted(entries, key=lambda name: (*_alignment(entries[name]), name))
    _write(path, blob_of([entries[name] for name in names], names))


def _alignment(tensor: Tensor) -> tuple[bool, int]:
    """Return what orders entries so that each starts where its elements are aligned."""
    size = tensor.nbytes | ALIGNMENT
    return not tensor.is_large, -(size & -size)


def _write_files(zoo: Zoo, version: Version, manifest: Manifest, folder: Path) -> None:
    wanted = {stored.blob: stored.size_bytes for stored in manifest.files.values()}
    views = zoo.blobs.open(wanted, owner=str(version), hashed=wanted)
    for name, stored in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or re.search(r"[\\:]", name):
            raise Corrupt(f"{version}: {name!r:.80} cannot be a file's name here")
        _write(folder / path, [views[stored.blob]])


def _trees(manifest: Manifest) -> dict[str, Any]:
    """Return what restores the trees exactly: structures, carried dtypes, scalars."""
    carriers = {
        name: {leaf.path: leaf.dtype for leaf in group.leaves if _is_carried(leaf.dtype)}
        for name, group in manifest.groups.items()
    }
    scalars = {
        name: {leaf.path: leaf.scalar for leaf in group.leaves if leaf.scalar is not None}
        for name, group in manifest.groups.items()
    }
    return {
        "structure": {name: group.structure for name, group in manifest.groups.items()},
        "carriers": {name: found for name, found in carriers.items() if found},
        "scalars": {name: found for name, found in scalars.items() if found},
    }


def _is_carried(dtype: str) -> bool:
    stored = dtypes.stored_dtype(dtypes.carrier(dtype, ())[0])
    return stored is None or stored.name != dtype


def _row(manifest: Manifest) -> dict[str, Any]:
    meta = BrainMeta.of_manifest(manifest)
    return {"name": meta.name, "version": meta.version, **meta.record()}


def _pin(pin: Pin) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(pin, enc_hook=str)
    return found


def _write_registry(folder: Path, rows: Mapping[Version, Any]) -> None:
    registry = _read_registry(folder / REGISTRY)
    registry["models"].update({version.full_name: row for version, row in rows.items()})
    for name in dict.fromkeys(version.name for version in rows):
        registry["latest"][name] = full_name(name, _highest(folder / name))
    _replace(folder / REGISTRY, registry)


def _read_registry(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_bytes())
        return {"models": dict(found["models"]), "latest": dict(found.get("latest") or {})}
    except FileNotFoundError:
        return {"models": {}, "latest": {}}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadParams(
            f'{path} is not the registry of an exported zoo: expected {{"models": …}} ({error}). '
            "Export into another folder"
        ) from error


def _highest(folder: Path) -> int:
    folders = [found for found in folder.iterdir() if found.is_dir() and not found.is_symlink()]
    matches = (_VERSION_FOLDER.fullmatch(found.name) for found in folders)
    return max(int(match[1]) for match in matches if match)


def _write_latest(folder: Path) -> None:
    link, target = folder / LATEST, f"v{_highest(folder)}"
    draft = folder / f".{LATEST}-{new_ulid()}"
    if not link.is_symlink() and link.is_dir():  # a model of the name `…/latest`
        (folder / f"{LATEST}.txt").write_text(f"{target}\n")
        return
    try:
        draft.symlink_to(target, target_is_directory=True)
    except (OSError, NotImplementedError):
        (folder / f"{LATEST}.txt").write_text(f"{target}\n")
        return
    draft.replace(link)


def _replace(path: Path, value: Any) -> None:
    draft = path.with_name(f".{path.name}-{new_ulid()}")
    try:
        _write_json(draft, value)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _write_json(path: Path, value: Any) -> None:
    _write(path, [memoryview(_json(value))])


def _json(value: Any) -> bytes:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _write(path: Path, pieces: Iterable[memoryview]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # "x": two names that are one on this filesystem must not become one file.
    with path.open("xb") as stream:
        for piece in pieces:
            stream.write(piece)
        stream.flush()
        fsync_file(stream.fileno())
