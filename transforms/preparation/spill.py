"""`Prepare`: cleans chunks and writes the rows of the sample to files, each batch sorted by the hash of its rows.

These files are what the shards are merged from (`transforms.preparation.merge`), as in an external sort. No row is shuffled by
the runner, and none is held in memory for longer than a chunk, however large the sample is.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from handlers.columnar.chunks import ROW, without_provenance
from handlers.errors import TorchbeamError
from handlers.model.stores import SharesS3, explain
from handlers.train.cleaning import Cleaner, CleaningPlan
from transforms import progress
from transforms.accounting import Counts
from transforms.file_ops import create, join
from transforms.preparation.hashes import Smallest, below, row_hashes, value_hashes
from transforms.sinks.write import Part

PRIORITY = "__priority__"  # uint64: the order of the rows, and which of them are sampled
NUMBER = "__number__"  # int64: the row number in its source; orders rows of one priority
HELD_OUT = "__held_out__"  # bool: the row is of the validation part
HIDDEN = pa.schema([(PRIORITY, pa.uint64()), (NUMBER, pa.int64()), (HELD_OUT, pa.bool_())])

_DEAD_LETTERS = "dead_letters"
_COUNTS = "counts"


@dataclass(frozen=True)
class Sampling:
    """Which rows are taken, and how they are split.

    Attributes:
        seed: of all choices.
        pattern: the input, as the user gave it.
        share: the probability of a row; 1 takes all.
        rows: how many rows; None for no limit.
        validation: the share of rows that are held out.
        split_by: columns of which rows with equal values stay together.
    """

    seed: int = 0
    pattern: str = ""
    share: float = 1.0
    rows: int | None = None
    validation: float = 0.0
    split_by: tuple[str, ...] = ()


class PreparedRows(NamedTuple):
    """The outputs of `Prepare`.

    Attributes:
        files: a `Part` for every file of rows; rows that are not in the sample may be among them.
        dead_letters: record batches of the rows that cannot be used, as they were read, with the struct `dead_letter`.
        counts: `Counts` of every chunk: rows scored (which are those that can be used), dropped and dead are all its rows.
    """

    files: PCollection[Part]
    dead_letters: PCollection[pa.RecordBatch]
    counts: PCollection[Counts]


@dataclass(eq=False)
class Prepare(beam.PTransform[Any, Any]):
    """`PCollection[pa.RecordBatch]` with provenance to `PreparedRows`.

    Attributes:
        plan: how rows are cleaned.
        sampling: which of them are taken.
        folder: where the files are written, local or remote.
        run_id: the key for the row counts of `transforms.progress`; empty to count none.
    """

    plan: CleaningPlan
    sampling: Sampling
    folder: str
    run_id: str = ""

    def expand(self, chunks: PCollection[pa.RecordBatch]) -> PreparedRows:
        """Cleans and writes in each bundle."""
        cleaned = chunks | "Clean" >> beam.ParDo(_Clean(self.plan, self.sampling, self.run_id)).with_outputs(
            _DEAD_LETTERS, _COUNTS, main="rows"
        )
        files = cleaned.rows | "Spill" >> beam.ParDo(_Spill(self.folder, self.sampling.rows))
        return PreparedRows(files, cleaned[_DEAD_LETTERS], cleaned[_COUNTS])


@beam.typehints.with_output_types(pa.RecordBatch, dead_letters=pa.RecordBatch, counts=Counts)
@dataclass
class _Clean(beam.DoFn):
    plan: CleaningPlan
    sampling: Sampling
    run_id: str

    def setup(self) -> None:
        self._cleaner = Cleaner(self.plan)

    def process(self, chunk: pa.RecordBatch) -> Iterator[Any]:
        cleaned = self._cleaner.clean(chunk)
        counts = Counts(
            rows_scored=cleaned.rows.num_rows,
            rows_dropped=cleaned.dropped,
            rows_dead=cleaned.dead_letters.num_rows,
            dead_by_error=dict(cleaned.dead_by_error),
        )
        if self.run_id:
            progress.add(self.run_id, counts)
        yield TaggedOutput(_COUNTS, counts)
        if cleaned.dead_letters.num_rows:
            yield TaggedOutput(_DEAD_LETTERS, cleaned.dead_letters)
        if cleaned.rows.num_rows:
            rows = with_hashes(cleaned.rows, chunk.take(pa.array(cleaned.indices)), self.sampling)
            if rows.num_rows:
                yield rows


def with_hashes(rows: pa.RecordBatch, read: pa.RecordBatch, sampling: Sampling) -> pa.RecordBatch:
    """The rows that `sampling.share` takes, with the columns of `HIDDEN`.

    Args:
        rows: cleaned rows.
        read: the same rows as they were read, with provenance.
        sampling: which rows are taken.
    """
    priorities = row_hashes(read, sampling.seed, "sample", sampling.pattern)
    if sampling.split_by:
        names = without_provenance(read).schema.names
        columns = [(read if name in names else rows).column(name) for name in sampling.split_by]
        split = value_hashes(columns, sampling.seed, "split")
    else:
        split = row_hashes(read, sampling.seed, "split", sampling.pattern)
    hidden = [pa.array(priorities), read.column(ROW).cast(pa.int64()), pa.array(below(split, sampling.validation))]
    batch = pa.RecordBatch.from_arrays([*rows.columns, *hidden], schema=pa.schema([*rows.schema, *HIDDEN]))
    return batch if sampling.share >= 1 else batch.filter(pa.array(below(priorities, sampling.share)))


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(Part)
class _Spill(SharesS3, beam.DoFn):
    """Writes the rows of a bundle to one file; of a limited sample only those that may be in it."""

    def __init__(self, folder: str, rows: int | None) -> None:
        self._folder = folder
        self._limit = rows
        self._file: pa.NativeFile | None = None

    def start_bundle(self) -> None:
        self._abandon()  # if the last bundle failed, in this step or another
        self._smallest = None if self._limit is None else Smallest(self._limit)
        self._rows = 0

    def process(self, rows: pa.RecordBatch) -> None:
        if self._smallest is not None:
            rows = rows.filter(pa.array(self._smallest.add(rows.column(PRIORITY).to_numpy())))
        if not rows.num_rows:
            return
        order = in_order(rows)
        try:
            if self._file is None:
                self._path = join(self._folder, f"rows-{uuid.uuid4().hex}.arrow")
                self._file = create(self._path)
                self._writer = pa.ipc.new_file(self._file, rows.schema)
            self._writer.write_batch(rows.take(pa.array(order)))
        except Exception as error:
            self._abandon()
            raise TorchbeamError(f"{self._folder} cannot be written: {explain(error)}") from error
        self._rows += rows.num_rows

    def finish_bundle(self) -> Iterator[Any]:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            self._writer.close()
            file.close()
        except Exception as error:
            raise TorchbeamError(f"{self._folder} cannot be written: {explain(error)}") from error
        yield GlobalWindows.windowed_value_at_end_of_window(Part(self._path, self._rows))

    def teardown(self) -> None:
        self._abandon()
        super().teardown()

    def _abandon(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):
                self._writer.close()
            with suppress(Exception):
                file.close()


def in_order(rows: pa.RecordBatch) -> np.ndarray:
    """The indices that sort rows with the columns of `HIDDEN`: int64 of (rows,)."""
    order: np.ndarray = np.lexsort((rows.column(NUMBER).to_numpy(), rows.column(PRIORITY).to_numpy()))
    return order
