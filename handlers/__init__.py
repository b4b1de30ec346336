"""The model side: model directories, encoders, the predictor and the model handlers for RunInference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handlers.lazy import lazy_names

if TYPE_CHECKING:
    from handlers.batching import Batching, ResourceHints
    from handlers.columnar import ColumnarModelHandler
    from handlers.elements import FailedPrediction, StateDict, TorchModelHandler, skip_failures
    from handlers.model_dir import ModelDir
    from handlers.placement import Placement
    from handlers.predictor import Predictor
    from handlers.ragged import Padding, Ragged

__all__ = [
    "Batching",
    "ColumnarModelHandler",
    "FailedPrediction",
    "ModelDir",
    "Padding",
    "Placement",
    "Predictor",
    "Ragged",
    "ResourceHints",
    "StateDict",
    "TorchModelHandler",
    "skip_failures",
]

_HOMES = {
    "Batching": "batching",
    "ColumnarModelHandler": "columnar",
    "FailedPrediction": "elements",
    "ModelDir": "model_dir",
    "Padding": "ragged",
    "Placement": "placement",
    "Predictor": "predictor",
    "Ragged": "ragged",
    "ResourceHints": "batching",
    "StateDict": "elements",
    "TorchModelHandler": "elements",
    "skip_failures": "elements",
}

__getattr__ = lazy_names(__name__, _HOMES)
