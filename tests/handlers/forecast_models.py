"""An LSTM that forecasts, and sales by product for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from handlers import ModelDir

SEQUENCES = {"by": ["product"], "order_by": "day", "columns": ["sales", "price"], "length": 30, "horizon": 7}
INPUT = {"name": "x", "encoder": "sequence", "columns": ["sales", "price"]}


class Forecaster(torch.nn.Module):
    """x of (rows, steps, 2) to the next steps, (rows, horizon)."""

    def __init__(self, horizon: int = 7) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.lstm = torch.nn.LSTM(2, 4, batch_first=True)
        self.out = torch.nn.Linear(4, horizon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x)[1][0][-1])


class PackedForecaster(Forecaster):
    """The same for windows of unequal length."""

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.out(self.lstm(packed)[1][0][-1])


def save(
    folder: Path, module: torch.nn.Module | None = None, mask: str | None = None, ship: bool = False, **sequences: Any
) -> ModelDir:
    given = INPUT if mask is None else INPUT | {"mask": mask}
    horizon = sequences.get("horizon", 7)
    module = module or Forecaster(horizon)
    return ModelDir.save(
        module,
        folder,
        task="forecast",
        inputs=[given],
        sequences=SEQUENCES | sequences,
        arguments={"horizon": horizon},
        code=[__file__] if ship else [],
    )


def sales(keys: int, steps: int, seed: int = 0) -> pd.DataFrame:
    """`steps` days of each product, shuffled."""
    random = np.random.default_rng(seed)
    count = keys * steps
    frame = pd.DataFrame(
        {
            "product": np.repeat([f"p{key:05}" for key in range(keys)], steps),
            "day": np.tile(pd.date_range("2026-01-01", periods=steps).to_numpy(dtype="M8[D]"), keys),
            "sales": random.normal(size=count),
            "price": random.integers(1, 9, count),
        }
    )
    return frame.iloc[random.permutation(count)].reset_index(drop=True)


def table_of(frame: pd.DataFrame) -> pa.Table:
    schema = pa.schema({"product": pa.string(), "day": pa.date32(), "sales": pa.float64(), "price": pa.int64()})
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)


def by_hand(frame: pd.DataFrame, module: torch.nn.Module, length: int, stride: int = 1) -> dict[tuple[str, Any], Any]:
    """The forecast after each window by a loop with pandas and torch, by product and last day."""
    found = {}
    with torch.inference_mode():
        for product, rows in frame.groupby("product"):
            ordered = rows.sort_values("day")
            steps = torch.tensor(ordered[["sales", "price"]].to_numpy(), dtype=torch.float32)
            if len(steps) < length:
                continue
            windows = steps.unfold(0, length, stride).transpose(1, 2)
            days = ordered["day"].to_numpy()[length - 1 :: stride]
            for day, answer in zip(days, module(windows).numpy(), strict=True):
                found[(product, pd.Timestamp(day).date())] = answer
    return found
