"""Model directories whose answers can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from handlers.model.directory import ModelDir
from transforms.registry.registry import ModelRegistry

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Saves a classifier that says `good` where a > b + `bias`; gives its folder."""

    def save(bias: float = 0.0, name: str = "", **fields: object) -> Path:
        net = torch.nn.Linear(2, 2)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
            net.bias.copy_(torch.tensor([bias, 0.0]))
        folder = tmp_path / "made" / (name or f"bias{bias}")
        settings: dict[str, object] = {
            "task": "classification",
            "labels": ["bad", "good"],
            "arguments": {"in_features": 2, "out_features": 2},
            "inputs": [{"name": "x", "columns": ["a", "b"]}],
        }
        ModelDir.save(net, folder, **(settings | fields))  # type: ignore[arg-type]
        return folder

    return save


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(tmp_path / "models")
