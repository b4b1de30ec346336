"""`Evaluate`: chunks of rows with labels and predictions to the totals that all metrics are computed from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection

from transforms import progress
from transforms.accounting import Counts
from transforms.evaluation.drift import Drift
from transforms.evaluation.plan import EvaluationPlan
from transforms.evaluation.rows import Missing, extract
from transforms.evaluation.slices import TOTALS, Slices
from transforms.evaluation.worst import Worst


@dataclass
class Totals:
    """All that is kept of the rows of a run; a few MB at most, however many rows there are.

    Attributes:
        rows: how many rows there were.
        missing: those of them that could not be evaluated.
        task: totals of the task.
        slices: the same by slice.
        drift: counts of the columns of the fingerprint, None where there is none.
        worst: the rows of the highest loss.
    """

    plan: EvaluationPlan
    rows: int = 0
    missing: Missing = field(default_factory=Missing)
    task: Any = None
    slices: Slices = field(init=False)
    drift: Drift | None = None
    worst: Worst = field(init=False)

    def __post_init__(self) -> None:
        self.task = TOTALS[self.plan.task](self.plan)
        self.slices = Slices(self.plan)
        self.worst = Worst(self.plan.shown)
        if self.plan.fingerprint is not None:
            self.drift = Drift(self.plan.fingerprint)

    def add(self, chunk: pa.RecordBatch) -> None:
        """Counts the rows of a chunk."""
        rows, index, missing = extract(self.plan, chunk)
        self.rows += chunk.num_rows
        self.missing += missing
        self.task.add(rows)
        self.slices.add(rows, index, chunk)
        self.worst.add(rows.loss, index, chunk)
        if self.drift is not None:
            self.drift.add(chunk)

    def merge(self, other: Totals) -> None:
        """Adds the totals of another."""
        self.rows += other.rows
        self.missing += other.missing
        self.task.merge(other.task)
        self.slices.merge(other.slices)
        self.worst.merge(other.worst)
        if self.drift is not None and other.drift is not None:
            self.drift.merge(other.drift)


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(Totals)
class TotalsFn(beam.CombineFn):
    """Adds up chunks by a plan; `run_id` is the run whose progress is counted, if any."""

    def __init__(self, plan: EvaluationPlan, run_id: str = "") -> None:
        self._plan = plan
        self._run_id = run_id

    def create_accumulator(self) -> Totals:
        """Totals of no rows."""
        return Totals(self._plan)

    def add_input(self, totals: Totals, chunk: pa.RecordBatch) -> Totals:
        """Counts the rows of a chunk."""
        totals.add(chunk)
        if self._run_id:
            progress.add(self._run_id, Counts(rows_scored=chunk.num_rows))
        return totals

    def merge_accumulators(self, accumulators: Iterable[Totals]) -> Totals:
        """Adds them up."""
        merged = self.create_accumulator()
        for totals in accumulators:
            merged.merge(totals)
        return merged

    def extract_output(self, totals: Totals) -> Totals:
        """The totals as they are."""
        return totals


@dataclass(eq=False)
class Evaluate(beam.PTransform[Any, Any]):
    """`PCollection[pa.RecordBatch]` with labels and predictions to a PCollection of the one `Totals` of all."""

    plan: EvaluationPlan
    run_id: str = ""

    def expand(self, chunks: PCollection[pa.RecordBatch]) -> PCollection[Totals]:
        """Combines all chunks."""
        totals: PCollection[Totals] = chunks | beam.CombineGlobally(TotalsFn(self.plan, self.run_id))
        return totals
