"""What lets a version run, and be checked, without its network's code: program and golden.

Both go with a save, or are attached to a version that is there: manifests do not change,
so that makes the next version of its model, of the same params.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from brainstore import dtypes, programs, pytree
from brainstore.address import Digest
from brainstore.architecture import Apply, Params
from brainstore.blobs import Blob, Blobs, FileBlob
from brainstore.errors import BadParams
from brainstore.golden import GROUP, Golden
from brainstore.groups import PARAMS, Encoding, Placement, Reader
from brainstore.provenance import author, provenance
from brainstore.pytree.walk import walk
from brainstore.records import Group, Leaf, Manifest, Pin, StoredFile, now
from brainstore.verification import replayed
from brainstore.versions import Version
from brainstore.zoo import Zoo

EXPORTED = "exported"

Asked = Golden | bool | None
"""Golden behaviour as given; True: what the function does; False: none; None: see there."""

Groups = Mapping[str, Any]
Files = Mapping[str, Any]


def with_behaviour(
    groups: Groups,
    files: Files | None,
    input_dim: int,
    apply_fn: Apply | None,
    example_obs: Any,
    golden: Asked,
) -> tuple[Groups, Files | None]:
    """Return the groups and files of a save, with the program and golden behaviour asked for.

    Without `golden`, what the function does with `example_obs` is golden, if these have
    values.

    Raises:
        BadParams: `apply_fn` cannot be exported, does not fit the metadata, or does not
            give the golden outputs; or the arguments contradict each other.
    """
    _require_arguments(apply_fn, example_obs, golden)
    if isinstance(golden, Golden) and GROUP in groups:
        raise BadParams("golden: the group 'golden' is given as well; give one of them")
    if apply_fn is None:
        return _with_golden(groups, golden), files
    player = _Player(apply_fn, *_opened(groups[PARAMS]))
    if example_obs is None and isinstance(golden, Golden):
        example_obs = golden.inputs
    inputs = _batched(example_obs, input_dim)
    if golden is None:
        golden = GROUP not in groups and _has_values(inputs)
    files = {**(files or {}), **player.program(inputs, programs.PLATFORMS)}
    return _with_golden(groups, player.golden(inputs, golden)), files


def _with_golden(groups: Groups, golden: Asked) -> Groups:
    return {**groups, GROUP: golden.group()} if isinstance(golden, Golden) else groups


def attached(
    zoo: Zoo,
    ref: str,
    apply_fn: Apply,
    example_obs: Any,
    *,
    platforms: Sequence[str],
    golden: Asked,
) -> Version:
    """Commit the version with a program as the next one of its model; return that.

    Groups, files and metadata are those of the old version, blob for blob, which is the
    new one's parent. A program that was there is replaced. Without `golden`, the golden
    behaviour stays, and the function must show it.
    """
    version, manifest = zoo.registry.find(zoo.own_reference(ref), from_cache=True)
    if apply_fn is None or example_obs is None:
        raise BadParams("apply_fn and example_obs: both are needed to make a program")
    _require_arguments(apply_fn, example_obs, golden)
    reader = Reader(manifest, zoo.blobs, str(version), verify=False)
    trees = reader.read([PARAMS, *({GROUP} & manifest.groups.keys())], None, Placement())
    player = _Player(apply_fn, *_reopened(manifest.groups[PARAMS], trees[PARAMS]))
    inputs = _batched(example_obs, manifest.meta.get("input_dim", 0))
    files = player.program(inputs, platforms)
    if golden is None and GROUP in trees:
        player.require(Golden.of_group(trees[GROUP], str(version)))
    return _Successor(zoo, version, manifest, files, player.golden(inputs, golden)).commit()


def _require_arguments(apply_fn: object, example_obs: Any, golden: object) -> None:
    if apply_fn is not None and not callable(apply_fn):
        raise BadParams(
            "apply_fn: expected a function of params and observations, found "
            f"{type(apply_fn).__name__}"
        )
    if not isinstance(golden, Golden | bool | None):
        raise BadParams(f"golden: expected a Golden, True or False, found {type(golden).__name__}")
    if apply_fn is None and (example_obs is not None or golden is True):
        raise BadParams("example_obs and golden=True go with apply_fn, the function to call")
    if apply_fn is not None and example_obs is None and not isinstance(golden, Golden):
        raise BadParams("apply_fn: give example_obs as well, such as a batch of observations")


def _opened(params: Params) -> tuple[Any, dict[str, Any]]:
    """Return the structure and the leaves of params about to be saved."""
    structure, leaves = walk(params, PARAMS)
    return structure, dict(leaves)


def _reopened(group: Group, params: Params) -> tuple[Any, dict[str, Any]]:
    """Return the same of loaded params; their own order may be another than the manifest's."""
    found = dict(walk(params, PARAMS)[1])
    return group.structure, {leaf.path: found[leaf.path] for leaf in group.leaves}


