"""The model of the tables: an MLP of 20-64-64-3. It travels with the model directory, so it imports only torch."""

import torch
from torch import nn

FEATURES = 20
COLUMNS = [f"f_{index}" for index in range(FEATURES)]
LABELS = ["low", "middle", "high"]


class BenchNet(nn.Module):
    """Three linear layers."""

    def __init__(self, features: int = FEATURES) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(LABELS))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of (rows, 3) for (rows, features)."""
        logits: torch.Tensor = self.layers(x)
        return logits
