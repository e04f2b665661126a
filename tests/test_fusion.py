"""The fusion: only the gate learns, and the experts stay what they are, bit for bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainstore.demo import fusion, ppo, swarm

RADIUS = 0.08
KEY = jax.random.key(0)
OBS = jax.random.normal(KEY, (5, swarm.OBS_DIM))


@pytest.fixture(scope="module")
def experts() -> tuple[Any, Any]:
    """Two untrained ones that differ, one of them with less to say."""
    nav, wide = (ppo.start(seed).params for seed in (0, 1))
    return nav, jax.tree.map(lambda leaf: leaf * 1.5, wide)


@pytest.fixture(scope="module")
def fresh(experts: tuple[Any, Any]) -> fusion.Fused:
    return fusion.start(0, *experts)


@pytest.fixture(scope="module")
def trained(fresh: fusion.Fused) -> fusion.Fused:
    return fusion.train(fresh, 1, seed=0, safety_radius=RADIUS)


def hashes(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_the_experts_are_the_params_given(experts: tuple[Any, Any], fresh: fusion.Fused) -> None:
    assert fresh["experts"]["nav"] is experts[0]
    assert fresh["experts"]["wide"] is experts[1]


def test_training_leaves_the_experts_byte_identical_and_moves_the_gate(
    fresh: fusion.Fused, trained: fusion.Fused
) -> None:
    assert hashes(trained["experts"]) == hashes(fresh["experts"])
    assert jax.tree.structure(trained) == jax.tree.structure(fresh)
    before, after = hashes(fresh["gate"]), hashes(trained["gate"])
    assert all(left != right for left, right in zip(before, after, strict=True))


def test_training_repeats_itself_bit_for_bit(fresh: fusion.Fused, trained: fusion.Fused) -> None:
    again = fusion.train(fresh, 1, seed=0, safety_radius=RADIUS)
    assert hashes(again) == hashes(trained)
    other = fusion.train(fresh, 1, seed=1, safety_radius=RADIUS)
    assert hashes(other["gate"]) != hashes(trained["gate"])


def test_the_even_policy_is_the_mean_of_the_experts(fresh: fusion.Fused) -> None:
    act = jax.jit(lambda policy: policy(KEY, OBS))
    means = [act(ppo.policy(expert)) for expert in fresh["experts"].values()]
    expected = (means[0] + means[1]) / 2
    np.testing.assert_allclose(act(fusion.even_policy(fresh)), expected, atol=1e-6)
    np.testing.assert_allclose(act(fusion.policy(fresh)), expected, atol=0.01)


def test_a_fusion_is_evaluated_as_any_policy_is(trained: fusion.Fused) -> None:
    found = swarm.evaluate(fusion.policy(trained), layouts=2, safety_radius=RADIUS)
    assert found == swarm.evaluate(fusion.policy(trained), layouts=2, safety_radius=RADIUS)
    assert jnp.isfinite(found.return_)
