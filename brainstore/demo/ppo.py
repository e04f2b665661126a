"""Proximal policy optimisation (Schulman et al., 2017) of the swarm, one brain for all.

The same seed on the same machine gives the same params, bit for bit, as long as the
process may use as many cores: XLA splits sums and products among them. Shapes: S is
`swarm.STEPS`, W is `WORLDS`, N is `swarm.AGENTS`; arrays are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from brainstore.demo import swarm
from brainstore.networks import ActorCritic

HIDDEN_DIM = 256
WORLDS = 4
EPOCHS = 4
MINIBATCHES = 8
LEARNING_RATE = 1e-3
DISCOUNT = 0.95
GAE_LAMBDA = 0.95

_CLIP = 0.2
_VALUE_WEIGHT = 0.5
_GRADIENT_NORM = 0.5

Params = Any
"""What is learned; of an ActorCritic {"params": {layer: {"kernel": …, "bias": …}, …}}."""

Actor = Callable[[Params, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
"""`actor(params, obs [..., OBS_DIM])`: mean [..., ACTION_DIM], log_std [ACTION_DIM], value [...].

Made by `swarm.bind`, so that what it carries besides, such as frozen experts, is traced.
"""

_Learned = tuple[Params, optax.OptState]


class TrainState(NamedTuple):
    """All that training goes on from; `updates` counts those done, int32."""

    params: Params
    opt_state: optax.OptState
    key: jax.Array
    updates: jax.Array


class Batch(NamedTuple):
    """What there is to learn from, each led by [B]: one row for one step of one agent."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    value_target: jax.Array


class _Rollout(NamedTuple):
    """What the policy did and met in each step, led by [S, W, N] once stacked."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array


NETWORK = ActorCritic(swarm.OBS_DIM, swarm.ACTION_DIM, HIDDEN_DIM)


def _apply(params: Params, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, log_std and value, see ActorCritic."""
    outputs: Any = NETWORK.apply(params, obs)
    mean, log_std, value = outputs
    return mean, log_std, value


ACTOR: Actor = swarm.bind(_apply)


def start(seed: int, *, params: Params | None = None) -> TrainState:
    """Training before its first update, from fresh params or, to fine-tune, from `params`."""
    key, init_key = jax.random.split(jax.random.key(seed))
    if params is None:
        params = _init(init_key)
    opt_state = _optimizer(LEARNING_RATE).init(params)
    return TrainState(params, opt_state, key, jnp.zeros((), jnp.int32))


def train(
    state: TrainState,
    updates: int,
    *,
    actor: Actor = ACTOR,
    safety_radius: float = swarm.SAFETY_RADIUS,
    learning_rate: float = LEARNING_RATE,
    on_update: Callable[[int, float], None] | None = None,
) -> TrainState:
    """`state` after so many more updates; 10 and then 30 are the same as 40.

    Compiled once for all radii and rates.

    Args:
        state: from `start`, or from training before.
        updates: each is `WORLDS` episodes of experience, all epochs over.
        actor: what acts with the params; `NETWORK` unless told otherwise.
        safety_radius: the world's, see `swarm.step`.
        learning_rate: Adam's.
        on_update: called after each, with the updates done since `start` and the mean
            return of the episodes it learned from, actions sampled.
    """
    for _ in range(updates):
        state, return_ = update(state, actor, safety_radius, learning_rate)
        if on_update is not None:
            on_update(int(state.updates), float(return_))
    return state


@jax.jit
def update(
    state: TrainState, actor: Actor, safety_radius: jax.Array, learning_rate: jax.Array
) -> tuple[TrainState, jax.Array]:
    """One update from fresh episodes, and their mean return."""
    key, rollout_key, epochs_key = jax.random.split(state.key, 3)
    rollout, last_value = _collect(partial(actor, state.params), rollout_key, safety_radius)
    batch = _batch(rollout, last_value)
    descend = partial(_descend, _optimizer(learning_rate), actor)

    def epoch(learned: _Learned, key: jax.Array) -> tuple[_Learned, None]:
        return jax.lax.scan(descend, learned, _shuffled(batch, key))

    learned = state.params, state.opt_state
    learned, _ = jax.lax.scan(epoch, learned, jax.random.split(epochs_key, EPOCHS))
    return TrainState(*learned, key, state.updates + 1), rollout.reward.sum(axis=0).mean()


def policy(params: Params, actor: Actor = ACTOR) -> swarm.Policy:
    """The deterministic policy of `params`, for `swarm.evaluate`."""
    return swarm.bind(_mean_action, actor, params)


