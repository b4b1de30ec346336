"""Parquet, compressed with snappy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from handlers.errors import UsageError
from transforms.sinks.formats.sink import Sink

# One group per chunk writes as fast, but many groups make a file slow to open and scan.
GROUP_ROWS = 128 * 1024
# A column is encoded as plain values if this share of a sample of its values is distinct; the sample is a fraction of a
# group. Then each value occurs hardly more than once in a group, so a dictionary costs most of the time of writing and
# makes the file larger.
_DISTINCT = 0.99
_FRACTION = 16
_LEAST_SAMPLE = 64


class _Encoder:
    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        self._opened(table).write_table(table, row_group_size=GROUP_ROWS)

    def close(self) -> None:
        self._opened(self._schema.empty_table()).close()

    def _opened(self, first: pa.Table) -> pq.ParquetWriter:
        """The writer; it is made for what is written first."""
        if self._writer is None:
            columns = _dictionary_columns(first)
            self._writer = pq.ParquetWriter(
                self._file, self._schema, compression="snappy", use_dictionary=columns or False
            )
        return self._writer


def _dictionary_columns(table: pa.Table) -> list[str]:
    """The paths of the columns for which a dictionary may pay, as a sample of the first group of a file suggests.

    For floats it rarely does: trying one takes three times as long as writing them.
    """
    columns = _columns_without_floats(table.schema)
    names = set(table.schema.names)
    flat = table.select([name for name in columns if name in names])
    largest = max(flat.to_batches(), key=len, default=None)
    if largest is None or (size := len(largest) // _FRACTION) < _LEAST_SAMPLE:
        return columns
    # At random: values that repeat within the group need not repeat in neighboring rows.
    rows = pa.array(np.random.default_rng(0).choice(len(largest), size, replace=False))
    plain = {name for name in flat.schema.names if _is_distinct(largest.column(name), rows)}
    return [name for name in columns if name not in plain]


def _is_distinct(column: pa.Array, rows: pa.Array) -> bool:
    """Whether hardly a value occurs twice in `rows`; false where that is unknown, since Arrow cannot compare the values."""
    try:
        values = column.take(rows).drop_null()
        return len(values) >= _LEAST_SAMPLE and len(values.unique()) >= _DISTINCT * len(values)
    except pa.ArrowNotImplementedError:
        return False


def _columns_without_floats(schema: pa.Schema) -> list[str]:
    """The column paths (leaves of nested columns) of a Parquet file of `schema` that hold no floats."""
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    leaves = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    columns = [leaves.column(index) for index in range(len(leaves))]
    return [column.path for column in columns if column.physical_type not in ("FLOAT", "DOUBLE", "BOOLEAN")]


def _check(schema: pa.Schema) -> None:
    try:
        pq.write_table(schema.empty_table(), pa.BufferOutputStream())
    except pa.ArrowException as error:
        raise UsageError(
            f"--output_format=parquet cannot hold these columns ({error}): leave them out with --columns"
        ) from None


SINK = Sink("parquet", ".parquet", _Encoder, _check)
