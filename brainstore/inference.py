"""Playing a brain from the zoo: observations in, actions out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from brainstore import pytree
from brainstore.architecture import Apply, Params, rebuilt
from brainstore.errors import BadParams, BadReference, Unsupported
from brainstore.groups import PARAMS, Placement, Reader
from brainstore.manager import BrainManager, require_manager
from brainstore.meta import BrainMeta
from brainstore.policies import Norm, Policy, norm_of, policy_of
from brainstore.programs import PROGRAM, opened
from brainstore.records import Group, Manifest
from brainstore.versions import Version

OBS_NORM = "obs_norm"


class BrainInference:
    """A brain that plays: it acts, and follows its reference to newer versions when asked.

    Params are an argument of the compiled functions, so that other ones of the same
    architecture play without compiling again. May be used from many threads.
    """

    def __init__(
        self,
        manager: BrainManager,
        model_name: str,
        network_class: Callable[..., Any] | None = None,
        *,
        seed: int = 0,
        brain_type: str | None = None,
        **network_kwargs: Any,
    ) -> None:
        """Load the version that `model_name` names, and rebuild its network.

        Args:
            manager: the zoo.
            model_name: a reference, such as ppo_swarm, ppo_swarm:prod or ppo_swarm:3.
            network_class: a flax.linen or flax.nnx Module class, or a function that makes
                a Module. It is given obs_dim, action_dim and hidden_dim from the metadata
                (as far as it takes them), the network_kwargs saved with the version, and
                those given here, the later over the earlier. An nnx class gets rngs, too.
                Without a class, the program that was saved with the version plays.
            seed: of the noise that `act` draws.
            brain_type: refuse a brain whose metadata say another type.
            network_kwargs: arguments of the class.

        Raises:
            NotFound: no such version; or it has no program, and no class was given.
            BadParams: the version does not fit the class, or is no policy.
            Unsupported: its program cannot be read any more, or not on this platform.
        """
        require_manager(manager)
        self._reference, self._zoo = manager.zoo.reference(model_name)
        if self._reference.subtree:
            raise BadReference(f"'{model_name}' names a part of a version; a whole one can play")
        self._network_class = network_class
        self._network_kwargs = network_kwargs
        self._brain_type = brain_type
        self._key = jax.random.key(seed)
        self._draws = itertools.count()
        self._playing = self._load(*self._zoo.registry.find(self._reference, from_cache=True))

    @property
    def ref(self) -> str:
        """What plays, such as ppo_swarm:3, also after the reference has moved on."""
        return str(self._playing.version)

    @property
    def version(self) -> int:
        """The number of the version that plays."""
        return self._playing.version.version

    @property
    def digest(self) -> str:
        """The digest of the manifest of the version that plays."""
        return str(self._playing.version.digest)

    @property
    def meta(self) -> BrainMeta:
        """The metadata of the version that plays."""
        return self._playing.meta

    @property
    def params(self) -> Params:
        """The params that play, as `BrainManager.load` gives them."""
        return self._playing.params

    @property
    def obs_norm(self) -> Norm:
        """The statistics that observations are scaled with, or None."""
        return self._playing.norm

    @property
    def apply(self) -> Apply:
        """The network itself, `apply(params, obs)`: no normalisation, no choice of action."""
        return self._playing.functions.policy.apply

    def act(self, obs: Any, deterministic: bool | jax.Array = False, key: Any = None) -> jax.Array:
        """Return actions for observations of any leading dimensions.

        tanh(mean) if deterministic, else tanh(mean + exp(log_std) ε), with fresh noise in
        every call; of a discrete policy the most likely action, or a drawn one, int32.

        Args:
            obs: [..., obs_dim], floating; NumPy, JAX, or a list.
            deterministic: True or False.
            key: draws the noise instead of the brain's own key; needed in a traced
                function, where the brain's would be drawn once, and then stay the same.

        Returns:
            [..., action_dim] in [-1, 1]; of a discrete policy [...].

        Raises:
            BadParams: obs has another shape or dtype, or holds a NaN; or no key was given
                in a traced function.
        """
        playing = self._playing
        functions = playing.functions
        flag = deterministic if isinstance(deterministic, bool) else _flag(deterministic)
        if key is not None or flag is True:
            return functions.action(playing.params, obs, key, flag, playing.norm)
        obs = functions.policy.checked(obs)
        if flag is not False:
            raise BadParams(
                "act: deterministic is traced, so a key is needed. Give key=, or make the flag a "
                "constant: jax.jit(brain.act, static_argnums=1)"
            )
        if isinstance(obs, jax.core.Tracer):
            raise _without_key()
        draw = np.uint32(next(self._draws) & 0xFFFFFFFF)
        action = functions.drawn(playing.params, obs, self._key, draw, playing.norm)
        if isinstance(action, jax.core.Tracer):
            raise _without_key()
        return action

    def value(self, obs: Any) -> jax.Array:
        """Return how much the brain expects of observations [..., obs_dim], as [...].

        Raises:
            BadParams: obs has another shape or dtype.
            Unsupported: the network gives no value.
        """
        playing = self._playing
        obs = playing.functions.policy.checked(obs)
        return playing.functions.value(playing.params, obs, playing.norm)

    def policy(
        self,
        params: Params,
        obs: Any,
        key: Any = None,
        deterministic: bool | jax.Array = False,
        *,
        obs_norm: Norm | Literal[True] = True,
    ) -> jax.Array:
        """Return actions of any params; a pure function, for jit, vmap and scan.

        Args:
            params: of this architecture, as `BrainManager.load` gives them.
            obs: [..., obs_dim].
            key: a PRNG key; not needed where `deterministic` is True.
            deterministic: as for `act`; may be traced.
            obs_norm: statistics to scale observations with, as the group of this name
                holds them; True: those that play now, as constants of a traced function;
                None: none.
        """
        playing, flag = self._playing, _flag(deterministic)
        if key is None and flag is not True:
            raise BadParams("policy: a key is needed, unless deterministic is True")
        norm = playing.norm
        if obs_norm is not True:
            norm = norm_of(obs_norm, playing.functions.policy.obs_shape, "policy")
        return playing.functions.action(params, obs, key, flag, norm)

    def refresh(self) -> bool:
        """Play what the reference names by now; return whether that is another version.

        The next action is of the new params. Of the same architecture they play without
        compiling again. If the new version cannot play, the old one goes on.

        Raises: as for the constructor.
        """
        version, manifest = self._zoo.registry.find(self._reference, from_cache=True)
        if version == self._playing.version:
            return False
        self._playing = self._load(version, manifest, self._playing)
        return True

    def _load(
        self, version: Version, manifest: Manifest, before: _Playing | None = None
    ) -> _Playing:
        meta, owner = BrainMeta.of_manifest(manifest), str(version)
        if self._brain_type not in (None, meta.brain_type):
            raise BadParams(
                f"{owner} is a brain of type {meta.brain_type!r}; asked for {self._brain_type!r}"
            )
        kept = {OBS_NORM} & manifest.groups.keys()
        reader = Reader(manifest, self._zoo.blobs, owner, verify=False)
        architecture = _architecture_of(manifest)
        if before is not None and architecture == before.architecture:
            functions = before.functions
        else:
            functions = self._functions(manifest, owner)
        trees = reader.read([PARAMS, *kept], None, Placement())
        norm = norm_of(trees.get(OBS_NORM), functions.policy.obs_shape, owner)
        return _Playing(version, meta, trees[PARAMS], norm, functions, architecture)

    def _functions(self, manifest: Manifest, owner: str) -> _Functions:
        group = manifest.groups[PARAMS]
        if self._network_class is None:
            apply, obs_shape, obs_dtype = self._program(manifest, owner)
        else:
            network = rebuilt(self._network_class, manifest, owner, self._network_kwargs)
            apply, obs_shape, obs_dtype = network.apply, network.obs_shape, _float_of(group)
        params = pytree.abstract(group.structure, group.leaves)
        action_dim = manifest.meta.get("output_dim", 0)
        return _Functions.of(
            policy_of(apply, params, obs_shape, obs_dtype, action_dim=action_dim, owner=owner)
        )

    def _program(self, manifest: Manifest, owner: str) -> tuple[Apply, tuple[int, ...], Any]:
        if self._network_kwargs:
            raise BadParams(
                f"{', '.join(self._network_kwargs)}: arguments of a network, and no class was "
                "named; the program of a version takes none"
            )
        program = opened(self._zoo.blobs, manifest, owner)
        if not hasattr(program.inputs, "shape"):
            raise Unsupported(
                f"the program of {owner} takes {', '.join(map(str, program.description.inputs))}; "
                "one array of observations can be played"
            )
        return program.apply, program.inputs.shape[1:], program.inputs.dtype

    def __repr__(self) -> str:
        return f"BrainInference({self.ref!r})"


@dataclass(frozen=True)
class _Functions:
    """A policy, compiled for each way to call it. Params and statistics are arguments."""

    policy: Policy
    greedy: Callable[..., jax.Array]
    keyed: Callable[..., jax.Array]
    drawn: Callable[..., jax.Array]
    value: Callable[..., jax.Array]

    @classmethod
    def of(cls, policy: Policy) -> _Functions:
        def greedy(params: Params, obs: Any, norm: Norm) -> jax.Array:
            return policy.action(params, obs, None, True, norm)

        def keyed(params: Params, obs: Any, key: Any, norm: Norm) -> jax.Array:
            return policy.action(params, obs, key, False, norm)

        def drawn(params: Params, obs: Any, key: Any, draw: Any, norm: Norm) -> jax.Array:
            # Folded in here, where it costs nothing: splitting a key outside is a call of its own.
            return policy.action(params, obs, jax.random.fold_in(key, draw), False, norm)

        return cls(policy, jax.jit(greedy), jax.jit(keyed), jax.jit(drawn), jax.jit(policy.value))

    def action(self, params: Params, obs: Any, key: Any, flag: Any, norm: Norm) -> jax.Array:
        """Return actions, drawn with the key unless `flag`, which may be traced, is True."""
        obs = self.policy.checked(obs)
        if flag is True:
            return self.greedy(params, obs, norm)
        key = _checked_key(key)
        if flag is False:
            return self.keyed(params, obs, key, norm)
        return self.policy.action(params, obs, key, flag, norm)


@dataclass(frozen=True)
class _Playing:
    """One version, loaded; replaced as a whole, so that each call sees one."""

    version: Version
    meta: BrainMeta
    params: Params
    norm: Norm
    functions: _Functions
    architecture: Any


def _architecture_of(manifest: Manifest) -> Any:
    """Return all that the compiled functions depend on; what is equal needs no new ones."""
    group = manifest.groups[PARAMS]
    meta = manifest.meta
    dims = [meta.get(name) for name in ("input_dim", "output_dim", "hidden_dim", "network_kwargs")]
    specs = [(leaf.path, leaf.dtype, leaf.shape, leaf.scalar) for leaf in group.leaves]
    program = manifest.files.get(PROGRAM)
    return dims, group.structure, specs, program and program.blob


def _float_of(group: Group) -> str:
    """Return the dtype of observations: that of JAX, unless the params are wider."""
    return "float64" if any(leaf.dtype == "float64" for leaf in group.leaves) else "float32"


def _flag(deterministic: Any) -> Any:
    """Return True, False, or what is traced."""
    if isinstance(deterministic, jax.core.Tracer):
        return deterministic
    if np.shape(deterministic) == () and getattr(deterministic, "dtype", type(deterministic)) in (
        bool,
        np.dtype(bool),
    ):
        return bool(deterministic)
    raise BadParams(
        f"deterministic: expected True or False, found {type(deterministic).__name__}; a key goes "
        "by keyword: key="
    )


def _checked_key(key: Any) -> Any:
    """Return one key, new-style (a scalar) or raw (uint32 words)."""
    if isinstance(key, jax.Array | np.ndarray):
        is_typed = jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
        is_raw = key.dtype == np.uint32
        if (is_typed and key.ndim == 0) or (is_raw and key.ndim == 1):
            return key
        found = f"{key.dtype}{list(key.shape)}; for a batch of keys, jax.vmap(brain.policy)"
    else:
        found = type(key).__name__
    raise BadParams(f"key: expected one PRNG key, such as jax.random.key(0), found {found}")


def _without_key() -> BadParams:
    return BadParams(
        "act was called in a traced function (jit, vmap, grad, scan) without a key. Its noise "
        "would be drawn once, while tracing, and be the same in every run. Give key=, or use "
        "brain.policy(brain.params, obs, key)"
    )