def gae(reward: jax.Array, value: jax.Array, last_value: jax.Array) -> jax.Array:
    """Generalised advantage estimates (Schulman et al., 2016, equation 16), [S, …].

    A_t = δ_t + γλ A_{t+1}, with δ_t = r_t + γ V_{t+1} − V_t; the episode is cut off,
    not over, so its end is worth `last_value`.

    Args:
        reward: [S, …].
        value: [S, …], of the observation before each reward.
        last_value: […], of the observation after the last.
    """
    next_value = jnp.concatenate([value[1:], last_value[None]])
    delta = reward + DISCOUNT * next_value - value

    def back(advantage: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        advantage = delta + DISCOUNT * GAE_LAMBDA * advantage
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(last_value), delta, reverse=True)[1]


def loss(params: Params, batch: Batch, actor: Actor = ACTOR) -> jax.Array:
    """The clipped surrogate (Schulman et al., 2017, equation 7) and half the value's error."""
    mean, log_std, value = actor(params, batch.obs)
    ratio = jnp.exp(_log_prob(batch.action, mean, log_std) - batch.log_prob)
    clipped = jnp.clip(ratio, 1.0 - _CLIP, 1.0 + _CLIP)
    surrogate = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage).mean()
    return _VALUE_WEIGHT * jnp.square(value - batch.value_target).mean() - surrogate


def _collect(
    act: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
    key: jax.Array,
    safety_radius: jax.Array,
) -> tuple[_Rollout, jax.Array]:
    """One episode in each of W new worlds, actions sampled, and its last value [W, N]."""
    move = jax.vmap(partial(swarm.step, safety_radius=safety_radius))

    def advance(worlds: swarm.State, key: jax.Array) -> tuple[swarm.State, _Rollout]:
        obs = jax.vmap(swarm.observe)(worlds)
        mean, log_std, value = act(obs)
        action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
        outcome = move(worlds, action)
        log_prob = _log_prob(action, mean, log_std)
        return outcome.state, _Rollout(obs, action, log_prob, value, outcome.reward)

    layout_key, action_key = jax.random.split(key)
    worlds = jax.vmap(swarm.reset)(jax.random.split(layout_key, WORLDS))
    worlds, rollout = jax.lax.scan(advance, worlds, jax.random.split(action_key, swarm.STEPS))
    return rollout, act(jax.vmap(swarm.observe)(worlds))[2]


def _batch(rollout: _Rollout, last_value: jax.Array) -> Batch:
    """The rows of a rollout, B = S·W·N; advantages have mean 0 and deviation 1."""
    advantage = gae(rollout.reward, rollout.value, last_value)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    target = advantage + rollout.value
    stacked = Batch(rollout.obs, rollout.action, rollout.log_prob, scaled, target)
    rows: Batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), stacked)
    return rows


def _shuffled(batch: Batch, key: jax.Array) -> Batch:
    """[B, …] as [MINIBATCHES, B / MINIBATCHES, …], in an order drawn with `key`."""
    order = jax.random.permutation(key, batch.obs.shape[0])
    minibatches: Batch = jax.tree.map(
        lambda leaf: leaf[order].reshape(MINIBATCHES, -1, *leaf.shape[1:]), batch
    )
    return minibatches


def _descend(
    optimizer: optax.GradientTransformation, actor: Actor, learned: _Learned, batch: Batch
) -> tuple[_Learned, None]:
    """Params and optimizer state after one step down the loss of `batch`, for a scan."""
    params, opt_state = learned
    change, opt_state = optimizer.update(jax.grad(loss)(params, batch, actor), opt_state, params)
    return (optax.apply_updates(params, change), opt_state), None


def _optimizer(learning_rate: float | jax.Array) -> optax.GradientTransformation:
    """Adam below a gradient norm; its state does not hold the rate."""
    return optax.chain(optax.clip_by_global_norm(_GRADIENT_NORM), optax.adam(learning_rate))


def _log_prob(action: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """The log density [...] of a diagonal Gaussian at `action` [..., D]."""
    z = (action - mean) * jnp.exp(-log_std)
    return (-0.5 * jnp.square(z) - log_std - 0.5 * jnp.log(2.0 * jnp.pi)).sum(axis=-1)


def _mean_action(actor: Actor, params: Params, key: jax.Array, observation: jax.Array) -> jax.Array:
    """A policy that takes its most likely action."""
    return actor(params, observation)[0]


@jax.jit
def _init(key: jax.Array) -> Params:
    """Fresh params: orthogonal kernels, zero biases."""
    return NETWORK.init(key, jnp.zeros((1, swarm.OBS_DIM), jnp.float32))
