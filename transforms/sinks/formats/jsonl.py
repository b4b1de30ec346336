"""JSON lines: one JSON object a line, dates and times in ISO 8601."""

from __future__ import annotations

import base64
import datetime
import decimal
import io
import json
import math
from typing import Any

import polars as pl
import polars.selectors as cs
import pyarrow as pa

from transforms.sinks.formats.sink import Sink, is_binary


class _Encoder:
    """One JSON object a line.

    Dates and times are ISO 8601, binary values base64, decimals strings (a JSON number would lose digits). NaN
    and infinity, which JSON does not have, are null. A map is a list of pairs.
    """

    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        del schema
        self._file = file

    def write(self, table: pa.Table) -> None:
        if table.num_rows:
            self._file.write(json_lines(table))

    def close(self) -> None:
        pass


def json_lines(table: pa.Table) -> bytes:
    """A line for each row of `table`, in the format of JSON lines files."""
    fast = all(is_binary(column.type) or _polars_writes(column.type) for column in table.schema)
    return _by_polars(table) if fast else _by_python(table)


def _check(schema: pa.Schema) -> None:
    del schema  # every Arrow type can be written


def _polars_writes(kind: pa.DataType, *, nested: bool = False) -> bool:
    """Whether Polars writes values of `kind` in the format of `_Encoder`; it is about ten times faster than Python."""
    types = pa.types
    if types.is_struct(kind):
        return all(_polars_writes(member.type, nested=True) for member in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _polars_writes(kind.value_type, nested=True)
    if types.is_dictionary(kind):
        return bool(types.is_string(kind.value_type) or types.is_large_string(kind.value_type))
    if types.is_timestamp(
        kind
    ):  # Polars writes those without a time zone with a space instead of T; fixed for top-level columns
        return not nested or kind.tz is not None
    return bool(
        types.is_integer(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_date32(kind)
        or types.is_float32(kind)
        or types.is_float64(kind)
        or types.is_null(kind)
    )


def _by_polars(table: pa.Table) -> bytes:
    for index, column in enumerate(table.schema):
        if is_binary(column.type):
            table = table.set_column(index, column.name, _base64(table.column(index)))
    frame = pl.DataFrame(pl.from_arrow(table))
    iso = cs.datetime(time_zone=None).dt.to_string("iso:strict")
    lines = io.BytesIO()
    frame.with_columns(iso).write_ndjson(lines)
    return lines.getvalue()


def _base64(column: pa.ChunkedArray) -> pa.Array:
    encoded = (None if value is None else base64.b64encode(value).decode() for value in column.to_pylist())
    return pa.array(encoded, pa.string())


def _by_python(table: pa.Table) -> bytes:
    lines = (json.dumps(_plain(row), ensure_ascii=False, separators=(",", ":")) for row in table.to_pylist())
    return "".join(line + "\n" for line in lines).encode()


def _plain(value: Any) -> Any:
    """`value` converted to JSON types."""
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return f"PT{decimal.Decimal(value // datetime.timedelta(microseconds=1)).scaleb(-6).normalize():f}S"
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value


SINK = Sink("jsonl", ".jsonl", _Encoder, _check)
