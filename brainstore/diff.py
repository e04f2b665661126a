"""What differs between two versions: metadata first, then containers, then leaf by leaf.

Equal digests mean equal arrays, so only leaves that changed, and kept their shape, are
read. Everything else is told by the manifests.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
import numpy as np

from brainstore import dtypes, pytree
from brainstore.dtypes import Array, Shape
from brainstore.errors import Corrupt
from brainstore.groups import PARAMS, Reader
from brainstore.meta import BrainMeta
from brainstore.pytree.structure import key_text, open_node, shown
from brainstore.records import Group, Leaf, Manifest
from brainstore.zoo import Zoo

BLOCK_ELEMENTS = 1 << 20

_IDENTITY = ("name", "version", "created_at")
_SIGNS = {"changed": "~", "added": "+", "removed": "-"}


@dataclass(frozen=True, kw_only=True)
class FieldChange:
    """A value that differs, by its path such as `metrics.return`; None where it is absent.

    `delta` is new - old where both are numbers. A path such as `params/layers (container)`
    tells of containers that changed around leaves: a list that became a tuple.
    """

    path: str
    old: Any
    new: Any
    delta: float | None = None


@dataclass(frozen=True, kw_only=True)
class LeafChange:
    """One leaf, by its path; that of another group than params starts with `opt_state:`.

    Attributes:
        status: "same", "changed", "added" or "removed".
        l2: length of new - old, and
        max_abs: its largest element by magnitude, and
        cosine: of the angle between old and new; all in float64, over the elements that
            are numbers in both. None where nothing can be computed: PRNG keys, other
            shapes, and the cosine with zero or infinity.
        nan: how many elements are NaN in one of the two and not in the other.
    """

    path: str
    status: str
    old_dtype: str | None = None
    old_shape: Shape | None = None
    new_dtype: str | None = None
    new_shape: Shape | None = None
    l2: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    nan: int = 0


@dataclass(frozen=True, kw_only=True)
class Diff:
    """What differs between the versions `old` and `new`. Prints as a short text."""

    old: str
    new: str
    fields: list[FieldChange]
    leaves: list[LeafChange]

    @property
    def is_same(self) -> bool:
        """True when no field and no leaf differs."""
        return not self.fields and all(leaf.status == "same" for leaf in self.leaves)

    def count(self, status: str) -> int:
        """Return how many leaves have this status."""
        return sum(leaf.status == status for leaf in self.leaves)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; numbers may be NaN or infinite."""
        return {**asdict(self), "is_same": self.is_same}

    def lines(self, most: int = 20) -> list[str]:
        """Return the text, with at most so many leaves: the biggest changes first."""
        changed = [leaf for leaf in self.leaves if leaf.status != "same"]
        changed.sort(key=_by_size)
        hidden = len(changed) - most
        return [
            f"{self.old} → {self.new}" + ": no difference" * self.is_same,
            *(f"  {_field_text(each)}" for each in self.fields),
            f"  {self._counts()}" + ":" * bool(changed),
            *(f"  {_leaf_text(leaf)}" for leaf in changed[:most]),
            *([f"  … and {hidden:,} more"] if hidden > 0 else []),
        ]

    def _counts(self) -> str:
        counts = {status: self.count(status) for status in ("same", *_SIGNS)}
        word = "leaf" if counts["same"] == 1 else "leaves"
        others = [f"{count:,} {status}" for status, count in list(counts.items())[1:] if count]
        return ", ".join([f"{counts['same']:,} {word} same", *others])

    def __str__(self) -> str:
        return "\n".join(self.lines())


def diff(zoo: Zoo, old_ref: str, new_ref: str) -> Diff:
    """Return what differs between two versions, of this zoo or of those that they name.

    With a subtree in a reference, such as `fused:1#experts/nav`, only that part of the
    params is compared, as a tree of its own. Name, number and time do not count as
    differences; parents, experts and files do.

    Raises:
        NotFound, BadReference: a reference names nothing, or does not parse.
        Corrupt: stored bytes are damaged.
    """
    with ExitStack() as opened:
        old, new = (_Side.of(zoo, ref, opened) for ref in (old_ref, new_ref))
        if old.subtree or new.subtree:
            old, new = old.narrowed(), new.narrowed()
        return Diff(
            old=old.text,
            new=new.text,
            fields=[*_fields(old.manifest, new.manifest), *_containers(old.groups, new.groups)],
            leaves=_leaves(old, new),
        )


