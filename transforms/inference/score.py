"""`Score`: chunks of rows through RunInference, with every row accounted for."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders.typecoders import registry
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import PCollection

from handlers.columnar.handler import ColumnarModelHandler
from handlers.columnar.scorer import Scored
from transforms import progress
from transforms.accounting import Counts
from transforms.inference.rechunk import Rechunk

_DEAD_LETTERS = "dead_letters"
_COUNTS = "counts"


class _ScoredCoder(beam.coders.Coder):
    """Beam's default but for the size. RunInference and the split are fused, so a `Scored` is only ever measured.

    Beam measures a share of all elements, by default in pickling them, which took a twentieth of a run.
    """

    def encode(self, value: Scored) -> bytes:
        return pickle.dumps(value, protocol=5)

    def decode(self, encoded: bytes) -> Scored:
        scored: Scored = pickle.loads(encoded)  # noqa: S301 - from a worker of this pipeline
        return scored

    def estimate_size(self, value: Scored) -> int:
        return int(value.predictions.nbytes + value.dead_letters.nbytes)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return Scored

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


registry.register_coder(Scored, _ScoredCoder)


class ScoredRows(NamedTuple):
    """What `Score` gives.

    Attributes:
        predictions: record batches of the rows that were scored, in the output schema of the plan.
        dead_letters: record batches of the rows that could not be, as they were read, with the struct `dead_letter`.
        counts: `Counts` of every chunk: rows scored, dropped and dead.
    """

    predictions: PCollection[pa.RecordBatch]
    dead_letters: PCollection[pa.RecordBatch]
    counts: PCollection[Counts]


@dataclass(eq=False)
class Score(beam.PTransform[Any, Any]):
    """Chunks with provenance (`PCollection[pa.RecordBatch]`) to `ScoredRows`.

    Attributes:
        handler: holds the model and the plan; see `handlers.columnar.scorer.make_plan`.
        run_id: under which `transforms.progress` counts the rows in this process.
    """

    handler: ColumnarModelHandler
    run_id: str = ""

    def expand(self, chunks: PCollection[pa.RecordBatch]) -> ScoredRows:
        """Rechunk → RunInference → split."""
        batching = self.handler.batching
        outputs = (
            chunks
            | "Rechunk" >> Rechunk(batching.chunk_rows, batching.chunk_bytes)
            | "RunInference" >> RunInference(self.handler).with_output_types(Scored)
            | "Split" >> beam.ParDo(_Split(self.run_id)).with_outputs(_DEAD_LETTERS, _COUNTS, main="predictions")
        )
        return ScoredRows(outputs.predictions, outputs[_DEAD_LETTERS], outputs[_COUNTS])


@beam.typehints.with_output_types(pa.RecordBatch, dead_letters=pa.RecordBatch, counts=Counts)
@dataclass
class _Split(beam.DoFn):
    run_id: str

    def process(self, scored: Scored) -> Iterator[Any]:
        counts = Counts(
            rows_scored=scored.predictions.num_rows,
            rows_dropped=scored.dropped,
            rows_dead=scored.dead_letters.num_rows,
            dead_by_error=dict(scored.dead_by_error),
            noted=dict(scored.stats.counts),
        )
        progress.add(self.run_id, counts)
        if scored.predictions.num_rows:
            yield scored.predictions
        if scored.dead_letters.num_rows:
            yield beam.pvalue.TaggedOutput(_DEAD_LETTERS, scored.dead_letters)
        yield beam.pvalue.TaggedOutput(_COUNTS, counts)
