"""CSV with a header: text is quoted and null is empty."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.csv

from handlers.errors import UsageError
from transforms.sinks.formats.sink import Sink, is_binary


class _Encoder:
    """Strings are quoted and null is an empty field, so that null and the empty string differ."""

    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        self._writer = pyarrow.csv.CSVWriter(file, schema)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


def _check(schema: pa.Schema) -> None:
    for column in schema:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if is_binary(kind) or not _csv_takes(column):
            raise UsageError(
                f"--output_format=csv cannot hold column {column.name} ({column.type}): write parquet or jsonl"
            )


def _csv_takes(column: pa.Field) -> bool:
    try:
        pyarrow.csv.write_csv(pa.schema([column]).empty_table(), pa.BufferOutputStream())
    except pa.ArrowException:
        return False
    return True


SINK = Sink("csv", ".csv", _Encoder, _check)
