"""Format state_dict: weights as torch.save writes them, loaded with `weights_only`."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from handlers.errors import UsageError
from handlers.model.formats.modules import PICKLE_ADVICE, filled
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode
from handlers.predict.loaded import LoadedModel


def load(spec: ModelSpec, weights: Path, code: ModelCode) -> LoadedModel:
    """Loads the weights into the architecture that `spec` names."""
    return filled(spec, weights, code, lambda module: module.load_state_dict(safe_load(weights), strict=True))


def save(module: torch.nn.Module, folder: Path, _example: object) -> Path:
    """Writes the weights of `module`."""
    torch.save(module.state_dict(), file := folder / "weights.pt")
    return file


def safe_load(file: Path) -> Any:
    """`torch.load` of tensors and plain containers alone; raises `UsageError` for pickled code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles in its own format
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise UsageError(f"{file} is refused: {PICKLE_ADVICE}") from None
        raise
