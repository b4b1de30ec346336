"""The workloads: their inputs, models, what their outputs hold, and who competes in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import media, tables
from benchmarks.bench_model import COLUMNS, LABELS, BenchNet
from benchmarks.data import Data
from benchmarks.outputs import Shape


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
        rows: how many by default.
        inputs: makes the inputs by name for a number of rows; "" is the one of contestants without `@name`.
        model: makes the model directory.
        peers: the contestants that can do it, `name` or `name@input`; others are compared with the first.
        shape: what the outputs hold.
        carries: whether all columns of the input are in the output, with the same values.
        reference: the peer whose output is the expected one.
        settings: further settings for all contestants.
        start_rows: what a run on so many takes is the start-up, which is taken out; 0 if start-up is what is measured.
        is_growth: all peers run on all inputs, which differ in size.
    """

    title: str
    rows: int
    inputs: Callable[[Data, int], dict[str, Input]]
    model: Callable[[Data], Path]
    peers: tuple[str, ...]
    shape: Shape = field(default_factory=Shape)
    carries: bool = True
    reference: str = "loop"
    settings: Mapping[str, Any] = field(default_factory=dict)
    start_rows: int = 1_000
    is_growth: bool = False

    def contestants(self, inputs: Mapping[str, Input]) -> tuple[str, ...]:
        """The names of all contestants."""
        if self.is_growth:
            return tuple(f"{peer}@{name}" for peer in self.peers for name in inputs)
        return self.peers


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


def _text(kind: str) -> Callable[[Data, int], dict[str, Input]]:
    return _one(lambda data, rows: tables.text(data, rows, kind), kind)


def _bad(data: Data, rows: int) -> dict[str, Input]:
    return {"": Input(tables.bad(data, rows), rows), "clean": Input(tables.plain(data, rows), rows)}


def _growing(data: Data, rows: int) -> dict[str, Input]:
    """1, 4, 16 and 64 parts of 64 of the rows."""
    sizes = [rows // share for share in (64, 16, 4, 1) if rows >= share]
    return {f"{size / 1e6:g}M": Input(tables.plain(data, size), size) for size in sizes}


_TABLE = ("loop", "loop_readahead", "torchbeam", "ray_data", "daft", "stock")
_SPARK = ("torchbeam_spark", "torchbeam_frame", "predict_batch_udf", "spark_iterator")
_FILES = ("loop", "loop_readahead", "torchbeam")
_ELEMENTS = ("loop", "nothing", "stock", "stock_dicts", "handler", "torchbeam")
_KEYED = Shape(key="key")
_VECTORS = Shape(key="id", label=None, numbers=("embedding",), tolerance=1e-5)
_LOGITS = Shape(key="id", label=None, numbers=("output",), tolerance=1e-4)
_ONLY_ID = {"columns": "id"}

WORKLOADS = {
    "T": Workload("20 float64 columns, Parquet to Parquet", 400_000, _one(tables.plain), mlp, (*_TABLE, *_SPARK)),
    "W": Workload("the same with 300 more columns of mixed types", 50_000, _one(tables.wide), mlp, (*_TABLE, *_SPARK)),
    "C-csv": Workload("T from gzip-compressed CSV", 100_000, _text("csv"), mlp, _FILES),
    "C-jsonl": Workload("T from gzip-compressed JSON lines", 100_000, _text("jsonl"), mlp, _FILES),
    "E": Workload(
        "keyed dictionaries with a function before and after the model",
        50_000,
        lambda data, rows: {"": Input(data.folder, rows, "rows")},
        mlp,
        tuple(f"elements_{name}" for name in _ELEMENTS),
        _KEYED,
        carries=False,
        reference="elements_loop",
    ),
    "P": Workload(
        "T, 1 % of whose rows have a value that no model can take",
        400_000,
        _bad,
        mlp,
        ("torchbeam@clean", "torchbeam", "loop@clean", "loop"),
        settings={"check": True},
    ),
    "G": Workload("T at growing sizes", 1_000_000, _growing, mlp, ("torchbeam",), is_growth=True),
    "F": Workload(
        "T in Parquet files of 40 rows",
        20_000,
        _one(tables.small_files),
        mlp,
        _FILES,
        start_rows=tables.SMALL_FILE_ROWS,
    ),
    "X": Workload(
        "texts through MiniLM",
        200,
        _one(media.texts),
        media.minilm,
        ("sentence_transformers", "texts_loop", "torchbeam"),
        _VECTORS,
        carries=False,
        reference="sentence_transformers",
        settings=_ONLY_ID,
        start_rows=4,
    ),
    "I": Workload(
        "JPEGs through a ResNet-18",
        200,
        _one(media.images),
        media.resnet_directory,
        ("images_loop", "torchbeam"),
        _LOGITS,
        carries=False,
        reference="images_loop",
        settings=_ONLY_ID,
        start_rows=4,
    ),
    "S": Workload(
        "start-up: the command on 10 rows",
        10,
        _one(tables.plain),
        mlp,
        ("imports", "torchbeam_command", "loop"),
        start_rows=0,
    ),
}
