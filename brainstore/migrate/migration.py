"""A checkpoint -> the next version of a model. Nothing is saved unless everything fits."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import msgspec

from brainstore import pytree
from brainstore.errors import BadParams, Unsupported
from brainstore.manager import BrainManager
from brainstore.meta import BrainMeta
from brainstore.migrate.checkpoint import FLAX, Checkpoint, read_checkpoint
from brainstore.migrate.conversion import BATCH_STATS, PARAMS, convert
from brainstore.migrate.mapping import LayerMap, Source
from brainstore.migrate.report import (
    FILE,
    LayerReport,
    LeafReport,
    Report,
    SourceReport,
    leaf_report,
)
from brainstore.migrate.state import tensors_as_they_are
from brainstore.pytree.walk import walk

V2_NAME = "dial_encoder"

_MAX_SHOWN = 12


@dataclass(frozen=True)
class Migration:
    """A checkpoint, read and converted, and not saved yet.

    Attributes:
        source: the file, or the reference of a version, that it came from.
        params, groups: what `BrainManager.save` takes.
        report: what was read, made and left out; kept with the version.
        dims: input_dim, hidden_dim and output_dim, where linear layers tell them.
    """

    source: str
    params: Any
    report: Report
    groups: dict[str, Any] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)

    def save(
        self,
        manager: BrainManager,
        name: str,
        meta: BrainMeta | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Save it as the next version of `name`, with its report; return the full name.

        Args:
            meta: what is known about the brain. Dims that it lacks are taken from the
                layers, and `source_checkpoint` is the source unless it says otherwise.
            options: as for `BrainManager.save`.

        Raises:
            As `BrainManager.save`; nothing is visible then.
        """
        given = BrainMeta.of(meta)
        known = {"source_checkpoint": self.source, **self.dims}
        fields = {key: value for key, value in known.items() if not getattr(given, key)}
        files = {**(options.pop("files", None) or {}), FILE: self.report.encode()}
        groups = {**self.groups, **(options.pop("groups", None) or {})}
        return manager.save(
            name, self.params, meta, groups=groups, files=files, **{**fields, **options}
        )


def migrate(
    path: str | os.PathLike[str],
    *,
    mapping: Source | LayerMap | None = None,
    target: Any = None,
    as_is: bool = False,
) -> Migration:
    """Return what a checkpoint file becomes; `.save` makes it a version.

    Needs no torch, and runs nothing that is in the file. A file of torch, or a .safetensors
    file with torch's names, is converted as `convert_torch_to_flax` does. Flax's msgpack, or
    a .safetensors file with Flax's names, is taken as it is: its `params`, and each other
    collection as a group.

    Args:
        path: the file; it must not change until it is saved.
        mapping, target: as for `convert_torch_to_flax`.
        as_is: keep all tensors under their own names, unconverted. Such a version may be
            converted later, by `migrate_version`.

    Raises:
        BadParams: the file is damaged, is no checkpoint, asks for what no checkpoint needs,
            or does not fit the map or the target. All problems of a map are listed.
        Unsupported: the file is of a kind that must be converted first.
    """
    layers = LayerMap.of(mapping)
    checkpoint = read_checkpoint(path)
    try:
        if as_is:
            found = _as_is(checkpoint, layers, target)
        elif checkpoint.kind == FLAX:
            found = _as_flax(checkpoint, layers, target)
        else:
            found = _converted(os.fspath(path), checkpoint, layers, target)
    except (BadParams, Unsupported) as error:
        raise type(error)(f"{checkpoint.path}: {error}") from error
    return _with_source(
        found,
        SourceReport(
            path=found.source,
            kind=checkpoint.kind,
            size_bytes=checkpoint.size_bytes,
            digest=str(checkpoint.digest),
        ),
    )


def migrate_version(
    manager: BrainManager,
    ref: str,
    *,
    mapping: Source | LayerMap | None = None,
    target: Any = None,
) -> Migration:
    """Return what a version that was migrated as is becomes, once there is a map for it.

    The saved result has that version as its parent. Arguments and errors as for `migrate`,
    and as for `BrainManager.load`.
    """
    layers = LayerMap.of(mapping)
    version = manager.resolve(ref)
    tensors, _ = manager.load(f"{version}@{version.digest}", as_numpy=True)
    try:
        found = _converted(f"{version}@{version.digest}", tensors, layers, target)
    except (BadParams, Unsupported) as error:
        raise type(error)(f"{version}: {error}") from error
    size_bytes = manager.manifest(ref).size_bytes
    return _with_source(
        found,
        SourceReport(
            path=str(version), kind="version", size_bytes=size_bytes, digest=str(version.digest)
        ),
    )


