"""DIAL pairs: one version for both halves, which fit or are refused."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import brainstore
from brainstore import BadParams, BrainManager, BrainMeta, DIALBrainManager, DIALBrainPair, NotFound
from brainstore.networks import DIALDecoder, DIALEncoder

CONFIG = {"vocab_size": 6, "payload_dim": 2, "context_dim": 3}
ENCODER = DIALEncoder(obs_dim=5, action_dim=8, hidden_dim=16)
DECODER = DIALDecoder(obs_dim=8, action_dim=4, hidden_dim=16, context_dim=3)


def layers(*widths: int, stem: str = "Dense") -> dict[str, Any]:
    """Return the params of dense layers, one after another."""
    pairs = enumerate(itertools.pairwise(widths))
    return {
        f"{stem}_{n}": {"kernel": jnp.ones((takes, gives)), "bias": jnp.zeros(gives)}
        for n, (takes, gives) in pairs
    }


def params_of(network: nn.Module, *shapes: tuple[int, ...]) -> Any:
    """Return params that the network takes for inputs of these shapes."""
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    specs = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda spec: np.full(spec.shape, 0.5, spec.dtype), specs)


def encoder_params() -> Any:
    return params_of(ENCODER, (1, 5))


def decoder_params() -> Any:
    return params_of(DECODER, (1, 8), (1, 4, 3))


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


@pytest.fixture
def dial(manager: BrainManager) -> DIALBrainManager:
    return DIALBrainManager(manager)


def save(dial: DIALBrainManager, encoder: Any, decoder: Any, /, **options: Any) -> str:
    """Save a pair, and return how it was judged."""
    dial.save_dial("comms", encoder, decoder, options.pop("config", CONFIG), **options)
    return dial.load_dial("comms").meta.config["dial_check"]


# One version with both halves


def test_a_pair_comes_back_bit_for_bit_with_its_widths_and_meta(dial: DIALBrainManager) -> None:
    encoder, decoder = encoder_params(), decoder_params()
    meta = BrainMeta(input_dim=5, metrics={"success": 0.9}, config={"rate": 0.1})
    assert dial.save_dial("comms", encoder, decoder, CONFIG, meta) == "comms_v1"
    assert (meta.name, meta.version) == ("comms", 1)
    pair = dial.load_dial("comms")
    assert isinstance(pair, DIALBrainPair)
    jax.tree.map(np.testing.assert_array_equal, pair.encoder_params, encoder)
    jax.tree.map(np.testing.assert_array_equal, pair.decoder_params, decoder)
    assert (pair.vocab_size, pair.payload_dim, pair.context_dim) == (6, 2, 3)
    assert pair.meta.full_name == "comms_v1"
    assert pair.meta.brain_type == "dial"
    assert pair.meta.metrics == {"success": 0.9}
    assert pair.meta.config == {"rate": 0.1, **CONFIG, "dial_check": "kernels"}


def test_the_callers_meta_is_not_changed_but_for_name_and_version(dial: DIALBrainManager) -> None:
    meta = BrainMeta(config={"rate": 0.1})
    dial.save_dial("comms", encoder_params(), decoder_params(), CONFIG, meta)
    assert (meta.config, meta.brain_type) == ({"rate": 0.1}, "")


def test_both_halves_are_one_version_with_one_latest(
    dial: DIALBrainManager, manager: BrainManager
) -> None:
    for _ in range(2):
        dial.save_dial("comms", encoder_params(), decoder_params(), CONFIG)
    assert manager.list_models() == ["comms_v1", "comms_v2"]
    assert manager.get_latest("comms") == "comms_v2"
    assert dial.load_dial("comms", 1).meta.version == 1
    assert dial.load_dial("comms").meta.version == 2


def test_each_half_loads_alone(dial: DIALBrainManager, manager: BrainManager) -> None:
    encoder, decoder = encoder_params(), decoder_params()
    dial.save_dial("comms", encoder, decoder, CONFIG, aliases="prod")
    for half, expected in (("encoder", encoder), ("decoder", decoder)):
        found, meta = manager.load(f"comms:prod#{half}")
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert meta.full_name == "comms_v1"


def test_a_pair_is_loaded_by_any_reference(dial: DIALBrainManager, manager: BrainManager) -> None:
    dial.save_dial("comms", encoder_params(), decoder_params(), CONFIG, aliases=["prod"])
    dial.save_dial("comms", encoder_params(), decoder_params(), CONFIG)
    for ref in ("comms:prod", "comms_v1", f"{manager.zoo.url}::comms:1"):
        assert dial.load_dial(ref).meta.version == 1
    assert dial.load_dial("comms", "prod").meta.version == 1


def test_options_of_save_and_load_are_passed_on(
    dial: DIALBrainManager, manager: BrainManager
) -> None:
    manager.save("seed", {"w": jnp.ones(1)})
    options = {"parents": {"seed:1": "fine_tuned"}, "groups": {"step": 7}, "notes": "hello"}
    dial.save_dial("comms", encoder_params(), decoder_params(), CONFIG, **options)
    assert manager.manifest("comms").parents[0].relation == "fine_tuned"
    assert manager.load("comms", groups="all")[0]["step"] == 7
    pair = dial.load_dial("comms", as_numpy=True)
    assert pair.meta.notes == "hello"
    assert isinstance(pair.encoder_params["params"]["hidden"]["bias"], np.ndarray)


def test_a_loaded_pair_can_be_saved_again(dial: DIALBrainManager) -> None:
    dial.save_dial("comms", encoder_params(), decoder_params(), CONFIG, {"metrics": {"a": 1.0}})
    pair = dial.load_dial("comms")
    dial.save_dial("comms", pair.encoder_params, pair.decoder_params, pair, pair.meta)
    again = dial.load_dial("comms", 2)
    assert again.meta.metrics == {"a": 1.0}
    assert pair.meta.version == 2


def test_nnx_modules_may_be_the_halves(dial: DIALBrainManager) -> None:
    encoder = nnx.Linear(5, 8, rngs=nnx.Rngs(0))
    decoder = nnx.Linear(11, 2, rngs=nnx.Rngs(1))
    assert save(dial, encoder, decoder) == "kernels"
    found = dial.load_dial("comms").encoder_params["kernel"]
    np.testing.assert_array_equal(found, encoder.kernel[...])


def test_an_empty_half_is_refused(dial: DIALBrainManager) -> None:
    for empty in (None, {}, {"params": {}}):
        with pytest.raises(
            BadParams, match="decoder_params: expected a tree of arrays, found none"
        ):
            save(dial, encoder_params(), empty)
    with pytest.raises(NotFound):
        dial.load_dial("comms")


def test_a_path_is_no_manager() -> None:
    with pytest.raises(BadParams, match=r"expected a BrainManager, found str; .*BrainManager\("):
        DIALBrainManager("brains/")  # type: ignore[arg-type]


# The config


@pytest.mark.parametrize("kind", ["mapping", "object", "numpy"])
def test_a_config_is_a_mapping_or_an_object(dial: DIALBrainManager, kind: str) -> None:
    config: Any = dict(CONFIG)
    if kind == "object":
        config = SimpleNamespace(**CONFIG, more=1)
    if kind == "numpy":
        config = {name: np.int32(value) for name, value in CONFIG.items()}
    assert save(dial, encoder_params(), decoder_params(), config=config) == "kernels"
    assert dial.load_dial("comms").vocab_size == 6


def test_every_width_that_a_config_lacks_is_named(dial: DIALBrainManager) -> None:
    with pytest.raises(BadParams, match="config: payload_dim, context_dim missing in a dict"):
        save(dial, encoder_params(), decoder_params(), config={"vocab_size": 6})
    with pytest.raises(BadParams, match="vocab_size, payload_dim, context_dim missing in a None"):
        save(dial, encoder_params(), decoder_params(), config=None)


@pytest.mark.parametrize("width", [-1, 2.5, "6", True, None])
def test_a_width_is_an_integer_from_zero_up(dial: DIALBrainManager, width: Any) -> None:
    with pytest.raises(BadParams, match="config: vocab_size: expected an integer from 0 up"):
        save(dial, encoder_params(), decoder_params(), config={**CONFIG, "vocab_size": width})


def test_a_message_cannot_be_empty(dial: DIALBrainManager) -> None:
    with pytest.raises(BadParams, match="nothing can be said"):
        save(dial, encoder_params(), decoder_params(), config=dict.fromkeys(CONFIG, 0))


def test_a_meta_that_contradicts_the_config_is_refused(dial: DIALBrainManager) -> None:
    with pytest.raises(BadParams, match="contradict each other: vocab_size=7 and 6"):
        save(dial, encoder_params(), decoder_params(), meta={"config": {"vocab_size": 7}})


# Judged by networks


def test_networks_that_fit_are_traced_and_that_is_recorded(dial: DIALBrainManager) -> None:
    networks = {"encoder": ENCODER, "decoder": DECODER}
    assert save(dial, encoder_params(), decoder_params(), **networks) == "networks"


def test_a_linen_network_takes_bare_params_too(dial: DIALBrainManager) -> None:
    encoder, decoder = encoder_params()["params"], decoder_params()["params"]
    assert save(dial, encoder, decoder, encoder=ENCODER, decoder=DECODER) == "networks"


class NnxSpeaker(nnx.Module):
    """A speaker with random streams of its own, which are no params."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.message = nnx.Linear(5, 8, rngs=rngs)

    def __call__(self, obs: jax.Array) -> jax.Array:
        return self.message(self.dropout(obs))


