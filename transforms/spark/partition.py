"""Scoring the rows of one partition in a Python worker of Spark."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from handlers.columnar.chunks import with_provenance
from handlers.columnar.plan import Plan
from handlers.columnar.scorer import Scorer
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor
from transforms.spark.shipping import Shipped

# The column that has the dead letters of a batch, as the stream of a record batch, in a row of its own.
DEAD = "__dead_letters__"

_MODELS = 2  # that stay in a worker process, the least recently used leaves first

_lock = threading.Lock()
_models: OrderedDict[tuple[Any, ...], tuple[ModelDir, Predictor]] = OrderedDict()


@dataclass(frozen=True)
class ScorePartition:
    """What `mapInArrow` calls with the batches of a partition; picklable.

    A batch gives its predictions, with null in the column `DEAD`, and where rows failed, one row of only that column.

    Attributes:
        model: the model directory, or the one that was shipped.
        digest: of the model.
        schema: the columns of the rows.
        plan: how a row is scored, and the columns of the predictions in types that Spark takes.
        placement: where the model runs; a GPU that Spark assigned to the task comes before `auto`.
        batch_size: rows of a call of the model.
    """

    model: ModelDir | Shipped
    digest: str
    schema: pa.Schema
    plan: Plan
    placement: Placement
    batch_size: int | None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Scores the batches one by one."""
        from pyspark import TaskContext

        task = TaskContext.get()
        gpu = _gpu(task) if self.placement.device == "auto" else None
        scorer: Scorer | None = None
        start = 0
        for batch in batches:
            if scorer is None:  # no model is loaded for a partition without rows
                scorer = Scorer(*self._loaded(gpu))
            source = f"partition-{task.partitionId() if task else 0}"
            scored = scorer.score(with_provenance(as_schema(batch, self.schema), source, start))
            start += batch.num_rows
            found = scored.predictions
            if found.num_rows:
                yield found.append_column(pa.field(DEAD, pa.binary()), pa.nulls(found.num_rows, pa.binary()))
            if scored.dead_letters.num_rows:
                yield _dead_row(found.schema, scored.dead_letters)

    def _loaded(self, gpu: int | None) -> tuple[ModelDir, Plan, Predictor]:
        """The model, which stays in this process for further partitions."""
        import torch

        key = (self.digest, self.placement, self.batch_size, gpu)
        with _lock:
            found = _models.pop(key, None)
            if found is None:
                model = self.model if isinstance(self.model, ModelDir) else self.model.open(_spark_files())
                device = None if gpu is None else torch.device("cuda", gpu)
                placement = self.placement
                if placement.device == "auto" and gpu is None:
                    placement = replace(placement, device="cpu")
                found = model, Predictor(model.load(), placement, self.batch_size, device)
            _models[key] = found
            if len(_models) > _MODELS:
                _models.popitem(last=False)
        return found[0], self.plan, found[1]


def as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch of Spark with the columns of `schema`, which may have other names within lists and no `nullable`."""
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def to_stream(batch: pa.RecordBatch) -> bytes:
    """A record batch with its schema, as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def from_stream(content: pa.BinaryScalar) -> pa.RecordBatch:
    """The batch of `to_stream`."""
    return pa.ipc.open_stream(content.as_buffer()).read_next_batch()


def unpacked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The dead letters in batches with the column `DEAD`."""
    for batch in batches:
        yield from map(from_stream, batch.column(0))


def _dead_row(schema: pa.Schema, dead: pa.RecordBatch) -> pa.RecordBatch:
    arrays = [pa.nulls(1, field.type) for field in schema]
    letters = pa.array([to_stream(dead)], pa.binary())
    return pa.RecordBatch.from_arrays([*arrays, letters], schema=schema.append(pa.field(DEAD, pa.binary())))


def _gpu(task: Any) -> int | None:
    """The GPU that Spark assigned to the task."""
    found = (task.resources() if task else {}).get("gpu")
    if found is None or not found.addresses:
        return None
    address = found.addresses[0]
    if not address.isdecimal():
        raise UsageError(f'Spark assigned the GPU "{address}"; addresses must be numbers, as nvidia-smi has them')
    return int(address)


def _spark_files() -> Path:
    from pyspark import SparkFiles

    return Path(SparkFiles.getRootDirectory())
