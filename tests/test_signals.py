"""The signalling task: the channel, the control, and that training brings success."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainstore.demo import signals

MESSAGE = jax.random.normal(jax.random.key(0), (200, signals.MESSAGE_DIM))


def assert_identical(left: Any, right: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def trained() -> signals.TrainState:
    """Trained for a moment."""
    return signals.train(signals.start(0), 250)


def test_the_pair_has_the_published_size() -> None:
    params = signals.start(0).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 14_180


def test_what_arrives_is_one_token_and_signs() -> None:
    sent = np.asarray(signals.send(MESSAGE))
    token, payload = sent[:, : signals.VOCAB_SIZE], sent[:, signals.VOCAB_SIZE :]
    np.testing.assert_array_equal(token.argmax(axis=1), MESSAGE[:, :32].argmax(axis=1))
    assert set(np.unique(token)) == {0.0, 1.0}
    assert (token.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(payload, np.where(MESSAGE[:, 32:] > 0, 1, -1))


def test_in_training_a_token_is_sampled_and_bits_are_noisy() -> None:
    sent = np.asarray(signals.send_with_gradient(jax.random.key(1), 3 * MESSAGE))
    token, payload = sent[:, :32], sent[:, 32:]
    np.testing.assert_allclose(np.sort(token, axis=1)[:, -1], 1.0, atol=1e-6)
    np.testing.assert_allclose(np.sort(token, axis=1)[:, :-1], 0.0, atol=1e-6)
    kept = (token.argmax(axis=1) == np.asarray(MESSAGE[:, :32]).argmax(axis=1)).mean()
    assert 0.3 < kept < 0.95
    assert (np.abs(payload) < 1).all()
    right = (np.sign(payload) == np.sign(MESSAGE[:, 32:])).mean()
    assert 0.6 < right < 0.99


def test_the_channel_of_training_has_a_gradient_for_every_value() -> None:
    weights = jax.random.normal(jax.random.key(2), MESSAGE.shape)

    def heard(message: jax.Array) -> jax.Array:
        return (weights * signals.send_with_gradient(jax.random.key(1), message)).sum()

    assert (jnp.abs(jax.grad(heard)(MESSAGE)).max(axis=0) > 1e-3).all()


def test_an_untrained_pair_is_at_chance() -> None:
    found = signals.evaluate(signals.start(0).params)
    for share in (found.success, found.shuffled, found.token_only, found.payload_only):
        assert share == pytest.approx(signals.CHANCE, abs=0.03)


def test_success_comes_from_the_message_and_the_shuffled_control_stays_at_chance(
    trained: signals.TrainState,
) -> None:
    found = signals.evaluate(trained.params)
    assert found.success > 0.3
    assert found.shuffled == pytest.approx(signals.CHANCE, abs=0.02)
    assert max(found.token_only, found.payload_only) < found.success
    assert 1 <= found.tokens_used <= signals.VOCAB_SIZE


def test_a_listener_that_does_not_listen_has_the_same_score_in_every_control(
    trained: signals.TrainState,
) -> None:
    decoder = jax.tree.map(lambda leaf: leaf, trained.params["decoder"])
    decoder["params"]["message_hidden"]["kernel"] *= 0.0
    found = signals.evaluate({**trained.params, "decoder": decoder})
    assert found.success == found.shuffled == found.token_only == found.payload_only
    assert found.success == pytest.approx(signals.CHANCE, abs=0.03)


def test_training_repeats_itself_bit_for_bit_and_in_parts() -> None:
    whole, again = (signals.train(signals.start(0), 20) for _ in range(2))
    parts = signals.train(signals.train(signals.start(0), 8), 12)
    assert int(whole.steps) == int(parts.steps) == 20
    assert_identical(again.params, whole.params)
    assert_identical(parts.params, whole.params)


def test_another_seed_is_another_run() -> None:
    first, second = (signals.start(seed).params["encoder"]["params"] for seed in (0, 1))
    assert not np.array_equal(first["hidden"]["kernel"], second["hidden"]["kernel"])


def test_training_may_begin_with_an_encoder_and_reports_its_steps() -> None:
    encoder = signals.start(7).params["encoder"]
    state, reports = signals.start(0, encoder=encoder), []
    assert state.params["encoder"] is encoder
    signals.train(state, 5, on_steps=lambda done, loss: reports.append((done, loss)))
    [(done, loss)] = reports
    assert done == 5
    assert 0 < loss < 4
