"""Parquet, compressed with snappy."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from handlers.errors import UsageError
from transforms.sinks.formats.sink import Sink

# One group per chunk writes as fast, but many groups make a file slow to open and scan.
GROUP_ROWS = 128 * 1024


class _Encoder:
    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        # A dictionary rarely pays for floats: trying one takes three times as long as writing them.
        self._writer = pq.ParquetWriter(
            file, schema, compression="snappy", use_dictionary=_columns_without_floats(schema) or False
        )

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=GROUP_ROWS)

    def close(self) -> None:
        self._writer.close()


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
