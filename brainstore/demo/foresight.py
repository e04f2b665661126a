"""The foresight task: where a neighbour in the swarm goes next, from what was seen of it.

A neighbour is seen in `FRAMES` successive frames of 4 numbers: its position, and its
velocity × `_VELOCITY_SCALE`; its goal is not seen. `TransformerContext` tells its next
`HORIZON` positions, learning from recorded episodes of some policy. The rival is constant
velocity. The same seed on the same machine gives the same params. Arrays are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from brainstore.demo import swarm
from brainstore.networks import Params, TransformerContext

FRAMES = 8
HORIZON = 8
FRAME_DIM = 4
HIDDEN_DIM = 32
WORLDS = 64
BATCH = 256
STEPS = 1_500
LEARNING_RATE = 2e-3
TEST_WINDOWS = 16_384

_VELOCITY_SCALE = 20.0
_OFFSET_SCALE = 5.0
# No seed that anybody would record with: the worlds of an evaluation are never learned from.
_TEST_SEED = 2_147_483_647
_TEST_WORLDS = 8
_LONGEST_RUN = 250

NETWORK = TransformerContext(FRAME_DIM, 2 * HORIZON, HIDDEN_DIM, frames=FRAMES)

Tracks = jax.Array
"""[worlds, STEPS of the swarm, AGENTS, 4]: position and velocity of every agent."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean distances, in lengths of the world, from where the neighbour really was.

    Attributes:
        error: over all `HORIZON` steps, by the network.
        last_error: at the last of them.
        straight_error, straight_last_error: the same, if it had flown straight on.
    """

    error: float
    last_error: float
    straight_error: float
    straight_last_error: float


class _Learned(NamedTuple):
    params: Params
    opt_state: optax.OptState


def record(policy: swarm.Policy, seed: int, *, worlds: int = WORLDS) -> Tracks:
    """Episodes of the policy in new worlds, as seen from outside."""
    tracks: Tracks = _record(swarm.bind(policy), jax.random.split(jax.random.key(seed), worlds))
    return tracks


def train(
    tracks: Tracks,
    seed: int,
    *,
    steps: int = STEPS,
    on_steps: Callable[[int, float], None] | None = None,
) -> Params:
    """Params of `NETWORK` that have learned from windows of these tracks.

    `on_steps` is called now and then with the steps done and the mean error of the last.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    params = _init(init_key)
    learned = _Learned(params, _optimizer(0.0).init(params))
    for begun in range(0, steps, _LONGEST_RUN):
        ended = min(begun + _LONGEST_RUN, steps)
        learned, error = _descend(learned, tracks, key, begun, ended, steps)
        if on_steps is not None:
            on_steps(ended, float(error))
    return learned.params


def evaluate(params: Params, policy: swarm.Policy) -> Evaluation:
    """How well the network foresees agents of the policy in fixed worlds that it never saw."""
    tracks = record(policy, _TEST_SEED, worlds=_TEST_WORLDS)
    return Evaluation(*map(float, _evaluate(params, tracks)))


def predict(params: Params, seen: jax.Array) -> jax.Array:
    """The next positions [..., HORIZON, 2] of what was seen, [..., FRAMES, 4]."""
    outputs: Any = NETWORK.apply(params, frames(seen))
    offsets = outputs.reshape(*outputs.shape[:-1], HORIZON, 2) / _OFFSET_SCALE
    return seen[..., -1:, :2] + jnp.asarray(offsets)


def frames(seen: jax.Array) -> jax.Array:
    """What was seen, [..., FRAMES, 4], as the network takes it."""
    return seen * jnp.array([1.0, 1.0, _VELOCITY_SCALE, _VELOCITY_SCALE])


def constant_velocity(seen: jax.Array) -> jax.Array:
    """The next positions [..., HORIZON, 2] if the last step repeats itself, inside the world."""
    steps = jnp.arange(1, HORIZON + 1, dtype=seen.dtype)[:, None]
    return jnp.clip(seen[..., -1:, :2] + steps * seen[..., -1:, 2:], -1.0, 1.0)


