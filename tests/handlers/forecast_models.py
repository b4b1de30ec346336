"""An LSTM that forecasts, and sales by product for it."""

from __future__ import annotations

from pathlib import Path

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


def save(folder: Path) -> ModelDir:
    return ModelDir.save(
        Forecaster(),
        folder,
        task="forecast",
        inputs=[INPUT],
        sequences=SEQUENCES,
        arguments={"horizon": 7},
        code=[__file__],
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