class NnxListener(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(11, 4, rngs=rngs)

    def __call__(self, message: jax.Array, context: jax.Array) -> jax.Array:
        return self.hidden(jnp.concatenate([message, context], axis=-1))


@pytest.mark.parametrize("form", ["module", "state", "params only", "dict"])
def test_nnx_networks_are_traced_with_params_in_every_form(
    dial: DIALBrainManager, form: str
) -> None:
    speaker, listener = NnxSpeaker(nnx.Rngs(0)), NnxListener(nnx.Rngs(0))
    forms = {
        "module": lambda module: module,
        "state": nnx.state,
        "params only": lambda module: nnx.state(module, nnx.Param),
        "dict": lambda module: nnx.to_pure_dict(nnx.state(module)),
    }
    halves = [forms[form](half) for half in (speaker, listener)]
    assert save(dial, *halves, encoder=speaker, decoder=listener) == "networks"
    with pytest.raises(BadParams, match="the encoder gives 8 values, and a message has"):
        save(dial, *halves, config={**CONFIG, "vocab_size": 9}, encoder=speaker, decoder=listener)


def test_params_of_another_nnx_network_are_refused(dial: DIALBrainManager) -> None:
    speaker, listener = NnxSpeaker(nnx.Rngs(0)), NnxListener(nnx.Rngs(0))
    with pytest.raises(BadParams, match="the encoder does not take obs"):
        save(dial, listener, listener, encoder=speaker, decoder=listener, meta={"input_dim": 5})


def test_a_class_is_no_network(dial: DIALBrainManager) -> None:
    with pytest.raises(BadParams, match=r"encoder: expected a network, .*found the class DIALEnc"):
        save(dial, encoder_params(), decoder_params(), encoder=DIALEncoder, decoder=DECODER)


def test_a_function_is_a_network_and_may_give_tokens_and_payload_apart(
    dial: DIALBrainManager,
) -> None:
    def encode(params: Any, obs: Any) -> Any:
        return obs @ params["tokens"], obs @ params["payload"]

    def decode(params: Any, tokens: Any, payload: Any, context: Any) -> Any:
        return jnp.concatenate([tokens, payload, context], axis=-1) @ params["all"]

    encoder = {"tokens": jnp.ones((5, 6)), "payload": jnp.ones((5, 2))}
    options = {"encoder": encode, "decoder": decode, "meta": {"input_dim": 5}}
    assert save(dial, encoder, {"all": jnp.ones((11, 4))}, **options) == "networks"


@pytest.mark.parametrize("takes", ["message and context in one", "only the message"])
def test_a_decoder_may_take_one_array(dial: DIALBrainManager, takes: str) -> None:
    width, gives = (11, 4) if "context" in takes else (8, 3)
    network = nn.Dense(gives)
    params = params_of(network, (1, width))
    options = {"encoder": ENCODER, "decoder": network}
    assert save(dial, encoder_params(), params, **options) == "networks"


def test_an_encoder_of_another_width_is_refused_with_the_numbers(
    dial: DIALBrainManager, manager: BrainManager
) -> None:
    network = DIALEncoder(obs_dim=5, action_dim=9, hidden_dim=16)
    params = params_of(network, (1, 5))
    expected = r"encoder gives 9 values, and a message has vocab_size 6 \+ payload_dim 2 = 8"
    with pytest.raises(BadParams, match=expected):
        save(dial, params, decoder_params(), encoder=network)
    with pytest.raises(BadParams, match=expected):
        save(dial, params, decoder_params())
    assert manager.list_models() == []


def test_params_of_another_network_are_refused(dial: DIALBrainManager) -> None:
    with pytest.raises(BadParams, match=r"the encoder does not take obs \[1, 5\]: .*hidden"):
        save(dial, layers(5, 16, 8), decoder_params(), encoder=ENCODER)


def test_a_decoder_for_another_message_is_refused_with_what_was_tried(
    dial: DIALBrainManager,
) -> None:
    decoder = DIALDecoder(obs_dim=9, action_dim=4, hidden_dim=16, context_dim=3)
    params = params_of(decoder, (1, 9), (1, 4, 3))
    with pytest.raises(BadParams, match=r"takes no message of .* = 8: .*\[1, 8\] and \[1, 3\]"):
        save(dial, encoder_params(), params, decoder=decoder)


def test_both_halves_are_judged_before_one_error_tells_all(dial: DIALBrainManager) -> None:
    with pytest.raises(BadParams, match=r"encoder gives 7 .*; the decoder takes 9 .*Nothing was"):
        save(dial, layers(5, 16, 7), layers(9, 16, 4))


# Judged by kernels


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        (layers(5, 16, 8), layers(11, 16, 4)),
        (layers(5, 16, 8), {"message": layers(8, 16), "seen": layers(3, 16)}),
        (layers(5, 16, 8), layers(8, 16, 3)),
        (layers(8, 16, 8), layers(11, 16, 11)),
        (layers(8, 8, 8), layers(11, 11)),
        ({"torso": layers(5, 16), "a": layers(16, 6), "b": layers(16, 2)}, layers(11, 4)),
        ({"torso": layers(2, 16), "a": layers(16, 6), "b": layers(16, 2)}, layers(11, 4)),
        ({"linear": {"weight": jnp.ones((8, 5))}}, {"linear": {"weight": jnp.ones((4, 11))}}),
        ({"linear": {"w": jnp.ones((5, 8))}}, {"linear": {"w": jnp.ones((11, 4))}}),
    ],
)
def test_kernels_that_fit_are_enough(dial: DIALBrainManager, encoder: Any, decoder: Any) -> None:
    assert save(dial, encoder, decoder) == "kernels"


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        (layers(5, 16, 7), layers(11, 4)),
        (layers(5, 8, 7), layers(11, 4)),
        (layers(8, 16, 8, 16), layers(11, 4)),
        (layers(5, 16, 8), layers(10, 16, 4)),
        (layers(5, 16, 8), {"message": layers(9, 16), "seen": layers(3, 16)}),
        ({"linear": {"weight": jnp.ones((5, 8))}}, layers(11, 4)),
    ],
)
def test_kernels_that_do_not_fit_are_refused(
    dial: DIALBrainManager, encoder: Any, decoder: Any
) -> None:
    with pytest.raises(BadParams, match="the DIAL pair does not fit"):
        save(dial, encoder, decoder)


