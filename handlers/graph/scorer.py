"""Scores a chunk with several models: which rows each one gets, what it answered, and what becomes of a row in the end.

All models of a stage see the same rows in the same order, so that outputs stay aligned with the chunk as it was read; rows
leave only at the end of the stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from handlers.columnar.chains import Rows, Step
from handlers.columnar.chunks import NEXT_STEP, PROVENANCE, REFUSED, ROW, WINDOW, dead_letters, refusals
from handlers.columnar.features import feature_step
from handlers.columnar.numbers import number_step
from handlers.columnar.scorer import Scorer
from handlers.failures import RowFailure, RowFailures
from handlers.graph.plan import CHOSEN, FAILURE, FAILURE_FIELD, GraphPlan, Node
from handlers.graph.result import ModelCounts, StageScored
from handlers.graph.split import choose
from handlers.stats import Stats


@dataclass(frozen=True)
class Answered:
    """What a model made of a chunk.

    Attributes:
        rows: the rows that it answered, with their indices in the chunk, in the output columns of its plan.
        failures: the rows that it failed on, by index; all others were dropped.
        stats: what was done.
        versions: of the model, or for each failed row that of the model of its key.
        loads: how many models were loaded.
        bytes: of the parameters of all that are loaded.
    """

    rows: Rows
    failures: RowFailures
    stats: Stats
    versions: str | Mapping[int, str | None]
    loads: int = 0
    bytes: int = 0


class AnswersRows(Protocol):
    """A loaded model, or one for each key. Several threads may share it."""

    def answer(self, chunk: pa.RecordBatch) -> Answered:
        """Scores the rows of a chunk, which has provenance."""


@dataclass(frozen=True)
class OneModel:
    """A loaded model."""

    scorer: Scorer

    def answer(self, chunk: pa.RecordBatch) -> Answered:
        """Scores the rows of a chunk."""
        return Answered(*self.scorer.answer(chunk), self.scorer.stage.version)


class _Failed(NamedTuple):
    failure: RowFailure
    model: str | None
    version: str | None


@dataclass
class _Work:
    """The rows of a chunk on their way through the models of a stage. Indices are those of the chunk."""

    chunk: pa.RecordBatch
    columns: dict[str, pa.Array]  # of the input and of the models so far
    alive: np.ndarray
    dead: dict[int, _Failed] = field(default_factory=dict)
    kept: dict[int, _Failed] = field(default_factory=dict)  # failures that cost a row only the answer of that model

    def of(self, names: Mapping[str, str], rows: np.ndarray) -> pa.RecordBatch:
        """The columns `names`, from the name that they get to the one that they have, of the rows at the indices `rows`."""
        arrays = [self.columns[name] for name in names.values()]
        schema = pa.schema([self._field(new, name) for new, name in names.items()])
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        return batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))

    def _field(self, new: str, name: str) -> pa.Field:
        index = self.chunk.schema.get_field_index(name)
        known = self.chunk.schema.field(index) if index >= 0 else pa.field(name, self.columns[name].type)
        return known.with_name(new)


class GraphScorer:
    """Scores chunks with the models of one stage of a plan. Several threads may share one.

    Args:
        plan: of the run.
        stage: the index of the stage.
        models: the loaded models of the stage, by name.
    """

    def __init__(self, plan: GraphPlan, stage: int, models: Mapping[str, AnswersRows]) -> None:
        self.plan = plan
        self._nodes = plan.stages[stage]
        self._models = models
        self._first = stage == 0
        self._last = stage == len(plan.stages) - 1
        self._when = {node.name: when_step(node.name, node.settings.when) for node in self._nodes if node.settings.when}
        self._inputs = [*plan.inputs.names, *PROVENANCE]
        self._taken = {node.name: self._taken_by(node) for node in self._nodes}
        self._continues = any(node.settings.continues for node in plan.nodes)

    def score(self, chunk: pa.RecordBatch) -> StageScored:
        """Scores rows as they were read, with provenance; after the first stage with the outputs so far."""
        work = _Work(
            chunk, dict(zip(chunk.schema.names, chunk.columns, strict=True)), np.ones(chunk.num_rows, dtype=bool)
        )
        if self._first:
            for row, failure in refusals(chunk).items():
                work.dead[row] = _Failed(failure, None, None)
                work.alive[row] = False
            if self.plan.split is not None:
                work.columns[CHOSEN] = choose(self.plan.split, chunk.column(self.plan.split.by))
        stats = Stats()
        counts = {node.name: self._run(node, work, stats) for node in self._nodes}
        dropped = self._finish(work) if self._last else 0
        rows = self._predictions(work) if self._last else self._state(work)
        dead = sorted(work.dead)
        found = [work.dead[row] for row in dead]
        letters = dead_letters(
            chunk.select(self._inputs).take(pa.array(dead, pa.int64())),
            [each.failure for each in found],
            [each.version for each in found],
            [each.model for each in found],
        )
        by_error = Counter(f"{each.failure.stage}/{each.failure.type}" for each in found)
        return StageScored(rows, letters, dropped, by_error, counts, stats)

    def _run(self, node: Node, work: _Work, stats: Stats) -> ModelCounts:
        """Runs a model on its rows; its columns and failures go into `work`."""
        rows_in = int(work.alive.sum())
        rows, failed = self._rows_of(node, work)
        own = None if node.settings.by_key else node.settings.model.version
        failures = {row: _Failed(failure, node.name, own) for row, failure in failed.items()}
        skipped = rows_in - len(rows) - len(failures)
        scored = dropped = loads = peak = 0
        seconds = 0.0
        if len(rows):
            windows = {name: name for name in (WINDOW, NEXT_STEP) if name in work.columns}
            answered = self._models[node.name].answer(work.of(self._taken[node.name] | windows, rows))
            scored = len(answered.rows.ids)
            dropped = len(rows) - scored - len(answered.failures)
            for index, failure in answered.failures.items():
                versions = answered.versions
                version = versions if isinstance(versions, str) else versions.get(index)
                failures[int(rows[index])] = _Failed(failure, node.name, version)
            done = answered.stats
            seconds = done.encode_seconds + done.forward_seconds + done.decode_seconds
            loads, peak = answered.loads, answered.bytes
            stats.add(done)
            self._put(node, work, answered.rows.batch, rows[answered.rows.ids])
        else:
            self._put(node, work, None, rows)
        if node.error is not None:
            errors = {
                row: f"{each.failure.stage}/{each.failure.type}: {each.failure.message}"
                for row, each in failures.items()
            }
            work.columns[node.error] = _texts(errors, work.chunk.num_rows)
        for row, each in failures.items():
            if node.settings.continues:
                work.kept.setdefault(row, each)
            else:
                work.dead[row] = each
                work.alive[row] = False
        by_error = Counter(f"{each.failure.stage}/{each.failure.type}" for each in failures.values())
        return ModelCounts(rows_in, scored, dropped, len(failures), skipped, seconds, loads, peak, dict(by_error))

    def _taken_by(self, node: Node) -> dict[str, str]:
        """The columns that a model is given: all where functions may read any, else those that it needs."""
        found = {name: name for name in self._inputs} | dict(node.extra)
        chain = node.plan.chain
        if node.settings.by_key is not None or chain.preprocess or chain.postprocess:
            return found
        return {new: name for new, name in found.items() if new in node.plan.needed or new in PROVENANCE}

    def _rows_of(self, node: Node, work: _Work) -> tuple[np.ndarray, RowFailures]:
        """The indices of the rows that a model runs on, and those on which its `when` cannot be computed."""
        mask = work.alive.copy()
        if node.split:
            chosen = work.columns[CHOSEN]
            codes = [code for code, name in enumerate(chosen.dictionary.to_pylist()) if name == node.name]
            mask &= np.isin(chosen.indices.to_numpy(zero_copy_only=False), codes)
        for other in self.plan.nodes:
            if other.name in node.settings.inputs_from:
                mask &= work.columns[other.version].is_valid().to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(mask)
        if node.name not in self._when or not len(rows):
            return rows, {}
        return matching(
            self._when[node.name], Rows(work.of({name: name for name in (*node.when_columns, ROW)}, rows), rows)
        )

    def _put(self, node: Node, work: _Work, batch: pa.RecordBatch | None, rows: np.ndarray) -> None:
        """Adds the output columns of a model, which has answered the rows at the indices `rows`; null in all others."""
        count = work.chunk.num_rows
        aligned = len(rows) == count and np.array_equal(rows, np.arange(count))
        indices = None
        if batch is not None and not aligned:
            positions = np.full(count, -1, np.int64)
            positions[rows] = np.arange(len(rows))
            indices = pa.array(positions, mask=positions < 0)
        for name, source in node.outputs:
            if batch is None or not len(rows):
                work.columns[name] = pa.nulls(count, node.schema.field(source).type)
            else:
                column = batch.column(source)
                work.columns[name] = column if indices is None else column.take(indices)

    def _finish(self, work: _Work) -> int:
        """Removes the rows that no model has answered: dead where one failed on them, else dropped. Gives the latter."""
        answered = np.zeros(work.chunk.num_rows, dtype=bool)
        for node in self.plan.nodes:
            answered |= work.columns[node.version].is_valid().to_numpy(zero_copy_only=False)
        without = np.flatnonzero(work.alive & ~answered)
        if not len(without):
            return 0
        failed = self._failed_before(work, without) | work.kept
        dead = [row for row in without.tolist() if row in failed]
        work.dead |= {row: failed[row] for row in dead}
        work.alive[without] = False
        return len(without) - len(dead)

    def _failed_before(self, work: _Work, rows: np.ndarray) -> dict[int, _Failed]:
        """The failures in earlier stages of models that continue, of the rows at the indices `rows`."""
        if FAILURE not in work.columns:
            return {}
        rows = rows[work.columns[FAILURE].is_valid().to_numpy(zero_copy_only=False)[rows]]
        found = work.columns[FAILURE].take(pa.array(rows)).to_pylist()
        return {
            row: _Failed(RowFailure(each["stage"], each["type"], each["message"]), each["model"], each["version"])
            for row, each in zip(rows.tolist(), found, strict=True)
        }

    def _predictions(self, work: _Work) -> pa.RecordBatch:
        output = self.plan.output
        arrays = [work.columns[field.name].cast(field.type) for field in output]
        batch = pa.RecordBatch.from_arrays(arrays, schema=output)
        return _filtered(batch, work.alive)

    def _state(self, work: _Work) -> pa.RecordBatch:
        """The rows that go on to the next stage: as they were read, with provenance and the outputs so far."""
        if self._continues:
            failed = work.kept | self._failed_before(work, np.arange(work.chunk.num_rows))  # of two the first counts
            rows = range(work.chunk.num_rows) if failed else []
            marks = [_mark(failed[row]) if row in failed else None for row in rows]
            nothing = pa.nulls(work.chunk.num_rows, FAILURE_FIELD.type)
            work.columns[FAILURE] = pa.array(marks, FAILURE_FIELD.type) if failed else nothing
        made = [name for name in work.columns if name not in (*self._inputs, REFUSED)]
        names = [*self._inputs, *made]
        batch = work.of({name: name for name in names}, np.arange(work.chunk.num_rows))
        return _filtered(batch, work.alive)


def when_step(name: str, expression: str) -> Step:
    """The step that computes the `when` of the model `name`, in a column of that name."""
    step = feature_step({name: expression}, "when of model")
    return replace(step, name=f'when of model "{name}"', stage="when")


def matching(step: Step, rows: Rows) -> tuple[np.ndarray, RowFailures]:
    """The ids of the rows where the expression of `when_step` is true, and those on which it fails."""
    rows, failures = number_step().run(rows)
    column = step.name.partition('"')[2][:-1]
    rows, failed = step.run(rows)
    failures |= failed
    if not rows.batch.num_rows:
        return rows.ids[:0], failures
    true = rows.batch.column(column).fill_null(False).to_numpy(zero_copy_only=False)
    return rows.ids[true], failures


def _filtered(batch: pa.RecordBatch, mask: np.ndarray) -> pa.RecordBatch:
    return batch if mask.all() else batch.filter(pa.array(mask))


def _texts(values: Mapping[int, str], count: int) -> pa.Array:
    if not values:
        return pa.nulls(count, pa.string())
    return pa.array([values.get(row) for row in range(count)], pa.string())


def _mark(failed: _Failed) -> dict[str, str | None]:
    failure = failed.failure
    return {
        "stage": failure.stage,
        "type": failure.type,
        "message": failure.message,
        "model": failed.model,
        "version": failed.version,
    }
