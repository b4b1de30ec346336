"""Scoring one chunk: the whole chain from the row as it was read to its predictions, or to its dead letter.

    features → preprocess → encode → forward → head → postprocess → output

The chunk as it was read is kept, so that a dead letter is always that row, no matter which stage refused it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from handlers.columnar.chains import Rows, Step
from handlers.columnar.chunks import NEXT_STEP, dead_letters, exact_cast, model_rows, other_rows, refusals, rows_of
from handlers.columnar.numbers import number_step
from handlers.columnar.plan import Plan
from handlers.columnar.stage import ModelStage
from handlers.errors import one_line
from handlers.failures import RowFailures
from handlers.model.directory import ModelDir
from handlers.predict.heads.head import FORECAST_FROM
from handlers.predict.predictor import Predictor
from handlers.stats import Load, Stats

MODEL_VERSION = "model_version"
MODEL_VERSION_FIELD = pa.field(MODEL_VERSION, pa.dictionary(pa.int32(), pa.string()))


@dataclass(frozen=True)
class Scored:
    """What became of the rows of a chunk; scored + dropped + dead are all of them.

    Attributes:
        predictions: the scored rows.
        ids: for each of them its index in the chunk, int64 of (predictions.num_rows,).
        dead_letters: the rows that could not be scored, as they were read, with the struct `dead_letter`.
        dropped: how many rows a function left out on purpose.
        dead_by_error: dead letters by `stage/type`.
        stats: what was done in the model, for metrics.
    """

    predictions: pa.RecordBatch
    ids: np.ndarray
    dead_letters: pa.RecordBatch
    dropped: int
    dead_by_error: Counter[str]
    stats: Stats = field(default_factory=Stats)


class Scorer:
    """Scores chunks by a plan with a loaded model. Several threads may share one."""

    def __init__(self, model: ModelDir, plan: Plan, predictor: Predictor, load: Load | None = None) -> None:
        self.plan = plan
        self.stage = ModelStage(model, plan.inputs, predictor, probabilities=plan.probabilities)
        self._before = [number_step(), *plan.chain.before(model.code())]
        self._after = plan.chain.after(model.code())
        if plan.output is not None:
            self._after.append(fit_step(plan.output))
        self._lock = threading.Lock()
        self._load = load

    @property
    def predictor(self) -> Predictor:
        """The model in memory."""
        return self.stage.predictor

    def take_load(self) -> Load | None:
        """What loading the model cost; returned once, to one of the threads."""
        with self._lock:
            load, self._load = self._load, None
        return load

    def score(self, chunk: pa.RecordBatch) -> Scored:
        """Scores the rows of `chunk`, which has provenance."""
        version = self.stage.version  # one model for the whole chunk
        rows, failures, stats = self.answer(chunk)
        dead = sorted(failures)
        found = [failures[row] for row in dead]
        return Scored(
            rows.batch,
            rows.ids,
            dead_letters(chunk.take(pa.array(dead, pa.int64())), found, version),
            chunk.num_rows - rows.batch.num_rows - len(dead),
            Counter(f"{failure.stage}/{failure.type}" for failure in found),
            stats,
        )

    def answer(self, chunk: pa.RecordBatch) -> tuple[Rows, RowFailures, Stats]:
        """The scored rows of `chunk` with their indices in it, and the failures by index; all others were dropped."""
        stage = self.stage
        rows = Rows(model_rows(chunk), np.arange(chunk.num_rows))
        stats = Stats()
        failures = refusals(chunk)
        if failures:
            rows = rows.take(other_rows(chunk.num_rows, failures))
        for step in self._before:
            rows, failed = step.run(rows)
            failures |= failed
        answers = stage.answer(rows, stats)
        failures |= answers.failures
        rows = Rows(self.output_of(chunk, answers.ids, answers.columns), answers.ids)
        for step in self._after if rows.batch.num_rows else ():
            rows, failed = step.run(rows)
            failures |= failed
        if not rows.batch.num_rows and self.plan.output is not None:
            rows = Rows(pa.RecordBatch.from_pylist([], schema=self.plan.output), rows.ids[:0])
        return rows, failures, stats

    def blank(
        self, chunk: pa.RecordBatch, rows: int = 0, columns: Mapping[str, pa.Array] | None = None
    ) -> pa.RecordBatch:
        """An output of `rows` rows that no row was read for: null in the carried columns."""
        nulls = pa.RecordBatch.from_arrays([pa.nulls(rows, field.type) for field in chunk.schema], schema=chunk.schema)
        return self.output_of(nulls, np.arange(rows), columns or {})

    def output_of(self, chunk: pa.RecordBatch, ids: np.ndarray, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """The carried columns of the rows `ids` of `chunk`, the columns of the head and the version of the model."""
        carried = chunk.select(list(self.plan.carried))
        of_forecast = self.stage.task == "forecast" and NEXT_STEP in chunk.schema.names
        steps = {FORECAST_FROM: chunk.column(NEXT_STEP)} if of_forecast else {}
        if len(ids) < chunk.num_rows or not np.array_equal(ids, np.arange(len(ids))):
            carried = rows_of(carried, ids)
            steps = {name: array.take(pa.array(ids)) for name, array in steps.items()}
        columns = {**columns, **steps}
        versions = pa.array(np.zeros(len(ids), np.int32))
        version = pa.DictionaryArray.from_arrays(versions, pa.array([self.stage.version]))
        return pa.RecordBatch.from_arrays(
            [*carried.columns, *columns.values(), version],
            schema=pa.schema(
                [*carried.schema, *(pa.field(name, array.type) for name, array in columns.items()), MODEL_VERSION_FIELD]
            ),
        )


def fit_step(schema: pa.Schema, stage: str = "postprocess") -> Step:
    """The step that brings rows into the output schema of the run; rows that do not fit fail in `stage`."""

    def call(rows: Rows) -> Rows:
        batch = rows.batch
        if batch.schema.equals(schema):
            return rows
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        known = set(schema.names)
        unknown = [name for name, column in columns.items() if name not in known and column.null_count < len(column)]
        if unknown:
            raise ValueError(f'column "{unknown[0]}" is new in this row; the output has {", ".join(schema.names)}')
        arrays = []
        for wanted in schema:
            if wanted.name not in columns:
                arrays.append(pa.nulls(batch.num_rows, wanted.type))
                continue
            try:
                arrays.append(exact_cast(columns[wanted.name], wanted.type))
            except pa.ArrowException as error:
                raise ValueError(f'column "{wanted.name}" does not fit the output: {one_line(error)}') from None
        return Rows(pa.RecordBatch.from_arrays(arrays, schema=schema), rows.ids)

    return Step("output", stage, call)
