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
from handlers.columnar.rechunker import Rechunker
from handlers.columnar.scorer import Scorer
from handlers.columnar.tagged import Gives, from_stream, given
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor
from transforms.shipping import Shipped

# Spark's batches have 10,000 rows, of which a small model needs more at a time: a chunk has a fixed cost of about 2 ms.
_CHUNK_ROWS = 32_768
_CHUNK_BYTES = 64 << 20

_MODELS = 2  # that stay in a worker process, the least recently used leaves first

_lock = threading.Lock()
_models: OrderedDict[tuple[Any, ...], tuple[ModelDir, Predictor]] = OrderedDict()


@dataclass(frozen=True)
class ScorePartition:
    """What `mapInArrow` calls with the batches of a partition; picklable.

    Attributes:
        model: the model directory, or the one that was shipped.
        digest: of the model.
        schema: the columns of the rows.
        plan: how a row is scored, and the columns of the predictions in types that Spark takes.
        placement: where the model runs; a GPU that Spark assigned to the task comes before `auto`.
        batch_size: rows of a call of the model.
        gives: which rows come back; `both` is `tagged`.
    """

    model: ModelDir | Shipped
    digest: str
    schema: pa.Schema
    plan: Plan
    placement: Placement
    batch_size: int | None
    gives: Gives = "both"

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Scores the batches, merged into chunks."""
        from pyspark import TaskContext

        task = TaskContext.get()
        gpu = _gpu(task) if self.placement.device == "auto" else None
        source = f"partition-{task.partitionId() if task else 0}"
        scorer: Scorer | None = None
        start = 0
        for chunk in _chunks(as_schema(batch, self.schema) for batch in batches):
            if scorer is None:  # no model is loaded for a partition without rows
                scorer = Scorer(*self._loaded(gpu))
            yield from given(scorer.score(with_provenance(chunk, source, start)), self.gives)
            start += chunk.num_rows

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


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of the batches in larger chunks, but for the first one, so that `show()` does not wait for more."""
    rechunker = Rechunker(_CHUNK_ROWS, _CHUNK_BYTES)
    first = True
    for batch in batches:
        yield from rechunker.push(batch)
        if first and batch.num_rows:
            yield from rechunker.flush()
            first = False
    yield from rechunker.flush()


def as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch of Spark with the columns of `schema`, which may have other names within lists and no `nullable`."""
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def unpacked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The dead letters in batches with the column `DEAD`."""
    for batch in batches:
        yield from map(from_stream, batch.column(0))


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
