"""Recurrent models that learn in three ways where their rows end."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from handlers.predict.loaded import LoadedModel


class _Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.lstm = torch.nn.LSTM(2, 8, batch_first=True)
        self.out = torch.nn.Linear(8, 1)


class Packed(_Recurrent):
    """Takes the lengths."""

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.out(self.lstm(packed)[1][0][-1])


class Masked(_Recurrent):
    """Takes a mask, of rows that are padded on the right."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.lstm(x)[0]
        return self.out(states[torch.arange(len(x)), mask.sum(dim=1) - 1])


class LeftPadded(_Recurrent):
    """Takes a mask, of rows that are padded on the left; steps of padding leave the state at zero."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = []
        for row, real in zip(x, mask, strict=True):
            found.append(self.lstm(row[real][None])[1][0][-1])
        return self.out(torch.cat(found))


class Bag(torch.nn.Module):
    """The sum of the embeddings of codes; 3 is padding, whose embedding is zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding = torch.nn.Embedding(4, 1, padding_idx=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embedding(x).sum(dim=1)


def last_state(module: _Recurrent, steps: torch.Tensor) -> float:
    """The answer to one row of (steps, 2), without any padding."""
    with torch.inference_mode():
        return float(module.out(module.lstm(steps[None])[1][0][-1]))


def loaded(module: torch.nn.Module) -> LoadedModel:
    return LoadedModel(module.eval(), ("x", "lengths"))


class Forecaster(torch.nn.Module):
    """The next `horizon` values of a window of (rows, steps, 1); `lengths` are taken where windows differ in length."""

    def __init__(self, horizon: int = 3, features: int = 1) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.lstm = torch.nn.LSTM(features, 8, batch_first=True)
        self.out = torch.nn.Linear(8, horizon)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        if lengths is None:
            return self.out(self.lstm(x)[1][0][-1])
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.out(self.lstm(packed)[1][0][-1])
