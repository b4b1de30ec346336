"""A model in memory, as the predictor calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from handlers.tensors import TensorInfo


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and how it is called.

    Attributes:
        module: takes the inputs and gives a tensor, or a tuple, list or mapping of tensors; or a `Backend`.
        parameters: names of the inputs in the order of `forward`; empty where it takes any (`*args`).
        device: the device of the inputs, for a model whose layers have their devices already; else None.
        keywords: those of them that `forward` takes by name only.
        inputs: what the model itself declares about them; empty if it declares nothing.
        rows: the number of rows that every call must have, for a program exported with a fixed batch; else None.
        labels: the classes that the model itself knows, in the order of its outputs.
        output: whether the model gives `logits` or `probabilities`, if it is known.
    """

    module: Callable[..., Any]
    parameters: tuple[str, ...] = ()
    inputs: tuple[TensorInfo, ...] = ()
    rows: int | None = None
    keywords: frozenset[str] = field(default_factory=frozenset)
    labels: tuple[str, ...] | None = None
    output: Literal["logits", "probabilities"] | None = None
    device: torch.device | None = None