@pytest.mark.parametrize(
    ("encoder", "decoder", "why"),
    [
        ({"vector": jnp.ones(8)}, layers(11, 4), "the last of the encoder"),
        (layers(5, 8), {"vector": jnp.ones(8)}, "the first of the decoder"),
        (layers(5, 8), {"words": {"embedding": jnp.ones((6, 4))}, **layers(4, 4)}, "the first of"),
        (layers(5, 8), layers(8, 4), "shows no context of context_dim 3"),
        ({"in": layers(8, 16), "out": layers(16, 8)}, layers(11, 4), "the last of the encoder"),
    ],
)
def test_what_cannot_be_told_is_saved_unchecked_with_a_warning(
    dial: DIALBrainManager, encoder: Any, decoder: Any, why: str
) -> None:
    with pytest.warns(UserWarning, match=f"comms: .*unchecked: .*{why}") as told:
        assert save(dial, encoder, decoder) == "unchecked"
    assert told[0].filename == __file__


def test_an_encoder_that_says_nothing_of_its_input_is_not_traced(dial: DIALBrainManager) -> None:
    def encode(params: Any, obs: Any) -> Any:
        return obs @ params["matrix"]

    with pytest.warns(UserWarning, match="nothing tells what the encoder observes; set input_dim"):
        save(dial, {"matrix": jnp.ones((5, 8))}, layers(11, 4), encoder=encode)


