"""How each kind of layer goes from torch to Flax: one rule for each, with its options.

A rule takes the tensors under one torch prefix, all of them or it fails, and gives the
leaves of one Flax module. Shapes are torch's on the left: O output, I input features or
channels, g groups, k sizes of the window, E embedding, H heads, D = E / H.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brainstore.dtypes import Array
from brainstore.errors import BadParams
from brainstore.migrate.recurrent import gru, lstm
from brainstore.migrate.tensors import Leaves, Options, Parts, whole


def linear(parts: Parts, options: Options) -> Leaves:
    """Linear: weight (O, I) -> kernel (I, O); bias as it is.

    With `flatten = [C, H, W]`, the layer follows a Flatten of channels: torch lays them out
    as C, H, W, and Flax as H, W, C.
    """
    weight = parts.take("weight", 2)
    if sizes := options.get("flatten"):
        weight = _channels_last(parts, weight, sizes)
    return {"kernel": weight.T, **_bias(parts, weight.shape[0])}


def _channels_last(parts: Parts, weight: Array, sizes: list[int]) -> Array:
    if np.prod(sizes) != weight.shape[1]:
        raise BadParams(
            f"{parts.name('weight')}: flatten = {sizes} makes {np.prod(sizes)} features, and "
            f"the layer has {weight.shape[1]}"
        )
    split = weight.reshape(len(weight), *sizes)
    return np.moveaxis(split, 1, -1).reshape(weight.shape)


def conv(parts: Parts, options: Options) -> Leaves:
    """Conv1d, 2d, 3d: weight (O, I/g, k…) -> kernel (k…, I/g, O); bias as it is."""
    weight = parts.take("weight", (3, 4, 5))
    window = range(2, weight.ndim)
    return {"kernel": weight.transpose(*window, 1, 0), **_bias(parts, weight.shape[0])}


def conv_transpose(parts: Parts, options: Options) -> Leaves:
    """ConvTranspose1d, 2d, 3d: weight (I, O, k…) -> kernel; bias as it is.

    (k…, O, I) for `transpose_kernel = true`, which is what the Flax layer then has;
    otherwise (k…, I, O), with the window flipped.
    """
    weight = parts.take("weight", (3, 4, 5))
    if options.get("groups", 1) != 1:
        raise BadParams(
            f"{parts.name('weight')}: Flax's ConvTranspose has no groups, and torch's has "
            f"{options['groups']}"
        )
    window = tuple(range(2, weight.ndim))
    bias = _bias(parts, weight.shape[1])
    if options.get("transpose_kernel", False):
        return {"kernel": weight.transpose(*window, 1, 0), **bias}
    return {"kernel": np.flip(weight, window).transpose(*window, 0, 1), **bias}


def norm(parts: Parts, options: Options) -> Leaves:
    """LayerNorm, GroupNorm, RMSNorm: weight -> scale; bias as it is."""
    weight = parts.take("weight")
    return {"scale": weight, **_bias(parts, *weight.shape)}


def batch_norm(parts: Parts, options: Options) -> Leaves:
    """BatchNorm1d, 2d, 3d: weight, bias -> scale, bias; running_* -> mean, var.

    Without weight and bias (affine=False), or running_* (track_running_stats=False), the
    Flax module has none of theirs either. `num_batches_tracked` is dropped.
    """
    parts.drop("num_batches_tracked")
    found = {
        "scale": parts.find("weight"),
        "bias": parts.find("bias"),
        "mean": parts.find("running_mean"),
        "var": parts.find("running_var"),
    }
    return {name: array for name, array in found.items() if array is not None}


def embedding(parts: Parts, options: Options) -> Leaves:
    """Embedding: weight (V, E) -> embedding, as it is."""
    return {"embedding": parts.take("weight", 2)}


def attention(parts: Parts, options: Options) -> Leaves:
    """MultiheadAttention: in_proj (3E, E) -> query, key, value kernels (E, H, D).

    out_proj (E, E) -> out kernel (H, D, E). `heads = H` must be given. bias_k and bias_v
    have no place in Flax.
    """
    heads = options.get("heads")
    if not heads:
        raise BadParams(f"{parts.prefix or 'attention'}: say how many heads it has: heads = 8")
    for name in ("bias_k", "bias_v"):
        if parts.find(name) is not None:
            raise BadParams(f"{parts.name(name)}: Flax's attention has no {name}")
    leaves: Leaves = {}
    for name, (weight, bias) in _projections(parts).items():
        leaves[f"{name}/kernel"] = _by_heads(parts, weight.T, heads)
        if bias is not None:
            leaves[f"{name}/bias"] = _by_heads(parts, bias, heads)
    out = parts.take("out_proj.weight", 2)
    leaves["out/kernel"] = _by_heads(parts, out, heads).transpose(1, 2, 0)
    if (bias := parts.find("out_proj.bias")) is not None:
        leaves["out/bias"] = bias
    return leaves


def _projections(parts: Parts) -> dict[str, tuple[Array, Array | None]]:
    names = ("query", "key", "value")
    joined = parts.find("in_proj_weight")
    weights = (
        [parts.take(f"{name[0]}_proj_weight", 2) for name in names]
        if joined is None
        else parts.split(joined, 3, "in_proj_weight")
    )
    bias = parts.find("in_proj_bias")
    biases = [None] * 3 if bias is None else parts.split(bias, 3, "in_proj_bias")
    return dict(zip(names, zip(weights, biases, strict=True), strict=True))


def _by_heads(parts: Parts, array: Array, heads: int) -> Array:
    if array.shape[-1] % heads:
        raise BadParams(f"{parts.prefix}: {array.shape[-1]} features are no {heads} heads")
    return array.reshape(*array.shape[:-1], heads, -1)


def prelu(parts: Parts, options: Options) -> Leaves:
    """PReLU of one parameter: weight (1,) -> negative_slope ()."""
    weight = parts.take("weight", 1)
    if weight.size != 1:
        raise BadParams(
            f"{parts.name('weight')}: Flax's PReLU has one slope, and torch's has {weight.size}"
        )
    return {"negative_slope": weight.reshape(())}


def copy(parts: Parts, options: Options) -> Leaves:
    """A parameter of the module's own, such as log_std: as it is."""
    return {"": parts.take("")}


