"""The reference networks: what they take, what they give, what their params are called."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainstore.networks import (
    ActorCritic,
    DIALDecoder,
    DIALEncoder,
    Gate,
    GatedFusion,
    TransformerContext,
)

KEY = jax.random.key(0)
ENCODER = DIALEncoder(obs_dim=3, action_dim=5, hidden_dim=4)
DECODER = DIALDecoder(obs_dim=5, action_dim=6, hidden_dim=4, context_dim=3)
CONTEXT = TransformerContext(obs_dim=4, action_dim=6, hidden_dim=8, frames=5, layers=1)
EXPERT = ActorCritic(obs_dim=3, action_dim=2, hidden_dim=4)
FUSION = GatedFusion(3, 2, 4, expert_names=["nav", "wide"], gate_dim=4)


def params_of(network: Any, *shapes: tuple[int, ...]) -> Any:
    """Return random params that the network takes for inputs of these shapes."""
    rng = np.random.default_rng(0)
    specs = jax.eval_shape(network.init, KEY, *map(jnp.ones, shapes))
    return jax.tree.map(lambda spec: rng.normal(size=spec.shape).astype(np.float32), specs)


def apply(network: Any, params: Any, *inputs: jax.Array) -> Any:
    return jax.jit(network.apply)(params, *inputs)


def normal(seed: int, *shape: int) -> jax.Array:
    # NumPy's: JAX would compile for every shape.
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.fixture(scope="module")
def experts() -> Any:
    nav = params_of(EXPERT, (1, 3))
    return {"wide": jax.tree.map(lambda leaf: leaf + 0.5, nav), "nav": nav}


@pytest.fixture(scope="module")
def fused(experts: Any) -> Any:
    """Params of a fusion of two experts that differ."""
    return {"experts": experts, "gate": params_of(FUSION, (1, 3))["params"]["gate"]}


def layer(params: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(params["params"][name]["kernel"]), np.asarray(params["params"][name]["bias"])


def dense(params: Any, name: str, inputs: Any) -> np.ndarray:
    kernel, bias = layer(params, name)
    return np.asarray(inputs) @ kernel + bias


def test_an_encoder_is_two_linear_layers_with_a_relu() -> None:
    params, obs = params_of(ENCODER, (1, 3)), normal(1, 7, 3)
    assert {name: layer(params, name)[0].shape for name in params["params"]} == {
        "hidden": (3, 4),
        "message": (4, 5),
    }
    expected = dense(params, "message", np.maximum(dense(params, "hidden", obs), 0))
    np.testing.assert_allclose(apply(ENCODER, params, obs), expected, rtol=1e-5, atol=1e-6)


def test_a_decoder_scores_candidates_by_dot_products_of_embeddings() -> None:
    params = params_of(DECODER, (1, 5), (1, 2, 3))
    message, context = normal(1, 7, 5), normal(2, 7, 9, 3)
    embedded = {
        name: dense(params, f"{name}_embedding", np.maximum(dense(params, f"{name}_hidden", x), 0))
        for name, x in (("message", message), ("context", context))
    }
    expected = (embedded["message"][:, None] * embedded["context"]).sum(axis=-1)
    scores = apply(DECODER, params, message, context)
    assert scores.shape == (7, 9)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_transformer_sees_every_frame_and_their_order() -> None:
    params, frames = params_of(CONTEXT, (1, 5, 4)), normal(1, 2, 3, 5, 4)
    seen = apply(CONTEXT, params, frames)
    assert seen.shape == (2, 3, 6)
    for changed in (frames.at[..., 0, :].add(1.0), frames[..., ::-1, :]):
        assert not np.allclose(apply(CONTEXT, params, changed), seen, atol=1e-4)


def gated(fused: Any, bias: list[float]) -> Any:
    """Return the params with a gate that gives the same weights to every observation."""
    gate = fused["gate"]
    layer = {"kernel": jnp.zeros_like(gate["weights"]["kernel"]), "bias": jnp.array(bias)}
    return {**fused, "gate": {**gate, "weights": layer}}


@pytest.mark.parametrize(
    ("bias", "nav", "wide"),
    [([0.5, -0.5], 1.0, 0.0), ([-0.5, 0.5], 0.0, 1.0), ([0.0, 2.0], -0.5, 1.5)],
)
def test_a_gate_gives_one_experts_action_or_goes_beyond_it(
    fused: Any, bias: list[float], nav: float, wide: float
) -> None:
    obs = normal(1, 7, 3)
    mean, log_std, value = apply(FUSION, {"params": gated(fused, bias)}, obs)
    means = {name: apply(EXPERT, expert, obs)[0] for name, expert in fused["experts"].items()}
    expected = nav * means["nav"] + wide * means["wide"]
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-4)
    assert (log_std.shape, value.shape) == ((2,), (7,))


def test_a_fresh_gate_weighs_its_experts_about_the_same() -> None:
    gate = Gate(obs_dim=3, action_dim=2, hidden_dim=4, experts=2)
    params = jax.jit(gate.init)(KEY, jnp.ones((1, 3)))
    weights, _, _ = apply(gate, params, normal(1, 7, 3))
    np.testing.assert_allclose(weights, 0.5, atol=0.05)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)


def test_a_fusion_takes_experts_as_they_were_saved(fused: Any) -> None:
    expected = jax.eval_shape(FUSION.init, KEY, jnp.ones((1, 3)))["params"]
    assert jax.tree.structure(expected) == jax.tree.structure(fused)


def test_nothing_flows_back_into_the_experts(fused: Any) -> None:
    def loss(params: Any) -> Any:
        mean, log_std, value = FUSION.apply({"params": params}, jnp.ones((2, 3)))
        return mean.sum() + log_std.sum() + value.sum()

    slope = jax.jit(jax.grad(loss))(fused)
    assert not any(leaf.any() for leaf in jax.tree.leaves(slope["experts"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(slope["gate"]["weights"]))


@pytest.mark.parametrize(
    ("network", "shapes", "problem"),
    [
        (EXPERT, [(1, 4)], r"obs: expected \[\.\.\., 3\], found \(1, 4\)"),
        (ENCODER, [(1, 4)], r"obs: expected \[\.\.\., 3\], found \(1, 4\)"),
        (Gate(3, 2, 4, experts=2), [(1, 4)], r"obs: expected \[\.\.\., 3\], found"),
        (DECODER, [(1, 4), (1, 2, 3)], r"message: expected \[\.\.\., 5\], found \(1, 4\)"),
        (DECODER, [(1, 5), (1, 2, 4)], r"context: expected \[\.\.\., 3\], found \(1, 2, 4\)"),
        (CONTEXT, [(1, 8, 4)], r"frames: expected \[\.\.\., 5, 4\], found \(1, 8, 4\)"),
    ],
)
def test_a_network_names_the_input_that_does_not_fit(
    network: Any, shapes: list[tuple[int, ...]], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        jax.eval_shape(network.init, KEY, *map(jnp.ones, shapes))
