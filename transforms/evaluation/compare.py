"""Two runs of the same rows: rows are matched by a key, and compared by which run was right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import PCollection

from handlers.columnar.hashes import row_hashes
from transforms.evaluation import intervals
from transforms.evaluation.plan import EvaluationPlan
from transforms.evaluation.rows import NumberRows, extract
from transforms.evaluation.sums import Moments

BUCKET_ROWS = 250_000


@dataclass(frozen=True)
class Outcomes:
    """The outcome of a run for some rows: their keys (uint64), whether each is right (bool), and its loss (float64)."""

    first: bool
    keys: np.ndarray
    correct: np.ndarray
    loss: np.ndarray


@dataclass
class Pairs:
    """Matched rows of two runs: which run was right, the losses of each, and their differences (first − second)."""

    only_first: int = 0
    only_second: int = 0
    both: int = 0
    rows: int = 0
    unmatched_first: int = 0
    unmatched_second: int = 0
    repeated: int = 0
    first: Moments = field(default_factory=Moments.none)
    second: Moments = field(default_factory=Moments.none)
    difference: Moments = field(default_factory=Moments.none)

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def result(self, task: str, has_loss: bool) -> dict[str, Any]:
        """The content of `compare` in `metrics.json`; differences are first − second."""
        found: dict[str, Any] = {
            "rows": self.rows,
            "rows_only_first": self.unmatched_first,
            "rows_only_second": self.unmatched_second,
            "rows_with_repeated_key": self.repeated,
        }
        if task != "regression" and self.rows:
            difference = (self.only_first - self.only_second) / self.rows
            spread = (self.only_first + self.only_second) / self.rows - difference**2
            found["accuracy"] = {
                "first": (self.both + self.only_first) / self.rows,
                "second": (self.both + self.only_second) / self.rows,
                "difference": difference,
                "interval": intervals.normal(difference, (max(spread, 0) / self.rows) ** 0.5, -1, 1),
                "only_first_right": self.only_first,
                "only_second_right": self.only_second,
                "test": "mcnemar",
                "p_value": intervals.mcnemar(self.only_first, self.only_second),
            }
        if has_loss and self.rows:
            mean, error = self.difference.value() or 0.0, self.difference.error()
            variance = float(self.difference.total().m2[0]) / max(self.rows - 1, 1)
            found["mae" if task == "regression" else "log_loss"] = {
                "first": self.first.value(),
                "second": self.second.value(),
                "difference": mean,
                "interval": intervals.normal(mean, error),
                "test": "paired t",
                "p_value": intervals.paired_t(mean, variance, self.rows),
            }
        return found


def pair(outcomes: Iterable[Outcomes], *, unique: bool) -> Pairs:
    """Matches the rows of two runs that have the same key.

    Args:
        outcomes: of both runs, in any order.
        unique: a key identifies one row, and rows of a key that occurs twice in a run are left out and counted; else rows
            of one key are equal, and matched one by one.
    """
    sides = []
    parts = list(outcomes)
    for first in (True, False):
        mine = [part for part in parts if part.first is first]
        frame = pd.DataFrame(
            {
                name: np.concatenate([getattr(part, name) for part in mine]) if mine else np.zeros(0, kind)
                for name, kind in (("keys", np.uint64), ("correct", bool), ("loss", np.float64))
            }
        ).sort_values(["keys", "loss"], kind="stable")
        frame["ordinal"] = frame.groupby("keys").cumcount()
        sides.append(frame)
    repeated = 0
    if unique:
        twice = {key for frame in sides for key in frame["keys"][frame["ordinal"] > 0].unique().tolist()}
        for index, frame in enumerate(sides):
            good = ~frame["keys"].isin(twice)
            repeated += int((~good).sum())
            sides[index] = frame[good]
    matched = sides[0].merge(sides[1], on=["keys", "ordinal"], suffixes=("_1", "_2"))
    one, two = (matched[f"correct_{side}"].to_numpy(dtype=bool) for side in (1, 2))
    losses = [matched[f"loss_{side}"].to_numpy(dtype=np.float64) for side in (1, 2)]
    return Pairs(
        only_first=int((one & ~two).sum()),
        only_second=int((two & ~one).sum()),
        both=int((one & two).sum()),
        rows=len(matched),
        unmatched_first=len(sides[0]) - len(matched),
        unmatched_second=len(sides[1]) - len(matched),
        repeated=repeated,
        first=Moments.of(losses[0]),
        second=Moments.of(losses[1]),
        difference=Moments.of(losses[0] - losses[1]),
    )


def keys_of(chunk: pa.RecordBatch, columns: tuple[str, ...]) -> np.ndarray:
    """A hash (uint64) of the values of `columns` for each row; NaN is like null."""
    if not columns:
        return np.zeros(chunk.num_rows, np.uint64)
    return row_hashes(_without_nan(chunk.column(name)) for name in columns)


def _without_nan(array: pa.Array) -> pa.Array:
    if not pa.types.is_floating(array.type):
        return array
    return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)


@beam.typehints.with_output_types(tuple[int, Any])
@dataclass
class _ByBucket(beam.DoFn):
    plan: EvaluationPlan
    first: bool
    columns: tuple[str, ...]
    buckets: int

    def process(self, chunk: pa.RecordBatch) -> Iterator[tuple[int, Outcomes]]:
        rows, index, _ = extract(self.plan, chunk)
        keys = keys_of(chunk, self.columns)[index]
        correct = np.zeros(len(rows), bool) if isinstance(rows, NumberRows) else rows.correct
        loss = rows.loss
        bucket = keys % np.uint64(self.buckets)
        for number in np.unique(bucket).tolist():
            mine = bucket == number
            yield int(number), Outcomes(self.first, keys[mine], correct[mine], loss[mine])


@dataclass(eq=False)
class ComparePairs(beam.PTransform[Any, Any]):
    """The chunks of two runs, `(first, second)`, to a PCollection of the one `Pairs` of them.

    Attributes:
        plans: how each run is read.
        columns: what rows are matched by.
        unique: whether these are a key; see `pair`.
        buckets: in how many parts rows are matched, each in one worker's memory.
    """

    plans: tuple[EvaluationPlan, EvaluationPlan]
    columns: tuple[str, ...]
    unique: bool
    buckets: int

    def expand(self, runs: tuple[PCollection[pa.RecordBatch], PCollection[pa.RecordBatch]]) -> PCollection[Any]:
        """Groups outcomes by key and adds up what was matched."""
        unique = self.unique
        keyed = [
            chunks | f"Outcomes{index}" >> beam.ParDo(_ByBucket(plan, index == 0, self.columns, self.buckets))
            for index, (chunks, plan) in enumerate(zip(runs, self.plans, strict=True))
        ]
        pairs: PCollection[Any] = (
            keyed
            | beam.Flatten()
            | beam.GroupByKey()
            | beam.MapTuple(lambda _, outcomes: pair(outcomes, unique=unique))
            | beam.CombineGlobally(_added)
        )
        return pairs


def _added(pairs: Iterable[Pairs]) -> Pairs:
    return sum(pairs, Pairs())
