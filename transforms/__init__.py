"""The pipeline side: sources, sinks, `Score`, `RunTorchInference`, dead letters and accounts."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """Imports a public name where it is first used, so that `--help` need not wait for torch and Beam."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
