"""The signalling task: what one agent sees, another must find.

A speaker sees one object of `OBJECT_DIM` numbers in ±1 and sends one of `VOCAB_SIZE` tokens
and `PAYLOAD_DIM` bits; a listener picks that object from `CANDIDATES`. Both learn together,
through a channel that is noisy but has a gradient (DIAL; Foerster et al., 2016). What is
evaluated is the channel as it really is: a token is a choice, a bit is a sign.

The same seed on the same machine gives the same params. Arrays are float32; B is `BATCH`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from brainstore.networks import DIALDecoder, DIALEncoder

OBJECT_DIM = 8
CANDIDATES = 16
VOCAB_SIZE = 32
PAYLOAD_DIM = 4
MESSAGE_DIM = VOCAB_SIZE + PAYLOAD_DIM
HIDDEN_DIM = 64
BATCH = 512
STEPS = 4_000
LEARNING_RATE = 3e-3
CHANCE = 1 / CANDIDATES
CONFIG = {"vocab_size": VOCAB_SIZE, "payload_dim": PAYLOAD_DIM, "context_dim": OBJECT_DIM}

_PAYLOAD_NOISE = 2.0
_EVALUATION_SEED = 0
_LONGEST_RUN = 500

Params = Any
"""{"encoder": params of `ENCODER`, "decoder": params of `DECODER`}."""

ENCODER = DIALEncoder(OBJECT_DIM, MESSAGE_DIM, HIDDEN_DIM)
DECODER = DIALDecoder(MESSAGE_DIM, HIDDEN_DIM, HIDDEN_DIM, OBJECT_DIM)


class TrainState(NamedTuple):
    """All that training goes on from; `steps` counts those done, int32."""

    params: Params
    opt_state: optax.OptState
    key: jax.Array
    steps: jax.Array


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How often the listener finds the object, as shares of all rounds; chance is `CHANCE`.

    Attributes:
        success: with the messages as sent.
        shuffled: with each round's message swapped for another's: the control. What stays
            above chance then is not communication.
        token_only, payload_only: with the rest of the message blanked.
        tokens_used: how many of the `VOCAB_SIZE` tokens were sent at all.
    """

    success: float
    shuffled: float
    token_only: float
    payload_only: float
    tokens_used: int


def start(seed: int, *, encoder: Params | None = None) -> TrainState:
    """Training before its first step, from fresh params or with the encoder given."""
    key, encoder_key, decoder_key = jax.random.split(jax.random.key(seed), 3)
    params = _init(encoder_key, decoder_key)
    if encoder is not None:
        params = {**params, "encoder": encoder}
    opt_state = _optimizer().init(params)
    return TrainState(params, opt_state, key, jnp.zeros((), jnp.int32))


def train(
    state: TrainState, steps: int, *, on_steps: Callable[[int, float], None] | None = None
) -> TrainState:
    """`state` after so many more steps; 100 and then 300 are the same as 400.

    `on_steps` is called now and then with the steps done since `start` and the loss.
    """
    for begun in range(0, steps, _LONGEST_RUN):
        state, loss = _descend(state, min(_LONGEST_RUN, steps - begun))
        if on_steps is not None:
            on_steps(int(state.steps), float(loss))
    return state


def evaluate(params: Params, *, count: int = 8_192) -> Evaluation:
    """How well the pair does in fixed rounds, the same ones in every call."""
    objects, target = rounds(jax.random.key(_EVALUATION_SEED), count)
    found = _evaluate(params, objects, target)
    success, shuffled, token_only, payload_only = map(float, found[:-1])
    return Evaluation(success, shuffled, token_only, payload_only, int(found[-1]))


