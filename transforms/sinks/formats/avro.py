"""Avro, compressed with deflate, which every reader supports; `transforms.avro_types` converts the types."""

from __future__ import annotations

import pyarrow as pa
from fastavro.write import Writer

from transforms.avro_types import avro_schema, cannot_hold, stored_columns
from transforms.sinks.formats.sink import Sink

_BLOCK_BYTES = 64 << 10


class _Encoder:
    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        declared = avro_schema(schema)
        self._names = [each["name"] for each in declared["fields"]]
        self._writer = Writer(file, declared, codec="deflate", sync_interval=_BLOCK_BYTES)

    def write(self, table: pa.Table) -> None:
        names = self._names
        for batch in table.to_batches():
            for row in zip(*stored_columns(batch), strict=True):
                self._writer.write(dict(zip(names, row, strict=True)))

    def close(self) -> None:
        self._writer.flush()


def _check(schema: pa.Schema) -> None:
    avro_schema(schema)
    for column in schema:
        try:
            stored_columns(pa.RecordBatch.from_pylist([], schema=pa.schema([column])))
        except pa.ArrowException:
            raise cannot_hold(column.name, column.type) from None


SINK = Sink("avro", ".avro", _Encoder, _check)
