"""Recurrent layers: each torch layer and direction is one Flax cell.

torch stacks the gates by rows, i, f, g, o of an LSTM and r, z, n of a GRU, and has two
biases, which Flax adds up. In all cases, torch's carry is (h, c), and Flax's (c, h).

| cell | leaves of gate g |
| --- | --- |
| linen LSTMCell, OptimizedLSTMCell | `i{g}/kernel`, `h{g}/kernel`, `h{g}/bias` |
| nnx LSTMCell | the same, but for the gate f, whose input is `if_` |
| nnx OptimizedLSTMCell | `dense_i/kernel`, `dense_h/kernel`, `dense_h/bias`, of all gates |
| linen GRUCell | `i{g}/kernel`, `i{g}/bias`, `h{g}/kernel`, and `hn/bias` |
| nnx GRUCell | `dense_i/kernel`, `dense_i/bias`, `dense_h/kernel` |
"""

from __future__ import annotations

import numpy as np

from brainstore.dtypes import Array
from brainstore.errors import BadParams
from brainstore.migrate.tensors import Leaves, Options, Parts

CELLS = ("linen.LSTMCell", "nnx.LSTMCell", "nnx.OptimizedLSTMCell", "linen.GRUCell", "nnx.GRUCell")
"""What the option `cell` may be; the linen ones are what a rule takes without it."""


def lstm(parts: Parts, options: Options) -> Leaves:
    """One layer and direction of an LSTM, or an LSTMCell."""
    (inputs, hidden), (input_bias, hidden_bias) = _cell(parts, 4)
    bias = input_bias + hidden_bias
    if options.get("cell") == "nnx.OptimizedLSTMCell":
        return {"dense_i/kernel": inputs.T, "dense_h/kernel": hidden.T, "dense_h/bias": bias}
    leaves: Leaves = {}
    gates = zip("ifgo", np.split(inputs, 4), np.split(hidden, 4), np.split(bias, 4), strict=True)
    for gate, of_input, of_hidden, of_bias in gates:
        in_nnx = options.get("cell") == "nnx.LSTMCell" and gate == "f"
        leaves[f"i{gate}{'_' if in_nnx else ''}/kernel"] = of_input.T
        leaves[f"h{gate}/kernel"] = of_hidden.T
        leaves[f"h{gate}/bias"] = of_bias
    return leaves


def gru(parts: Parts, options: Options) -> Leaves:
    """One layer and direction of a GRU, or a GRUCell."""
    (inputs, hidden), (input_bias, hidden_bias) = _cell(parts, 3)
    reset, update, new = np.split(hidden_bias, 3)
    outside = np.concatenate([reset, update, np.zeros_like(new)])
    bias = input_bias + outside
    if options.get("cell") == "nnx.GRUCell":
        if np.any(new):
            raise BadParams(
                f"{parts.name('bias_hh')}: nnx.GRUCell has no bias inside of the reset gate, and "
                'torch\'s is not zero. Use cell = "linen.GRUCell"'
            )
        return {"dense_i/kernel": inputs.T, "dense_i/bias": bias, "dense_h/kernel": hidden.T}
    leaves: Leaves = {}
    gates = zip("rzn", np.split(inputs, 3), np.split(hidden, 3), np.split(bias, 3), strict=True)
    for gate, of_input, of_hidden, of_bias in gates:
        leaves[f"i{gate}/kernel"] = of_input.T
        leaves[f"i{gate}/bias"] = of_bias
        leaves[f"h{gate}/kernel"] = of_hidden.T
    leaves["hn/bias"] = new
    return leaves


def _cell(parts: Parts, gates: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return the weights of inputs and hidden, and their biases: zeros where it has none."""
    if parts.find("weight_hr") is not None:
        raise BadParams(f"{parts.name('weight_hr')}: Flax's cells have no projection (proj_size)")
    inputs, hidden = parts.take("weight_ih", 2), parts.take("weight_hh", 2)
    width = hidden.shape[1]
    if len(hidden) != gates * width or len(inputs) != len(hidden):
        raise BadParams(
            f"{parts.name('weight_hh')} has the shape {list(hidden.shape)}; rule {parts.rule} "
            f"expects {gates} gates of {width} rows"
        )
    biases = [parts.find(name) for name in ("bias_ih", "bias_hh")]
    no_bias = np.zeros(len(hidden), hidden.dtype)
    filled = [no_bias if bias is None else bias for bias in biases]
    if any(bias.shape != no_bias.shape for bias in filled):
        raise BadParams(f"{parts.name('bias_ih')}: expected {len(hidden)} elements")
    return (inputs, hidden), (filled[0], filled[1])
