"""Format safetensors: weights alone, without code; the architecture is the user's."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from handlers.model.formats.modules import dispatched, filled
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode
from handlers.predict.loaded import LoadedModel


def load(spec: ModelSpec, weights: Path, code: ModelCode) -> LoadedModel:
    """Loads the weights into the architecture that `spec` names."""
    if spec.placement is not None:
        return dispatched(spec, weights, code, spec.placement)
    return filled(spec, weights, code, lambda module: safetensors.torch.load_model(module, weights, strict=True))


def save(module: torch.nn.Module, folder: Path, _example: object) -> Path:
    """Writes the weights of `module`."""
    safetensors.torch.save_model(module, str(file := folder / "weights.safetensors"))
    return file
