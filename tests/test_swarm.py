from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainstore.demo import ppo, swarm
from brainstore.networks import ActorCritic


def a_world(**changed: jax.Array) -> swarm.State:
    """Agents at rest on a grid with 0.2 between neighbours, each on its goal."""
    axis = jnp.arange(10) * 0.2 - 0.9
    grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(jnp.float32)
    return swarm.State(grid, jnp.zeros_like(grid), grid)._replace(**changed)


step = jax.jit(swarm.step)
observe = jax.jit(swarm.observe)
STILL = jnp.zeros((swarm.AGENTS, swarm.ACTION_DIM))


def assert_identical(left: ppo.TrainState, right: ppo.TrainState) -> None:
    left, right = (state._replace(key=jax.random.key_data(state.key)) for state in (left, right))
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def trained() -> ppo.TrainState:
    return ppo.train(ppo.start(0), 2)


def test_a_world_starts_at_rest_inside_the_square() -> None:
    state = swarm.reset(jax.random.key(3))
    assert [leaf.shape for leaf in state] == [(100, 2)] * 3
    assert {leaf.dtype for leaf in state} == {jnp.dtype("float32")}
    assert not state.velocity.any()
    assert float(jnp.abs(jnp.stack([state.position, state.goal])).max()) <= 1.0


def test_an_observation_has_a_hundred_numbers_within_two() -> None:
    state = swarm.reset(jax.random.key(3))._replace(velocity=jnp.full((100, 2), 0.7))
    obs = observe(state)
    assert obs.shape == (100, swarm.OBS_DIM) == (100, 100)
    assert float(obs.max()) == 2.0
    assert float(obs.min()) == -2.0


def test_an_observation_is_goal_velocity_and_neighbours_to_scale() -> None:
    position = jnp.full((100, 2), 0.9).at[7].set(-0.5).at[8].set(jnp.array([-0.4, -0.6]))
    state = a_world(
        position=position,
        goal=position.at[7].add(jnp.array([0.25, -0.125])),
        velocity=jnp.zeros((100, 2)).at[7].set(0.03125).at[8].set(-0.0625),
    )
    obs = observe(state)[7]
    np.testing.assert_allclose(obs[:4], [0.5, -0.25, 0.625, 0.625], rtol=1e-5)
    np.testing.assert_allclose(obs[4:6], [0.5, -0.5], rtol=1e-5)
    np.testing.assert_allclose(obs[6:52], 2.0)
    np.testing.assert_allclose(obs[52:54], -0.9375, rtol=1e-5)


def test_nearest_neighbours_agree_with_brute_force() -> None:
    position = swarm.reset(jax.random.key(4)).position
    found = np.asarray(swarm.nearest_neighbours(position))
    points = np.asarray(position, np.float64)
    for agent, neighbours in enumerate(found):
        distance = np.linalg.norm(points - points[agent], axis=1)
        distance[agent] = np.inf
        np.testing.assert_array_equal(neighbours, np.argsort(distance)[:24])


def test_velocity_is_half_the_old_one_and_the_squashed_thrust() -> None:
    state = a_world(velocity=jnp.full((100, 2), 0.02))
    moved = step(state, STILL.at[:, 0].set(0.5).at[:, 1].set(-100.0)).state
    expected = np.array([0.01 + 0.03 * np.tanh(0.5), -0.02])
    np.testing.assert_allclose(moved.velocity, np.tile(expected, (100, 1)), rtol=1e-5)
    np.testing.assert_allclose(moved.position, state.position + expected, atol=1e-6)
    np.testing.assert_array_equal(moved.goal, state.goal)


def test_agents_stay_in_the_world() -> None:
    state = a_world()
    for _ in range(5):
        state = step(state, STILL + 100.0).state
    assert float(state.position.max()) == 1.0


def test_an_agent_on_its_goal_earns_the_bonus_only() -> None:
    outcome = step(a_world(), STILL)
    np.testing.assert_allclose(outcome.reward, 0.1, rtol=1e-6)
    assert outcome.at_goal.all()
    assert not outcome.colliding.any()


def test_progress_counts_five_times_and_for_that_agent_only() -> None:
    state = a_world()
    state = state._replace(goal=state.goal.at[11, 0].add(0.5))
    outcome = step(state, STILL.at[11, 0].set(100.0))
    assert float(outcome.reward[11]) == pytest.approx(5 * 0.03, rel=1e-4)
    assert not outcome.at_goal[11]
    np.testing.assert_allclose(np.delete(outcome.reward, 11), 0.1, rtol=1e-6)


def test_a_step_away_from_the_goal_costs() -> None:
    state = a_world()
    state = state._replace(goal=state.goal.at[11, 0].add(0.5))
    outcome = step(state, STILL.at[11, 0].set(-100.0))
    assert float(outcome.reward[11]) == pytest.approx(-5 * 0.03, rel=1e-4)


