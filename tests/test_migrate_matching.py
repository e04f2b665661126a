"""What becomes what: by a map, by the target's shapes, or by names; and never by a guess."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from brainstore.errors import BadParams, Unsupported
from brainstore.migrate import convert, convert_torch_to_flax

LINEAR = {"torch": "0", "flax": "Dense_0", "rule": "linear"}


def mlp(*widths: int) -> torch.nn.Sequential:
    """Return linear layers of these widths, a ReLU between them."""
    layers: list[torch.nn.Module] = []
    for one, other in pairwise(widths):
        layers += [torch.nn.Linear(one, other), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def target_of(network: nn.Module, *inputs: Any) -> Any:
    """Return the shapes of a linen network's variables, with no value computed."""
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def refused(state: Any, mapping: Any = None, target: Any = None) -> str:
    with pytest.raises(BadParams) as caught:
        convert_torch_to_flax(state, mapping, target)
    return str(caught.value)


# Names and shapes alone


def test_a_stack_of_linear_layers_needs_no_map() -> None:
    module = mlp(8, 64, 64, 36)
    report = convert(module.state_dict()).report
    assert [layer.flax for layer in report.layers] == ["Dense_0", "Dense_1", "Dense_2"]
    assert report.how == "names"
    params = convert_torch_to_flax(module.state_dict())["params"]
    np.testing.assert_array_equal(params["Dense_1"]["kernel"], module[2].weight.detach().numpy().T)


def test_named_layers_keep_their_names_and_own_parameters_are_copied() -> None:
    class Actor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_std = torch.nn.Parameter(torch.zeros(2))
            self.torso = mlp(4, 8, 8)
            self.mean = torch.nn.Linear(8, 2)

    assert shapes(convert_torch_to_flax(Actor().state_dict())) == {
        "params/log_std": (2,),
        "params/torso/Dense_0/kernel": (4, 8),
        "params/torso/Dense_0/bias": (8,),
        "params/torso/Dense_1/kernel": (8, 8),
        "params/torso/Dense_1/bias": (8,),
        "params/mean/kernel": (8, 2),
        "params/mean/bias": (2,),
    }


def test_batch_norm_is_told_by_its_statistics() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    found = convert(module.state_dict())
    assert shapes(found.groups) == {
        "batch_stats/BatchNorm_0/mean": (4,),
        "batch_stats/BatchNorm_0/var": (4,),
    }
    assert set(found.params) == {"params"}
    assert found.report.dropped == ["1.num_batches_tracked"]


def test_a_bias_alone_is_no_layer_and_can_be_copied() -> None:
    state = {"shift.bias": np.ones(3, np.float32)}
    with pytest.raises(BadParams, match=r'torch = "shift.bias", flax = "…", rule = "copy"'):
        convert(state)
    line = {"torch": "shift.bias", "flax": "shift/bias", "rule": "copy"}
    assert shapes(convert(state, {"layers": [line]}).params) == {"params/shift/bias": (3,)}


AMBIGUOUS: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "square, without a bias": (lambda: torch.nn.Linear(4, 4, bias=False), "linear or embedding"),
    "an embedding": (lambda: torch.nn.Embedding(9, 4), "linear or embedding"),
    "a square convolution": (lambda: torch.nn.Conv2d(4, 4, 3), "conv or conv_transpose"),
    "a convolution that groups may make": (lambda: torch.nn.Conv2d(2, 4, 3), "conv or"),
    "a convolution without a bias": (lambda: torch.nn.Conv2d(3, 4, 3, bias=False), "conv or"),
    "a bilinear layer": (lambda: torch.nn.Bilinear(3, 4, 5), "conv or"),
    "a norm": (lambda: torch.nn.LayerNorm(4), "layer_norm or group_norm"),
    "a norm without a bias": (lambda: torch.nn.RMSNorm(4), "rms_norm or prelu"),
    "an LSTM": (lambda: torch.nn.LSTM(3, 4), "lstm or gru"),
    "attention": (lambda: torch.nn.MultiheadAttention(4, 2), "attention"),
}


@pytest.mark.parametrize("case", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_what_names_and_shapes_do_not_tell_is_refused_with_the_line_to_write(
    case: tuple[Callable[[], torch.nn.Module], str],
) -> None:
    make, rules = case
    module = torch.nn.ModuleDict({"first": make()})
    problem = refused(module.state_dict())
    assert '{ torch = "first", flax = "…", rule = "' in problem
    assert f'rule = "{rules}' in problem


def test_a_convolution_that_can_be_nothing_else_is_converted() -> None:
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)).state_dict()
    assert shapes(convert_torch_to_flax(state))["params/Conv_0/kernel"] == (3, 3, 3, 8)


