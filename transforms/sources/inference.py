"""Settles the type of a column from a sample of its values, for formats that do not say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from handlers.isolation import isolate

SAMPLE_FILES = 5
SAMPLE_BYTES = 1 << 20
SAMPLE_ROWS = 10_000

T = TypeVar("T")

_TEMPORAL = (pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
# As numbers, these would come out otherwise than they went in: a postcode, an id of 20 digits.
_LEADING_ZERO = r"^[+-]?0\d+$"
_MANY_DIGITS = r"^[+-]?\d{16,}$"


def sampled(files: Sequence[T]) -> list[T]:
    """The files whose heads are the sample: a few, from the first to the last in even steps."""
    count = min(SAMPLE_FILES, len(files))
    return [files[index * (len(files) - 1) // max(count - 1, 1)] for index in range(count)]


def text_type(values: pa.Array, *, numeric: bool) -> pa.DataType:
    """The type of a column of which `values`, strings, are a sample.

    Args:
        values: the sample; nulls do not count.
        numeric: the column feeds a numeric input of the model. What is no number in it then does not decide its type,
            and whole numbers become float64, since a fraction further on must not cost its row.
    """
    values = pc.utf8_trim_whitespace(values.drop_null())
    if not len(values):
        return pa.float64() if numeric else pa.string()
    # Floats before flags, which 0 and 1 in text would be, too.
    for candidate in (*(() if numeric else (pa.int64(),)), pa.float64(), pa.bool_(), *_TEMPORAL):
        if (numeric or not _changes(values, candidate)) and _casts(values, candidate):
            return candidate
    if numeric and len(numbers := _numbers(values)):
        return text_type(numbers, numeric=True)
    return pa.string()


def _changes(values: pa.Array, kind: pa.DataType) -> bool:
    """Whether `values` has digits that a number of type `kind` would not keep."""
    if pa.types.is_temporal(kind):
        return False
    pattern = f"{_LEADING_ZERO}|{_MANY_DIGITS}" if pa.types.is_floating(kind) else _LEADING_ZERO
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def _casts(values: pa.Array, kind: pa.DataType) -> bool:
    try:
        pc.cast(values, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _numbers(values: pa.Array) -> pa.Array:
    """Those of `values` that are numbers."""
    found = isolate(lambda start, stop: pc.cast(values.slice(start, stop - start), pa.float64()), 0, len(values))
    return pa.concat_arrays([values.slice(0, 0), *(values.slice(a, b - a) for a, b, _ in found.results)])


def json_type(values: list[Any], *, numeric: bool) -> pa.DataType | None:
    """The type of a JSON column of which `values` are a sample: that of most of them, where they differ.

    Integers and floats count together, and so do structs whose fields can be united. `numeric` is as for `text_type`.
    None where most values have no type: lists of numbers and text, or integers of more than 64 bits.
    """
    values = [value for value in values if value is not None]
    if numeric:
        values = [value for value in values if not isinstance(value, str)] or values
    if not values:
        return pa.float64() if numeric else pa.string()
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        kind = _majority(values, numeric=numeric)
    if kind is None:
        return None
    if kind == pa.string():
        texts = pa.array([value for value in values if isinstance(value, str)], pa.string())
        return next((each for each in _TEMPORAL if _casts(texts, each)), pa.string())
    return without_nulls(_as_floats(kind) if numeric else kind)


def _as_floats(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_as_floats(kind.value_type))
    return pa.float64() if pa.types.is_integer(kind) else kind


def _majority(values: list[Any], *, numeric: bool) -> pa.DataType | None:
    counts = Counter(_type_of(value, numeric=numeric) for value in values)
    untyped = counts.pop(None, 0)
    groups: list[tuple[pa.DataType, int]] = [(pa.string(), 0)]
    for kind, count in counts.most_common():
        for index, (known, known_count) in enumerate(groups):
            if (united := _united(known, kind)) is not None:
                groups[index] = united, known_count + count
                break
        else:
            groups.append((kind, count))
    kind, count = max(groups, key=lambda group: group[1])
    return kind if count >= untyped else None


def _type_of(value: object, *, numeric: bool) -> pa.DataType | None:
    if numeric and type(value) is int:
        return pa.float64()  # also of more than 64 bits
    try:
        return pa.array([value]).type
    except (pa.ArrowException, OverflowError):
        return None


def _united(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    schemas = [pa.schema([("x", first)]), pa.schema([("x", second)])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def without_nulls(kind: pa.DataType) -> pa.DataType:
    """`kind` with string for what the sample held only nulls of, at any depth."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(without_nulls(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(each.name, without_nulls(each.type)) for each in kind])
    return kind
