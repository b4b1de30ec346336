"""The model side: model directories, encoders, the predictor and the model handlers for RunInference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handlers.columnar import Batching, ColumnarModelHandler, ResourceHints
    from handlers.model_dir import ModelDir
    from handlers.placement import Placement
    from handlers.predictor import Predictor

__all__ = ["Batching", "ColumnarModelHandler", "ModelDir", "Placement", "Predictor", "ResourceHints"]

_HOMES = {
    "Batching": "columnar",
    "ColumnarModelHandler": "columnar",
    "ModelDir": "model_dir",
    "Placement": "placement",
    "Predictor": "predictor",
    "ResourceHints": "columnar",
}


def __getattr__(name: str) -> Any:
    """Imports a public name where it is first used, so that `--help` need not wait for torch and Beam."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
