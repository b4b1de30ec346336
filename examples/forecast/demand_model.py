"""The architecture. It is a module of its own, so that it can travel with the weights in `code/`."""

import torch
from torch import nn


class DemandLstm(nn.Module):
    """An LSTM over the last days of a product, which forecasts the next ones.

    Args:
        horizon: days that are forecast.
        hidden: size of the state.
    """

    def __init__(self, horizon: int = 7, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.out = nn.Linear(hidden, horizon)

    def forward(self, sales: torch.Tensor) -> torch.Tensor:
        """Units sold on each of the next days, (rows, horizon), after windows of units sold, (rows, days, 1).

        Each window is divided by its own mean, so that one model serves products of all sizes.
        """
        level = sales.mean(dim=1).clamp(min=1)
        states, _ = self.lstm(sales / level[:, None] - 1)
        return level * (1 + self.out(states[:, -1]))