@dataclass(frozen=True)
class _Player:
    """A function with the params that it is called with, in the form that `load` gives."""

    apply: Apply
    structure: Any
    leaves: Mapping[str, Any]

    @property
    def params(self) -> Params:
        return pytree.unflatten(self.structure, list(self.leaves.values()))

    def program(self, inputs: Any, platforms: Sequence[str]) -> dict[str, bytes]:
        specs = {path: _spec(leaf) for path, leaf in self.leaves.items()}
        return programs.export(self.apply, self.structure, specs, inputs, platforms)

    def golden(self, inputs: Any, asked: Asked) -> Golden | None:
        """Return the golden behaviour that was given, once it was shown, or what is done."""
        if isinstance(asked, Golden):
            self.require(asked)
            return asked
        if asked and not _has_values(inputs):
            raise BadParams("golden=True: example_obs has shapes only; give values to compute with")
        return Golden.of(self.apply, self.params, inputs) if asked else None

    def require(self, golden: Golden) -> None:
        """Raise BadParams unless the function gives the golden outputs."""
        checks = replayed(golden, self.apply, self.params)
        if off := [f"  {check.what}: {check.text}" for check in checks if not check.holds]:
            raise BadParams(
                "apply_fn does not give the golden outputs; nothing was saved:\n" + "\n".join(off)
            )


def _spec(leaf: Any) -> Any:
    array = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
    return programs.abstract(array, array.shape)


def _batched(example_obs: Any, input_dim: int) -> Any:
    """Return the inputs in dtypes that JAX has, led by a batch dimension.

    One array of one dimension is one observation.
    """
    import jax

    if isinstance(example_obs, list):
        example_obs = np.asarray(example_obs)
    inputs = jax.tree.map(_as_input, example_obs)
    if not hasattr(inputs, "shape"):
        return inputs
    if len(inputs.shape) == 1:
        inputs = _led(inputs)
    if len(inputs.shape) == 2 and input_dim not in (0, inputs.shape[1]):
        raise BadParams(
            f"example_obs: expected rows of {input_dim}, which is the input_dim of the brain, "
            f"found {inputs.dtype}{list(inputs.shape)}"
        )
    return inputs


def _led(obs: Any) -> Any:
    return programs.abstract(obs, (1, *obs.shape)) if _is_abstract(obs) else obs[None]


def _as_input(leaf: Any) -> Any:
    import jax

    if _is_abstract(leaf) or isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufcV":
        raise BadParams(f"example_obs: expected numbers, found an array of dtype {array.dtype}")
    return jax.numpy.asarray(array)


def _is_abstract(leaf: Any) -> bool:
    import jax

    return isinstance(leaf, jax.ShapeDtypeStruct)


def _has_values(inputs: Any) -> bool:
    import jax

    return not any(map(_is_abstract, jax.tree.leaves(inputs)))


class _Successor:
    """The next version of a model, of the same groups, with other files."""

    def __init__(
        self,
        zoo: Zoo,
        version: Version,
        manifest: Manifest,
        files: Mapping[str, bytes],
        golden: Golden | None,
    ) -> None:
        self._zoo = zoo
        self._version = version
        self._old = manifest
        self._files = {name: FileBlob(body) for name, body in files.items()}
        self._encoding = Encoding({} if golden is None else {GROUP: golden.group()})

    def commit(self) -> Version:
        groups = {**self._old.groups, **self._encoding.groups()}
        added = {
            name: StoredFile(blob=blob.digest, size_bytes=blob.size_bytes)
            for name, blob in self._files.items()
        }
        files = {**self._old.files, **added}
        bodies = [*self._kept(groups, files), *self._encoding.blobs, *self._files.values()]
        committed, _ = self._zoo.committer.commit(
            self._version.name, bodies, lambda: self._manifest(groups, files)
        )
        return committed

    def _kept(self, groups: Mapping[str, Group], files: Mapping[str, StoredFile]) -> list[Blob]:
        needed = {digest for group in groups.values() for x in group.leaves for digest in x.blobs()}
        needed |= {file.blob for file in files.values()}
        owner = str(self._version)
        return [
            _KeptBlob(self._zoo.blobs, digest, size_bytes, owner)
            for digest, size_bytes in self._old.blobs.items()
            if digest in needed
        ]

    def _manifest(self, groups: Mapping[str, Group], files: Mapping[str, StoredFile]) -> Manifest:
        old = self._version
        parent = Pin(name=old.name, version=old.version, digest=old.digest, relation=EXPORTED)
        added = self._encoding.size_bytes + sum(blob.size_bytes for blob in self._files.values())
        return msgspec.structs.replace(
            self._old,
            created_at=now(),
            by=author(),
            groups=dict(groups),
            files=dict(files),
            parents=(parent,),
            provenance=provenance(),
            size_bytes=self._old.size_bytes + added - self._replaced_bytes(),
        )

    def _replaced_bytes(self) -> int:
        files = sum(x.size_bytes for name, x in self._old.files.items() if name in self._files)
        groups = [self._old.groups[x] for x in self._encoding.groups() if x in self._old.groups]
        return files + sum(_nbytes(leaf) for group in groups for leaf in group.leaves)


def _nbytes(leaf: Leaf) -> int:
    return math.prod(leaf.shape) * dtypes.numpy_dtype(leaf.dtype).itemsize


@dataclass(frozen=True)
class _KeptBlob:
    """A blob that the zoo has already; read only if the store has to be given it again."""

    blobs: Blobs
    digest: Digest
    size_bytes: int
    owner: str

    def __iter__(self) -> Iterator[memoryview]:
        wanted = {self.digest: self.size_bytes}
        yield self.blobs.open(wanted, owner=self.owner, hashed=wanted)[self.digest]
