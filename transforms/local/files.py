"""Files, or a table of BigQuery, as the rows to score: read in chunks, by the readers of the command."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa

from handlers.batching import Batching
from handlers.model.stores import reach, shared_s3
from handlers.paths import is_remote
from transforms.accounting import Counts, dead_at_read, outcomes_of, total
from transforms.inference.sample import sample_rows
from transforms.local.rows import Rows
from transforms.sources import BadRows, FileRead, plan_input
from transforms.sources.blocks import ReadOptions
from transforms.sources.splits import read_splits


class Files(Rows):
    """The rows of files. Results are tables of Arrow.

    Args:
        pattern: a file, a folder or a pattern, local or remote; or a table of BigQuery or a query.
        input_format: the format; None for that of the extensions.
        numeric_columns: patterns of the names of columns that feed numeric inputs of the model.
        batching: the size of chunks.

    Raises:
        UsageError: there are no such files, they have no format in common, or their columns cannot be used.
    """

    def __init__(
        self, pattern: str, input_format: str | None, numeric_columns: Collection[str], batching: Batching
    ) -> None:
        if is_remote(pattern):
            reach(pattern, f"data {pattern}")
        with shared_s3():
            self._input = plan_input(pattern, input_format, numeric_columns=numeric_columns)
        self._batching = batching
        self._read: list[FileRead] = []
        self._dead_letters: list[pa.RecordBatch] = []
        self.schema, self.rows, self.dead_letters = self._input.schema, self._input.rows, self._dead_letters

    def sample(self) -> pa.RecordBatch:
        """The first readable rows."""
        with shared_s3():
            return sample_rows(self._input, self._batching.chunk_bytes)

    def chunks(self, needed: frozenset[str], model_version: str) -> Iterator[pa.RecordBatch]:
        """The rows of all files, one file after the other."""
        options = ReadOptions(needed, self._batching.chunk_rows, self._batching.chunk_bytes)
        with shared_s3():
            for piece in read_splits(self._input.splits, self.schema, options, model_version):
                if isinstance(piece, FileRead):
                    self._read.append(piece)
                elif isinstance(piece, BadRows):
                    self._dead_letters.append(piece.dead_letters)
                else:
                    yield piece

    def counts(self) -> Counts:
        """What was read of every file."""
        counts, failed = outcomes_of(self._read)
        self.failed_files = [each.failed() for each in failed]
        return counts + total(map(dead_at_read, self.dead_letters))

    def back(self, results: pa.Table, rows: np.ndarray, same: Collection[str] = ()) -> pa.Table:
        """The results themselves."""
        return results
