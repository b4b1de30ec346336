"""Avro: every value is one record in Avro's binary encoding, without a file header.

Where a schema registry is used, values begin with the id of the schema that they were written with, and are read with that one
as those of the schema of the run. Values are exchanged without logical types, which only Arrow gives them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from handlers.errors import TorchbeamError, UsageError, one_line
from handlers.failures import RowFailure, RowFailures
from transforms.avro_types import Values, columns_of, without_logical_types
from transforms.sources.blocks import Split, convert, misfit
from transforms.streams.decode import STAGE, Rows
from transforms.streams.formats.registry import SchemaRegistry, UnknownSchemaError, framed
from transforms.streams.messages import Messages


@dataclass(frozen=True)
class AvroDecoder:
    """Reads Avro records.

    Attributes:
        declared: the schema of the run, in its JSON form.
        registry: has the schemas that values were written with; None if that is the schema of the run.
    """

    declared: Any
    registry: SchemaRegistry | None = None

    @cached_property
    def _columns(self) -> dict[str, tuple[str, Values]]:
        return columns_of(self.declared)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns: the fields of the record."""
        return pa.schema([(name, values.type) for name, (_, values) in self._columns.items()])

    @cached_property
    def _plain(self) -> Any:
        return fastavro.parse_schema(without_logical_types(self.declared))

    def __getstate__(self) -> dict[str, Any]:
        return {"declared": self.declared, "registry": self.registry}  # the rest is made again where it is used

    def rows(self, values: list[bytes], messages: Messages, indices: Sequence[int]) -> Rows:
        """The rows of `values`; see `Decoder`."""
        records: list[dict[str, Any]] = []
        found: list[int] = []
        failures: RowFailures = {}
        for index, value in enumerate(values):
            try:
                records.append(self._record(value))
                found.append(index)
            except TorchbeamError:  # no fault of the message
                raise
            except Exception as error:
                failures[index] = RowFailure(STAGE, _kind(error), one_line(error))

        def column(each: pa.Field, start: int, stop: int) -> pa.Array:
            stored, kind = self._columns[each.name]
            return kind.array(record[stored] for record in records[start:stop])

        batch, misfits = convert(self.schema, len(records), column)
        kept = np.asarray(found, np.int64)
        if misfits:
            split = Split(messages.source, "avro")
            for row, each in misfits.items():
                value = records[row][self._columns[each.name][0]]
                offset = int(messages.offsets[indices[found[row]]])
                failure = misfit(each, value, offset, split, "")
                failures[found[row]] = RowFailure(STAGE, failure.type, failure.message)
            good = np.setdiff1d(np.arange(len(records)), list(misfits))
            batch, kept = batch.take(pa.array(good)), kept[good]
        return Rows(batch, kept, failures)

    def _record(self, value: bytes) -> dict[str, Any]:
        """The record that a value is, and nothing after it."""
        start, writer, reader = 0, self._plain, None
        if self.registry is not None:
            number, start = framed(value)
            writer, reader = self.registry.avro(number), self._plain
        data = io.BytesIO(value)
        data.seek(start)
        record = fastavro.schemaless_reader(data, writer, reader)
        if left := len(value) - data.tell():
            raise ValueError(f"{left} bytes are left behind the record; it was written with another schema")
        if not isinstance(record, dict):
            raise ValueError("it is no record")
        return record


def _kind(error: Exception) -> str:
    return "UnknownSchema" if isinstance(error, UnknownSchemaError) else type(error).__name__


def check_schema(declared: Any, where: str) -> Any:
    """`declared`, if it is the Avro schema of a record; raises `UsageError` that names `where`."""
    try:
        fastavro.parse_schema(without_logical_types(declared))
        columns_of(declared)
    except Exception as error:
        raise UsageError(f"{where} is no Avro schema of a record: {one_line(error)}") from None
    return declared
