"""An LSTM over list columns, whose last state is joined by the other columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from handlers.nets.columns import Columns, Embed, Head, Normalize, by_name


class Lstm(nn.Module):
    """The state after the last real step of a sequence, and the columns of the row, through a head.

    Args:
        outputs: numbers of a row: classes, labels or values.
        sequence: the sequence input, `{name, width: features of a step}`, or `{name, codes, unknown}` for steps of codes.
        lengths: the input with the number of real steps of each row; padding is on the right.
        numeric: further numeric inputs, as of `Mlp`.
        categorical: further categorical inputs, as of `Mlp`.
        state: units of the LSTM.
        layers: layers of the LSTM.
        hidden: units of each hidden layer after it.
        dropout: share of hidden units that training leaves out.
        denormalize: whether outputs are scaled to the label's unit, as a regression needs.
    """

    def __init__(
        self,
        outputs: int,
        sequence: Mapping[str, Any],
        lengths: str = "lengths",
        numeric: Mapping[str, Mapping[str, Any]] | None = None,
        categorical: Mapping[str, Mapping[str, Any]] | None = None,
        state: int = 64,
        layers: int = 1,
        hidden: Sequence[int] = (64,),
        dropout: float = 0.1,
        denormalize: bool = False,
    ) -> None:
        super().__init__()
        self.sequence, self.lengths = str(sequence["name"]), lengths
        self.steps: nn.Module
        if "codes" in sequence:
            self.steps = Embed(int(sequence["codes"]), sequence.get("unknown"))
            width = self.steps.dimensions
        else:
            width = int(sequence["width"])
            self.steps = Normalize(width)
        self.lstm = nn.LSTM(width, state, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.columns = Columns(numeric or {}, categorical or {})
        self.head = Head(state + self.columns.width, list(hidden), outputs, dropout, denormalize=denormalize)

    def forward(self, /, *args: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """The sequence of (rows, steps, features), lengths of (rows,), others of (rows, width); gives (rows, outputs)."""
        inputs = by_name([self.sequence, self.lengths], args, inputs)
        states, _ = self.lstm(self.steps(inputs[self.sequence]))
        # Padding comes after the last real step, whose state it cannot change.
        last = (inputs[self.lengths].clamp(min=1) - 1).reshape(-1, 1, 1).expand(-1, 1, states.shape[2])
        state = states.gather(1, last).squeeze(1)
        outputs: torch.Tensor = self.head(torch.cat([state, *self.columns(inputs)], dim=1))
        return outputs
