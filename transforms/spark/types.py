"""Which Arrow types Spark takes, and which type stands for one that it does not take."""

from __future__ import annotations

import pyarrow as pa

from handlers.errors import UsageError

_WIDER = {
    pa.float16(): pa.float32(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.null(): pa.string(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.date64(): pa.date32(),
}
_TAKEN = {
    *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.binary()),
    pa.date32(),
}


def spark_ready(schema: pa.Schema) -> pa.Schema:
    """`schema` with types that Spark takes and that hold every value, but for times of less than a microsecond.

    Raises:
        UsageError: for a column whose type has none, such as a time of day.
    """
    return pa.schema([pa.field(field.name, _type(field.type, field.name)) for field in schema])


def _type(kind: pa.DataType, column: str) -> pa.DataType:
    if kind in _TAKEN:
        return kind
    if kind in _WIDER:
        return _WIDER[kind]
    if pa.types.is_dictionary(kind):
        return _type(kind.value_type, column)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind):
        return pa.duration("us")
    if pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_decimal(kind) and kind.precision <= 38 and 0 <= kind.scale <= kind.precision:
        return pa.decimal128(kind.precision, kind.scale)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_type(kind.value_type, column))
    if pa.types.is_map(kind):
        return pa.map_(_type(kind.key_type, column), _type(kind.item_type, column))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _type(field.type, column)) for field in kind])
    raise UsageError(f'column "{column}" of the predictions is {kind}, which Spark has no type for; convert it')
