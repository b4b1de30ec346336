"""The user's side of the poisoned table: a model and functions that raise on some rows. Travels in `code/`."""

from __future__ import annotations

import os
import pathlib
import time

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

MODEL_REFUSES = 666.0
PREPROCESS_REFUSES = 13
POSTPROCESS_REFUSES = 77
LEFT_OUT = 99


class Net(torch.nn.Module):
    """(rows, 4) → (rows, 3)."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(9, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x[:, 1] == MODEL_REFUSES).any():
            raise ValueError(f"{MODEL_REFUSES} is not a number that I like")
        return self.layers(x)


class Broken(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"the model is broken for {len(x)} rows")


def strict(batch: pa.RecordBatch) -> pa.RecordBatch:
    if pc.any(pc.equal(batch.column("code"), PREPROCESS_REFUSES)).as_py():
        raise ValueError("code 13 is not known")
    return batch


def mended(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


def check(frame: pd.DataFrame) -> pd.DataFrame:
    if (frame["code"] == POSTPROCESS_REFUSES).any():
        raise KeyError("no price for code 77")
    return frame[frame["code"] != LEFT_OUT]


def add_margin(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.append_column("margin", pc.subtract(batch.column("confidence"), 0.5))


class Gated(torch.nn.Module):
    """(rows, 1) → (rows, 1). Waits while there is a file, once it was given more rows than a variable says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.rows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows += len(x)
        if (gate := os.environ.get("MODEL_GATE")) and self.rows > int(os.environ["MODEL_GATE_ROWS"]):
            pathlib.Path(f"{gate}-{os.getppid()}").touch()  # here I am, in the child of a command
            while pathlib.Path(gate).exists():
                time.sleep(0.01)
        return self.layer(x)


class Slow(Net):
    """Answers after a while, and leaves a byte in a file for every call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        with open(os.environ["SLOW_MODEL_SIGNS_OF_LIFE"], "a") as file:  # noqa: PTH123
            file.write(".")
        return super().forward(x)


class Ends(Net):
    """Ends its process, as `ENDING_MODEL` says, once it has answered a row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            eval(os.environ["ENDING_MODEL"])
        return super().forward(x)
