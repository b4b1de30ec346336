"""Fields of Beam rows as Arrow columns, and columns as fields."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Optional

import numpy as np
import pyarrow as pa
from apache_beam.portability.api import schema_pb2
from apache_beam.pvalue import Row
from apache_beam.typehints.arrow_type_compatibility import ATOMIC_TYPE_TO_PYARROW
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import LogicalType, named_fields_from_schema
from apache_beam.utils.timestamp import Timestamp

from handlers.columnar.chunks import exact_cast
from transforms.sources.formats.json_rows import texts

Convert = Callable[[Any], Any]

_DECIMAL = pa.decimal256(76, 38)  # any that a Java BigDecimal of a price, rate or quantity holds, without rounding
_TIMESTAMP = pa.timestamp("us", "UTC")  # the resolution of Beam's

_HINTS: dict[pa.DataType, Any] = {
    pa.bool_(): bool,
    pa.int8(): np.int8,
    pa.int16(): np.int16,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint8(): np.int16,
    pa.uint16(): np.int32,
    pa.uint32(): np.int64,
    pa.float16(): np.float32,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
    pa.string(): str,
    pa.large_string(): str,
    pa.binary(): bytes,
    pa.large_binary(): bytes,
    pa.date32(): datetime.date,
}


@dataclass(frozen=True)
class Field:
    """A field of the incoming rows.

    Attributes:
        name: its name.
        kind: the type of its column.
        hint: its type hint, as Beam has it.
        untyped: whether Beam knows no type that Arrow has; the column then has text, or floats for a numeric input.
        plain: makes the values that Arrow takes; None where they are those of Beam.
    """

    name: str
    kind: pa.DataType
    hint: Any
    untyped: bool
    plain: Convert | None

    def array(self, values: Sequence[Any]) -> pa.Array:
        """The column of `values`; raises for one that does not fit, or that would change."""
        if self.untyped and self.kind == pa.string():
            return texts(values)
        if self.plain is not None:
            values = [None if value is None else self.plain(value) for value in values]
        leaf = self.kind
        while pa.types.is_list(leaf):
            leaf = leaf.value_type
        if pa.types.is_integer(leaf):  # to which Arrow would cut fractions off
            return exact_cast(pa.array(values), self.kind)
        return pa.array(values, self.kind)


def fields_of(schema: schema_pb2.Schema, numeric: Callable[[Sequence[str]], frozenset[str]]) -> list[Field]:
    """The fields of rows with the schema `schema`.

    Args:
        schema: Beam's schema of the rows.
        numeric: of the names of all fields, gives those that feed inputs of floats.
    """
    hints = named_fields_from_schema(schema)
    numbers = numeric([name for name, _ in hints])
    fields = []
    for field, (name, hint) in zip(schema.fields, hints, strict=True):
        kind, plain = _arrow(field.type)
        fallback = pa.float64() if name in numbers else pa.string()
        fields.append(Field(name, kind or fallback, hint, kind is None, plain))
    return fields


def _arrow(kind: schema_pb2.FieldType) -> tuple[pa.DataType | None, Convert | None]:
    """The Arrow type of a Beam type, and what makes its values of Beam's; no type for what Arrow has none for."""
    what = kind.WhichOneof("type_info")
    if what == "atomic_type":
        return ATOMIC_TYPE_TO_PYARROW.get(kind.atomic_type), None
    if what in ("array_type", "iterable_type"):
        item, plain = _arrow(getattr(kind, what).element_type)
        return (pa.list_(item), _each(plain, list)) if item else (None, None)
    if what == "row_type":
        parts = [(field.name, *_arrow(field.type)) for field in kind.row_type.schema.fields]
        if not all(item for _, item, _ in parts):
            return None, None

        def as_dict(row: Any) -> dict[str, Any]:
            values = ((name, plain, getattr(row, name)) for name, _, plain in parts)
            return {name: plain(value) if plain and value is not None else value for name, plain, value in values}

        return pa.struct([(name, item) for name, item, _ in parts]), as_dict
    if what == "logical_type":
        try:
            language = LogicalType.from_runner_api(kind.logical_type).language_type()
        except (ValueError, NotImplementedError):
            return None, None
        if language is Timestamp:
            return _TIMESTAMP, lambda value: value.to_utc_datetime(has_tz=True)
        simple = {datetime.date: pa.date32(), Decimal: _DECIMAL, str: pa.string(), bytes: pa.binary()}
        return simple.get(language), None
    return None, None


def _each(convert: Convert | None, make: Callable[[Any], Any]) -> Convert:
    if convert is None:
        return make
    return lambda values: make(None if value is None else convert(value) for value in values)


class Rows:
    """Makes Beam rows of record batches.

    Attributes:
        element_type: the type of the rows, with which Beam knows their schema.
    """

    def __init__(self, schema: pa.Schema, known: Sequence[Field] = ()) -> None:
        """Every field may be null.

        Args:
            schema: the columns.
            known: incoming fields; a column of the name and type of one gets its type hint.
        """
        hints = {field.name: (field.kind, field.hint) for field in known if not field.untyped}
        self._columns: list[tuple[str, Convert | None]] = []
        fields: list[tuple[str, Any]] = []
        for column in schema:
            kind, hint = hints.get(column.name, (None, None))
            made, convert = _beam(column.type)
            fields.append((column.name, nullable(hint if kind == column.type else made)))
            self._columns.append((column.name, convert))
        self.element_type = RowTypeConstraint.from_fields(fields)

    def values(self, batch: pa.RecordBatch) -> list[Row]:
        """The rows of `batch`, with the columns of the schema."""
        columns = []
        for name, convert in self._columns:
            values = batch.column(name).to_pylist()
            if convert is not None:
                values = [None if value is None else convert(value) for value in values]
            columns.append(values)
        names = [name for name, _ in self._columns]
        if not names:
            return [Row()] * batch.num_rows
        return [Row(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _beam(kind: pa.DataType) -> tuple[Any, Convert | None]:
    """The type hint of a column, and what makes Beam's values of those that Arrow gives; text for what Beam has no type for."""
    if kind in _HINTS:
        return _HINTS[kind], None
    if pa.types.is_dictionary(kind):
        return _beam(kind.value_type)
    if pa.types.is_timestamp(kind):
        return Timestamp, _timestamp
    if pa.types.is_decimal(kind):
        return Decimal, _decimal
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        hint, convert = _beam(kind.value_type)
        return Sequence[nullable(hint)], _each(convert, list) if convert else None  # type: ignore[misc]
    if pa.types.is_struct(kind):
        parts = [(field.name, *_beam(field.type)) for field in kind]

        def as_row(found: dict[str, Any]) -> Row:
            values = ((name, convert, found[name]) for name, _, convert in parts)
            return Row(
                **{name: convert(value) if convert and value is not None else value for name, convert, value in values}
            )

        return RowTypeConstraint.from_fields([(name, nullable(hint)) for name, hint, _ in parts]), as_row
    return str, str


def nullable(hint: Any) -> Any:
    """A type hint that allows null, in the form that Beam knows."""
    return Optional[hint]  # noqa: UP045


def _timestamp(value: datetime.datetime) -> Timestamp:
    utc = value.astimezone(datetime.UTC) if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    return Timestamp.from_utc_datetime(utc)


def _decimal(value: Decimal) -> Decimal:
    """`value` without the zeros that the type of the column adds."""
    short = value.normalize()
    return short if short.as_tuple().exponent <= 0 else short.quantize(Decimal(1))  # type: ignore[operator]