@dataclass(frozen=True)
class _Side:
    text: str
    manifest: Manifest
    groups: Mapping[str, Group]
    zoo: Zoo
    subtree: str | None

    @classmethod
    def of(cls, zoo: Zoo, ref: str, opened: ExitStack) -> _Side:
        reference, owner = zoo.reference(ref)
        if owner is not zoo:
            opened.enter_context(owner)
        version, manifest = owner.registry.find(reference)
        where = f"{reference.zoo}::" if reference.zoo else ""
        part = f"#{reference.subtree}" if reference.subtree else ""
        text = f"{where}{version}{part}"
        return cls(text, manifest, manifest.groups, owner, reference.subtree)

    def narrowed(self) -> _Side:
        """Return the side with its params alone, and only the subtree of them."""
        group = self.groups[PARAMS]
        prefix = (self.subtree or "").strip("/")
        structure, chosen = pytree.subtree(group.structure, prefix)
        leaves = tuple(
            msgspec.structs.replace(leaf, path=leaf.path[len(prefix) :].lstrip("/"))
            for leaf in group.leaves[chosen]
        )
        return replace(self, groups={PARAMS: Group(structure=structure, leaves=leaves)})

    def leaves(self) -> dict[str, Leaf]:
        """Return the leaves by their path, params first."""
        names = sorted(self.groups, key=lambda name: (name != PARAMS, name))
        found = {
            _path(name, leaf.path): leaf for name in names for leaf in self.groups[name].leaves
        }
        if len(found) != sum(len(group.leaves) for group in self.groups.values()):
            raise Corrupt(f"{self.text}: two leaves have the same path. Run: brainstore fsck")
        return found

    def arrays(self, leaves: Sequence[Leaf]) -> list[Array]:
        owner = f"{self.manifest.name}:{self.manifest.version}"
        return Reader(self.manifest, self.zoo.blobs, owner, verify=False).arrays(leaves)


def _path(group: str, path: str) -> str:
    return path if group == PARAMS else f"{group}:{path}"


# Metadata


def _fields(old: Manifest, new: Manifest) -> list[FieldChange]:
    before, after = _values(old), _values(new)
    changes = [
        _field_change(path, before.get(path), after.get(path))
        for path in dict.fromkeys([*before, *after])
        if not _equal(before.get(path), after.get(path))
    ]
    return sorted(changes, key=lambda change: not change.path.startswith(("config", "metrics")))


def _values(manifest: Manifest) -> dict[str, Any]:
    meta = asdict(BrainMeta.of_manifest(manifest))
    experts = {path: f"{pin.name}:{pin.version}" for path, pin in manifest.frozen_experts.items()}
    record = {
        **{name: value for name, value in meta.items() if name not in _IDENTITY},
        "parents": [f"{pin.name}:{pin.version}" for pin in manifest.parents],
        "frozen_experts": experts,
        "files": {name: str(stored.blob) for name, stored in manifest.files.items()},
    }
    return dict(_flat(record, ""))


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        if isinstance(each, dict) and each:
            yield from _flat(each, f"{prefix}{key}.")
        elif each != {}:
            yield f"{prefix}{key}", each


def _equal(old: Any, new: Any) -> bool:
    # As text too: NaN is no change from NaN, in lists either.
    return old == new or json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def _field_change(path: str, old: Any, new: Any) -> FieldChange:
    numbers = all(type(value) in (int, float) for value in (old, new))
    return FieldChange(path=path, old=old, new=new, delta=new - old if numbers else None)


# Containers


def _containers(old: Mapping[str, Group], new: Mapping[str, Group]) -> list[FieldChange]:
    return [
        change
        for name in old
        if name in new
        for change in _container_changes(old[name].structure, new[name].structure, name)
    ]


def _container_changes(old: Any, new: Any, path: str) -> Iterator[FieldChange]:
    """Yield where both trees have a container, and of another kind."""
    before, after = open_node(old), open_node(new)
    if before is None or after is None:
        return
    kinds = before.cls or before.kind, after.cls or after.kind
    if kinds[0] != kinds[1]:
        yield FieldChange(path=f"{path} (container)", old=kinds[0], new=kinds[1])
    children = {key_text(key): child for key, child in after.children}
    for key, child in before.children:
        if key_text(key) in children:
            yield from _container_changes(child, children[key_text(key)], f"{path}/{key_text(key)}")


# Leaves


