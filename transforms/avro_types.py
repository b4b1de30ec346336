"""Conversion between Avro types and Arrow types.

Values are exchanged as Avro stores them (a timestamp is a long) and viewed as Arrow types without conversion. So
nanoseconds, and dates outside the range of Python's `datetime`, are kept.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import pyarrow as pa
from fastavro.schema import expand_schema

from handlers.errors import UsageError

PRIMITIVES = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
LOGICAL = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", "UTC"),
    ("long", "timestamp-micros"): pa.timestamp("us", "UTC"),
    ("long", "timestamp-nanos"): pa.timestamp("ns", "UTC"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
    ("long", "local-timestamp-nanos"): pa.timestamp("ns"),
}
# Avro names are letters, digits and underscores. Apache Iceberg and others keep the original name in this attribute.
REAL_NAME = "iceberg-field-name"

_MAX_DIGITS = 76
_EXACT = Context(prec=_MAX_DIGITS + 1)


def storage(kind: pa.DataType, name: Callable[[str], str] = str) -> pa.DataType:
    """The type of the same layout as `kind` whose values Avro stores; `name` maps the names of members."""
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([(name(each.name), storage(each.type, name)) for each in kind])
    if types.is_list(kind):
        return pa.list_(storage(kind.value_type, name))
    if types.is_map(kind):
        return pa.map_(kind.key_type, storage(kind.item_type, name))
    if types.is_date32(kind) or types.is_time32(kind):
        return pa.int32()
    if types.is_time64(kind) or types.is_timestamp(kind) or types.is_duration(kind):
        return pa.int64()
    return kind


# From Avro


@dataclass(frozen=True)
class Values:
    """What the values of an Avro type become.

    Attributes:
        type: their Arrow type.
        prepare: converts a non-null value to one that Arrow takes; None if no conversion is needed.
    """

    type: pa.DataType
    prepare: Callable[[Any], Any] | None = None

    def array(self, values: Iterable[Any]) -> pa.Array:
        """The Arrow array of `values`, without logical types; raises if one of them does not fit."""
        if (prepare := self.prepare) is not None:
            values = [None if value is None else prepare(value) for value in values]
        stored = storage(self.type)
        array = pa.array(values, stored)
        return array if stored == self.type else array.view(self.type)


def columns_of(schema: Any) -> dict[str, tuple[str, Values]]:
    """The columns of a file: by name, the field of its records and the Arrow type of its values.

    Raises `ValueError` if `schema`, in its JSON form, is not a record.
    """
    record: Any = expand_schema(schema)
    if not isinstance(record, dict) or record["type"] != "record":
        raise ValueError("its rows are not records")
    return {real_name(each): (each["name"], values_of(each["type"])) for each in record["fields"]}


def real_name(field: dict[str, Any]) -> str:
    """The column name of `field` of a record."""
    return str(field.get(REAL_NAME, field["name"]))


def values_of(schema: Any) -> Values:
    """How values of a type convert to Arrow; named types must be expanded, except recursive ones."""
    if isinstance(schema, list):
        return _union([each for each in schema if each not in ("null", {"type": "null"})])
    if isinstance(schema, str):
        return Values(PRIMITIVES[schema]) if schema in PRIMITIVES else _TEXT
    kind, logical = schema["type"], schema.get("logicalType")
    if kind in ("bytes", "fixed") and logical == "decimal" and (decimals := _decimals(schema)) is not None:
        return decimals
    if kind in ("record", "error"):
        return _record(schema["fields"])
    if kind == "array":
        items = values_of(schema["items"])
        return Values(pa.list_(items.type), _each(items.prepare))
    if kind == "map":
        values = values_of(schema["values"])
        prepare = _or_null(values.prepare)
        return Values(
            pa.map_(pa.string(), values.type), lambda value: [(key, prepare(item)) for key, item in value.items()]
        )
    if kind == "fixed":
        return Values(pa.binary(schema["size"]))
    if kind == "enum":
        return Values(pa.string())
    if isinstance(kind, str) and (kind, logical) in LOGICAL:
        return Values(LOGICAL[kind, logical])
    return values_of(kind)


def _record(fields: list[dict[str, Any]]) -> Values:
    members = [(real_name(each), each["name"], values_of(each["type"])) for each in fields]
    kind = pa.struct([(name, values.type) for name, _, values in members])
    if all(values.prepare is None and name == stored for name, stored, values in members):
        return Values(kind)
    prepared = [(name, stored, _or_null(values.prepare)) for name, stored, values in members]
    return Values(kind, lambda value: {name: prepare(value[stored]) for name, stored, prepare in prepared})


def _union(branches: list[Any]) -> Values:
    """One type: that type; numbers: the widest; anything else: text."""
    if not branches:
        return Values(pa.null())
    if len(branches) == 1:
        return values_of(branches[0])
    if all(each in ("int", "long") for each in branches):
        return Values(pa.int64())
    if all(each in ("int", "long", "float", "double") for each in branches):
        return Values(pa.float64())
    return _TEXT


def _decimals(schema: dict[str, Any]) -> Values | None:
    """How decimals convert; None if they are invalid in Avro, or have more digits than Arrow supports."""
    precision, scale = schema.get("precision"), schema.get("scale", 0)
    if not (isinstance(precision, int) and isinstance(scale, int) and 0 <= scale <= precision <= _MAX_DIGITS):
        return None
    kind = pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)

    def prepare(value: bytes) -> Decimal:
        return Decimal(int.from_bytes(value, "big", signed=True)).scaleb(-scale, _EXACT)

    return Values(kind, prepare)


def _or_null(prepare: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    if prepare is None:
        return lambda value: value
    return lambda value: None if value is None else prepare(value)


def _each(prepare: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    if prepare is None:
        return None
    one = _or_null(prepare)
    return lambda value: [one(item) for item in value]


def _as_text(value: Any) -> str:
    """Text unchanged; other values as JSON, with bytes in base64."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=lambda data: base64.b64encode(data).decode())


