"""BrainManager: the zoo as Python sees it. It composes the other rooms and decides nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainstore import deletion, marker
from brainstore.address import (
    LATEST,
    Alias,
    Name,
    Reference,
    full_name,
    parse_reference,
    parse_version,
)
from brainstore.cache import Cache
from brainstore.errors import BadParams, NotFound
from brainstore.meta import BrainMeta
from brainstore.records import Manifest, Marker, Policy
from brainstore.table import Row, best_row, html, matching, rows_of
from brainstore.versions import Version
from brainstore.zoo import Where, Zoo, require_whole

if TYPE_CHECKING:
    from brainstore.architecture import Apply
    from brainstore.diff import Diff
    from brainstore.drafts import Files, Parents
    from brainstore.factory.lineage import Lineage
    from brainstore.factory.policy import Rules
    from brainstore.factory.proofs import Proof
    from brainstore.golden import Golden
    from brainstore.history import Happening
    from brainstore.quality import QualityReport
    from brainstore.sync import SyncReport
    from brainstore.verification import Verification

ALL = "all"


class BrainManager:
    """One zoo: a folder, a bucket, or any fsspec URL.

    Opening reads and writes nothing. The first save, or `init`, makes the place a zoo.
    May be used from many threads; other processes and machines may use the zoo at once.
    """

    def __init__(
        self,
        storage_dir: Where | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        single_writer: bool = False,
        cache: Cache | str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the zoo at `storage_dir`.

        Args:
            storage_dir: a path, a URL such as `s3://team/zoo`, or `(filesystem, path)`;
                else BRAINSTORE_ZOO, else `brains` in the current folder.
            storage_options: for the filesystem of a URL, as everywhere in fsspec.
            single_writer: your promise that only this process writes, for stores that
                do not decide conditional writes.
            cache: the folder where blobs of a remote zoo are kept; else BRAINSTORE_CACHE.

        Raises:
            BadParams, Unsupported: there can be no store at this place.
        """
        self.zoo = Zoo(
            storage_dir,
            storage_options=storage_options,
            single_writer=single_writer,
            cache=cache,
        )

    def init(self) -> Marker:
        """Make the place a zoo, if it is not one yet; return its format marker.

        Raises:
            Unsupported: the store ignores conditional writes, so no zoo can be shared there.
        """
        return marker.create(self.zoo.store)

    # Saving and loading

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

    def abstract(self, ref: str, version: int | str | None = None) -> Any:
        """Return the params' tree with a jax.ShapeDtypeStruct for each array; none is read."""
        from brainstore import pytree
        from brainstore.groups import PARAMS, Reader

        reference, owner = self.zoo.reference(ref, version)
        found, manifest = owner.registry.find(reference, from_cache=True)
        group = Reader(manifest, owner.blobs, str(found), verify=False).group(PARAMS)
        structure, chosen = pytree.subtree(group.structure, reference.subtree or "")
        return pytree.abstract(structure, group.leaves[chosen])

    def resolve(self, ref: str, version: int | str | None = None) -> Version:
        """Return name, version and manifest digest of what `ref` names, loading nothing."""
        return self.zoo.resolve(ref, version)

    def manifest(self, ref: str, version: int | str | None = None) -> Manifest:
        """Return the whole record of a version."""
        return self.zoo.find(ref, version)[1]

    def file(self, ref: str, name: str) -> bytes:
        """Return a file that was saved with the version, verified.

        Raises:
            NotFound: the version has no such file; those that it has are listed.
        """
        found, manifest, owner = self.zoo.find(ref)
        stored = manifest.files.get(name)
        if stored is None:
            raise NotFound(f"{found} has no file {name!r}; it has {sorted(manifest.files)}")
        wanted = {stored.blob: stored.size_bytes}
        return bytes(owner.blobs.open(wanted, owner=str(found), hashed=wanted)[stored.blob])

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

    # Looking

    def list_models(self) -> list[str]:
        """Return the full names of all versions, in the order of names and numbers."""
        return [full_name(*key) for key in self.zoo.index(rows=False).versions()]

    def get_latest(self, name: str) -> str | None:
        """Return the full name of the highest live version, or None if there is none."""
        found = self.zoo.registry.pointers.pointer(Name(name), Alias(LATEST))
        number = found[0].version if found else None
        return None if number is None else full_name(name, number)

    def table(
        self,
        name: str | None = None,
        where: Mapping[str, Any] | Callable[[Row], bool] | None = None,
    ) -> list[Row]:
        """Return a dict for each version, from the index alone; pandas.DataFrame takes them.

        Args:
            name: only this model.
            where: only rows with these values, such as {"brain_type": "ppo",
                "metrics.return": 7.2}, or only those for which a function is true.
        """
        return matching(rows_of(self.zoo.index(), None if name is None else Name(name)), where)

    def best(self, name: str, metric: str, mode: str = "max") -> Row | None:
        """Return the row of the version with the highest ("min": lowest) value of a metric.

        Versions that lack it, or have NaN, do not count; None if none is left.
        """
        return best_row(self.table(name), metric, mode)

    def aliases(self, name: str) -> dict[str, int]:
        """Return {alias: version} of a model, `latest` among them."""
        pointers = self.zoo.registry.pointers.all_of(Name(name))
        return {str(each.ref): each.version for each in pointers if each.version is not None}

    def history(self, name: str | None = None) -> list[Happening]:
        """Return who saved, deleted, restored and moved what, oldest first."""
        from brainstore.history import history

        return history(self.zoo.registry, None if name is None else Name(name))

    def diff(self, old: str, new: str) -> Diff:
        """Return what differs between two versions: metadata first, then leaf by leaf."""
        from brainstore.diff import diff

        return diff(self.zoo, old, new)

    # Changing

    def alias(
        self,
        ref: str,
        alias: str,
        expected: int | None = None,
        *,
        why: str = "",
        force: bool = False,
    ) -> Version:
        """Make the alias name the version that `ref` names, atomically; return the version.

        Raises:
            Conflict: `expected` is given, and the alias names another version by now
                (0: names any).
            GateFailed: the zoo's policy guards the alias (unless `force`, which the move
                records), and the version was not promoted to it before.
        """
        from brainstore.drafts import movable
        from brainstore.factory.gates import hand_gate

        pointer = movable(alias)
        if expected is not None and (isinstance(expected, str) or expected != 0):
            expected = parse_version(expected)
        version = self.zoo.registry.resolve(self.zoo.own_reference(ref))
        gate = hand_gate(self.zoo, version, pointer, force=force)
        self._move(pointer, version, expected=expected, why=why, gate=gate)
        return version

    def unalias(self, name: str, alias: str) -> None:
        """Remove an alias. Its history stays in the zoo.

        Raises:
            NotFound: the model has no such alias.
        """
        from brainstore.drafts import movable

        model, pointer = Name(name), movable(alias)
        pointers = self.zoo.registry.pointers
        try:
            self.zoo.registry.resolve(Reference(model, alias=pointer))
        except NotFound:
            pointers.record_again(model, pointer)
            raise
        pointers.move_alias(model, pointer, None)
        self.zoo.committer.tidy()

    def rollback(self, name: str, alias: str, *, force: bool = False) -> Version:
        """Move an alias back to where it pointed before; return that version.

        Raises:
            GateFailed: as for `alias`.
        """
        current = self.resolve(f"{name}:{alias}")
        return self.alias(
            f"{name}:{alias}~1", alias, current.version, why="rolled back", force=force
        )

    def delete(self, ref: str, *, why: str = "", force: bool = False) -> Version:
        """Delete a version; `undelete` brings it back until its blobs are collected.

        Raises:
            Conflict: an alias or a frozen expert needs it (unless `force`).
        """
        reference = self.zoo.own_reference(ref)
        version = deletion.delete(self.zoo, reference, why=why, force=force)
        self.zoo.committer.tidy()
        return version

    def undelete(self, ref: str) -> Version:
        """Bring a deleted version back, byte for byte; return it.

        Raises:
            NotFound: it never was, or its blobs have been collected.
            Conflict: it is not deleted.
        """
        version = deletion.undelete(self.zoo, self.zoo.own_reference(ref))
        self.zoo.committer.tidy()
        return version

    def _move(self, alias: Alias, to: Version, **options: Any) -> None:
        self.zoo.registry.pointers.move_alias(to.name, alias, to, **options)
        self.zoo.committer.tidy()

    # The factory

    def add_report(self, ref: str, report: QualityReport | Mapping[str, Any]) -> QualityReport:
        """File what a station found out about a version; return the report as it is filed.

        Atomic and durable once it returns. It says something of this content alone: it
        pins the manifest's digest. Reports are never changed; a newer one of the same
        station takes precedence.

        Raises:
            BadParams: the report is none; nothing was stored.
            NotFound: there is no such version; nothing was stored.
        """
        from brainstore.factory.reports import add_report
        from brainstore.quality import QualityReport

        return add_report(self.zoo, self.zoo.own_reference(ref), QualityReport.of(report))

    def reports(self, ref: str, version: int | str | None = None) -> list[QualityReport]:
        """Return all reports on a version in the order of filing: first the save's own.

        Raises:
            Corrupt: one of them is damaged, or is about other content; none is passed over.
        """
        from brainstore.factory.reports import reports_on

        found, manifest, owner = self.zoo.find(ref, version)
        return reports_on(owner, found, manifest)

    def promote(
        self,
        ref: str,
        alias: str,
        *,
        expected: int | None = None,
        why: str = "",
        dry_run: bool = False,
    ) -> Version:
        """Make the alias name the version if the zoo's policy lets it; return the version.

        Atomic. The move records which policy and which reports it was judged by. What the
        policy or a report changes while it is under way counts: the alias steps back then.

        Args:
            expected: promote only if the alias names this version now (0: names none).
            why: a reason, for the log.
            dry_run: only judge; nothing is moved.

        Raises:
            GateFailed: the policy is not met, or none guards the alias; `missing` and the
                message list what it asks for, with what was found.
            Conflict: somebody moved the alias meanwhile, or it does not name `expected`.
            Corrupt: a report or the policy cannot be read, so that nothing can be judged.
        """
        from brainstore.drafts import movable
        from brainstore.factory.gates import promote

        reference, pointer = self.zoo.own_reference(ref), movable(alias)
        options: dict[str, Any] = {"expected": expected, "why": why, "dry_run": dry_run}
        version = promote(self.zoo, reference, pointer, **options)
        if not dry_run:
            self.zoo.committer.tidy()
        return version

    def policy(self) -> Policy | None:
        """Return the zoo's policy, or None if it never had one."""
        from brainstore.factory.policy import in_force

        found = in_force(self.zoo)
        return found.policy if found else None

    def set_policy(self, rules: Rules, *, expected: int | None = None, why: str = "") -> Policy:
        """Make these the rules that guard aliases, in place of all others; return the policy.

        Atomic. Where aliases are now is not looked at.

        Args:
            rules: of `brainstore.Rule`, or dicts of its fields; none removes all guards.
            expected: only if the policy has this generation (0: there is none).
            why: a reason, for the log.

        Raises:
            BadParams, BadReference: a rule is none; nothing was changed.
            Conflict: the policy has another generation.
        """
        from brainstore.factory.policy import rules_of, set_policy

        return set_policy(self.zoo, rules_of(rules), expected=expected, why=why)

    def lineage(self, ref: str, *, most: int | None = None) -> Lineage:
        """Return what a version was made from and what was made from it.

        Its `text()`, `to_dict()` and `dot()` show it. At most `most` versions, by default
        1,000, are looked at, the nearest first.
        """
        from brainstore.factory.lineage import MOST_VERSIONS, lineage

        version, _, owner = self.zoo.find(ref)
        return lineage(owner, version, most=MOST_VERSIONS if most is None else most)

    def prove(self, ref: str) -> list[Proof]:
        """Return for each frozen expert of a version whether it is one, leaf by leaf.

        Reads the leaves that are the same, and only those.

        Raises:
            Corrupt: a leaf is not what its digest says.
        """
        from brainstore.factory.proofs import prove

        version, _, owner = self.zoo.find(ref)
        return prove(owner, version)

    # Between zoos

    def push(
        self, target: Where | BrainManager, refs: Sequence[str] = (), **options: Any
    ) -> SyncReport:
        """Copy versions of this zoo to another, verbatim; all of them if `refs` names none.

        Options and errors as for `brainstore.sync.sync`.
        """
        from brainstore.sync import sync

        with _opened(target) as other:
            return sync(self.zoo, other.zoo, refs, **options)

    def pull(
        self, source: Where | BrainManager, refs: Sequence[str] = (), **options: Any
    ) -> SyncReport:
        """Copy versions of another zoo to this one. As `push`, the other way round."""
        from brainstore.sync import sync

        with _opened(source) as other:
            return sync(other.zoo, self.zoo, refs, **options)

    # Plain files

    def export(self, ref: str, folder: str | os.PathLike[str]) -> Path:
        """Write one version into `folder` as the original laid it out; return its folder."""
        from brainstore.classic import export

        require_whole(parse_reference(ref))
        version, _, owner = self.zoo.find(ref)
        return export(owner, [version], Path(folder))[0]

    def export_all(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write every version, `registry.json` and `latest` links; return their folders."""
        from brainstore.classic import export

        keys = self.zoo.index(rows=False).versions()
        versions = [self.zoo.registry.by_number(*key)[0] for key in keys]
        return export(self.zoo, versions, Path(folder))

    def import_zoo(self, folder: str | os.PathLike[str]) -> list[str]:
        """Save every version of a tree that the original, or `export_all`, wrote.

        Everything is checked before anything is saved. A version keeps its number where
        that is the next one here; otherwise it is appended, and its old full name kept as
        a tag and as `config["imported_from"]`. What is here already is not saved again.

        Returns:
            The full name that each version has here, in the order of the tree.

        Raises:
            NotFound: there is no `registry.json`, or a version that it lists has no files.
            BadParams, BadReference: a version cannot be read, or a name is not good.
        """
        from brainstore.classic import import_zoo

        return import_zoo(self.zoo, Path(folder), self.save)

    def import_file(
        self, path: str | os.PathLike[str], name: str, meta: Any = None, **meta_fields: Any
    ) -> str:
        """Save the tensors of a .safetensors or .npz file as the next version of `name`."""
        from brainstore.classic import read_tensors

        meta_fields.setdefault("source_checkpoint", os.fspath(path))
        return self.save(name, read_tensors(Path(path)), meta, **meta_fields)

    # As the original had them

    @property
    def storage_dir(self) -> Path | str:
        """Where the zoo is: a Path for a folder, a URL otherwise."""
        return self.zoo.store.path("") or self.zoo.url

    @property
    def registry(self) -> dict[str, Any]:
        """The index as plain data: metadata by full name, and the latest of each model."""
        index = self.zoo.index()
        return {
            "models": {full_name(*key): index.rows[key] for key in index.versions()},
            "latest": {str(name): full_name(name, number) for name, number in index.versions()},
        }

    def close(self) -> None:
        """Finish what runs in the background, and let go of connections."""
        self.zoo.close()

    def __enter__(self) -> BrainManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BrainManager({self.zoo.url!r})"

    def _repr_html_(self) -> str:
        return html(self.zoo.url, self.table())


def load(ref: str, **options: Any) -> tuple[Any, BrainMeta]:
    """Return `(params, meta)` of a reference with its zoo: `s3://team/zoo::ppo_swarm:prod`.

    Without a zoo, that of BRAINSTORE_ZOO, or ./brains. Options and errors as for
    `BrainManager.load`; `storage_options` is for the zoo's filesystem.
    """
    storage_options = options.pop("storage_options", None)
    # Maps of what was loaded outlive the manager.
    with BrainManager(parse_reference(ref).zoo, storage_options=storage_options) as manager:
        return manager.load(ref.rpartition("::")[2], **options)


def _opened(where: Where | BrainManager) -> contextlib.AbstractContextManager[BrainManager]:
    """Return a context for the manager of that place; one that was given stays open."""
    if isinstance(where, BrainManager):
        return contextlib.nullcontext(where)
    return BrainManager(where)


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