def test_without_a_context_none_is_looked_for(dial: DIALBrainManager) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = {**CONFIG, "context_dim": 0}
        assert save(dial, layers(5, 8), layers(8, 4), config=config) == "kernels"


# What is no pair


@pytest.mark.parametrize(
    ("params", "config", "found"),
    [
        ({"w": jnp.ones(2)}, {}, "params with w, and a config with nothing"),
        ({"encoder": jnp.ones(2)}, CONFIG, "params with encoder, and a config with context_dim"),
        (jnp.ones(2), {}, "a ArrayImpl, and"),
        (
            {"encoder": jnp.ones(2), "decoder": jnp.ones(2)},
            {"vocab_size": 2},
            "params .*, and a config with vocab",
        ),
    ],
)
def test_what_is_no_pair_is_named_as_such(
    dial: DIALBrainManager, manager: BrainManager, params: Any, config: Any, found: str
) -> None:
    manager.save("other", params, config=config)
    with pytest.raises(BadParams, match=f"other: other_v1 is no DIAL pair: .*found {found}"):
        dial.load_dial("other")


def test_half_a_pair_is_no_pair(dial: DIALBrainManager) -> None:
    dial.save_dial("comms", encoder_params(), decoder_params(), CONFIG)
    with pytest.raises(BadParams, match="no DIAL pair"):
        dial.load_dial("comms#encoder")


def test_a_pair_that_is_not_there_is_not_found(dial: DIALBrainManager) -> None:
    with pytest.raises(NotFound):
        dial.load_dial("comms")


def test_the_public_names_are_those_of_the_package() -> None:
    assert brainstore.DIALBrainPair is DIALBrainPair
    pair = DIALBrainPair({}, {}, 6, 2, 3)
    assert (pair.vocab_size, pair.payload_dim, pair.context_dim) == (6, 2, 3)
    assert pair.meta == BrainMeta(created_at=pair.meta.created_at)
