"""Layers of torch at random, and what they become in Flax, side by side."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from brainstore.migrate import convert_torch_to_flax

TOLERANCE = 1e-5


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module with every parameter and buffer at random, so that none is 0 or 1."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) * 1.5 - 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.abs_().add_(0.5)
    return module.eval()


def converted(module: torch.nn.Module, rule: str, prefix: str = "", **options: Any) -> Any:
    """Return the variables that one line of a map makes of a module, below `layer`."""
    line = {"torch": prefix, "flax": "layer", "rule": rule, **options}
    return convert_torch_to_flax(module.state_dict(), {"layers": [line]})


def apply(layer: nn.Module, variables: Any, *inputs: Any, **options: Any) -> np.ndarray:
    """Apply a linen layer with what was converted for `layer`."""
    own = {name: tree["layer"] for name, tree in variables.items()}
    return np.asarray(layer.apply(own, *map(jnp.asarray, inputs), **options))


def same(found: Any, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(np.asarray(found), expected.detach().numpy(), atol=TOLERANCE, rtol=0)


def last(images: torch.Tensor) -> Any:
    """Return channels last, as Flax has them."""
    return images.movedim(1, -1).numpy()


def first(images: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(images), -1, 1)


def filled(layer: Any, leaves: Any) -> Any:
    """Return an nnx layer whose state is what was converted."""
    state = nnx.state(layer, nnx.Any(nnx.Param, nnx.BatchStat))
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, leaves))
    nnx.update(layer, state)
    return layer
