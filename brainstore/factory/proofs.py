"""Whether a frozen expert is one: leaf by leaf, by digest.

The manifests tell which leaves are byte-identical to the expert's. Those are read from
this version and hashed again, so that a manifest which only claims a digest proves
nothing. A leaf whose elements are all the same, such as fresh zeros, is identical in any
two models and is no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from brainstore import pytree
from brainstore.address import Digest
from brainstore.dtypes import Array
from brainstore.errors import Corrupt, NotFound, Unsupported
from brainstore.groups import PARAMS, Reader
from brainstore.records import Group, Leaf, Manifest, Pin
from brainstore.tensors import Tensor
from brainstore.versions import Version
from brainstore.zoo import Zoo

BLOCK_BYTES = 1 << 22
SHOWN_PATHS = 8
_WRAPPER = f"{PARAMS}/"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The leaves of a subtree beside those of an expert, by their paths below it.

    `added` are leaves that the expert does not have, `missing` those that only it has.
    """

    identical: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def is_same(self) -> bool:
        return bool(self.identical) and not (self.changed or self.missing or self.added)

    def differences(self) -> str:
        """Return what differs, such as `changed a/kernel; missing b`; "" if nothing does."""
        found = {"changed": self.changed, "missing": self.missing, "added": self.added}
        return "; ".join(f"{word} {_listed(paths)}" for word, paths in found.items() if paths)


@dataclass(frozen=True, kw_only=True)
class Proof(Comparison):
    """What is known of one frozen expert.

    Attributes:
        path: the subtree of the params that is to be the expert.
        expert: the version that it is to be, as `name:3`, perhaps `name:3#subtree`.
        digest: of the expert's manifest, as it is pinned.
        is_resolved: whether the zoo has exactly that expert still. If not, nothing is
            compared.
        constant: which of the identical leaves are no evidence.
        problem: why the expert cannot be looked at.
    """

    path: str
    expert: str
    digest: str
    is_resolved: bool
    constant: tuple[str, ...] = ()
    problem: str = ""

    @property
    def is_proved(self) -> bool:
        """True when all leaves are identical, and one of them at least is evidence."""
        return self.is_resolved and self.is_same and len(self.constant) < len(self.identical)

    @property
    def verdict(self) -> str:
        """The result in a few words, such as `proved: 4 leaves identical`."""
        if self.problem:
            return self.problem
        if not self.is_same:
            return self.differences() or "no leaves"
        if not self.is_proved:
            return f"only constant leaves, which are no evidence: {_listed(self.constant)}"
        spare = f", {len(self.constant)} of them constant" if self.constant else ""
        return f"proved: {len(self.identical)} leaves identical{spare}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, with stable keys."""
        return {**asdict(self), "is_proved": self.is_proved, "verdict": self.verdict}

    def __str__(self) -> str:
        return f"{self.path} is {self.expert}: {self.verdict}"


def prove(zoo: Zoo, version: Version) -> list[Proof]:
    """Return a proof, or its failure, for each frozen expert that the version declares.

    Reads the leaves that both have, and only those.

    Raises:
        Corrupt: a leaf of this version is not what its digest says.
    """
    manifest = zoo.registry.manifest(version)
    experts = sorted(manifest.frozen_experts.items())
    return [_proof(zoo, version, manifest, path, pin) for path, pin in experts]


Forms = Mapping[str, tuple[str, Digest]]
"""Leaves by their paths: what two that are equal have in common, dtype and digest."""


def compare(leaves: Forms, expert: Manifest, part: str) -> Comparison:
    """Compare leaves with the params of an expert, or with a part of them.

    The paths are those of `leaves`. The outer `params` of linen makes no difference where
    one side has it, around all of its leaves, and the other has not.

    Raises:
        NotFound: the expert has no such part.
    """
    theirs = leaf_forms(_params(expert), part)
    if _is_wrapped(theirs) and not _is_wrapped(leaves):
        theirs = {path.removeprefix(_WRAPPER): form for path, form in theirs.items()}
    elif _is_wrapped(leaves) and not _is_wrapped(theirs):
        theirs = {_WRAPPER + path: form for path, form in theirs.items()}
    both = sorted(leaves.keys() & theirs.keys())
    return Comparison(
        identical=tuple(path for path in both if leaves[path] == theirs[path]),
        changed=tuple(path for path in both if leaves[path] != theirs[path]),
        missing=tuple(sorted(theirs.keys() - leaves.keys())),
        added=tuple(sorted(leaves.keys() - theirs.keys())),
    )


