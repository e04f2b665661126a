"""The encoder of V2 in torch, and the same in Flax."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np
import torch


class DialEncoder(torch.nn.Module):
    """The encoder of V2: 8 inputs, 64 hidden, 36 outputs (32 tokens and 4 payload bits)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 36)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(x)
        return found


class FlaxEncoder(nn.Module):
    """The same in Flax."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(36)(x)


def assert_encodes_as(module: DialEncoder, params: Any) -> None:
    x = torch.randn(5, 8)
    inner = params["params"]
    found = FlaxEncoder().apply({"params": inner.get("net", inner)}, x.numpy())
    np.testing.assert_allclose(found, module(x).detach().numpy(), atol=1e-5, rtol=0)
