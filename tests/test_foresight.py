"""The foresight task: what is recorded, what straight flight predicts, what is learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainstore.demo import foresight, swarm

STEPS = 40


@pytest.fixture(scope="module")
def tracks() -> jax.Array:
    return foresight.record(swarm.greedy_policy, seed=1, worlds=2)


@pytest.fixture(scope="module")
def params(tracks: jax.Array) -> foresight.Params:
    return foresight.train(tracks, seed=0, steps=STEPS)


def test_tracks_are_positions_and_velocities_of_every_agent(tracks: jax.Array) -> None:
    assert tracks.shape == (2, swarm.STEPS, swarm.AGENTS, 4)
    position, velocity = np.split(np.asarray(tracks), 2, axis=-1)
    moved = np.diff(position, axis=1)
    inside = np.abs(position[:, 1:]) < 1
    np.testing.assert_allclose(moved[inside], velocity[:, 1:][inside], atol=1e-6)


def test_other_seeds_are_other_worlds(tracks: jax.Array) -> None:
    other = foresight.record(swarm.greedy_policy, seed=2, worlds=2)
    assert not np.allclose(other[:, 0, :, :2], tracks[:, 0, :, :2])


def test_constant_velocity_is_right_about_straight_flight_and_stays_inside() -> None:
    time = jnp.arange(foresight.FRAMES + foresight.HORIZON)[:, None]
    step = jnp.array([0.0625, -0.03125])
    flight = jnp.concatenate([time * step, jnp.broadcast_to(step, (len(time), 2))], axis=-1)
    found = foresight.constant_velocity(flight[None, : foresight.FRAMES])[0]
    np.testing.assert_array_equal(found, jnp.clip(time[foresight.FRAMES :] * step, -1, 1))
    assert found[-1, 0] == 0.9375
    faster = foresight.constant_velocity(flight[: foresight.FRAMES] * 2)
    assert faster[-1, 0] == 1.0


def test_predictions_start_from_where_the_neighbour_is(params: foresight.Params) -> None:
    seen = jnp.zeros((3, foresight.FRAMES, 4)).at[1, :, 0].set(0.5)
    found = jax.jit(foresight.predict)(params, seen)
    assert found.shape == (3, foresight.HORIZON, 2)
    assert float(jnp.abs(found[1, :, 0] - 0.5).max()) < 0.5
    np.testing.assert_array_equal(found[0], found[2])


def test_training_repeats_itself_bit_for_bit(tracks: jax.Array, params: foresight.Params) -> None:
    reports: list[int] = []
    again = foresight.train(
        tracks, seed=0, steps=STEPS, on_steps=lambda done, _: reports.append(done)
    )
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert reports == [STEPS]


def test_an_evaluation_repeats_itself_and_its_rival_does_not_depend_on_params(
    params: foresight.Params,
) -> None:
    policy = swarm.bind(swarm.greedy_policy)
    found = foresight.evaluate(params, policy)
    assert found == foresight.evaluate(params, policy)
    silent = foresight.evaluate(jax.tree.map(jnp.zeros_like, params), policy)
    assert silent.straight_error == found.straight_error
    assert silent.straight_last_error == found.straight_last_error
    assert found.straight_error < found.straight_last_error
    # One that says nothing foresees that the neighbour stays; even a moment of training helps.
    assert found.error < silent.error
