"""Tiny networks, and zoos with brains of them."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from brainstore import BrainManager
from brainstore.networks import ActorCritic

DIMS = {"brain_type": "ppo", "input_dim": 4, "output_dim": 2, "hidden_dim": 8}
OBS = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)


class Chooser(nn.Module):
    """A discrete policy; a plain `logits` without a value head."""

    obs_dim: int
    action_dim: int
    with_value: bool = True

    @nn.compact
    def __call__(self, obs: jax.Array) -> Any:
        logits = nn.Dense(self.action_dim)(obs)
        return (logits, nn.Dense(1)(obs)[..., 0]) if self.with_value else logits


class NnxActor(nnx.Module):
    """A Gaussian policy of nnx, with what differs between training and evaluation."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int, *, rngs: nnx.Rngs) -> None:
        self.torso = nnx.Linear(obs_dim, hidden_dim, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden_dim, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.mean = nnx.Linear(hidden_dim, action_dim, rngs=rngs)
        self.value = nnx.Linear(hidden_dim, 1, rngs=rngs)
        self.log_std = nnx.Param(jnp.full((action_dim,), -0.5))

    def __call__(self, obs: jax.Array) -> dict[str, jax.Array]:
        torso = jnp.tanh(self.dropout(self.norm(self.torso(obs))))
        value = self.value(torso)
        return {"mean": self.mean(torso), "log_std": self.log_std[...], "value": value}


NETWORK = ActorCritic(4, 2, 8)


def made(shapes: Any, seed: int = 0) -> Any:
    """Return numbers in [0.1, 0.5) for a tree of shapes; to initialise means to compile."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(x.dtype), shapes)


def params_of(network: nn.Module, seed: int = 0) -> Any:
    """Return variables of a linen network that takes rows of 4."""
    return made(jax.eval_shape(network.init, jax.random.key(0), OBS), seed)


@functools.cache
def init(seed: int) -> Any:
    """Return params of NETWORK."""
    return params_of(NETWORK, seed)


applied = jax.jit(NETWORK.apply)


@functools.cache
def outputs(seed: int) -> Any:
    """Return what NETWORK gives for OBS with the params of `init(seed)`."""
    return applied(init(seed), OBS)


@functools.cache
def nnx_state() -> Any:
    """Return the state of an NnxActor; its running statistics are not those of a new one."""
    module = nnx.eval_shape(lambda: NnxActor(4, 2, 8, rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(module))
    streams = {"rngs": {"count": jnp.uint32(1), "key": jax.random.key(0)}}
    return {**made({**shapes, "dropout": {}}), "dropout": streams}


@functools.cache
def nnx_outputs() -> dict[str, jax.Array]:
    """Return what that NnxActor gives for OBS in evaluation mode."""

    @jax.jit
    def play(state: Any) -> dict[str, jax.Array]:
        module = NnxActor(4, 2, 8, rngs=nnx.Rngs(1))
        nnx.update(module, state)
        module.eval()
        return module(OBS)

    return play(nnx_state())


def save(zoo: BrainManager, seed: int, name: str = "actor", **options: Any) -> Any:
    """Save a fresh ActorCritic, and return its params."""
    params = init(seed)
    zoo.save(name, params, **{**DIMS, **options})
    return params