def _leaves(old: _Side, new: _Side) -> list[LeafChange]:
    before, after = old.leaves(), new.leaves()
    changes = {
        path: _leaf_change(path, before.get(path), after.get(path))
        for path in dict.fromkeys([*before, *after])
    }
    compared = [path for path, change in changes.items() if _is_comparable(change)]
    olds = old.arrays([before[path] for path in compared])
    news = new.arrays([after[path] for path in compared])
    for path, first, second in zip(compared, olds, news, strict=True):
        changes[path] = replace(changes[path], **_distances(first, second))
    return list(changes.values())


def _leaf_change(path: str, old: Leaf | None, new: Leaf | None) -> LeafChange:
    status = "changed"
    if old is None or new is None:
        status = "removed" if new is None else "added"
    elif (old.digest, old.dtype) == (new.digest, new.dtype):
        status = "same"
    return LeafChange(
        path=path,
        status=status,
        old_dtype=old.dtype if old else None,
        old_shape=tuple(old.shape) if old else None,
        new_dtype=new.dtype if new else None,
        new_shape=tuple(new.shape) if new else None,
    )


def _is_comparable(change: LeafChange) -> bool:
    kinds = [dtype and dtypes.key_impl(dtype) for dtype in (change.old_dtype, change.new_dtype)]
    return change.status == "changed" and change.old_shape == change.new_shape and not any(kinds)


def _distances(old: Array, new: Array) -> dict[str, Any]:
    """Return l2, max_abs, cosine and nan of two arrays of one shape, block by block."""
    squares = dot = old_squares = new_squares = largest = 0.0
    nan = 0
    # Infinities and overflows give infinite or no numbers, not warnings.
    with np.errstate(all="ignore"):
        for first, second in _blocks(old, new):
            step = np.where(first == second, 0, second - first)  # inf - inf is no number
            bad = np.isnan(first) | np.isnan(second)
            nan += int(np.count_nonzero(np.isnan(first) != np.isnan(second)))
            step, first, second = (np.where(bad, 0, each) for each in (step, first, second))
            largest = max(largest, float(np.max(np.abs(step), initial=0)))
            squares += _dot(step, step)
            dot += _dot(first, second)
            old_squares += _dot(first, first)
            new_squares += _dot(second, second)
    return {
        "l2": math.sqrt(squares),
        "max_abs": largest,
        "cosine": _cosine(dot, old_squares, new_squares),
        "nan": nan,
    }


def _blocks(old: Array, new: Array) -> Iterator[tuple[Array, Array]]:
    is_complex = "c" in (old.dtype.kind, new.dtype.kind)
    wide = np.complex128 if is_complex else np.float64
    first, second = old.reshape(-1), new.reshape(-1)
    for start in range(0, first.size, BLOCK_ELEMENTS):
        block = slice(start, start + BLOCK_ELEMENTS)
        yield first[block].astype(wide), second[block].astype(wide)


def _dot(first: Array, second: Array) -> float:
    return float(np.vdot(first, second).real)


def _cosine(dot: float, old_squares: float, new_squares: float) -> float | None:
    length = math.sqrt(old_squares) * math.sqrt(new_squares)
    if not 0 < length < math.inf or not math.isfinite(dot):
        return None
    return max(-1.0, min(1.0, dot / length))


# Text


def _by_size(leaf: LeafChange) -> tuple[bool, float, str]:
    """Changes of unknown size first, then the longest; what came and went after them."""
    moved = leaf.status != "changed"
    return moved, -(math.inf if leaf.l2 is None else leaf.l2), leaf.path


def _field_text(change: FieldChange) -> str:
    delta = "" if change.delta is None else f"  ({change.delta:+.4g})"
    return f"{change.path}  {_value_text(change.old)} → {_value_text(change.new)}{delta}"


def _value_text(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:.6g}" if isinstance(value, float) else reprlib.repr(value)


def _leaf_text(leaf: LeafChange) -> str:
    old, new = _kind(leaf.old_dtype, leaf.old_shape), _kind(leaf.new_dtype, leaf.new_shape)
    kind = old if old == new or not new else f"{old} → {new}" if old else new
    text = f"{_SIGNS[leaf.status]} {shown(leaf.path)}  {kind}"
    if leaf.l2 is not None:
        cosine = "" if leaf.cosine is None else f"  cosine {leaf.cosine:.6f}"
        text += f"  l2 {leaf.l2:.4g}  max {leaf.max_abs:.4g}{cosine}"
    return text + (f"  NaN at {leaf.nan:,}" if leaf.nan else "")


def _kind(dtype: str | None, shape: Shape | None) -> str:
    return "" if dtype is None else f"{dtype}[{','.join(map(str, shape or ()))}]"