def _is_wrapped(leaves: Forms) -> bool:
    return all(path.startswith(_WRAPPER) for path in leaves)


def leaf_forms(params: Group, path: str) -> Forms:
    """Return dtype and digest of the leaves of a subtree. Errors as for `subtree_leaves`."""
    return {where: (leaf.dtype, leaf.digest) for where, leaf in _below(params, path).items()}


def subtree_leaves(manifest: Manifest, path: str) -> dict[str, Leaf]:
    """Return the leaves of a part of the params, by their paths below it; "" is all.

    Raises:
        NotFound: there is no such part.
    """
    return _below(_params(manifest), path)


def _params(manifest: Manifest) -> Group:
    if PARAMS not in manifest.groups:
        raise NotFound(f"{manifest.name}:{manifest.version} has no params")
    return manifest.groups[PARAMS]


def _below(params: Group, path: str) -> dict[str, Leaf]:
    _, chosen = pytree.subtree(params.structure, path)
    length = len(path.strip("/"))
    return {leaf.path[length:].lstrip("/"): leaf for leaf in params.leaves[chosen]}


def _proof(zoo: Zoo, version: Version, manifest: Manifest, path: str, pin: Pin) -> Proof:
    shown = f"{pin.name}:{pin.version}" + (f"#{pin.subtree}" if pin.subtree else "")
    known: dict[str, Any] = {"path": path, "expert": shown, "digest": pin.digest}
    try:
        expert = _resolved(zoo, pin)
    except (NotFound, Corrupt, Unsupported) as error:
        return Proof(**known, is_resolved=False, problem=str(error))
    try:
        leaves = subtree_leaves(manifest, path)
        found = compare(leaf_forms(_params(manifest), path), expert, pin.subtree or "")
    except (NotFound, Corrupt) as error:
        return Proof(**known, is_resolved=True, problem=str(error))
    constant = _constant(zoo, version, manifest, {x: leaves[x] for x in found.identical})
    return Proof(**known, **vars(found), is_resolved=True, constant=constant)


def _resolved(zoo: Zoo, pin: Pin) -> Manifest:
    # From the store, and not from the cache: whether it is there still is the question.
    found, manifest = zoo.registry.by_number(pin.name, pin.version)
    if found.digest != pin.digest:
        raise NotFound(
            f"{found} is pinned as {pin.digest.short}…, and is {found.digest.short}… in {zoo.url}"
        )
    return manifest


def _constant(
    zoo: Zoo, version: Version, manifest: Manifest, leaves: Mapping[str, Leaf]
) -> tuple[str, ...]:
    """Return which of these leaves are constant, having hashed each."""
    by_digest = {(leaf.dtype, leaf.digest): leaf for leaf in leaves.values()}
    chosen = list(by_digest.values())
    reader = Reader(manifest, zoo.blobs, str(version), verify=False)
    constant = {
        key
        for (key, leaf), array in zip(by_digest.items(), reader.arrays(chosen), strict=True)
        if _is_constant(_hashed(version, leaf, array), leaf.shape)
    }
    return tuple(path for path, leaf in leaves.items() if (leaf.dtype, leaf.digest) in constant)


def _hashed(version: Version, leaf: Leaf, array: Array) -> Array:
    found = Tensor(leaf.dtype, tuple(leaf.shape), array).digest
    if found != leaf.digest:
        raise Corrupt(
            f"{version}: leaf {leaf.path!r} hashes to {found.short}…, and its manifest says "
            f"{leaf.digest.short}…. Run: brainstore fsck {version.name}"
        )
    return array


def _is_constant(array: Array, shape: Sequence[int]) -> bool:
    """True when all elements have the same bits, or there is one at most."""
    count = math.prod(shape)
    if count < 2:
        return True
    # Bits and not values: NaNs with different payloads differ, and so do 0.0 and -0.0.
    rows = np.ascontiguousarray(array).view(np.uint8).reshape(count, -1)
    step = max(1, BLOCK_BYTES // max(1, rows.shape[1]))
    return all(
        bool((rows[start : start + step] == rows[:1]).all()) for start in range(0, count, step)
    )


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(path or "(root)" for path in paths[:SHOWN_PATHS])
    return shown + (f" and {len(paths) - SHOWN_PATHS} more" if len(paths) > SHOWN_PATHS else "")
