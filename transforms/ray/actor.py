"""Scoring batches in an actor of Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from handlers.batching import Batching
from handlers.columnar.chunks import dead_letter_schema, single_batch, with_provenance
from handlers.columnar.plan import Plan
from handlers.columnar.rechunker import Rechunker
from handlers.columnar.scorer import Scorer
from handlers.columnar.tagged import DEAD, DEAD_FIELD, Gives, from_stream, given
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor
from transforms.inference.admit import admit
from transforms.shipping import Shipped


@dataclass(frozen=True)
class Task:
    """What an actor scores with. Picklable.

    Attributes:
        model: the model directory, or the one that was shipped.
        zipped: the object in Ray's store with the bytes of the zip file of a model that was shipped.
        schema: the columns of the rows.
        plan: how a row is scored, and the columns of the predictions.
        placement: where the model runs; a GPU that Ray assigned to the actor comes before `auto`.
        batching: rows and bytes of a chunk, and rows of a call of the model.
    """

    model: ModelDir | Shipped
    zipped: Any
    schema: pa.Schema
    plan: Plan
    placement: Placement
    batching: Batching


class ScoreBatches:
    """What `map_batches` makes of each batch: its predictions, its dead letters, or both as `tagged`.

    Args:
        task: what to score with; the model is loaded here, once for an actor.
        gives: which rows come back.
    """

    def __init__(self, task: Task, gives: Gives) -> None:
        import ray
        import torch

        model = task.model
        if isinstance(model, Shipped):
            self._folder = tempfile.TemporaryDirectory(prefix="torchbeam-")  # until this actor ends
            root = Path(self._folder.name)
            (root / model.name).write_bytes(ray.get(task.zipped))
            model = model.open(root)
        device, placement = None, task.placement
        if placement.device == "auto":
            if ray.get_gpu_ids():
                device = torch.device("cuda", 0)  # the first of those that Ray lets this process see
            else:
                placement = replace(placement, device="cpu")
        predictor = Predictor(model.load(), placement, task.batching.batch_size, device)
        self._scorer = Scorer(model, task.plan, predictor)
        self._task = task
        self._gives = gives
        self._of = ""
        self._rows = 0

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Scores a batch."""
        import ray

        if (of := ray.get_runtime_context().get_task_id() or "") != self._of:
            self._of, self._rows = of, 0
        rechunker = Rechunker(self._task.batching.chunk_rows, self._task.batching.chunk_bytes)
        rows = with_provenance(single_batch(plain(table)), f"task-{of}", self._rows)
        chunk = admit(rows, self._task.schema, self._task.plan.needed, "ray")
        self._rows += table.num_rows
        batches = [
            each
            for part in (rechunker.push(chunk), rechunker.flush())
            for found in map(self._scorer.score, part)
            for each in given(found, self._gives)
        ]
        yield pa.Table.from_batches(batches, schema=self._schema())

    def _schema(self) -> pa.Schema:
        if self._gives == "dead_letters":
            return dead_letter_schema(self._task.schema)
        output: pa.Schema = self._task.plan.output
        return output if self._gives == "predictions" else output.append(DEAD_FIELD)


def plain(table: pa.Table) -> pa.Table:
    """Tensor columns of Ray as lists of their numbers, row by row."""
    for index, name in enumerate(table.schema.names):
        column = table.column(index)
        if isinstance(column.type, pa.BaseExtensionType):
            parts = [part.storage for part in column.chunks]
            table = table.set_column(index, name, pa.chunked_array(parts, column.type.storage_type))
    return table


def predictions_of(table: pa.Table) -> pa.Table:
    """The predictions in a tagged table."""
    return table.filter(pc.is_null(table.column(DEAD))).drop_columns([DEAD])


def dead_letters_of(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The dead letters in a tagged table; `schema` is theirs."""
    streams = table.column(DEAD).drop_null()
    return pa.Table.from_batches([from_stream(each) for each in streams], schema=schema)


def first_rows(tables: Iterator[pa.Table]) -> list[pa.RecordBatch]:
    """The rows of tables, one batch for each table that has any."""
    return [single_batch(plain(table)) for table in tables if table.num_rows]