@pytest.mark.parametrize("has_target", [False, True])
def test_a_linear_layer_that_may_follow_a_flatten_is_refused(has_target: bool) -> None:
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(8, (3, 3), padding="VALID")(x)
            return nn.Dense(5)(x.reshape(len(x), -1))

    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 4 * 4, 5)
    )
    target = target_of(Small(), jnp.zeros((1, 6, 6, 3))) if has_target else None
    problem = refused(module.state_dict(), None, target)
    assert "2 (weight[5, 128]) may follow a Flatten" in problem
    assert 'flax = "Dense_0", rule = "linear", flatten = [C, H, W] }' in problem


# Targets


class Torso(nn.Module):
    """Two hidden layers of the same width between others, and a norm."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(3):
            x = nn.relu(nn.Dense(16)(x))
        x = nn.LayerNorm()(x)
        return nn.Dense(2, name="mean")(x), self.param("log_std", nn.initializers.zeros, (2,))


class TorchTorso(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 16, 16, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.out = torch.nn.Linear(16, 2)
        self.log_std = torch.nn.Parameter(torch.randn(2))


def test_a_target_tells_the_layers_by_shape_and_by_number() -> None:
    module = TorchTorso()
    target = target_of(Torso(), jnp.zeros((1, 4)))
    found = convert(module.state_dict(), None, target)
    lines = {next(iter(layer.torch)): layer.flax for layer in found.report.layers}
    assert lines == {
        "log_std": "log_std",
        "net.0.weight": "Dense_0",
        "net.2.weight": "Dense_1",
        "net.4.weight": "Dense_2",
        "norm.weight": "LayerNorm_0",
        "out.weight": "mean",
    }
    assert shapes(found.variables) == shapes(target)
    kernel = found.params["params"]["Dense_2"]["kernel"]
    np.testing.assert_array_equal(kernel, module.net[4].weight.detach().numpy().T)


def test_a_target_of_the_same_names_tells_the_layers_by_name() -> None:
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(4, name="second")(nn.Dense(4, name="first")(x))

    state = torch.nn.ModuleDict(
        {"first": torch.nn.Linear(4, 4), "second": torch.nn.Linear(4, 4)}
    ).state_dict()
    params = convert_torch_to_flax(state, None, target_of(Named(), jnp.zeros((1, 4))))["params"]
    np.testing.assert_array_equal(params["first"]["kernel"], state["first.weight"].numpy().T)


def test_layers_of_equal_shape_go_by_number_only_if_others_confirm_the_order() -> None:
    class Nested(nn.Module):
        """Linen numbers the outer call first: the last layer is Dense_0."""

        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(2)(nn.Dense(4)(nn.Dense(4)(nn.Dense(4)(x))))

    class Twins(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(4)(nn.Dense(4)(x))

    target = target_of(Nested(), jnp.zeros((1, 3)))
    problem = refused(mlp(3, 4, 4, 4, 2).state_dict(), None, target)
    assert '2 (weight[4, 4], bias[4]) may be { torch = "2", flax = "Dense_1"' in problem
    assert 'or { torch = "2", flax = "Dense_2"' in problem
    problem = refused(mlp(4, 4, 4).state_dict(), None, target_of(Twins(), jnp.zeros((1, 4))))
    assert "free in the target: Dense_0, Dense_1" in problem


def test_layers_of_equal_shape_and_other_names_are_refused() -> None:
    class Twins(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(4, name="query")(x) + nn.Dense(4, name="key")(x)

    state = torch.nn.ModuleDict(
        {"q": torch.nn.Linear(4, 4), "k": torch.nn.Linear(4, 4)}
    ).state_dict()
    problem = refused(state, None, target_of(Twins(), jnp.zeros((1, 4))))
    assert (
        'q (weight[4, 4], bias[4]) may be { torch = "q", flax = "key", rule = "linear" }' in problem
    )
    assert "free in the target: key, query" in problem


def test_a_square_convolution_is_told_by_the_name_that_linen_gave() -> None:
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Conv(4, (3, 3))(x)

    class Unnamed(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Conv(4, (3, 3), name="mix")(x)

    class Transposed(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.ConvTranspose(4, (3, 3))(x)

    x = jnp.zeros((1, 6, 6, 4))
    state = torch.nn.ModuleDict({"a": torch.nn.Conv2d(4, 4, 3)}).state_dict()
    found = convert(state, None, target_of(Named(), x)).report.layers
    assert [(layer.rule, layer.flax) for layer in found] == [("conv", "Conv_0")]
    for network in (Unnamed(), Transposed()):
        problem = refused(state, None, target_of(network, x))
        assert "transpose_kernel = true" in problem


def test_a_map_needs_only_what_the_target_leaves_open() -> None:
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for name in ("first", "second", "third"):
                x = nn.Conv(4, (3, 3), padding="VALID", name=name)(x)
            return nn.Dense(3, name="out")(x.reshape(len(x), -1))

    module = torch.nn.ModuleDict(
        {
            "first": torch.nn.Conv2d(2, 4, 3),
            "second": torch.nn.Conv2d(4, 4, 3),
            "third": torch.nn.Conv2d(4, 4, 3),
            "out": torch.nn.Linear(4 * 2 * 3, 3),
        }
    )
    state, target = module.state_dict(), target_of(Network(), jnp.zeros((1, 8, 9, 2)))
    lines = [{"torch": name, "flax": name, "rule": "conv"} for name in ("second", "third")]
    problem = refused(state, {"layers": lines}, target)
    assert "out (weight[3, 24]) may follow a Flatten" in problem
    assert "first (" not in problem
    lines.append({"torch": "out", "flax": "out", "rule": "linear", "flatten": [4, 2, 3]})  # type: ignore[dict-item]
    found = convert(state, {"layers": lines}, target)
    assert found.report.how == "map and target"
    x = torch.randn(2, 2, 8, 9)
    expected = x
    for name in ("first", "second", "third"):
        expected = module[name](expected)
    expected = module["out"](expected.flatten(1))
    output = Network().apply(found.params, x.movedim(1, -1).numpy())
    np.testing.assert_allclose(output, expected.detach().numpy(), atol=1e-5)


def test_targets_of_recurrent_layers_and_attention_tell_cells_and_heads() -> None:
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.RNN(nn.GRUCell(8), name="memory")(x)
            return nn.MultiHeadDotProductAttention(2, name="attention")(x, x)

    state = torch.nn.ModuleDict(
        {"gru": torch.nn.GRU(3, 8), "mix": torch.nn.MultiheadAttention(8, 2)}
    ).state_dict()
    target = target_of(Mixed(), jnp.zeros((1, 5, 3)))
    found = convert(state, None, target)
    assert shapes(found.variables) == shapes(target)
    assert [(layer.rule, layer.options) for layer in found.report.layers] == [
        ("gru", {"cell": "linen.GRUCell"}),
        ("attention", {"heads": 2}),
    ]


def test_a_module_of_nnx_is_a_target_and_is_filled() -> None:
    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(4, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)

    state = torch.nn.ModuleDict(
        {"first": torch.nn.Linear(4, 4), "norm": torch.nn.BatchNorm1d(4)}
    ).state_dict()
    found = convert_torch_to_flax(state, None, Network(nnx.Rngs(0)))
    assert set(found["norm"]) == {"scale", "bias", "mean", "var"}
    np.testing.assert_array_equal(found["first"]["kernel"], state["first.weight"].numpy().T)


def test_a_target_that_does_not_fit_names_every_leaf() -> None:
    target = target_of(Torso(), jnp.zeros((1, 4)))
    lines = [{"torch": "0", "flax": "mean", "rule": "linear"}]
    problem = refused(mlp(4, 3).state_dict(), {"layers": lines}, target)
    assert "params/mean/kernel: the target has [16, 2], the checkpoint gives [4, 3]" in problem
    assert "missing: params/Dense_0/bias, params/Dense_0/kernel" in problem
    more = refused(mlp(4, 3).state_dict(), {"layers": [{**LINEAR, "flax": "other"}]}, target)
    assert "unexpected: params/other/kernel, params/other/bias" in more


def test_a_layer_that_fits_nowhere_is_named() -> None:
    problem = refused(mlp(4, 7).state_dict(), None, target_of(Torso(), jnp.zeros((1, 4))))
    assert "0 (weight[7, 4], bias[7]): no module of the target fits it" in problem


# The state dict in a checkpoint


def test_the_only_network_of_a_checkpoint_is_found() -> None:
    moments = {0: {"exp_avg": torch.zeros(4, 3), "step": torch.tensor(1.0)}}
    checkpoint = {
        "epoch": 3,
        "state": {"model": mlp(3, 4).state_dict(), "loss": [0.5]},
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }
    found = convert(checkpoint)
    assert found.report.root == "state.model"
    assert found.report.aside == ["epoch", "optimizer", "state.loss"]
    assert shapes(found.params) == {"params/Dense_0/bias": (4,), "params/Dense_0/kernel": (3, 4)}


def test_several_networks_are_refused_until_one_is_named() -> None:
    checkpoint = {"actor": mlp(3, 4).state_dict(), "critic": mlp(3, 1).state_dict()}
    problem = refused(checkpoint)
    assert "actor (2 tensors), critic (2 tensors)" in problem
    assert 'root = "actor"' in problem
    assert shapes(convert_torch_to_flax(checkpoint, {"root": "critic"})) == {
        "params/Dense_0/bias": (1,),
        "params/Dense_0/kernel": (3, 1),
    }
    assert set(convert_torch_to_flax(checkpoint, {"root": ""})["params"]) == {"actor", "critic"}
    assert "did you mean actor?" in refused(checkpoint, {"root": "actr"})


def test_prefixes_of_wrappers_are_stripped() -> None:
    state = mlp(3, 4, 2).state_dict()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        wrapped = {f"{prefix}{name}": tensor for name, tensor in state.items()}
        found = convert(wrapped)
        assert set(found.params["params"]) == {"Dense_0", "Dense_1"}
        assert set(found.report.stripped) == {f"{part}." for part in prefix.split(".")[:-1]}
    inner = {f"net._orig_mod.{name}": tensor for name, tensor in state.items()}
    assert set(convert_torch_to_flax(inner)["params"]) == {"net"}
    alone = {"module.0.weight": torch.ones(2, 3), "module.0.bias": torch.ones(2)}
    mixed = {**alone, "other.0.weight": torch.ones(2, 3), "other.0.bias": torch.ones(2)}
    assert set(convert_torch_to_flax(mixed)["params"]) == {"module", "other"}


def test_a_tensor_that_is_named_like_a_wrapper_keeps_its_name() -> None:
    for name in ("module", "_orig_mod"):
        assert set(convert_torch_to_flax({name: torch.ones(2)})["params"]) == {name}


def test_other_collections_of_a_target_come_from_no_checkpoint() -> None:
    target = {**target_of(Torso(), jnp.zeros((1, 4))), "cache": {"index": jnp.zeros(())}}
    assert set(convert_torch_to_flax(TorchTorso().state_dict(), None, target)) == {"params"}


def test_names_that_are_one_after_stripping_are_refused() -> None:
    state = {"a.weight": torch.ones(2), "a._orig_mod.weight": torch.ones(2)}
    assert "two tensors of the checkpoint have the same name" in refused(state)


def test_tensors_of_torch_arrays_of_numpy_and_of_jax_are_one(tmp_path: Path) -> None:
    state = mlp(3, 4).state_dict()
    as_numpy = {name: tensor.numpy() for name, tensor in state.items()}
    as_jax = {name: jnp.asarray(array) for name, array in as_numpy.items()}
    kernels = [
        convert_torch_to_flax(each)["params"]["Dense_0"]["kernel"]
        for each in (state, as_numpy, as_jax)
    ]
    for kernel in kernels:
        np.testing.assert_array_equal(kernel, as_numpy["0.weight"].T)
        assert not kernel.flags.writeable


def test_a_live_tensor_is_copied_and_nothing_of_the_caller_is_changed() -> None:
    module = mlp(3, 4)
    params = convert_torch_to_flax(module.state_dict())["params"]
    before = params["Dense_0"]["bias"].copy()
    array = np.zeros(4, np.float32)
    convert_torch_to_flax({"0.weight": np.zeros((4, 3), np.float32), "0.bias": array})
    array[0] = 1  # still writable
    with torch.no_grad():
        module[0].bias += 1
    np.testing.assert_array_equal(params["Dense_0"]["bias"], before)


def test_what_is_no_state_dict_is_refused() -> None:
    for value in ([torch.ones(2)], torch.ones(2), 3, {}, {"a": 1}, mlp(2, 2)):
        with pytest.raises(BadParams):
            convert_torch_to_flax(value)
    with pytest.raises(Unsupported, match=r"w: JAX has no tensor such as torch's torch\.sparse"):
        convert_torch_to_flax({"w": torch.eye(2).to_sparse()})
    with pytest.raises(BadParams, match=r"w: dtype <U4 cannot be stored"):
        convert_torch_to_flax({"w": np.array(["text"])})
    with pytest.raises(BadParams, match="target: w: expected an array"):
        convert_torch_to_flax(mlp(2, 2).state_dict(), None, {"w": "text"})