@pytest.mark.parametrize(
    ("apart", "radius", "collides"), [(0.045, 0.05, True), (0.06, 0.05, False), (0.06, 0.08, True)]
)
def test_agents_inside_the_safety_radius_pay_both(
    apart: float, radius: float, collides: bool
) -> None:
    state = a_world()
    position = state.position.at[1].set(state.position[0]).at[1, 0].add(apart)
    outcome = step(state._replace(position=position, goal=position), STILL, safety_radius=radius)
    assert outcome.colliding[:2].tolist() == [collides, collides]
    assert not outcome.colliding[2:].any()
    np.testing.assert_allclose(outcome.reward[:2], 0.1 - 0.3 * collides, rtol=1e-5)


def test_random_actions_stay_at_the_floor() -> None:
    found = swarm.evaluate(swarm.random_policy)
    assert found.return_ == pytest.approx(-3.2, abs=0.3)
    assert found.at_goal < 0.02
    assert found.colliding == pytest.approx(0.167, abs=0.02)


def test_the_greedy_baseline_arrives_and_collides() -> None:
    found = swarm.evaluate(swarm.greedy_policy)
    assert found.return_ == pytest.approx(6.56, abs=0.2)
    assert found.at_goal == 1.0
    assert found.colliding == pytest.approx(0.188, abs=0.02)
    wider = swarm.evaluate(swarm.greedy_policy, safety_radius=0.08)
    assert wider.return_ == pytest.approx(2.39, abs=0.3)


def test_an_evaluation_repeats_itself() -> None:
    assert swarm.evaluate(swarm.random_policy) == swarm.evaluate(swarm.random_policy)


def test_the_network_has_the_published_size_and_outputs() -> None:
    params = ppo.start(0).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 92_421
    network = ActorCritic(obs_dim=100, action_dim=2, hidden_dim=256)
    mean, log_std, value = network.apply(params, jnp.ones((3, 5, 100)))
    assert (mean.shape, log_std.shape, value.shape) == ((3, 5, 2), (2,), (3, 5))
    assert log_std.tolist() == [-0.5, -0.5]


def test_the_network_names_a_wrong_observation() -> None:
    with pytest.raises(ValueError, match=r"expected \[\.\.\., 100\], found \(3, 99\)"):
        ppo.NETWORK.apply(ppo.start(0).params, jnp.ones((3, 99)))


def test_gae_agrees_with_its_sum() -> None:
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 12, 3))
    last = rng.normal(size=3)
    values = np.concatenate([value, last[None]])
    delta = reward + 0.95 * values[1:] - values[:-1]
    expected = [
        sum((0.95 * 0.95) ** (later - now) * delta[later] for later in range(now, 12))
        for now in range(12)
    ]
    found = ppo.gae(*(jnp.asarray(array, jnp.float32) for array in (reward, value, last)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_surrogate_does_not_reward_leaving_the_clip() -> None:
    params = ppo.start(0).params
    obs = jnp.ones((1, 100))
    mean, log_std, value = ppo.NETWORK.apply(params, obs)
    density = -float(log_std.sum()) - float(jnp.log(2 * jnp.pi))

    def loss_at(ratio: float, advantage: float) -> float:
        before = jnp.array([density - np.log(ratio)])
        return float(ppo.loss(params, ppo.Batch(obs, mean, before, jnp.array([advantage]), value)))

    assert loss_at(1.1, 1.0) == pytest.approx(-1.1, rel=1e-4)
    assert loss_at(1.5, 1.0) == pytest.approx(-1.2, rel=1e-4)
    assert loss_at(0.5, -1.0) == pytest.approx(0.8, rel=1e-4)
    assert loss_at(1.5, -1.0) == pytest.approx(1.5, rel=1e-4)


def test_training_repeats_itself_bit_for_bit_and_in_parts(trained: ppo.TrainState) -> None:
    first = ppo.train(ppo.start(0), 1)
    assert_identical(ppo.train(first, 1), trained)


def test_another_seed_is_another_run() -> None:
    kernels = [ppo.start(seed).params["params"]["mean"]["kernel"] for seed in (0, 1)]
    assert not np.array_equal(*kernels)


def test_training_reports_and_improves(trained: ppo.TrainState) -> None:
    reports: list[tuple[int, float]] = []
    better = ppo.train(trained, 3, on_update=lambda done, return_: reports.append((done, return_)))
    assert [done for done, _ in reports] == [3, 4, 5]
    assert all(np.isfinite(return_) for _, return_ in reports)
    untrained = swarm.evaluate(ppo.policy(ppo.start(0).params), layouts=8)
    assert swarm.evaluate(ppo.policy(better.params), layouts=8).return_ > untrained.return_ + 1.0


def test_fine_tuning_starts_from_the_params_given(trained: ppo.TrainState) -> None:
    tuned = ppo.start(5, params=trained.params)
    assert tuned.params is trained.params
    assert int(tuned.updates) == 0
    changed = ppo.train(tuned, 1, safety_radius=0.08, learning_rate=0.0)
    jax.tree.map(np.testing.assert_array_equal, changed.params, trained.params)
