"""Modules made by code: of an architecture, filled with weights, or of the user's loader."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from handlers.errors import TorchbeamError, UsageError, one_line
from handlers.isolation import contained
from handlers.model.device_map import PlacementSpec
from handlers.model.spec import ModelSpec
from handlers.model_code import ModelCode, import_function
from handlers.predict.loaded import LoadedModel

PICKLE_ADVICE = "it holds pickled code; load it where that code is and save it again with ModelDir.save"


def dispatched(spec: ModelSpec, weights: Path, code: ModelCode, placement: PlacementSpec) -> LoadedModel:
    """The module of the architecture with its weights on the devices of `placement`.

    Raises:
        UsageError: if the architecture cannot be made, or the weights or the placement do not fit it.
    """
    from handlers.model.dispatch import dispatch

    try:
        module, device = dispatch(lambda: _made(spec, code), [weights], placement)
    except TorchbeamError:
        raise
    except Exception as error:
        raise UsageError(f"{weights} cannot be placed: {type(error).__name__}: {one_line(error)}") from None
    return replace(of_module(module), device=device)


def _made(spec: ModelSpec, code: ModelCode) -> torch.nn.Module:
    """The module of the architecture that `spec` names, in `code` or installed."""
    factory = import_function(str(spec.architecture), "architecture", code)
    module = call(factory, f'architecture "{spec.architecture}"', **spec.arguments)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f'architecture "{spec.architecture}" gives a {type(module).__name__}, not a torch.nn.Module')
    return module


def filled(spec: ModelSpec, weights: Path, code: ModelCode, fill: Callable[[torch.nn.Module], object]) -> LoadedModel:
    """The module of the architecture that `spec` names, in `code` or installed, filled with the weights by `fill`.

    Raises:
        UsageError: where the architecture cannot be made, or the weights do not fit it.
    """
    module = _made(spec, code)
    try:
        fill(module)
    except TorchbeamError:
        raise
    except Exception as error:
        raise UsageError(f'{weights} does not fit architecture "{spec.architecture}": {one_line(error)}') from None
    return of_module(module)


def call(function: Callable[..., Any], what: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a user function; raises `UsageError` that names `what` where it raises."""
    try:
        return contained(lambda: function(*args, **kwargs))
    except TorchbeamError:
        raise
    except Exception as error:
        raise UsageError(f"{what} failed: {type(error).__name__}: {one_line(error)}") from None


def of_module(module: Any) -> LoadedModel:
    """A module, or any callable that takes tensors, in evaluation mode; its signature determines how it is called."""
    if not callable(module):
        raise UsageError(f"the loader gave a {type(module).__name__}, which cannot be called")
    if isinstance(module, torch.nn.Module):
        module.eval()
    forward = getattr(module, "forward", module)
    kinds = inspect.Parameter
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # a C++ callable may have no signature
        return LoadedModel(module)
    positional = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    # An optional keyword-only parameter is not needed here: its input is passed by name anyway.
    by_name = [each.name for each in parameters if each.kind == kinds.KEYWORD_ONLY and each.default is each.empty]
    return LoadedModel(
        module,
        (*(each.name for each in parameters if each.kind in positional), *by_name),
        keywords=frozenset(by_name),
    )


def program(weights: Path, format: str, load: Callable[[Path], LoadedModel]) -> LoadedModel:
    """A model that is a program; an error is one line that names the file."""
    try:
        return load(weights)
    except TorchbeamError:
        raise
    except pickle.UnpicklingError:
        raise UsageError(f"{weights} is refused: {PICKLE_ADVICE}") from None
    except Exception as error:
        raise UsageError(f"{weights} cannot be loaded as {format}: {one_line(error)}") from None
