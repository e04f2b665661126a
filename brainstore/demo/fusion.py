"""The fusion: two frozen swarm policies under a gate that is trained.

One expert was trained for the usual safety radius, the other for a wider one; the gate
learns, by PPO, how much each counts, from what an agent sees. Its world is the wider one.
Only the gate's params are learned: the experts are carried, not updated, so their leaves
stay what they were, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from brainstore.demo import ppo, swarm
from brainstore.networks import GatedFusion, Params

UPDATES = 20
LEARNING_RATE = 1e-3

EXPERTS = ("nav", "wide")
NETWORK = GatedFusion(swarm.OBS_DIM, swarm.ACTION_DIM, ppo.HIDDEN_DIM, EXPERTS)

Fused = Any
"""{"experts": {name: params of an ActorCritic, …}, "gate": …}; see `GatedFusion`."""


def start(seed: int, nav: Params, wide: Params) -> Fused:
    """The two experts as they are, under a fresh gate."""
    fresh = _init(jax.random.key(seed))
    return {"experts": {"nav": nav, "wide": wide}, "gate": fresh["params"]["gate"]}


def train(
    fused: Fused,
    updates: int,
    *,
    seed: int,
    safety_radius: float,
    learning_rate: float = LEARNING_RATE,
    on_update: Callable[[int, float], None] | None = None,
) -> Fused:
    """`fused` with the gate trained so many updates, and with the experts as they were.

    Further arguments as for `ppo.train`.
    """
    state = ppo.train(
        ppo.start(seed, params=fused["gate"]),
        updates,
        actor=swarm.bind(_apply, fused["experts"]),
        safety_radius=safety_radius,
        learning_rate=learning_rate,
        on_update=on_update,
    )
    return {"experts": fused["experts"], "gate": state.params}


def policy(fused: Fused) -> swarm.Policy:
    """The deterministic policy of the whole, for `swarm.evaluate`."""
    return ppo.policy(fused["gate"], swarm.bind(_apply, fused["experts"]))


def even_policy(fused: Fused) -> swarm.Policy:
    """The mean of the experts' actions: what a gate must beat to be worth training."""
    return swarm.bind(_even, fused["experts"])


def _apply(experts: Any, gate: Params, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    outputs: Any = NETWORK.apply({"params": {"experts": experts, "gate": gate}}, obs)
    mean, log_std, value = outputs
    return mean, log_std, value


def _even(experts: Mapping[str, Params], key: jax.Array, observation: jax.Array) -> jax.Array:
    means = jnp.stack([ppo.ACTOR(expert, observation)[0] for expert in experts.values()])
    return means.mean(axis=0)


@jax.jit
def _init(key: jax.Array) -> Params:
    return NETWORK.init(key, jnp.zeros((1, swarm.OBS_DIM), jnp.float32))
