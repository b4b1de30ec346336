"""Format torchscript: a program of the deprecated TorchScript, accepted because many models exist in it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from handlers.model.formats.modules import program
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode
from handlers.predict.loaded import LoadedModel
from handlers.tensors import TensorInfo


def load(_spec: ModelSpec, weights: Path, _code: ModelCode) -> LoadedModel:
    """Loads the program."""
    return program(weights, "torchscript", _load)


def save(module: torch.nn.Module, folder: Path, _example: object) -> Path:
    """Compiles `module` by scripting and writes it."""
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(module).save(str(file := folder / "model.pt"))
    return file


def _load(file: Path) -> LoadedModel:
    with warnings.catch_warnings(action="ignore"):  # that TorchScript is deprecated is in docs/model-directory.md
        module = torch.jit.load(str(file), map_location="cpu").eval()
    names = tuple(argument.name for argument in module.forward.schema.arguments[1:])
    return LoadedModel(module, names, tuple(TensorInfo(name) for name in names))
