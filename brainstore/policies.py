"""What to make of a network's outputs: actions, values; and observations, on their way in.

All functions are pure, but for the checks of observations, which look at shapes and dtypes.
`…` in a shape stands for any leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from brainstore.architecture import Apply, Params, traced
from brainstore.errors import BadParams, Unsupported

Norm = Mapping[str, Any] | None
"""Statistics of observations, see `norm_of`; None: they go in as they are."""

EPSILON = 1e-8

_KINDS = (("mean", "log_std", "value"), ("mean", "log_std"), ("logits", "value"), ("logits",))
_ROWS = 1009  # a prime that is no number of actions, so rows are told from actions


@dataclass(frozen=True)
class Policy:
    """A network whose outputs are a policy.

    Attributes:
        apply: the network, `apply(params, obs)`.
        names: what its outputs are, one of mean, log_std, value; logits, value; each
            without value too.
        obs_shape: of one observation.
        obs_dtype: what the network takes; other floating dtypes become this one.
    """

    apply: Apply
    names: tuple[str, ...]
    obs_shape: tuple[int, ...]
    obs_dtype: np.dtype[Any]

    def action(
        self, params: Params, obs: Any, key: Any, deterministic: bool | jax.Array, norm: Norm
    ) -> jax.Array:
        """Return actions: [..., action_dim] in [-1, 1], or of logits int32 [...].

        Args:
            key: a PRNG key; not used where `deterministic` is True.
            deterministic: take the most likely action; may be traced.
        """
        heads = self.heads(params, obs, norm)
        choose = _choose_discrete if "logits" in heads else _choose_squashed
        if isinstance(deterministic, bool):
            return choose(heads, None if deterministic else key)
        return jnp.where(deterministic, choose(heads, None), choose(heads, key))

    def value(self, params: Params, obs: Any, norm: Norm) -> jax.Array:
        """Return values [...].

        Raises:
            Unsupported: the network has none.
        """
        found = self.heads(params, obs, norm).get("value")
        if found is None:
            raise Unsupported(f"the network gives {', '.join(self.names)}, and no value")
        values: jax.Array = found.reshape(obs.shape[: obs.ndim - len(self.obs_shape)])
        return values

    def heads(self, params: Params, obs: Any, norm: Norm) -> dict[str, Any]:
        """Return the network's outputs by name."""
        obs = jnp.asarray(obs, self.obs_dtype)
        return _named(self.names, self.apply(params, obs if norm is None else _normed(obs, norm)))

    def checked(self, obs: Any) -> np.ndarray[Any, Any] | jax.Array:
        """Return observations as an array, of the right shape and dtype.

        Arrays that are not on a device are looked through for NaNs and infinities; others
        are not waited for.

        Raises:
            BadParams: says what was expected, and what was found.
        """
        array = obs if isinstance(obs, np.ndarray | jax.Array) else _array(obs, self._typed)
        first = array.ndim - len(self.obs_shape)
        if first < 0 or array.shape[first:] != self.obs_shape or not self._takes(array.dtype):
            found = f"{array.dtype}{list(array.shape)}"
            raise BadParams(f"obs: expected {self._typed}, found {found}{self._hint(array.dtype)}")
        if self._is_floating and isinstance(array, np.ndarray):
            _require_finite(array)
        return array

    @cached_property
    def _is_floating(self) -> bool:
        return bool(jnp.issubdtype(self.obs_dtype, jnp.floating))

    @property
    def _typed(self) -> str:
        return f"{self.obs_dtype}[{', '.join(['...', *map(str, self.obs_shape)])}]"

    def _takes(self, dtype: Any) -> bool:
        # A NumPy float64 becomes JAX's float32, as everywhere in JAX.
        return dtype == self.obs_dtype or (
            self._is_floating and bool(jnp.issubdtype(dtype, jnp.floating))
        )

    def _hint(self, dtype: Any) -> str:
        is_number = jnp.issubdtype(dtype, jnp.number) and not self._takes(dtype)
        return f". Convert it: obs.astype('{self.obs_dtype}')" if is_number else ""


