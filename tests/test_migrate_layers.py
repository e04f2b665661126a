"""Each rule of a migration, held against torch: the Flax layer gives what torch's gives."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np
import pytest
import torch
from conversions import apply, converted, filled, first, last, randomized, same
from flax import nnx

from brainstore.errors import BadParams
from brainstore.migrate import convert_torch_to_flax


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


# Linear layers


@pytest.mark.parametrize("bias", [True, False])
def test_linear_square_or_not_is_transposed(bias: bool) -> None:
    for sizes in ((3, 5), (4, 4)):
        module = randomized(torch.nn.Linear(*sizes, bias=bias))
        x = torch.randn(2, sizes[0])
        layer = nn.Dense(sizes[1], use_bias=bias)
        same(apply(layer, converted(module, "linear"), x.numpy()), module(x))


def test_heads_side_by_side_become_one_layer() -> None:
    module = randomized(
        torch.nn.ModuleDict({"token": torch.nn.Linear(6, 32), "payload": torch.nn.Linear(6, 4)})
    )
    x = torch.randn(3, 6)
    line = {"torch": ["token", "payload"], "flax": "layer", "rule": "linear"}
    variables = convert_torch_to_flax(module.state_dict(), {"layers": [line]})
    expected = torch.cat([module["token"](x), module["payload"](x)], -1)
    same(apply(nn.Dense(36), variables, x.numpy()), expected)


def test_heads_that_do_not_fit_beside_each_other_are_refused() -> None:
    line = {"torch": ["a", "b"], "flax": "layer", "rule": "linear"}
    for second in (torch.nn.Linear(5, 4), torch.nn.Linear(6, 4, bias=False)):
        module = torch.nn.ModuleDict({"a": torch.nn.Linear(6, 2), "b": second})
        with pytest.raises(BadParams, match="a, b"):
            convert_torch_to_flax(module.state_dict(), {"layers": [line]})


def test_linear_after_a_flatten_of_channels_is_reordered() -> None:
    module = randomized(
        torch.nn.Sequential(
            torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 5, 7)
        )
    )
    x = torch.randn(2, 2, 6, 7)
    layers = [
        {"torch": "0", "flax": "conv", "rule": "conv"},
        {"torch": "2", "flax": "dense", "rule": "linear", "flatten": [3, 4, 5]},
    ]
    params = convert_torch_to_flax(module.state_dict(), {"layers": layers})["params"]
    hidden = nn.Conv(3, (3, 3), padding="VALID").apply({"params": params["conv"]}, last(x))
    out = nn.Dense(7).apply({"params": params["dense"]}, hidden.reshape(2, -1))
    same(out, module(x))


# Convolutions

CONVOLUTIONS: list[tuple[int, dict[str, Any]]] = [
    (1, {"stride": 2, "padding": 1, "groups": 2}),
    (2, {}),
    (2, {"stride": 2, "dilation": 2, "padding": 2, "groups": 2, "bias": False}),
    (3, {"dilation": 2, "padding": 1}),
]


@pytest.mark.parametrize(("dimensions", "options"), CONVOLUTIONS)
def test_conv_gives_what_torch_gives(dimensions: int, options: dict[str, Any]) -> None:
    kind = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dimensions]
    module = randomized(kind(4, 6, 3, **options))
    x = torch.randn(2, 4, *[8, 7, 6][:dimensions])
    padding = options.get("padding", 0)
    layer = nn.Conv(
        6,
        (3,) * dimensions,
        strides=options.get("stride", 1),
        padding=((padding, padding),) * dimensions,
        kernel_dilation=options.get("dilation", 1),
        feature_group_count=options.get("groups", 1),
        use_bias=options.get("bias", True),
    )
    same(first(apply(layer, converted(module, "conv"), last(x))), module(x))


TRANSPOSED: list[tuple[int, dict[str, Any]]] = [
    (1, {"stride": 2, "padding": 1, "output_padding": 1}),
    (2, {"stride": 2, "padding": 1, "dilation": 2, "output_padding": 1}),
    (3, {"bias": False}),
]


@pytest.mark.parametrize("transpose_kernel", [True, False])
@pytest.mark.parametrize(("dimensions", "options"), TRANSPOSED)
def test_conv_transpose_gives_what_torch_gives(
    dimensions: int, options: dict[str, Any], transpose_kernel: bool
) -> None:
    kinds = {1: torch.nn.ConvTranspose1d, 2: torch.nn.ConvTranspose2d, 3: torch.nn.ConvTranspose3d}
    module = randomized(kinds[dimensions](4, 5, 3, **options))
    x = torch.randn(2, 4, *[5, 4, 3][:dimensions])
    dilation, padding = options.get("dilation", 1), options.get("padding", 0)
    before = dilation * 2 - padding
    layer = nn.ConvTranspose(
        5,
        (3,) * dimensions,
        strides=(options.get("stride", 1),) * dimensions,
        padding=((before, before + options.get("output_padding", 0)),) * dimensions,
        kernel_dilation=(dilation,) * dimensions,
        use_bias=options.get("bias", True),
        transpose_kernel=transpose_kernel,
    )
    variables = converted(module, "conv_transpose", transpose_kernel=transpose_kernel)
    same(first(apply(layer, variables, last(x))), module(x))


def test_conv_transpose_with_groups_is_refused() -> None:
    module = torch.nn.ConvTranspose2d(4, 4, 3, groups=2)
    with pytest.raises(BadParams, match="no groups, and torch's has 2"):
        converted(module, "conv_transpose", groups=2)


# Norms


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_brings_its_statistics(affine: bool) -> None:
    module = randomized(torch.nn.BatchNorm2d(3, affine=affine))
    x = torch.randn(2, 3, 4, 5)
    variables = converted(module, "batch_norm")
    assert set(variables["batch_stats"]["layer"]) == {"mean", "var"}
    variables.setdefault("params", {"layer": {}})
    layer = nn.BatchNorm(use_running_average=True, epsilon=1e-5, use_bias=affine, use_scale=affine)
    same(first(apply(layer, variables, last(x))), module(x))


def test_batch_norm_of_nnx_has_all_in_one_state() -> None:
    module = randomized(torch.nn.BatchNorm1d(3))
    x = torch.randn(4, 3)
    lines = [{"torch": "", "flax": "norm", "rule": "batch_norm"}]
    state = convert_torch_to_flax(module.state_dict(), {"flavour": "nnx", "layers": lines})
    layer = nnx.BatchNorm(3, use_running_average=True, epsilon=1e-5, rngs=nnx.Rngs(0))
    same(filled(layer, state["norm"])(x.numpy()), module(x))


def test_batch_norm_keeps_learning_as_torch_does_but_for_the_unbiased_variance() -> None:
    module = torch.nn.BatchNorm1d(3, momentum=0.1)
    variables = converted(module, "batch_norm")
    x = torch.randn(64, 3)
    module.train()(x)
    layer = nn.BatchNorm(use_running_average=False, epsilon=1e-5, momentum=0.9)
    own = {name: tree["layer"] for name, tree in variables.items()}
    _, changed = layer.apply(own, x.numpy(), mutable=["batch_stats"])
    same(changed["batch_stats"]["mean"], module.running_mean)
    biased = 0.9 + (module.running_var - 0.9) * 63 / 64
    same(changed["batch_stats"]["var"], biased)


def test_layer_norm_over_one_dimension_and_over_two() -> None:
    module = randomized(torch.nn.LayerNorm(6))
    x = torch.randn(2, 5, 6)
    same(apply(nn.LayerNorm(epsilon=1e-5), converted(module, "layer_norm"), x.numpy()), module(x))
    module = randomized(torch.nn.LayerNorm((5, 6)))
    layer = nn.LayerNorm(epsilon=1e-5, reduction_axes=(-2, -1), feature_axes=(-2, -1))
    same(apply(layer, converted(module, "layer_norm"), x.numpy()), module(x))


def test_group_norm() -> None:
    module = randomized(torch.nn.GroupNorm(2, 6))
    x = torch.randn(2, 6, 3, 4)
    layer = nn.GroupNorm(2, epsilon=1e-5)
    same(first(apply(layer, converted(module, "group_norm"), last(x))), module(x))


def test_rms_norm() -> None:
    module = randomized(torch.nn.RMSNorm(6, eps=1e-5))
    x = torch.randn(2, 6)
    same(apply(nn.RMSNorm(epsilon=1e-5), converted(module, "rms_norm"), x.numpy()), module(x))


# Embedding, PReLU, parameters of a module's own


def test_embedding_is_not_transposed_and_its_tied_head_attends() -> None:
    module = randomized(torch.nn.Embedding(6, 6))
    tokens = torch.tensor([[0, 5, 2]])
    variables = converted(module, "embedding")
    layer = nn.Embed(6, 6)
    same(apply(layer, variables, tokens.numpy()), module(tokens))
    x = torch.randn(2, 6)
    own = {"params": variables["params"]["layer"]}
    attended = layer.apply(own, x.numpy(), method="attend")
    same(attended, torch.nn.functional.linear(x, module.weight))


def test_prelu_has_one_slope_or_is_refused() -> None:
    module = randomized(torch.nn.PReLU())
    x = torch.randn(3, 4)
    same(apply(nn.PReLU(), converted(module, "prelu"), x.numpy()), module(x))
    with pytest.raises(BadParams, match="torch's has 4"):
        converted(torch.nn.PReLU(4), "prelu")


def test_a_parameter_of_its_own_is_copied() -> None:
    state = {"log_std": torch.tensor([-0.5, 0.25])}
    lines = [{"torch": "log_std", "flax": "log_std", "rule": "copy"}]
    params = convert_torch_to_flax(state, {"layers": lines})["params"]
    np.testing.assert_array_equal(params["log_std"], [-0.5, 0.25])


# Weights that are made of others


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_folded(dim: int | None) -> None:
    for wrap in (torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm):
        module = randomized(wrap(torch.nn.Linear(5, 3), dim=dim))
        x = torch.randn(2, 5)
        same(apply(nn.Dense(3), converted(module, "linear"), x.numpy()), module(x))


def test_weight_norm_of_a_convolution_is_folded() -> None:
    module = randomized(torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(2, 3, 3)))
    x = torch.randn(1, 2, 5, 5)
    layer = nn.Conv(3, (3, 3), padding="VALID")
    same(first(apply(layer, converted(module, "conv"), last(x))), module(x))


def test_a_weight_without_a_direction_is_refused() -> None:
    state = {"weight_g": torch.ones(3, 1), "weight_v": torch.zeros(3, 5)}
    lines = [{"torch": "", "flax": "layer", "rule": "linear"}]
    with pytest.raises(BadParams, match="direction of weight_norm is zero"):
        convert_torch_to_flax(state, {"layers": lines})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_other_parametrizations_are_refused() -> None:
    for wrap in (torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.spectral_norm):
        with pytest.raises(BadParams, match="parametrized in a way that has no rule"):
            converted(wrap(torch.nn.Linear(5, 3)), "linear")


# What is not in the weights


def test_gelu_of_torch_is_the_exact_one() -> None:
    x = torch.randn(64)
    same(nn.gelu(x.numpy(), approximate=False), torch.nn.functional.gelu(x))


def test_half_precision_keeps_its_bits() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        module = torch.nn.Linear(3, 4).to(dtype)
        kernel = converted(module, "linear")["params"]["layer"]["kernel"]
        expected = module.weight.detach().T.contiguous().view(torch.uint8).numpy()
        assert kernel.dtype.name == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(np.asarray(kernel).view(np.uint8), expected)
