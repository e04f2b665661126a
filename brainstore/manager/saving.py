"""Arrays -> the next version of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brainstore.address import Name
from brainstore.manager.changing import Changing
from brainstore.meta import BrainMeta

if TYPE_CHECKING:
    from brainstore.architecture import Apply
    from brainstore.drafts import Files, Parents
    from brainstore.golden import Golden
    from brainstore.quality import QualityReport


class Saving(Changing):
    """Committing versions."""

    def save(
        self,
        name: str,
        params: Any,
        meta: BrainMeta | Mapping[str, Any] | None = None,
        *,
        groups: Mapping[str, Any] | None = None,
        parents: Parents = (),
        frozen_experts: Mapping[str, str] | None = None,
        aliases: str | Iterable[str] = (),
        files: Files | None = None,
        station: str | None = None,
        report: QualityReport | Mapping[str, Any] | None = None,
        apply_fn: Apply | None = None,
        example_obs: Any = None,
        golden: Golden | bool | None = None,
        **meta_fields: Any,
    ) -> str:
        """Commit the next version of `name` and return its full name, such as ppo_swarm_v3.

        Atomic and durable once it returns: every later load and list, anywhere, sees the
        whole version. A save that raises has left nothing visible or a whole version; a
        note on the exception says which. Nothing of the caller's is changed, except
        that `meta.name` and `meta.version` are set.

        Args:
            name: the name of the model; it wins over `meta.name`, which is kept as a tag.
            params: any pytree of arrays and numbers, or an nnx Module (its state).
            meta: what is known about the brain; a BrainMeta, or a dict of its fields.
            groups: more pytrees by name, such as opt_state; loaded only when asked for.
            parents: what this was made from: references, or {reference: relation} with
                a relation such as "fine_tuned", "distilled", "fused". A
                `meta.source_checkpoint` that is a reference counts as one.
            frozen_experts: {subtree of params: reference} that this version contains; a
                reference with # means a part of the expert. `prove` tells whether it does.
            aliases: pointers, such as "prod", to move to the new version; none that the
                zoo's policy guards.
            files: small files to keep with it, by name: a path, or the bytes.
            station: which station of the factory made it.
            report: what a station found out about it, committed with it.
            apply_fn: the network as `apply_fn(params, obs)`, with params as `load` gives
                them: a program of it is kept, which runs without its code, on CPU, CUDA
                and TPU. See `attach_export` for one made later.
            example_obs: observations [B, …], or one [obs_dim], for the program's shapes;
                a tuple of arrays goes to `apply_fn` by position, a dict by keyword.
            golden: what the network must do for some inputs, for `verify`. By default
                what `apply_fn` does for `example_obs`; False: nothing.
            meta_fields: fields of BrainMeta, over those of `meta`.

        Raises:
            BadParams: params, groups, meta or files cannot be stored, or `apply_fn` cannot
                be exported; says which and why.
            BadReference: the name, an alias or a reference does not parse.
            NotFound: a parent or expert does not exist.
            GateFailed: an alias is guarded; nothing was saved.
            Conflict: others kept winning the next number; nothing was committed.
            ReadOnly, StoreUnavailable, Unsupported: the store would not have it.

        Warns:
            UserWarning: a subtree differs from its frozen expert; the leaves are named.
        """
        from brainstore.behaviour import with_behaviour
        from brainstore.commit import after_commit
        from brainstore.drafts import Draft, movable, named_meta, texts, trees_of
        from brainstore.factory.gates import refuse_guarded

        model, pointers = Name(name), [movable(alias) for alias in texts("aliases", aliases)]
        record = named_meta(BrainMeta.of(meta), model, meta_fields)
        trees, files = with_behaviour(
            trees_of(params, groups), files, record.input_dim, apply_fn, example_obs, golden
        )
        refuse_guarded(self.zoo, model, pointers)
        draft = Draft(
            self.zoo, model, record, trees, parents, frozen_experts, files, station, report
        )
        version, _ = self.zoo.committer.commit(model, draft.bodies, draft.manifest)
        if isinstance(meta, BrainMeta):
            meta.name, meta.version = str(version.name), version.version
        with after_commit(version):
            for alias in pointers:
                self._move(alias, version, why="set by the save")
        return version.full_name

    def attach_export(
        self,
        ref: str,
        apply_fn: Apply,
        example_obs: Any,
        *,
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
        golden: Golden | bool | None = None,
        aliases: str | Iterable[str] = (),
    ) -> str:
        """Commit the version with a program as the next one of its model; return its full name.

        It has the same params, groups and metadata, of which nothing is stored again, and
        `ref` as its parent, by the relation "exported". A program that was there is
        replaced, which renews one that JAX will not read any more.

        Args:
            ref: the version whose params `apply_fn` takes.
            apply_fn, example_obs: as for `save`; of BrainInference, `apply` will do.
            platforms: where the program is to run: some of cpu, cuda, rocm, tpu.
            golden: as for `save`; by default what was saved stays, and must be shown.
            aliases: pointers to move to the new version.

        Raises:
            BadParams: `apply_fn` cannot be exported, or does not show the golden
                behaviour; nothing was saved.
            GateFailed: an alias is guarded; nothing was saved.
        """
        from brainstore.behaviour import attached
        from brainstore.commit import after_commit
        from brainstore.drafts import movable, texts
        from brainstore.factory.gates import refuse_guarded

        pointers = [movable(alias) for alias in texts("aliases", aliases)]
        refuse_guarded(self.zoo, self.zoo.own_reference(ref).name, pointers)
        version = attached(self.zoo, ref, apply_fn, example_obs, platforms=platforms, golden=golden)
        with after_commit(version):
            for alias in pointers:
                self._move(alias, version, why="set by the export")
        return version.full_name
