"""What became of rows in a run of several models. Small and picklable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from handlers.stats import Stats


@dataclass(frozen=True)
class ModelCounts:
    """What one model did with rows: `rows_in = scored + dropped + dead + skipped`. Adding two gives the counts of both.

    Attributes:
        rows_in: rows that came to the model, whether it ran on them or not.
        scored: rows that it answered.
        dropped: rows that one of its functions left out on purpose.
        dead: rows that it failed on.
        skipped: rows that `when`, `split` or an unanswered `inputs_from` kept from it.
        seconds: in its encoders, its calls and its head, over all threads.
        loads: how often a model of `by_key` was loaded.
        peak_bytes: the most bytes of parameters that models of `by_key` had at once in a process.
        dead_by_error: rows that it failed on, by `stage/type`.
    """

    rows_in: int = 0
    scored: int = 0
    dropped: int = 0
    dead: int = 0
    skipped: int = 0
    seconds: float = 0.0
    loads: int = 0
    peak_bytes: int = 0
    dead_by_error: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: ModelCounts) -> ModelCounts:
        return ModelCounts(
            self.rows_in + other.rows_in,
            self.scored + other.scored,
            self.dropped + other.dropped,
            self.dead + other.dead,
            self.skipped + other.skipped,
            self.seconds + other.seconds,
            self.loads + other.loads,
            max(self.peak_bytes, other.peak_bytes),
            dict(Counter(self.dead_by_error) + Counter(other.dead_by_error)),
        )


@dataclass(frozen=True)
class StageScored:
    """What became of the rows of a chunk in one stage; rows + dropped + dead letters are all of them.

    Attributes:
        rows: the rows that go on: for the next stage with the outputs so far, after the last stage the predictions.
        dead_letters: the rows that a model failed on, as they were read, with the struct `dead_letter`.
        dropped: after the last stage, how many rows have no answer on purpose.
        dead_by_error: dead letters by `stage/type`.
        models: what each model of the stage did.
        stats: what was done in the models, for metrics.
    """

    rows: pa.RecordBatch
    dead_letters: pa.RecordBatch
    dropped: int
    dead_by_error: Counter[str]
    models: Mapping[str, ModelCounts]
    stats: Stats
