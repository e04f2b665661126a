"""What `show` tells of a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from brainstore.cli import render
from brainstore.cli.factory import plain_report, plain_rule
from brainstore.errors import Corrupt, Unsupported
from brainstore.meta import BrainMeta, unmarked

if TYPE_CHECKING:
    from brainstore.cli.app import Call
    from brainstore.manager import BrainManager
    from brainstore.quality import QualityReport
    from brainstore.records import Group, Manifest, Pin, Pointer
    from brainstore.versions import Version


def portrait(
    zoo: BrainManager, call: Call, version: Version, manifest: Manifest, *, leaves: bool
) -> dict[str, Any]:
    """Return all that is known of a version, as plain data with stable keys."""
    BrainMeta.of_manifest(manifest)  # refuses what could not be shown
    pointers = zoo.zoo.registry.pointers.all_of(version.name)
    naming = [pointer for pointer in pointers if pointer.version == version.version]
    reports, problem = _reports(zoo, version)
    return {
        "full_name": version.full_name,
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "zoo": zoo.zoo.url,
        "aliases": [pointer.ref for pointer in naming],
        "saved_at": manifest.created_at,
        "by": manifest.by,
        "meta": unmarked(manifest.meta),
        "groups": {
            name: _group(group, manifest, leaves=leaves) for name, group in manifest.groups.items()
        },
        "station": manifest.made_at,
        "reports": reports,
        "reports_problem": problem,
        "gates": {pointer.ref: gate for pointer in naming if (gate := _gate(pointer))},
        "parents": [_pin(pin) for pin in manifest.parents],
        "frozen_experts": {path: _pin(pin) for path, pin in manifest.frozen_experts.items()},
        "files": {name: file.size_bytes for name, file in manifest.files.items()},
        "size_bytes": manifest.size_bytes,
        "new_bytes": manifest.new_bytes,
        "blobs": len(manifest.blobs),
        "provenance": manifest.provenance,
        "python": python_lines(zoo, call, version),
    }


def python_lines(zoo: BrainManager, call: Call, version: Version) -> list[str]:
    """Return the lines of Python that load the version."""
    where = repr(call.zoo_url if zoo.zoo.url == call.open().zoo.url else zoo.zoo.url)
    # Of the options only the address is shown; the others may be secrets.
    if endpoint := call.storage_options.get("endpoint_url"):
        where += f", storage_options={ {'endpoint_url': endpoint}!r}"
    return [
        "from brainstore import BrainManager",
        f"params, meta = BrainManager({where}).load({str(version)!r})",
    ]


def print_portrait(found: Mapping[str, Any]) -> None:
    """Print a portrait for people."""
    click.secho(f"{found['name']}:{found['version']} in {found['zoo']}", bold=True)
    meta, made = found["meta"], dict(found["provenance"])
    commit, dirty = made.pop("git_commit", None), made.pop("git_dirty", False)
    fields: dict[str, str | list[str] | None] = {
        "digest": found["digest"],
        "aliases": ", ".join(found["aliases"]),
        "saved": f"{render.when(found['saved_at'])} UTC, {render.age(found['saved_at'])} ago, "
        f"by {found['by']}",
        "type": meta.get("brain_type"),
        "dims": render.dims(meta),
        "steps": f"{meta.get('training_steps', 0):,}",
        "metrics": _items(meta.get("metrics", {})),
        "config": _items(meta.get("config", {})),
        "network": _items(meta.get("network_kwargs", {})),
        "tags": ", ".join(meta.get("tags", [])),
        "notes": str(meta.get("notes", "")).splitlines(),
        "source": meta.get("source_checkpoint"),
        "station": found["station"],
        "reports": found["reports_problem"] or [report["text"] for report in found["reports"]],
        "gates": [f"{alias}: {gate['text']}" for alias, gate in found["gates"].items()],
        "parents": [_pin_text(pin) for pin in found["parents"]],
        "experts": [f"{path}: {_pin_text(pin)}" for path, pin in found["frozen_experts"].items()],
        "groups": [line for name, group in found["groups"].items() for line in _lines(name, group)],
        "files": [f"{name}, {render.size(size)}" for name, size in found["files"].items()],
        "size": f"{render.size(found['size_bytes'])} in {render.counted(found['blobs'], 'blob')}, "
        f"{render.size(found['new_bytes'])} of them new",
        "git": f"{commit}{', dirty' if dirty else ''}" if commit else None,
        "made with": ", ".join(f"{key} {value}" for key, value in made.items()),
        "load it": found["python"],
    }
    render.print_fields({key: text for key, text in fields.items() if text})


def _group(group: Group, manifest: Manifest, *, leaves: bool) -> dict[str, Any]:
    blobs = {blob for leaf in group.leaves for blob in leaf.blobs()}
    stored_bytes = sum(manifest.blobs.get(blob, 0) for blob in blobs)
    listed = [{"path": x.path, "dtype": x.dtype, "shape": x.shape} for x in group.leaves]
    return {
        "leaf_count": len(group.leaves),
        "stored_bytes": stored_bytes,
        **({"leaves": listed} if leaves else {}),
    }


def _pin(pin: Pin) -> dict[str, Any]:
    return {
        "name": pin.name,
        "version": pin.version,
        "digest": pin.digest,
        "relation": pin.relation,
        **({"subtree": pin.subtree} if pin.subtree else {}),
    }


def _reports(zoo: BrainManager, version: Version) -> tuple[list[dict[str, Any]], str | None]:
    """Return the reports on a version; or none, and why they cannot be read."""
    try:
        return [_report(report) for report in zoo.reports(f"{version}@{version.digest}")], None
    except (Corrupt, Unsupported) as error:
        return [], str(error)


def _report(report: QualityReport) -> dict[str, Any]:
    return {**plain_report(report), "text": f"{report}, {render.age(report.at)} ago"}


def _gate(pointer: Pointer) -> dict[str, Any] | None:
    """Return on what grounds the alias names its version, if a policy had a say."""
    gate = pointer.moves[-1].gate if pointer.moves else None
    if gate is None:
        return None
    return {
        "policy": gate.policy,
        "generation": gate.generation,
        "rules": list(map(plain_rule, gate.rules)),
        "reports": gate.reports,
        "is_forced": gate.is_forced,
        "text": str(gate),
    }


def _pin_text(pin: Mapping[str, Any]) -> str:
    relation = f" ({pin['relation']})" if pin["relation"] else ""
    part = f"#{pin['subtree']}" if pin.get("subtree") else ""
    return f"{pin['name']}:{pin['version']}{part}{relation}, {pin['digest'][:15]}…"


def _lines(name: str, group: Mapping[str, Any]) -> list[str]:
    count, stored = render.counted(group["leaf_count"], "leaf"), render.size(group["stored_bytes"])
    listed = [
        f"  {leaf['path'] or '(root)'}  {leaf['dtype']}  {list(leaf['shape'])}"
        for leaf in group.get("leaves", [])
    ]
    return [f"{name}: {count}, {stored}", *listed]


def _items(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {render.value(each)}" for key, each in found.items())
