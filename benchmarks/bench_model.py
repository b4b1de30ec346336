"""The model that is scored with: an MLP of 20-64-64-3."""

import torch
from torch import nn

FEATURES = 20
LABELS = ["low", "middle", "high"]


class BenchNet(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(LABELS))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of (rows, 3) for (rows, 20)."""
        return self.layers(x)
