"""The model that is scored with: an MLP of 20-64-64-3."""

import gc
from typing import Any

import numpy as np
import torch
from torch import nn

FEATURES = 20
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
        return self.layers(x)


_ROWS: dict[int, list[tuple[int, dict[str, float]]]] = {}


def make_keyed_rows(rows: int, size: int, names: list[str]) -> None:
    """Makes `(key, {name: value})` for the keys 0 … rows-1, held in this process in slices of `size`."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, size):
        values = rng.normal(size=(min(size, rows - start), len(names))).tolist()
        _ROWS[start] = [(start + at, dict(zip(names, row, strict=True))) for at, row in enumerate(values)]
    gc.freeze()  # else the collector would walk over all of them time and again, in every contender


def keyed_rows(start: int) -> list[Any]:
    """The slice of them that begins at key `start`."""
    return _ROWS[start]
