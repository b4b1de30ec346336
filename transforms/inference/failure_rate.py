"""Fails a pipeline in which too many rows are dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

from handlers.errors import TorchbeamError
from transforms.accounting import Counts, total


class FailureRateError(TorchbeamError):
    """More rows are dead letters than allowed."""


@dataclass(eq=False)
class CheckFailureRate(beam.PTransform[Any, Any]):
    """Fails the pipeline if more than `rate` (0 to 1) of the rows of a window are dead letters.

    The rate is computed over all `Counts` of the window, so it fails at the end of the window.
    """

    rate: float

    def expand(self, counts: PCollection[Counts]) -> PCollection[Counts]:
        """`PCollection[Counts]` to the sum of each window."""
        checked: PCollection[Counts] = (
            counts
            | "Total" >> beam.CombineGlobally(total).without_defaults()
            | "Check" >> beam.Map(check_failure_rate, self.rate).with_output_types(Counts)
        )
        return checked


def check_failure_rate(counts: Counts, rate: float) -> Counts:
    """Returns `counts`; raises `FailureRateError` if more than `rate` of its rows are dead letters."""
    rows = counts.rows_scored + counts.rows_dropped + counts.rows_dead
    if rows and counts.rows_dead / rows > rate:
        first = max(counts.dead_by_error, key=lambda error: counts.dead_by_error[error], default="unknown")
        raise FailureRateError(
            f"{counts.rows_dead} of {rows} rows are dead letters, above max_failure_rate={rate}; most are {first}"
        )
    return counts
