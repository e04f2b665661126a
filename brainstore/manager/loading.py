"""Versions -> arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brainstore.errors import BadParams
from brainstore.manager.looking import Looking
from brainstore.meta import BrainMeta
from brainstore.records import Manifest

if TYPE_CHECKING:
    from brainstore.verification import Verification

ALL = "all"


class Loading(Looking):
    """Loading params and groups, and checking what they do."""

    def load(
        self,
        ref: str,
        version: int | str | None = None,
        *,
        target: Any = None,
        groups: str | Sequence[str] | None = None,
        device: Any = None,
        sharding: Any = None,
        dtype: Any = None,
        strict: bool = True,
        verify: bool = False,
        as_numpy: bool = False,
    ) -> tuple[Any, BrainMeta]:
        """Return `(params, meta)` of the version that `ref` names.

        Arrays of a zoo on disk, or of a remote one that is in the cache, are maps of the
        stored file, not copies. Without a target, built-in containers come back as they
        were saved, and other classes as plain dicts.

        Args:
            ref: such as ppo_swarm, ppo_swarm:3, ppo_swarm:prod, ppo_swarm:3#encoder, or
                s3://team/zoo::ppo_swarm.
            version: a number, or an alias, if `ref` has none.
            target: a pytree of arrays or jax.ShapeDtypeStruct; the result takes its
                structure, dtypes and shardings. With `groups`, a dict of targets.
            groups: names of groups, or "all": the result is then a dict of groups
                instead of params.
            device, sharding: where all arrays go; the default device otherwise.
            dtype: a floating dtype, to which floating leaves are converted.
            strict: False lets the target have leaves that are not stored (which keep
                their own value), and the version leaves that the target lacks.
            verify: hash all that is read; packs of leaves under 1 MiB always are.
            as_numpy: return read-only NumPy arrays, and do not touch a device.

        Raises:
            NotFound: no such zoo, model, version, alias, group or subtree; near names
                are offered.
            BadReference: `ref` or `version` does not parse, or both name a version.
            BadParams: the target does not fit; every leaf that does not is listed.
            Corrupt: stored bytes are damaged.
            StoreUnavailable: the store does not answer, or is offline and not cached.
        """
        from brainstore.groups import PARAMS, Placement, Reader

        reference, owner = self.zoo.reference(ref, version)
        found, manifest = owner.registry.find(reference, from_cache=True)
        reader = Reader(manifest, owner.blobs, str(found), verify=verify)
        placement = Placement(device=device, sharding=sharding, dtype=dtype, as_numpy=as_numpy)
        names = [PARAMS] if groups is None else _group_names(groups, manifest)
        if target is None:
            trees = reader.read(names, reference.subtree, placement)
        else:
            targets = {PARAMS: target} if groups is None else _targets(target, names)
            trees = reader.read_into(targets, reference.subtree, placement, strict=strict)
        result = trees[PARAMS] if groups is None else trees
        return result, BrainMeta.of_manifest(manifest)

    def load_into(self, module: Any, ref: str, version: int | str | None = None) -> BrainMeta:
        """Fill the variables of an nnx Module with those of the version; return its meta.

        Nothing is changed unless all of them fit. Errors as for `load`.
        """
        from flax import nnx

        if not isinstance(module, nnx.Module):
            raise BadParams(f"module: expected an nnx Module, found {type(module).__name__}")
        state, meta = self.load(ref, version, target=nnx.state(module))
        nnx.update(module, state)
        return meta

    def load_stacked(self, refs: Sequence[str], *, group: str = "params") -> Any:
        """Return the params of several versions as one tree, each leaf led by their axis [N].

        For a league under `jax.vmap`. They are compared before anything is read.

        Args:
            refs: the versions, in the order of the axis.
            group: another group to stack instead, such as obs_norm.

        Raises:
            BadParams: structures, shapes or dtypes differ; all that differs is listed.
        """
        from brainstore.league import stacked

        return stacked(self.zoo, refs, group)

    def verify(
        self, ref: str, network_class: Callable[..., Any] | None = None, **network_kwargs: Any
    ) -> Verification:
        """Replay a version's golden behaviour, prove its frozen experts; return what was found.

        With the network's class, built as `BrainInference` does, or without one with the
        program that was saved.

        Raises:
            NotFound: there is nothing to verify.
            BadParams: there is nothing to replay it with, or the class does not fit.
        """
        from brainstore.verification import verify

        return verify(self.zoo, ref, network_class, network_kwargs)


def _group_names(groups: str | Sequence[str], manifest: Manifest) -> list[str]:
    if groups == ALL:
        return list(manifest.groups)
    if isinstance(groups, str):
        return [groups]
    if not isinstance(groups, Iterable):
        raise BadParams(f"groups: expected names, or 'all', found {type(groups).__name__}")
    return list(groups)


def _targets(target: Any, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(target, Mapping) or set(target) != set(names):
        raise BadParams(
            f"target: with groups={list(names)}, expected a dict with a target for each of them"
        )
    return dict(target)
