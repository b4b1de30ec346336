"""Loading and saving the weights of a model, by the module of their format."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from handlers.errors import UsageError
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


def format_of(model: Any) -> str:
    """The format in which a live model is saved unless another one is named.

    Raises:
        UsageError: for what is no model.
    """
    if isinstance(model, str | os.PathLike):
        for name, each in FORMATS.items():
            if Path(model).suffix in each.extensions:
                return name
        known = ", ".join(suffix for each in FORMATS.values() for suffix in each.extensions)
        raise UsageError(f"{model} is no file of a model of another framework ({known})")
    if isinstance(model, torch.nn.Module):
        return "safetensors"
    if isinstance(model, torch.export.ExportedProgram):
        raise UsageError(
            'save the module itself, with format="torch_export" and an example, not what it was exported to'
        )
    packages = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    for package, found in (("xgboost", "xgboost"), ("sklearn", "sklearn"), ("onnx", "onnx"), ("torch", "onnx")):
        if package in packages:  # estimators of XGBoost are estimators of scikit-learn, too
            return found
    raise UsageError(f"a {type(model).__name__} is no model of PyTorch, scikit-learn, XGBoost or ONNX")


def task_of(format: str, weights: Path) -> str:
    """The task that a model of another framework is made for."""
    spec = ModelSpec(name=weights.stem, format=format, weights=weights.name)
    module = _module_of(format)
    return str(module.task_of(module.load(spec, weights, NO_CODE)))


def save_weights(module: Any, folder: Path, format: str, example: tuple[torch.Tensor, ...] | None) -> Path:
    """Writes the weights of `module`, as in evaluation mode, into `folder`; gives the file."""
    if not isinstance(module, torch.nn.Module):
        if not FORMATS[format].extensions:
            raise UsageError(f"format {format} needs a torch.nn.Module, not a {type(module).__name__}")
        if isinstance(module, str | os.PathLike):
            return _copied(Path(module), folder, format)
        written: Path = _module_of(format).save(module, folder, example)
        return written
    if FORMATS[format].extensions:
        raise UsageError(f"format {format} takes no torch.nn.Module; save the model as safetensors or torch_export")
    training = module.training
    module.eval()
    try:
        file: Path = _module_of(format).save(module, folder, example)
    finally:
        module.train(training)
    return file


def _copied(source: Path, folder: Path, format: str) -> Path:
    """Copies a file of another framework, and the external data of an ONNX graph beside it."""
    if source.suffix not in FORMATS[format].extensions or not source.is_file():
        raise UsageError(f"{source} is not a file of format {format} ({', '.join(FORMATS[format].extensions)})")
    for part in (source, source.with_name(f"{source.name}.data")):
        if part.is_file():
            shutil.copy(part, folder / part.name)
    return folder / source.name


def _module_of(format: str) -> Any:
    return importlib.import_module(FORMATS[format].module)
