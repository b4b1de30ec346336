"""The pipeline side: sources, sinks, `Score`, `RunTorchInference`, dead letters and accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handlers.lazy import lazy_names

if TYPE_CHECKING:
    from transforms.run_torch_inference import DeadLetter, RunTorchInference, SplitFailures
    from transforms.score import Score

__all__ = ["DeadLetter", "RunTorchInference", "Score", "SplitFailures"]

_HOMES = {
    "DeadLetter": "run_torch_inference",
    "RunTorchInference": "run_torch_inference",
    "Score": "score",
    "SplitFailures": "run_torch_inference",
}

__getattr__ = lazy_names(__name__, _HOMES)