def policy_of(
    apply: Apply,
    params: Params,
    obs_shape: tuple[int, ...],
    obs_dtype: Any,
    *,
    action_dim: int,
    owner: str,
) -> Policy:
    """Return the policy that a network is, told by the shapes of its outputs.

    Args:
        action_dim: what the metadata say of the last dimension of mean or logits; 0: nothing.
        owner: names the version in errors.

    Raises:
        BadParams: the network does not take rows of observations, or its outputs are no
            policy's, or of another action_dim.
    """
    obs = jax.ShapeDtypeStruct((_ROWS, *obs_shape), obs_dtype)  # type: ignore[no-untyped-call]
    outputs = traced(apply, params, obs, where=owner)
    found = outputs if isinstance(outputs, Mapping) else None
    shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(outputs)]
    names = next((names for names in _KINDS if _is_kind(names, found, shapes)), None)
    if names is None:
        texts = f"{{{', '.join(found)}}} of " if found is not None else ""
        raise BadParams(
            f"{owner}: for observations [{_ROWS}, {', '.join(map(str, obs_shape))}] the network "
            f"gives {texts}{', '.join(map(str, map(list, shapes)))}; expected the outputs of a "
            "policy: (mean, log_std, value), (logits, value) or logits. A brain of another type? "
            "Play that with its own network on what manager.load gives"
        )
    size = jax.tree.leaves(_named(names, outputs)[names[0]])[0].shape[-1]
    if action_dim not in (0, size):
        raise BadParams(
            f"{owner} has output_dim {action_dim}, and {names[0]} of the network has {size}"
        )
    return Policy(apply, names, obs_shape, np.dtype(obs_dtype))


def _is_kind(
    names: tuple[str, ...], found: Mapping[str, Any] | None, shapes: list[tuple[int, ...]]
) -> bool:
    if found is not None:
        if set(found) != set(names):
            return False
        shapes = [tuple(found[name].shape) for name in names]
    if len(shapes) != len(names) or len(shapes[0]) != 2 or shapes[0][0] != _ROWS:
        return False
    actions = shapes[0][1]
    fitting = {
        "log_std": [(), (actions,), (_ROWS, actions), (1, actions)],
        "value": [(_ROWS,), (_ROWS, 1)],
    }
    return all(shape in fitting[name] for name, shape in zip(names[1:], shapes[1:], strict=True))


def _named(names: tuple[str, ...], outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, Mapping):
        return dict(outputs)
    listed = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return dict(zip(names, listed, strict=True))


def _choose_squashed(heads: Mapping[str, Any], key: Any) -> jax.Array:
    """tanh(mean + exp(log_std) ε), with ε standard normal; 0 without a key."""
    mean = heads["mean"]
    if key is None:
        return jnp.tanh(mean)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return jnp.tanh(mean + jnp.exp(heads["log_std"]) * noise)


def _choose_discrete(heads: Mapping[str, Any], key: Any) -> jax.Array:
    logits = heads["logits"]
    drawn = jnp.argmax(logits, -1) if key is None else jax.random.categorical(key, logits)
    return drawn.astype(jnp.int32)


def norm_of(group: Any, obs_shape: tuple[int, ...], owner: str) -> Norm:
    """Return the statistics in the group `obs_norm`, or None if there is none.

    A dict of `mean` and `variance` (or `var`), each of the shape of an observation, and,
    if need be, `clip` (after scaling) and `epsilon` (beside the variance, else 1e-8); a
    `count`, of a running estimate, is passed over.

    Raises:
        BadParams: it is of another form.
    """
    if group is None:
        return None
    found = dict(group) if isinstance(group, Mapping) else {}
    found.pop("count", None)
    if "var" in found:
        found["variance"] = found.pop("var")
    if not {"mean", "variance"} <= set(found) <= {"mean", "variance", "clip", "epsilon"}:
        raise BadParams(
            f"obs_norm of {owner} holds {', '.join(found) or type(group).__name__}; "
            "expected mean, variance, and maybe clip and epsilon"
        )
    for name, value in found.items():
        shape = obs_shape if name in ("mean", "variance") else ()
        if jnp.shape(value) not in (shape, ()):
            raise BadParams(
                f"obs_norm of {owner}: expected {name} of shape {list(shape)}, found "
                f"{list(jnp.shape(value))}"
            )
    return {"epsilon": EPSILON, **found}


def _normed(obs: jax.Array, norm: Mapping[str, Any]) -> jax.Array:
    scaled = (obs - norm["mean"]) * jax.lax.rsqrt(norm["variance"] + norm["epsilon"])
    if "clip" in norm:
        scaled = jnp.clip(scaled, -norm["clip"], norm["clip"])
    normed: jax.Array = scaled.astype(obs.dtype)
    return normed


def _array(obs: Any, expected: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(obs)
    except ValueError as error:
        raise BadParams(f"obs: expected {expected}, found a ragged list ({error})") from error
    return array


def _require_finite(array: np.ndarray[Any, Any]) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(map(int, np.argwhere(~finite)[0]))
        count = math.prod(array.shape) - int(finite.sum())
        raise BadParams(
            f"obs: {count:,} of {array.size:,} numbers are NaN or infinite, the first is "
            f"{array[index]} at {list(index)}"
        )
