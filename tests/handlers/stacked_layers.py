"""A model of many equal layers, as large as asked for."""

from __future__ import annotations

import torch


class Stacked(torch.nn.Module):
    """`layers` residual layers of `width` × `width` weights, and two classes."""

    def __init__(self, layers: int = 6, width: int = 64, features: int = 4) -> None:
        super().__init__()
        self.first = torch.nn.Linear(features, width)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
        self.last = torch.nn.Linear(width, 2)
        self.register_buffer("shift", torch.full((width,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x) + self.shift)
        return self.last(x)
