"""The pipeline side: sources, sinks, `Score`, `RunTorchInference`, dead letters and accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handlers.lazy import lazy_names

if TYPE_CHECKING:
    from transforms.inference.run_torch_inference import DeadLetter, RunTorchInference, SplitFailures
    from transforms.inference.score import Score
    from transforms.inference.sequences import Sequences

__all__ = ["DeadLetter", "RunTorchInference", "Score", "Sequences", "SplitFailures"]

_HOMES = {
    "DeadLetter": "inference.run_torch_inference",
    "RunTorchInference": "inference.run_torch_inference",
    "Score": "inference.score",
    "Sequences": "inference.sequences",
    "SplitFailures": "inference.run_torch_inference",
}

__getattr__ = lazy_names(__name__, _HOMES)
