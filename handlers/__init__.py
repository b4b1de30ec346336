"""The model side: model directories, encoders, the predictor and the model handlers for RunInference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handlers.lazy import lazy_names

if TYPE_CHECKING:
    from handlers.batching import Batching, ResourceHints
    from handlers.columnar.handler import ColumnarModelHandler
    from handlers.elements.failures import FailedPrediction
    from handlers.elements.handler import TorchModelHandler, skip_failures
    from handlers.model.directory import ModelDir
    from handlers.model.state_dict import StateDict
    from handlers.model.trust import Trust
    from handlers.predict.placement import Placement
    from handlers.predict.predictor import Predictor
    from handlers.tensors import Padding, Ragged

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
    "Trust",
    "skip_failures",
]

_HOMES = {
    "Batching": "batching",
    "ColumnarModelHandler": "columnar.handler",
    "FailedPrediction": "elements.failures",
    "ModelDir": "model.directory",
    "Padding": "tensors",
    "Placement": "predict.placement",
    "Predictor": "predict.predictor",
    "Ragged": "tensors",
    "ResourceHints": "batching",
    "StateDict": "model.state_dict",
    "TorchModelHandler": "elements.handler",
    "Trust": "model.trust",
    "skip_failures": "elements.handler",
}

__getattr__ = lazy_names(__name__, _HOMES)
