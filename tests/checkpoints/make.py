"""Makes `dial_encoder.pt`: a speaker of the signalling task as PyTorch would have saved it.

    python tests/checkpoints/make.py

It stands in for the checkpoint of a team that comes from PyTorch: the layers of
`brainstore.networks.DIALEncoder`, 8 → 64 → 36, untrained, from seed 0. The example zoo
begins with it (`scripts/train_zoo`). The same torch gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch

PATH = Path(__file__).parent / "dial_encoder.pt"


class Speaker(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(8, 64)
        self.message = torch.nn.Linear(64, 36)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.message(torch.relu(self.hidden(obs)))


def main() -> None:
    torch.manual_seed(0)
    torch.save({"model_state_dict": Speaker().state_dict(), "steps": 0}, PATH)


if __name__ == "__main__":
    main()
