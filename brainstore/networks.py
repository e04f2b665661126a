"""Reference networks of the brain layer, in Flax linen.

Each is called with the dims that a BrainMeta holds, so that `BrainInference` can build it
from a version alone.
"""

from __future__ import annotations

import flax.linen as nn
import jax

_LOG_STD = -0.5


class ActorCritic(nn.Module):
    """A Gaussian policy and its value on one torso of two tanh layers.

    `apply(params, obs)` with obs [..., obs_dim] gives the mean [..., action_dim], the
    log of the standard deviation [action_dim], the same everywhere, and the value [...].
    """

    obs_dim: int
    action_dim: int
    hidden_dim: int

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if obs.shape[-1] != self.obs_dim:
            raise ValueError(f"obs: expected [..., {self.obs_dim}], found {obs.shape}")
        torso = nn.tanh(_dense(self.hidden_dim, 2**0.5, "torso_0")(obs))
        torso = nn.tanh(_dense(self.hidden_dim, 2**0.5, "torso_1")(torso))
        mean = _dense(self.action_dim, 0.01, "mean")(torso)
        value = _dense(1, 1.0, "value")(torso)
        log_std = self.param("log_std", nn.initializers.constant(_LOG_STD), (self.action_dim,))
        return mean, log_std, value[..., 0]


def _dense(features: int, scale: float, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.orthogonal(scale), name=name)
