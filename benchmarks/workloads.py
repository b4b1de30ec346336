"""The workloads: their inputs, models, what their outputs hold, and who competes in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import tables
from benchmarks.bench_model import COLUMNS, LABELS, BenchNet
from benchmarks.data import Data
from benchmarks.outputs import Shape

START_ROWS = 1_000  # what these take is the start-up


@dataclass(frozen=True)
class Input:
    """A folder of files of one format."""

    path: Path
    rows: int
    format: str = "parquet"

    @property
    def schema(self) -> pa.Schema:
        """That of its first Parquet file; 20 float64 columns in other formats."""
        if self.format == "parquet":
            return pq.read_schema(min(self.path.iterdir())).remove_metadata()
        return pa.schema([(name, pa.float64()) for name in COLUMNS])


@dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
        title: what it is, for the table.
        rows: how many, by default and in the published table.
        inputs: makes the inputs by name for a number of rows; "" is the one of contestants without `@name`.
        model: makes the model directory.
        peers: the contestants that can do it, `name` or `name@input`; the first is the one others are compared with.
        shape: what the outputs hold.
        carries: whether all columns of the input are in the output, with the same values.
        reference: the peer whose output is the expected one.
        settings: further settings for all contestants.
        starts: whether runs on few rows are made, and their time taken out.
    """

    title: str
    rows: tuple[int, int]
    inputs: Callable[[Data, int], dict[str, Input]]
    model: Callable[[Data], Path]
    peers: tuple[str, ...]
    shape: Shape = field(default_factory=Shape)
    carries: bool = True
    reference: str = "loop"
    settings: Mapping[str, Any] = field(default_factory=dict)
    starts: bool = True


def mlp(data: Data) -> Path:
    """The model directory of the tables."""
    import torch

    from torchbeam import ModelDir

    folder = data.folder / "model"
    if not folder.exists():
        torch.manual_seed(0)
        inputs = [{"name": "x", "columns": COLUMNS}]
        code = [Path(__file__).parent / "bench_model.py"]
        ModelDir.save(BenchNet(), folder, task="classification", labels=LABELS, inputs=inputs, code=code)
    return folder


def _one(make: Callable[[Data, int], Path], form: str = "parquet") -> Callable[[Data, int], dict[str, Input]]:
    return lambda data, rows: {"": Input(make(data, rows), rows, form)}


TABLE_PEERS = ("loop", "loop_readahead", "torchbeam")

WORKLOADS = {
    "T": Workload("20 float64 columns, Parquet to Parquet", (400_000, 4_000_000), _one(tables.plain), mlp, TABLE_PEERS),
}
