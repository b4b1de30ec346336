"""What the tests of the model side share: model directories of the small models."""

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from small_models import Save

from handlers.model.directory import ModelDir


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves a model with the input `x` of the columns a and b into a new directory."""
    count = iter(range(1000))

    def write(module: torch.nn.Module | None = None, **fields: Any) -> ModelDir:
        fields = {"inputs": [{"name": "x", "columns": ["a", "b"]}], **fields}
        return ModelDir.save(module or small_models.Linear(), tmp_path / f"model{next(count)}", **fields)

    return write