@jax.jit
def _descend(
    learned: _Learned,
    tracks: Tracks,
    key: jax.Array,
    begun: jax.Array,
    ended: jax.Array,
    steps: jax.Array,
) -> tuple[_Learned, jax.Array]:
    """What is learned once `ended` steps are done and not `begun`, of `steps` in all.

    And the mean error of the last. The rate falls to 0 along half a cosine.
    """

    def step(count: jax.Array, before: tuple[_Learned, jax.Array]) -> tuple[_Learned, jax.Array]:
        learned, _ = before
        rate = LEARNING_RATE * 0.5 * (1.0 + jnp.cos(jnp.pi * count / steps))
        windows = _windows(tracks, jax.random.fold_in(key, count), BATCH)
        error, slope = jax.value_and_grad(_mean_error)(learned.params, windows)
        change, opt_state = _optimizer(rate).update(slope, learned.opt_state)
        return _Learned(optax.apply_updates(learned.params, change), opt_state), error

    start = (learned, jnp.zeros(()))
    done: tuple[_Learned, jax.Array] = jax.lax.fori_loop(begun, ended, step, start)
    return done


@jax.jit
def _evaluate(params: Params, tracks: Tracks) -> tuple[jax.Array, ...]:
    """The fields of an Evaluation."""
    windows = _windows(tracks, jax.random.key(_TEST_SEED), TEST_WINDOWS)
    seen = windows[:, :FRAMES]
    learned, straight = (
        _distance(guess, windows).mean(axis=0)
        for guess in (predict(params, seen), constant_velocity(seen))
    )
    return learned.mean(), learned[-1], straight.mean(), straight[-1]


@jax.jit
def _record(policy: swarm.Policy, keys: jax.Array) -> Tracks:
    def advance(state: swarm.State, key: jax.Array) -> tuple[swarm.State, jax.Array]:
        moved = swarm.step(state, policy(key, swarm.observe(state))).state
        return moved, jnp.concatenate([moved.position, moved.velocity], axis=-1)

    def episode(key: jax.Array) -> jax.Array:
        layout_key, policy_key = jax.random.split(key)
        step_keys = jax.random.split(policy_key, swarm.STEPS)
        return jax.lax.scan(advance, swarm.reset(layout_key), step_keys)[1]

    tracks: Tracks = jax.lax.map(episode, keys)
    return tracks


@jax.jit
def _init(key: jax.Array) -> Params:
    return NETWORK.init(key, jnp.zeros((1, FRAMES, FRAME_DIM), jnp.float32))


def _windows(tracks: Tracks, key: jax.Array, count: int) -> jax.Array:
    """So many stretches [count, FRAMES + HORIZON, 4] of one agent each, anywhere."""
    worlds, steps, agents, _ = tracks.shape
    limits = jnp.array([worlds, steps - FRAMES - HORIZON + 1, agents])
    world, first, agent = jax.random.randint(key, (count, 3), 0, limits).T[..., None]
    return tracks[world, first + jnp.arange(FRAMES + HORIZON), agent]


def _mean_error(params: Params, windows: jax.Array) -> jax.Array:
    return _distance(predict(params, windows[:, :FRAMES]), windows).mean()


def _distance(guess: jax.Array, windows: jax.Array) -> jax.Array:
    """From each guess [B, HORIZON, 2] to the truth, [B, HORIZON]."""
    # The square root has no slope at 0, where an agent rests at its goal.
    squared = jnp.square(guess - windows[:, FRAMES:, :2]).sum(axis=-1)
    return jnp.sqrt(squared + 1e-12)


def _optimizer(learning_rate: float | jax.Array) -> optax.GradientTransformation:
    return optax.adam(learning_rate)
