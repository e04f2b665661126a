"""Recurrent layers and attention, held against torch, in linen and in nnx."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conversions import apply, converted, filled, randomized, same
from flax import nnx

from brainstore.errors import BadParams
from brainstore.migrate import convert_torch_to_flax


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


# Recurrent layers


def linen_outputs(cell: nn.Module, leaves: Any, x: torch.Tensor, reverse: bool = False) -> Any:
    layer = nn.RNN(cell, reverse=reverse, keep_order=True)
    return layer.apply({"params": {"cell": leaves}}, jnp.asarray(x.numpy()))


def test_lstm_of_two_layers_both_ways_is_four_cells_of_linen() -> None:
    module = randomized(torch.nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True))
    x = torch.randn(2, 5, 3)
    layers = [
        {"torch": "", "flax": f"l{n}{way}", "rule": "lstm", "layer": n, "reverse": way == "b"}
        for n in (0, 1)
        for way in "fb"
    ]
    params = convert_torch_to_flax(module.state_dict(), {"layers": layers})["params"]
    hidden: Any = x
    for n in (0, 1):
        ways = [
            linen_outputs(nn.LSTMCell(4), params[f"l{n}{way}"], torch.as_tensor(hidden), way == "b")
            for way in "fb"
        ]
        hidden = np.concatenate(ways, -1)
    same(hidden, module(x)[0])


def test_the_optimized_cell_of_linen_has_the_leaves_of_the_plain_one() -> None:
    module = randomized(torch.nn.LSTM(3, 4, bias=False, batch_first=True))
    x = torch.randn(2, 5, 3)
    params = converted(module, "lstm")["params"]["layer"]
    same(linen_outputs(nn.OptimizedLSTMCell(4), params, x), module(x)[0])


@pytest.mark.parametrize("bias", [True, False])
def test_gru_is_a_cell_of_linen(bias: bool) -> None:
    module = randomized(torch.nn.GRU(3, 4, bias=bias, batch_first=True))
    x = torch.randn(2, 5, 3)
    params = converted(module, "gru")["params"]["layer"]
    same(linen_outputs(nn.GRUCell(4), params, x), module(x)[0])


def nnx_outputs(cell: Any, x: torch.Tensor) -> Any:
    carry, outputs = cell.initialize_carry((len(x), x.shape[-1]), rngs=nnx.Rngs(0)), []
    for step in np.moveaxis(x.numpy(), 1, 0):
        carry, output = cell(carry, step)
        outputs.append(output)
    return np.stack(outputs, 1)


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell"])
def test_lstm_is_a_cell_of_nnx(cell: str) -> None:
    module = randomized(torch.nn.LSTM(3, 4, batch_first=True))
    x = torch.randn(2, 5, 3)
    lines = [{"torch": "", "flax": "cell", "rule": "lstm", "cell": f"nnx.{cell}"}]
    state = convert_torch_to_flax(module.state_dict(), {"flavour": "nnx", "layers": lines})
    layer = filled(getattr(nnx, cell)(3, 4, rngs=nnx.Rngs(0)), state["cell"])
    same(nnx_outputs(layer, x), module(x)[0])


def test_gru_of_nnx_has_no_place_for_one_bias() -> None:
    module = randomized(torch.nn.GRU(3, 4, batch_first=True))
    lines = [{"torch": "", "flax": "cell", "rule": "gru", "cell": "nnx.GRUCell"}]
    mapping = {"flavour": "nnx", "layers": lines}
    with pytest.raises(BadParams, match=r"bias_hh_l0: nnx.GRUCell has no bias inside"):
        convert_torch_to_flax(module.state_dict(), mapping)
    with torch.no_grad():
        module.bias_hh_l0[8:] = 0
    x = torch.randn(2, 5, 3)
    state = convert_torch_to_flax(module.state_dict(), mapping)
    layer = filled(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)), state["cell"])
    same(nnx_outputs(layer, x), module(x)[0])


@pytest.mark.parametrize(("kind", "rule"), [(torch.nn.LSTMCell, "lstm"), (torch.nn.GRUCell, "gru")])
def test_cells_of_torch_convert_as_layers_do(kind: Any, rule: str) -> None:
    module = randomized(kind(3, 4))
    x = torch.randn(2, 3)
    leaves = converted(module, rule)["params"]["layer"]
    cell = nn.LSTMCell(4) if rule == "lstm" else nn.GRUCell(4)
    carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    _, output = cell.apply({"params": leaves}, carry, x.numpy())
    found = module(x)
    same(output, found[0] if rule == "lstm" else found)


def test_projections_of_an_lstm_are_refused() -> None:
    module = torch.nn.LSTM(3, 4, proj_size=2)
    with pytest.raises(BadParams, match=r"weight_hr_l0.*proj_size"):
        converted(module, "lstm")


# Attention


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}])
def test_attention_of_linen(sizes: dict[str, int], bias: bool) -> None:
    module = randomized(torch.nn.MultiheadAttention(8, 2, bias=bias, batch_first=True, **sizes))
    query = torch.randn(2, 3, 8)
    key, value = (torch.randn(2, 5, sizes.get(name, 8)) for name in ("kdim", "vdim"))
    layer = nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=8, use_bias=bias)
    found = apply(
        layer, converted(module, "attention", heads=2), query.numpy(), key.numpy(), value.numpy()
    )
    same(found, module(query, key, value, need_weights=False)[0])


def test_attention_of_nnx() -> None:
    module = randomized(torch.nn.MultiheadAttention(8, 4, batch_first=True))
    x = torch.randn(2, 3, 8)
    lines = [{"torch": "", "flax": "layer", "rule": "attention", "heads": 4}]
    state = convert_torch_to_flax(module.state_dict(), {"flavour": "nnx", "layers": lines})
    layer = nnx.MultiHeadAttention(4, 8, decode=False, rngs=nnx.Rngs(0))
    same(filled(layer, state["layer"])(x.numpy()), module(x, x, x, need_weights=False)[0])


def test_attention_needs_its_heads_and_takes_no_key_bias() -> None:
    module = torch.nn.MultiheadAttention(8, 2)
    with pytest.raises(BadParams, match="heads = 8"):
        converted(module, "attention")
    with pytest.raises(BadParams, match="8 features are no 3 heads"):
        converted(module, "attention", heads=3)
    with pytest.raises(BadParams, match="bias_k"):
        converted(torch.nn.MultiheadAttention(8, 2, add_bias_kv=True), "attention", heads=2)
