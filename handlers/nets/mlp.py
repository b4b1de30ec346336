"""A multilayer perceptron over the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from handlers.nets.columns import Columns, Head, by_name


class Mlp(nn.Module):
    """Numeric columns, normalised, and embedded categories through hidden layers.

    Args:
        outputs: numbers of a row: classes, labels or values.
        numeric: numeric inputs by name, `{width: values of a row, missing: whether some may be NaN}`.
        categorical: categorical inputs by name, `{width, codes, unknown}`.
        hidden: units of each hidden layer.
        dropout: share of hidden units that training leaves out.
        denormalize: whether outputs are scaled to the label's unit, as a regression needs.
    """

    def __init__(
        self,
        outputs: int,
        numeric: Mapping[str, Mapping[str, Any]] | None = None,
        categorical: Mapping[str, Mapping[str, Any]] | None = None,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.1,
        denormalize: bool = False,
    ) -> None:
        super().__init__()
        self.columns = Columns(numeric or {}, categorical or {})
        self.head = Head(self.columns.width, list(hidden), outputs, dropout, denormalize=denormalize)
        self.names = [*(numeric or {}), *(categorical or {})]

    def forward(self, /, *args: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of (rows, width) by name; gives (rows, outputs)."""
        outputs: torch.Tensor = self.head(torch.cat(self.columns(by_name(self.names, args, inputs)), dim=1))
        return outputs
