"""Reference networks of the brain layer, in Flax linen.

Each is made with the dims that a BrainMeta holds, `obs_dim`, `action_dim` and `hidden_dim`,
and with what its `network_kwargs` hold, so that a network can be built from a version alone.
Layers have plain names, so that a checkpoint of a PyTorch module with the same ones maps to
them name by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_LOG_STD = -0.5
# Wider than an actor's, since a gate acts along the experts' differences only: in 20 updates
# of PPO, −1.2 gained 0.2 in return over the even mean, −0.5 gained 0.5, 0 gained 0.6 (2026-11-24).
_GATE_LOG_STD = 0.0

Params = Any
"""What linen's `init` gives: {"params": {layer: {"kernel": …, "bias": …}, …}}."""


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
        _expect("obs", obs, self.obs_dim)
        torso = nn.tanh(_dense(self.hidden_dim, 2**0.5, "torso_0")(obs))
        torso = nn.tanh(_dense(self.hidden_dim, 2**0.5, "torso_1")(torso))
        mean = _dense(self.action_dim, 0.01, "mean")(torso)
        value = _dense(1, 1.0, "value")(torso)
        log_std = self.param("log_std", nn.initializers.constant(_LOG_STD), (self.action_dim,))
        return mean, log_std, value[..., 0]


class DIALEncoder(nn.Module):
    """What a speaker says of what it sees: a token and a payload, before they are cut to size.

    `apply(params, obs)` with obs [..., obs_dim] gives a message [..., action_dim]:
    vocab_size token logits, then payload_dim logits of bits, as a `DIALBrainPair` says
    how many of each. Sending them through a channel is not the network's part.
    """

    obs_dim: int
    action_dim: int
    hidden_dim: int

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        _expect("obs", obs, self.obs_dim)
        hidden = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(obs))
        return nn.Dense(self.action_dim, name="message")(hidden)


class DIALDecoder(nn.Module):
    """Which of several candidates a message is about.

    `apply(params, message, context)` with message [..., obs_dim], the token one-hot and
    then the payload, and context [..., candidates, context_dim] gives the candidates'
    scores [..., candidates]: dot products of embeddings of width action_dim. There may be
    any number of candidates.
    """

    obs_dim: int
    action_dim: int
    hidden_dim: int
    context_dim: int

    @nn.compact
    def __call__(self, message: jax.Array, context: jax.Array) -> jax.Array:
        _expect("message", message, self.obs_dim)
        _expect("context", context, self.context_dim)
        meant = self._embedding("message", message)
        seen = self._embedding("context", context)
        return jnp.einsum("...e,...ke->...k", meant, seen)

    def _embedding(self, name: str, seen: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(self.hidden_dim, name=f"{name}_hidden")(seen))
        embedding: jax.Array = nn.Dense(self.action_dim, name=f"{name}_embedding")(hidden)
        return embedding


class TransformerContext(nn.Module):
    """What comes next of something seen in several frames.

    `apply(params, frames)` with frames [..., frames, obs_dim], the oldest first, gives
    [..., action_dim]. A pre-norm transformer encoder (Vaswani et al., 2017; Xiong et al.,
    2020) without dropout, with learned positions; the last frame is read out.
    """

    obs_dim: int
    action_dim: int
    hidden_dim: int
    frames: int = 8
    layers: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        _expect("frames", frames, self.frames, self.obs_dim)
        shape = (self.frames, self.hidden_dim)
        position = self.param("position", nn.initializers.normal(0.02), shape)
        stream = nn.Dense(self.hidden_dim, name="frame")(frames) + position
        for layer in range(self.layers):
            normed = nn.LayerNorm(name=f"attention_norm_{layer}")(stream)
            attention = nn.MultiHeadDotProductAttention(self.heads, name=f"attention_{layer}")
            stream = stream + attention(normed)
            normed = nn.LayerNorm(name=f"feed_forward_norm_{layer}")(stream)
            wide = nn.Dense(4 * self.hidden_dim, name=f"feed_forward_in_{layer}")(normed)
            stream = stream + nn.Dense(self.hidden_dim, name=f"feed_forward_out_{layer}")(
                nn.gelu(wide)
            )
        last = nn.LayerNorm(name="norm")(stream[..., -1, :])
        return nn.Dense(self.action_dim, name="next")(last)


class Gate(nn.Module):
    """How much each expert's action counts, by observation, and the value of the whole.

    `apply(params, obs)` with obs [..., obs_dim] gives the weights [..., experts], the log
    of the standard deviation [action_dim], the same everywhere, and the value [...].
    Weights add up to 1, and are nearly the same for all experts while params are fresh.
    They are not a softmax: one may be negative, so that the whole can go further than the
    better expert, away from the worse.
    """

    obs_dim: int
    action_dim: int
    hidden_dim: int
    experts: int

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        _expect("obs", obs, self.obs_dim)
        torso = nn.tanh(_dense(self.hidden_dim, 2**0.5, "torso_0")(obs))
        torso = nn.tanh(_dense(self.hidden_dim, 2**0.5, "torso_1")(torso))
        shift = _dense(self.experts, 0.01, "weights")(torso)
        weights = 1.0 / self.experts + shift - shift.mean(axis=-1, keepdims=True)
        value = _dense(1, 1.0, "value")(torso)
        log_std = self.param("log_std", nn.initializers.constant(_GATE_LOG_STD), (self.action_dim,))
        return weights, log_std, value[..., 0]


class GatedFusion(nn.Module):
    """Frozen actor-critics under one gate: the action is a weighted mean of theirs.

    `apply({"params": fused}, obs)` gives mean, log_std and value as an ActorCritic does.
    `fused` is {"experts": {name: params as an ActorCritic was saved, …}, "gate": …}, so that
    each expert's subtree is that version, leaf by leaf. Nothing flows back into experts.

    Attributes:
        obs_dim, action_dim: of the experts and of the whole.
        hidden_dim: of the experts.
        expert_names: in the order of the gate's weights.
        gate_dim: width of the gate's layers.
    """

    obs_dim: int
    action_dim: int
    hidden_dim: int
    expert_names: Sequence[str]
    gate_dim: int = 64

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        names = tuple(self.expert_names)
        gate = Gate(self.obs_dim, self.action_dim, self.gate_dim, len(names), name="gate")
        weights, log_std, value = gate(obs)
        experts = _Experts(self.obs_dim, self.action_dim, self.hidden_dim, names, name="experts")
        means = jax.lax.stop_gradient(experts(obs))
        return jnp.einsum("...e,...ea->...a", weights, means), log_std, value


class _Experts(nn.Module):
    """The mean actions [..., experts, action_dim] of several actor-critics."""

    obs_dim: int
    action_dim: int
    hidden_dim: int
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        dims = self.obs_dim, self.action_dim, self.hidden_dim
        return jnp.stack([_Saved(*dims, name=name)(obs) for name in self.names], axis=-2)


class _Saved(nn.Module):
    """An ActorCritic whose params stand below "params", as its `init` gave and `save` kept them."""

    obs_dim: int
    action_dim: int
    hidden_dim: int

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        dims = self.obs_dim, self.action_dim, self.hidden_dim
        mean, _, _ = ActorCritic(*dims, name="params")(obs)
        return mean


def _dense(features: int, scale: float, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.orthogonal(scale), name=name)


def _expect(name: str, array: jax.Array, *shape: int) -> None:
    if array.shape[-len(shape) :] != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name}: expected [..., {expected}], found {array.shape}")
