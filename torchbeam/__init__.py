"""torchbeam scores data with PyTorch models through Apache Beam. This package has its public names.

Each is imported where it is first used, so that `import torchbeam` needs neither torch nor Beam. docs/api.md describes
all of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handlers.batching import Batching, ResourceHints
    from handlers.elements.failures import FailedPrediction
    from handlers.elements.handler import TorchModelHandler, skip_failures
    from handlers.errors import (
        AccountingError,
        BrokenFileError,
        BrokenModelError,
        DeviceLostError,
        PublishError,
        RowsFailedError,
        ServiceError,
        TorchbeamError,
        TrainingError,
        UsageError,
    )
    from handlers.graph.plan import ByKey, ModelSettings
    from handlers.graph.result import ModelCounts
    from handlers.graph.spec import ModelSplit
    from handlers.model.directory import ModelDir
    from handlers.model.state_dict import StateDict
    from handlers.model.trust import Trust
    from handlers.predict.placement import Placement
    from handlers.refresh.watch import ModelWatch, Refresh
    from handlers.tensors import Padding, Ragged
    from handlers.version import __version__
    from pipelines.train import train
    from transforms.accounting import Counts
    from transforms.inference.failure_rate import FailureRateError
    from transforms.inference.run_torch_inference import DeadLetter, Inferences, RunTorchInference, SplitFailures
    from transforms.inference.score import Score, ScoredRows
    from transforms.inference.score_models import ScoreModels
    from transforms.inference.sequences import SequenceRows, Sequences
    from transforms.inference.watch_model import WatchModel
    from transforms.local.scoring import Model, ScoreResult, load, score
    from transforms.registry.registry import ModelRegistry, RegisteredModel
    from transforms.registry.row_predictor import RowPredictor
    from transforms.rows.torch_score import TorchScore
    from transforms.sinks.write import Part, WriteChunks
    from transforms.sources.planning import Input, plan_input
    from transforms.sources.read import Read, ReadChunks
    from transforms.sources.splits import FileRead
    from transforms.streams.read import MicroBatches
    from transforms.streams.score_stream import ScoreStream
    from transforms.streams.settle import MessageFormat

__all__ = [
    "AccountingError",
    "Batching",
    "BrokenFileError",
    "BrokenModelError",
    "ByKey",
    "Counts",
    "DeadLetter",
    "DeviceLostError",
    "FailedPrediction",
    "FailureRateError",
    "FileRead",
    "Inferences",
    "Input",
    "MessageFormat",
    "MicroBatches",
    "Model",
    "ModelCounts",
    "ModelDir",
    "ModelRegistry",
    "ModelSettings",
    "ModelSplit",
    "ModelWatch",
    "Padding",
    "Part",
    "Placement",
    "PublishError",
    "Ragged",
    "Read",
    "ReadChunks",
    "Refresh",
    "RegisteredModel",
    "ResourceHints",
    "RowPredictor",
    "RowsFailedError",
    "RunTorchInference",
    "Score",
    "ScoreModels",
    "ScoreResult",
    "ScoreStream",
    "ScoredRows",
    "SequenceRows",
    "Sequences",
    "ServiceError",
    "SplitFailures",
    "StateDict",
    "TorchModelHandler",
    "TorchScore",
    "TorchbeamError",
    "TrainingError",
    "Trust",
    "UsageError",
    "WatchModel",
    "WriteChunks",
    "__version__",
    "load",
    "plan_input",
    "score",
    "skip_failures",
    "train",
]

_HOMES = {
    "MessageFormat": "transforms.streams.settle",
    "MicroBatches": "transforms.streams.read",
    "ScoreStream": "transforms.streams.score_stream",
    "AccountingError": "handlers.errors",
    "Batching": "handlers.batching",
    "BrokenFileError": "handlers.errors",
    "BrokenModelError": "handlers.errors",
    "ByKey": "handlers.graph.plan",
    "Counts": "transforms.accounting",
    "DeadLetter": "transforms.inference.run_torch_inference",
    "DeviceLostError": "handlers.errors",
    "TrainingError": "handlers.errors",
    "FailedPrediction": "handlers.elements.failures",
    "FailureRateError": "transforms.inference.failure_rate",
    "FileRead": "transforms.sources.splits",
    "Inferences": "transforms.inference.run_torch_inference",
    "Input": "transforms.sources.planning",
    "Model": "transforms.local.scoring",
    "ModelCounts": "handlers.graph.result",
    "ModelDir": "handlers.model.directory",
    "ModelRegistry": "transforms.registry.registry",
    "ModelSettings": "handlers.graph.plan",
    "ModelSplit": "handlers.graph.spec",
    "ModelWatch": "handlers.refresh.watch",
    "Padding": "handlers.tensors",
    "Part": "transforms.sinks.write",
    "Placement": "handlers.predict.placement",
    "PublishError": "handlers.errors",
    "Ragged": "handlers.tensors",
    "Read": "transforms.sources.read",
    "ReadChunks": "transforms.sources.read",
    "Refresh": "handlers.refresh.watch",
    "RegisteredModel": "transforms.registry.registry",
    "ResourceHints": "handlers.batching",
    "RowPredictor": "transforms.registry.row_predictor",
    "RowsFailedError": "handlers.errors",
    "RunTorchInference": "transforms.inference.run_torch_inference",
    "Score": "transforms.inference.score",
    "ScoreModels": "transforms.inference.score_models",
    "ScoreResult": "transforms.local.scoring",
    "ScoredRows": "transforms.inference.score",
    "SequenceRows": "transforms.inference.sequences",
    "Sequences": "transforms.inference.sequences",
    "ServiceError": "handlers.errors",
    "SplitFailures": "transforms.inference.run_torch_inference",
    "StateDict": "handlers.model.state_dict",
    "TorchModelHandler": "handlers.elements.handler",
    "TorchScore": "transforms.rows.torch_score",
    "TorchbeamError": "handlers.errors",
    "Trust": "handlers.model.trust",
    "UsageError": "handlers.errors",
    "WatchModel": "transforms.inference.watch_model",
    "WriteChunks": "transforms.sinks.write",
    "__version__": "handlers.version",
    "load": "transforms.local.scoring",
    "plan_input": "transforms.sources.planning",
    "score": "transforms.local.scoring",
    "skip_failures": "handlers.elements.handler",
    "train": "pipelines.train",
}


def __getattr__(name: str) -> Any:
    if name in ("ray", "spark"):
        return importlib.import_module(f"torchbeam.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torchbeam.shadow import check_packages

    check_packages()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
