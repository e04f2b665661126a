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

from brainstore.demo import ppo, swarm
from brainstore.networks import GatedFusion, Params

UPDATES = 20
LEARNING_RATE = 1e-3

NETWORK = GatedFusion(swarm.OBS_DIM, swarm.ACTION_DIM, ppo.HIDDEN_DIM)


def start(seed: int, experts: Mapping[str, Params]) -> Params:
    """A fusion of these experts before training; see `GatedFusion` for its params."""
    return NETWORK.init(jax.random.key(seed), experts)


def train(
    params: Params,
    updates: int,
    *,
    seed: int,
    safety_radius: float,
    learning_rate: float = LEARNING_RATE,
    on_update: Callable[[int, float], None] | None = None,
) -> Params:
    """`params` with the gate trained so many updates, and with the experts as they were.

    Further arguments as for `ppo.train`.
    """
    state = ppo.train(
        ppo.start(seed, params=params["gate"]),
        updates,
        actor=swarm.bind(_apply, params["experts"]),
        safety_radius=safety_radius,
        learning_rate=learning_rate,
        on_update=on_update,
    )
    return {"experts": params["experts"], "gate": state.params}


def policy(params: Params) -> swarm.Policy:
    """The deterministic policy of the whole, for `swarm.evaluate`."""
    return ppo.policy(params["gate"], swarm.bind(_apply, params["experts"]))


def even_policy(params: Params) -> swarm.Policy:
    """The mean of the experts' actions: what a gate must beat to be worth training."""
    return swarm.bind(_even, params["experts"])


def _apply(experts: Any, gate: Params, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return NETWORK.apply({"experts": experts, "gate": gate}, obs)


def _even(experts: Mapping[str, Params], key: jax.Array, observation: jax.Array) -> jax.Array:
    means = [ppo.ACTOR(expert, observation)[0] for expert in experts.values()]
    return sum(means[1:], start=means[0]) / len(means)
