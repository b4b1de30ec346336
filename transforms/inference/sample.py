"""The first rows of an input, which determine what its columns do not say."""

from __future__ import annotations

import pyarrow as pa

from handlers.batching import Batching
from handlers.columnar.chunks import chunk_schema, merge, rows_within
from handlers.errors import BrokenFileError, UsageError
from transforms.inference.score import SAMPLE_ROWS
from transforms.sources import BadRows, Input, read_split

SAMPLE_SPLITS = 20  # some may be empty; if all are, further ones are read


def sample_rows(source: Input, max_bytes: int = Batching.chunk_bytes) -> pa.RecordBatch:
    """The first readable rows of the input, with provenance; empty if it has none.

    At most `SAMPLE_ROWS` rows and `max_bytes` bytes, but at least one row if there is one.
    """
    chunks: list[pa.RecordBatch] = []
    rows = size = 0
    broken: BrokenFileError | None = None
    for index, split in enumerate(source.splits):
        if rows >= SAMPLE_ROWS or size >= max_bytes or (rows and index >= SAMPLE_SPLITS):
            break
        try:
            for chunk in read_split(split, source.schema, chunk_rows=SAMPLE_ROWS, max_chunk_bytes=max_bytes):
                if not isinstance(chunk, BadRows):
                    chunks.append(chunk)
                    rows += chunk.num_rows
                    size += chunk.nbytes
                if rows >= SAMPLE_ROWS or size >= max_bytes:
                    break
        except BrokenFileError as error:
            broken = broken or error
    if not chunks:
        if broken is not None and not source.schema.names:
            raise UsageError(f"none of the {source.files} input files can be read: {broken}")
        return pa.RecordBatch.from_pylist([], schema=chunk_schema(source.schema))
    sample = merge(chunks)
    return sample.slice(0, rows_within(sample, 0, SAMPLE_ROWS, max_bytes))
