"""Resizes chunks in a stream of them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from handlers.columnar.chunks import merge, rows_within


class Rechunker:
    """Turns chunks of any size into chunks of `rows` rows, the last one smaller; keeps the order of rows.

    A chunk has fewer rows if it would otherwise exceed `max_bytes`, which only a single row may, if its schema cannot
    be unified with that of the next chunk, or if the next one is full already: that one goes on as it is. Splitting is
    zero-copy; merging copies.
    """

    def __init__(self, rows: int, max_bytes: int) -> None:
        self.rows = rows
        self.max_bytes = max_bytes
        self._reset()

    def _reset(self) -> None:
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._schema: pa.Schema | None = None

    def push(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Adds `batch` and yields the chunks that are full."""
        if batch.num_rows == 0:
            return
        # Else all chunks of a file would be cut and merged after the last, smaller one of the file before.
        if (self._pending and self._is_full(batch)) or not self._fits_schema(batch.schema):
            yield from self.flush()
            self._schema = batch.schema
        start = 0
        while start < batch.num_rows:
            take = rows_within(batch, start, self.rows - self._pending_rows, self.max_bytes - self._pending_bytes)
            piece = batch if take == batch.num_rows else batch.slice(start, take)
            size = piece.nbytes
            if self._pending and self._pending_bytes + size > self.max_bytes:
                yield from self.flush()
                self._schema = batch.schema
                continue
            self._pending.append(piece)
            self._pending_rows += take
            self._pending_bytes += size
            start += take
            if self._pending_rows == self.rows:
                yield from self.flush()
                self._schema = batch.schema

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Yields the remaining rows."""
        pending = self._pending
        self._reset()
        if pending:
            yield from _merged(pending)

    def _is_full(self, batch: pa.RecordBatch) -> bool:
        return bool(batch.num_rows == self.rows or 0.9 * self.max_bytes <= batch.nbytes <= self.max_bytes)

    def _fits_schema(self, schema: pa.Schema) -> bool:
        """Whether rows of `schema` can be merged with the pending ones; if so, unifies the schemas."""
        if self._schema is None or self._schema.equals(schema):
            self._schema = schema
            return True
        try:
            self._schema = pa.unify_schemas([self._schema, schema], promote_options="permissive")
        except pa.ArrowException:
            return False
        return True


def _merged(chunks: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    try:
        return [merge(chunks)]
    except pa.ArrowException:
        # The schemas have a common type, but a value does not fit it (2**60 + 1 as a float64, say).
        return chunks
