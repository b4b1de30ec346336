"""Windows by key: rows grouped by key in the pipeline, and cut into the windows that a sequence model takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import PCollection, TaggedOutput

from handlers.batching import Batching
from handlers.columnar.chunks import NEXT_STEP, REFUSED, dead_letters, model_rows, other_rows, refusals, with_refusals
from handlers.model.sequences import SequencesSpec
from handlers.model.spec import sequences_spec
from handlers.predict.heads.head import FORECAST_FROM
from handlers.sequences.cutter import WindowCutter
from handlers.sequences.keyed_rows import KeyedRows
from handlers.sequences.windows import Steps
from transforms import progress
from transforms.accounting import Counts
from transforms.inference import chunk_coder  # noqa: F401 - registers the coder of chunks
from transforms.inference.admit import admit

# Rows of one bucket are ordered together. More buckets mean less memory for each, and more pieces to shuffle.
BUCKETS = 128

_REFUSED = "refused"
_COUNTS = "counts"


class Windows(NamedTuple):
    """The outputs of `CutWindows`.

    Attributes:
        chunks: the last row of every window, with the hidden columns of its window, and rows that are marked as refused.
        counts: `Counts` of the rows that are only part of windows, or duplicates; they count as dropped.
    """

    chunks: PCollection[pa.RecordBatch]
    counts: PCollection[Counts]


@dataclass(eq=False)
class CutWindows(beam.PTransform[Any, Any]):
    """`PCollection[pa.RecordBatch]`, chunks with provenance, to the `Windows` of their keys.

    Rows are shuffled in small pieces by a hash of their key. The rows of a bucket are held in memory up to a bound, and in
    temporary files beyond it.

    Attributes:
        cutter: what is cut out of rows of a schema.
        max_rows: rows of a chunk at most.
        max_bytes: bytes of a chunk, about.
        run_id: the key for the row counts of `transforms.progress`; empty to count none.
        buckets: parts in which keys are grouped.
    """

    cutter: WindowCutter
    max_rows: int
    max_bytes: int
    run_id: str = ""
    buckets: int = BUCKETS

    def expand(self, chunks: PCollection[pa.RecordBatch]) -> Windows:
        """Partition → group → cut."""
        parts = chunks | "Partition" >> beam.ParDo(_Partition(self.cutter, self.buckets)).with_outputs(
            _REFUSED, main="pieces"
        )
        cut = (
            parts.pieces
            | "Group" >> beam.GroupByKey()
            | "Cut"
            >> beam.ParDo(_Cut(self.cutter, self.max_rows, self.max_bytes, self.run_id)).with_outputs(
                _COUNTS, main="windows"
            )
        )
        return Windows((parts[_REFUSED], cut.windows) | "Flatten" >> beam.Flatten(), cut[_COUNTS])


class SequenceRows(NamedTuple):
    """The outputs of `Sequences`.

    Attributes:
        windows: a row for each window: the columns of its last row, in which the columns of the window are lists, and if
            there is a horizon `forecast_from`.
        dead_letters: the rows that can be in no window, as they were given, with the struct `dead_letter`.
        counts: `Counts` of all rows; `rows_scored` are windows.
    """

    windows: PCollection[pa.RecordBatch]
    dead_letters: PCollection[pa.RecordBatch]
    counts: PCollection[Counts]


@dataclass(eq=False)
class Sequences(beam.PTransform[Any, Any]):
    """`PCollection[pa.RecordBatch | pa.Table]` to `SequenceRows`: the windows of `sequences` in model.yaml, without a model.

    Attributes:
        spec: the fields of `sequences`; docs/sequences.md describes them.
        schema: the columns of the chunks.
        source: the source of rows without provenance, as in `Score`.
        batching: rows and bytes of a chunk.

    Raises:
        UsageError: for fields or columns that do not fit.
    """

    spec: SequencesSpec | Mapping[str, Any]
    schema: pa.Schema
    source: str = "pipeline"
    batching: Batching = Batching()

    def __post_init__(self) -> None:
        self.spec = self.spec if isinstance(self.spec, SequencesSpec) else sequences_spec(self.spec)
        self._cutter = WindowCutter(self.spec, self.schema)

    def expand(self, chunks: PCollection[Any]) -> SequenceRows:
        """Admit → cut → split."""
        cutter, batching = self._cutter, self.batching
        admitted = chunks | "Admit" >> beam.Map(
            partial(admit, schema=self.schema, needed=cutter.needed, source=self.source)
        ).with_output_types(pa.RecordBatch)
        cut, dropped = admitted | "Cut" >> CutWindows(cutter, batching.chunk_rows, batching.chunk_bytes)
        split = cut | "Split" >> beam.ParDo(_Split()).with_outputs(  # type: ignore[no-untyped-call]
            _REFUSED, _COUNTS, main="windows"
        )
        return SequenceRows(split.windows, split[_REFUSED], (dropped, split[_COUNTS]) | "Counts" >> beam.Flatten())


@beam.typehints.with_output_types(pa.RecordBatch, refused=pa.RecordBatch, counts=Counts)
@dataclass
class _Split(beam.DoFn):
    def process(self, chunk: pa.RecordBatch) -> Iterator[Any]:
        failures = refusals(chunk)
        good = other_rows(chunk.num_rows, failures)
        errors = Counter(f"{failure.stage}/{failure.type}" for failure in failures.values())
        yield TaggedOutput(_COUNTS, Counts(rows_scored=len(good), rows_dead=len(failures), dead_by_error=dict(errors)))
        if failures:
            dead = chunk.take(pa.array(sorted(failures), pa.int64()))
            yield TaggedOutput(_REFUSED, dead_letters(dead, [failures[row] for row in sorted(failures)], None))
        if len(good):
            rows = chunk.take(pa.array(good))
            windows = model_rows(rows)
            if NEXT_STEP in rows.schema.names:
                windows = windows.append_column(FORECAST_FROM, rows.column(NEXT_STEP))
            yield windows


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch], refused=pa.RecordBatch)
@dataclass
class _Partition(beam.DoFn):
    cutter: WindowCutter
    buckets: int

    def process(self, chunk: pa.RecordBatch) -> Iterator[Any]:
        failures = refusals(chunk)
        rows = chunk.drop_columns([REFUSED]) if REFUSED in chunk.schema.names else chunk
        failures = self.cutter.refusals(rows) | failures
        if failures:
            refused = sorted(failures)
            marked = self.cutter.hidden(rows.take(pa.array(refused, pa.int64())))
            yield TaggedOutput(
                _REFUSED, with_refusals(marked, {index: failures[row] for index, row in enumerate(refused)})
            )
            rows = rows.take(pa.array(other_rows(rows.num_rows, refused), pa.int64()))
        buckets = (self.cutter.keys.hashes(rows) % np.uint64(self.buckets)).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        rows = rows.take(pa.array(order))
        numbers, starts = np.unique(buckets[order], return_index=True)
        ends = np.append(starts[1:], rows.num_rows)
        for number, start, end in zip(numbers.tolist(), starts.tolist(), ends.tolist(), strict=True):
            yield number, rows.slice(start, end - start)


@beam.typehints.with_output_types(pa.RecordBatch, counts=Counts)
@dataclass
class _Cut(beam.DoFn):
    cutter: WindowCutter
    max_rows: int
    max_bytes: int
    run_id: str

    def process(self, bucket: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        with KeyedRows(self.cutter.order_of) as rows:
            for piece in bucket[1]:
                rows.add(piece)
            rows.complete()
            steps = Steps(self.cutter, rows)
            anchors = steps.anchors()
            context = steps.steps_of_windows - len(anchors)
            noted = {"sequence_keys": steps.keys, "rows_context": context, "rows_duplicate": steps.duplicates}
            counts = Counts(
                rows_dropped=context + steps.duplicates, noted={name: count for name, count in noted.items() if count}
            )
            if self.run_id:
                progress.add(self.run_id, counts)
            yield TaggedOutput(_COUNTS, counts)
            yield from steps.refused_chunks(self.max_rows, self.max_bytes)
            yield from steps.chunks(anchors, self.max_rows, self.max_bytes)
