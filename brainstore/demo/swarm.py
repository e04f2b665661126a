"""The swarm task: a hundred agents, each to its own goal, without collisions.

Pure functions of one world, for `jax.vmap` and `jax.lax.scan`. The world is the square
[-1, 1]²; lengths are in its units, velocities in lengths a step. Shapes are float32
unless said otherwise; N is `AGENTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

AGENTS = 100
STEPS = 64
NEIGHBOURS = 24
OBS_DIM = 4 + 4 * NEIGHBOURS
ACTION_DIM = 2
SAFETY_RADIUS = 0.05
GOAL_RADIUS = 0.1

_LAYOUT_SEED = 0
_MOMENTUM = 0.5
_THRUST = 0.03
_OBS_LIMIT = 2.0

T = TypeVar("T")

Policy = Callable[[jax.Array, jax.Array], jax.Array]
"""`policy(key, observation [N, OBS_DIM]) -> action [N, ACTION_DIM]`; may ignore the key."""


class State(NamedTuple):
    """One world: `position`, `velocity` and `goal`, each [N, 2]."""

    position: jax.Array
    velocity: jax.Array
    goal: jax.Array


class Outcome(NamedTuple):
    """What a step led to, by agent: `reward` [N]; `at_goal`, `colliding` [N] bool."""

    state: State
    reward: jax.Array
    at_goal: jax.Array
    colliding: jax.Array


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a policy did, as means over layouts and agents.

    `return_` is the reward summed over an episode, `at_goal` the share of agents at
    their goals after its last step, `colliding` the share of agent-steps with another
    agent inside the safety radius.
    """

    return_: float
    at_goal: float
    colliding: float


def reset(key: jax.Array) -> State:
    """A world at rest; positions and goals are independent and uniform."""
    position_key, goal_key = jax.random.split(key)
    return State(_uniform(position_key), jnp.zeros((AGENTS, 2), jnp.float32), _uniform(goal_key))


def step(
    state: State, action: jax.Array, *, safety_radius: float | jax.Array = SAFETY_RADIUS
) -> Outcome:
    """The world one step later, with `tanh(action)` as thrust and each agent's reward.

    The reward is 5 × the progress towards the goal, + 0.1 when then within
    `GOAL_RADIUS` of it, − 0.3 when another agent is then nearer than `safety_radius`.

    Args:
        state: the world now.
        action: [N, 2], unbounded.
        safety_radius: length; may be traced, so one compilation serves all radii.
    """
    velocity = _MOMENTUM * state.velocity + _THRUST * jnp.tanh(action)
    moved = State(jnp.clip(state.position + velocity, -1.0, 1.0), velocity, state.goal)
    distance = goal_distance(moved)
    at_goal = distance < GOAL_RADIUS
    colliding = _squared_distances(moved.position).min(axis=-1) < jnp.square(safety_radius)
    reward = 5.0 * (goal_distance(state) - distance) + 0.1 * at_goal - 0.3 * colliding
    return Outcome(moved, reward, at_goal, colliding)


def observe(state: State) -> jax.Array:
    """What each agent sees, [N, OBS_DIM], clipped to ±2.

    Its goal, relative, × 2 (2 numbers); its velocity × 20 (2); of the nearest
    neighbours, nearest first, the relative positions × 5 (48) and then the relative
    velocities × 10 (48).
    """
    nearest = nearest_neighbours(state.position)
    position = state.position[nearest] - state.position[:, None]
    velocity = state.velocity[nearest] - state.velocity[:, None]
    seen = [
        2.0 * (state.goal - state.position),
        20.0 * state.velocity,
        5.0 * position.reshape(AGENTS, -1),
        10.0 * velocity.reshape(AGENTS, -1),
    ]
    return jnp.clip(jnp.concatenate(seen, axis=-1), -_OBS_LIMIT, _OBS_LIMIT)


def nearest_neighbours(position: jax.Array) -> jax.Array:
    """The indices [N, NEIGHBOURS], int32, of each agent's nearest others, nearest first."""
    return jax.lax.top_k(-_squared_distances(position), NEIGHBOURS)[1]


def goal_distance(state: State) -> jax.Array:
    """Each agent's distance to its goal, [N]."""
    distance: jax.Array = jnp.linalg.norm(state.goal - state.position, axis=-1)
    return distance


def random_policy(key: jax.Array, observation: jax.Array) -> jax.Array:
    """Standard normal actions: the floor that every policy should leave."""
    return jax.random.normal(key, (*observation.shape[:-1], ACTION_DIM), observation.dtype)


def greedy_policy(key: jax.Array, observation: jax.Array) -> jax.Array:
    """To the goal, flat out on each axis until there, blind to everyone else."""
    # A fair rival: a gain of 10 beat 2, 3, 5 and unit vectors × 2 to 10 (2026-11-23).
    return 10.0 * observation[..., :2]


def evaluate(
    policy: Policy, *, layouts: int = 32, safety_radius: float = SAFETY_RADIUS
) -> Evaluation:
    """How well `policy` does on fixed layouts, the same ones in every call.

    A policy made by `bind` that carries params is compiled once for all params.
    """
    keys = jax.random.split(jax.random.key(_LAYOUT_SEED), layouts)
    means = _evaluate(bind(policy), keys, safety_radius)
    return Evaluation(*map(float, means))


def bind(function: Callable[..., T], *leading: Any) -> Callable[..., T]:
    """`function` with its leading arguments filled in, as a pytree that jit takes."""
    bound: Callable[..., T] = jax.tree_util.Partial(function, *leading)  # type: ignore[no-untyped-call] # jax: untyped
    return bound


@jax.jit
def _evaluate(
    policy: Policy, keys: jax.Array, safety_radius: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fields of an Evaluation over one episode from each of `keys`."""
    reward, at_goal, colliding = jax.vmap(lambda key: _episode(policy, key, safety_radius))(keys)
    return reward.sum(axis=1).mean(), at_goal[:, -1].mean(), colliding.mean()


def _episode(policy: Policy, key: jax.Array, safety_radius: jax.Array) -> tuple[jax.Array, ...]:
    """Reward, at_goal and colliding, each [STEPS, N], of one episode."""

    def advance(state: State, key: jax.Array) -> tuple[State, tuple[jax.Array, ...]]:
        outcome = step(state, policy(key, observe(state)), safety_radius=safety_radius)
        return outcome.state, outcome[1:]

    layout_key, policy_key = jax.random.split(key)
    return jax.lax.scan(advance, reset(layout_key), jax.random.split(policy_key, STEPS))[1]


def _uniform(key: jax.Array) -> jax.Array:
    """Points [N, 2] anywhere in the world."""
    return jax.random.uniform(key, (AGENTS, 2), jnp.float32, minval=-1.0, maxval=1.0)


def _squared_distances(position: jax.Array) -> jax.Array:
    """Between all agents, [N, N]; infinite from an agent to itself."""
    # Differences, not |a|² + |b|² − 2ab: that loses the small distances that collide.
    squared = jnp.square(position[:, None] - position[None]).sum(axis=-1)
    return jnp.where(jnp.eye(AGENTS, dtype=bool), jnp.inf, squared)