def _bias(parts: Parts, *shape: int) -> Leaves:
    bias = parts.find("bias")
    if bias is not None and bias.shape != shape:
        raise BadParams(
            f"{parts.name('bias')} has the shape {list(bias.shape)}; rule {parts.rule} expects "
            f"{list(shape)} beside this weight"
        )
    return {} if bias is None else {"bias": bias}


@dataclass(frozen=True)
class Rule:
    """One kind of layer.

    Attributes:
        convert: the tensors under a prefix, and options -> leaves of the Flax module.
        options: those that it takes.
        stats: leaves that stand among linen's batch_stats.
    """

    name: str
    convert: Callable[[Parts, Options], Leaves]
    options: frozenset[str] = frozenset()
    stats: frozenset[str] = frozenset()


_RECURRENT = frozenset(["cell", "layer", "reverse"])

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("linear", linear, frozenset(["flatten"])),
        Rule("conv", conv),
        Rule("conv_transpose", conv_transpose, frozenset(["transpose_kernel", "groups"])),
        Rule("batch_norm", batch_norm, stats=frozenset(["mean", "var"])),
        Rule("layer_norm", norm),
        Rule("group_norm", norm),
        Rule("rms_norm", norm),
        Rule("embedding", embedding),
        Rule("lstm", lstm, _RECURRENT),
        Rule("gru", gru, _RECURRENT),
        Rule("attention", attention, frozenset(["heads"])),
        Rule("prelu", prelu),
        Rule("copy", copy),
    )
}
"""Every rule by its name, in the order in which they are told to people."""


@dataclass(frozen=True)
class Line:
    """One line of a map: which torch prefix becomes which Flax module, and how.

    Attributes:
        torch: prefixes; several linear layers become one, their outputs side by side.
        flax: path of the module, such as "encoder/Dense_0"; of the leaf itself, for `copy`.
    """

    torch: tuple[str, ...]
    flax: str
    rule: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        names = [f'"{each}"' for each in self.torch]
        torch = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
        options = "".join(f", {key} = {_toml(value)}" for key, value in self.options.items())
        return f'{{ torch = {torch}, flax = "{self.flax}", rule = "{self.rule}"{options} }}'


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class Converted:
    """What a line made: leaves by path below the module, and the torch names it took."""

    leaves: Leaves
    taken: tuple[str, ...]
    dropped: tuple[str, ...]


def convert_line(state: Mapping[str, Array], line: Line) -> Converted:
    """Return what one line makes of a state dict.

    Raises:
        BadParams: tensors that the rule needs are missing, have another shape, or stand
            under the prefix and are not taken.
    """
    rule = RULES[line.rule]
    every = [Parts(state, prefix, rule.name, line.options) for prefix in line.torch]
    results = [rule.convert(parts, line.options) for parts in every]
    for parts in every:
        parts.require_all_taken()
    leaves = results[0] if len(results) == 1 else _side_by_side(line, results)
    return Converted(
        {name: whole(leaf) for name, leaf in leaves.items()},
        tuple(name for parts in every for name in parts.taken),
        tuple(name for parts in every for name in parts.dropped),
    )


def below(state: Mapping[str, Array], line: Line) -> list[str]:
    """Return the names of all tensors that a line is about."""
    every = [Parts(state, prefix, line.rule, line.options) for prefix in line.torch]
    return [name for parts in every for name in parts.below()]


def _side_by_side(line: Line, results: list[Leaves]) -> Leaves:
    if line.rule != "linear" or len({frozenset(each) for each in results}) != 1:
        raise BadParams(
            f"{', '.join(line.torch)}: only linear layers, all with a bias or none, can become "
            "one layer"
        )
    sizes = {len(each["kernel"]) for each in results}
    if len(sizes) != 1:
        raise BadParams(f"{', '.join(line.torch)}: they have {sorted(sizes)} input features")
    return {name: np.concatenate([each[name] for each in results], -1) for name in results[0]}
