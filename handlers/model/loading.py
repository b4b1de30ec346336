"""Loading and saving the weights of a model, by the module of their format."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from handlers.model.formats import FORMATS
from handlers.model.formats.modules import call, of_module
from handlers.model.spec import ModelSpec
from handlers.model_code import NO_CODE, ModelCode, import_function
from handlers.predict.loaded import LoadedModel


def load_model(spec: ModelSpec, local: Path, code: ModelCode = NO_CODE) -> LoadedModel:
    """Loads a model on the CPU, in evaluation mode.

    Args:
        spec: the contents of its `model.yaml`.
        local: the model directory, or the bare file.
        code: the modules in its `code/`.

    Raises:
        UsageError: where the weights cannot be loaded safely, or do not fit the architecture.
    """
    if spec.loader:
        return of_module(call(import_function(spec.loader, "loader", code), f'loader "{spec.loader}"', local))
    whole = local.is_file() or FORMATS[str(spec.format)].is_directory
    loaded: LoadedModel = _module_of(str(spec.format)).load(spec, local if whole else local / str(spec.weights), code)
    return loaded


def save_weights(module: torch.nn.Module, folder: Path, format: str, example: tuple[torch.Tensor, ...] | None) -> Path:
    """Writes the weights of `module`, as in evaluation mode, into `folder`; gives the file."""
    training = module.training
    module.eval()
    try:
        file: Path = _module_of(format).save(module, folder, example)
    finally:
        module.train(training)
    return file


def _module_of(format: str) -> Any:
    return importlib.import_module(FORMATS[format].module)