def shapes_of(manager: BrainManager, ref: str) -> Any:
    """Return the shapes of a version, its batch statistics too, as a target; none is read.

    Raises:
        As `BrainManager.manifest`.
    """
    manifest = manager.manifest(ref)
    trees = {
        name: pytree.abstract(group.structure, group.leaves)
        for name, group in manifest.groups.items()
        if name in (PARAMS, BATCH_STATS)
    }
    params = trees.pop(PARAMS)
    return {**params, **trees} if isinstance(params, dict) and PARAMS in params else params


def _with_source(found: Migration, source: SourceReport) -> Migration:
    return replace(found, report=msgspec.structs.replace(found.report, source=source))


def migrate_v2_checkpoint(
    old_path: str | os.PathLike[str],
    manager: BrainManager,
    *,
    name: str = V2_NAME,
    mapping: Source | LayerMap | None = None,
    target: Any = None,
    **meta_fields: Any,
) -> str:
    """Save a V2 checkpoint of PyTorch as the next version of `name`; return its full name.

    Without map and target it is a stack of linear layers, such as the DIAL encoder's,
    8 → 64 → 36: they become `Dense_0`, `Dense_1`, …, and their widths the dims of the meta.

    Args:
        mapping, target: as for `convert_torch_to_flax`.
        meta_fields: fields of BrainMeta; those that are not given tell where it came from.

    Raises:
        As `migrate` and `BrainManager.save`; nothing is saved then.
    """
    known = {"brain_type": V2_NAME, "notes": "Migrated from V2 PyTorch", **meta_fields}
    return migrate(old_path, mapping=mapping, target=target).save(manager, name, known)


def _converted(source: str, state: Any, layers: LayerMap, target: Any) -> Migration:
    conversion = convert(state, layers, target)
    report = conversion.report
    return Migration(source, conversion.params, report, conversion.groups, _dims(report.layers))


def _dims(layers: list[LayerReport]) -> dict[str, int]:
    """Return the dims of a stack of linear layers, each as wide as the next one expects."""
    kernels = [
        leaf.shape
        for layer in layers
        if layer.rule == "linear"
        for leaf in layer.leaves
        if leaf.path.rpartition("/")[2] == "kernel"
    ]
    is_stack = all(one[1] == other[0] for one, other in pairwise(kernels))
    if not kernels or not is_stack:
        return {}
    hidden = {"hidden_dim": kernels[0][1]} if len(kernels) > 1 else {}
    return {"input_dim": kernels[0][0], **hidden, "output_dim": kernels[-1][1]}


def _as_is(checkpoint: Checkpoint, layers: LayerMap, target: Any) -> Migration:
    if layers != LayerMap() or target is not None:
        raise BadParams("as is means that nothing is converted; drop the map and the target")
    tensors, values = tensors_as_they_are(checkpoint.tree, checkpoint.size_bytes)
    report = _unconverted("as is", tensors)
    report = msgspec.structs.replace(report, aside=list(values), values=values)
    return Migration(os.fspath(checkpoint.path), tensors, report)


def _as_flax(checkpoint: Checkpoint, layers: LayerMap, target: Any) -> Migration:
    if layers != LayerMap():
        raise BadParams("the file has Flax's names and layouts already; it takes no map")
    tree = checkpoint.tree
    is_variables = isinstance(tree, dict) and PARAMS in tree
    params = {PARAMS: tree[PARAMS]} if is_variables else tree
    groups = {key: tree[key] for key in tree if key != PARAMS} if is_variables else {}
    report = _unconverted("flax", tree)
    _require_target(report.layers[0].leaves, target)
    return Migration(os.fspath(checkpoint.path), params, report, groups)


def _require_target(leaves: Sequence[LeafReport], target: Any) -> None:
    if target is None:
        return
    wanted = {path: list(leaf.shape) for path, leaf in walk(target, "target")[1]}
    found = {leaf.path: leaf.shape for leaf in leaves}
    wrong = [path for path in {**wanted, **found} if wanted.get(path) != found.get(path)]
    if wrong:
        shown = ", ".join(
            f"{path} (expected {wanted.get(path, 'none')}, found {found.get(path, 'none')})"
            for path in wrong[:_MAX_SHOWN]
        )
        raise BadParams(f"the file does not fit the target, at {len(wrong)} leaves: {shown}")


def _unconverted(how: str, tree: Any) -> Report:
    made = [leaf_report(path, leaf) for path, leaf in walk(tree, "file")[1]]
    return Report(
        how=how,
        layers=[LayerReport(torch={}, rule=how, flax="", options={}, leaves=made)],
        tensors_read=len(made),
        leaves_made=len(made),
        parameters=sum(math.prod(leaf.shape) for leaf in made),
    )