def rounds(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Candidates [count, CANDIDATES, OBJECT_DIM], and which one is meant, [count] int32."""
    objects_key, target_key = jax.random.split(key)
    shape = (count, CANDIDATES, OBJECT_DIM)
    objects = jax.random.uniform(objects_key, shape, jnp.float32, minval=-1.0, maxval=1.0)
    return objects, jax.random.randint(target_key, (count,), 0, CANDIDATES)


def told(objects: jax.Array, target: jax.Array) -> jax.Array:
    """The object [count, OBJECT_DIM] that the speaker sees."""
    return jnp.take_along_axis(objects, target[:, None, None], axis=1)[:, 0]


def send(message: jax.Array) -> jax.Array:
    """A message [..., MESSAGE_DIM] as it arrives: its token one-hot, its bits as ±1."""
    logits, payload = jnp.split(message, [VOCAB_SIZE], axis=-1)
    token = jax.nn.one_hot(logits.argmax(axis=-1), VOCAB_SIZE)
    return jnp.concatenate([token, jnp.where(payload > 0, 1.0, -1.0)], axis=-1)


def send_with_gradient(key: jax.Array, message: jax.Array) -> jax.Array:
    """A message as it arrives in training: sampled and noisy, with a gradient.

    The token is straight-through Gumbel-softmax (Jang et al., 2017): one-hot forward, the
    softmax's gradient back. The bits are 2 sigmoid(payload + noise) − 1, the noise Gaussian.
    """
    token_key, payload_key = jax.random.split(key)
    logits, payload = jnp.split(message, [VOCAB_SIZE], axis=-1)
    soft = jax.nn.softmax(logits + jax.random.gumbel(token_key, logits.shape))
    hard = jax.nn.one_hot(soft.argmax(axis=-1), VOCAB_SIZE)
    noisy = payload + _PAYLOAD_NOISE * jax.random.normal(payload_key, payload.shape)
    token = soft + jax.lax.stop_gradient(hard - soft)
    return jnp.concatenate([token, 2.0 * jax.nn.sigmoid(noisy) - 1.0], axis=-1)


def loss(params: Params, objects: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
    """Mean cross-entropy of the listener's scores, through the channel of training."""
    heard = send_with_gradient(key, _say(params, told(objects, target)))
    scores = _score(params, heard, objects)
    cost: jax.Array = optax.softmax_cross_entropy_with_integer_labels(scores, target).mean()
    return cost


@jax.jit
def _descend(state: TrainState, steps: jax.Array) -> tuple[TrainState, jax.Array]:
    """The state after so many steps, at least one, and the last one's loss."""

    def step(_: jax.Array, before: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
        state, _ = before
        key, rounds_key, channel_key = jax.random.split(state.key, 3)
        objects, target = rounds(rounds_key, BATCH)
        cost, slope = jax.value_and_grad(loss)(state.params, objects, target, channel_key)
        change, opt_state = _optimizer().update(slope, state.opt_state, state.params)
        params = optax.apply_updates(state.params, change)
        return TrainState(params, opt_state, key, state.steps + 1), cost

    # Not a scan: a loop whose length is traced is compiled once for all lengths.
    done: tuple[TrainState, jax.Array] = jax.lax.fori_loop(0, steps, step, (state, jnp.zeros(())))
    return done


@jax.jit
def _evaluate(params: Params, objects: jax.Array, target: jax.Array) -> tuple[jax.Array, ...]:
    """The fields of an Evaluation."""
    sent = send(_say(params, told(objects, target)))
    is_token = jnp.arange(MESSAGE_DIM) < VOCAB_SIZE
    heard = (sent, jnp.roll(sent, 1, axis=0), sent * is_token, sent * ~is_token)
    found = [_score(params, each, objects).argmax(axis=-1) for each in heard]
    shares = [(each == target).mean() for each in found]
    return *shares, sent[:, :VOCAB_SIZE].any(axis=0).sum()


@jax.jit
def _init(encoder_key: jax.Array, decoder_key: jax.Array) -> Params:
    message, objects = jnp.zeros((1, MESSAGE_DIM)), jnp.zeros((1, CANDIDATES, OBJECT_DIM))
    encoder = ENCODER.init(encoder_key, objects[0])
    return {"encoder": encoder, "decoder": DECODER.init(decoder_key, message, objects)}


def _say(params: Params, seen: jax.Array) -> jax.Array:
    message: Any = ENCODER.apply(params["encoder"], seen)
    return jnp.asarray(message)


def _score(params: Params, heard: jax.Array, objects: jax.Array) -> jax.Array:
    scores: Any = DECODER.apply(params["decoder"], heard, objects)
    return jnp.asarray(scores)


def _optimizer() -> optax.GradientTransformation:
    return optax.adam(LEARNING_RATE)