_TEXT = Values(pa.string(), _as_text)


def without_logical_types(schema: Any) -> Any:
    """`schema`, in its JSON form, without logical types, so that fastavro returns values as they are stored."""
    if isinstance(schema, list):
        return [without_logical_types(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: value for key, value in schema.items() if key != "logicalType"}
    for key in plain.keys() & {"type", "items", "values"}:
        plain[key] = without_logical_types(plain[key])
    if "fields" in plain:
        plain["fields"] = [without_logical_types(each) for each in plain["fields"]]
    return plain


# To Avro


def avro_schema(schema: pa.Schema) -> dict[str, Any]:
    """The Avro schema, in its JSON form, for rows of `schema`; every column is nullable.

    Raises `UsageError` for a type without an Avro equivalent, and for columns whose Avro names collide.
    """
    return _avro_record(schema, "row")


def _avro_record(fields: Iterable[pa.Field], name: str) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for each in fields:
        member = avro_name(each.name)
        if member in found:
            raise UsageError(
                f'columns "{found[member].get(REAL_NAME, member)}" and "{each.name}" would have one name in Avro: '
                "rename one, or write parquet"
            )
        found[member] = {"name": member, "type": _nullable(each.type, f"{name}.{member}", each.name)}
        if member != each.name:
            found[member][REAL_NAME] = each.name
    return {"type": "record", "name": name, "fields": list(found.values())}


def avro_name(name: str) -> str:
    """`name` as a valid Avro name: other characters become `_x` and their code point in hexadecimal, as in Iceberg."""
    plain = re.sub(r"[^A-Za-z0-9_]", lambda found: f"_x{ord(found[0]):X}", name)
    return f"_{plain}" if not plain or plain[0].isdigit() else plain


def _nullable(kind: pa.DataType, name: str, column: str) -> Any:
    return "null" if pa.types.is_null(kind) else ["null", _avro_type(kind, name, column)]


def _avro_type(kind: pa.DataType, name: str, column: str) -> Any:
    """The Avro type for `kind`; `name` is the prefix of the named types in it."""
    plain, types = as_avro(kind), pa.types
    if types.is_struct(plain):
        return _avro_record(plain, name)
    if types.is_list(plain):
        return {"type": "array", "items": _nullable(plain.value_type, f"{name}.item", column)}
    if types.is_map(plain):
        return {"type": "map", "values": _nullable(plain.item_type, f"{name}.value", column)}
    if types.is_fixed_size_binary(plain):
        return {"type": "fixed", "name": f"{name}.fixed", "size": plain.byte_width}
    if types.is_decimal(plain) and 0 <= plain.scale <= plain.precision:
        return {"type": "bytes", "logicalType": "decimal", "precision": plain.precision, "scale": plain.scale}
    for stored, primitive in PRIMITIVES.items():
        if plain == primitive:
            return stored
    for (stored, logical), each in LOGICAL.items():
        if plain == each:
            return {"type": stored, "logicalType": logical}
    raise cannot_hold(column, kind)


def cannot_hold(column: str, kind: pa.DataType) -> UsageError:
    """The error for a column without an equivalent Avro type."""
    return UsageError(f"--output_format=avro cannot hold column {column} ({kind}): write parquet")


def stored_columns(batch: pa.RecordBatch) -> list[list[Any]]:
    """The columns of `batch` in the form that `fastavro` writes with `avro_schema`."""
    columns = []
    for column in batch.columns:
        plain = as_avro(column.type)
        stored = column.cast(plain).view(storage(plain, avro_name))
        columns.append(stored.to_pylist(maps_as_pydicts="lossy"))
    return columns


def as_avro(kind: pa.DataType) -> pa.DataType:
    """The Arrow type of values of `kind` after a round trip through Avro."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return as_avro(kind.storage_type)
    if types.is_dictionary(kind):
        return as_avro(kind.value_type)
    if types.is_struct(kind):
        return pa.struct([(each.name, as_avro(each.type)) for each in kind])
    if types.is_map(kind):
        key, item = as_avro(kind.key_type), as_avro(kind.item_type)
        return pa.map_(key, item) if key == pa.string() else pa.list_(pa.struct([("key", key), ("value", item)]))
    if any(check(kind) for check in _LISTS):
        return pa.list_(as_avro(kind.value_type))
    if types.is_timestamp(kind):
        return pa.timestamp("ms" if kind.unit == "s" else kind.unit, "UTC" if kind.tz else None)
    if types.is_decimal(kind) and kind.precision <= 38:
        return pa.decimal128(kind.precision, kind.scale)
    return next((plain for check, plain in _WIDER if check(kind)), kind)


_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_WIDER: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...] = (
    (pa.types.is_uint64, pa.decimal128(20, 0)),
    (pa.types.is_int64, pa.int64()),
    (pa.types.is_uint32, pa.int64()),
    (pa.types.is_integer, pa.int32()),
    (pa.types.is_float16, pa.float32()),
    (pa.types.is_date64, pa.date32()),
    (pa.types.is_time32, pa.time32("ms")),
    (lambda kind: kind == pa.time64("ns"), pa.int64()),
    (pa.types.is_duration, pa.int64()),
    (lambda kind: pa.types.is_large_string(kind) or pa.types.is_string_view(kind), pa.string()),
    (lambda kind: pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind), pa.binary()),
)
