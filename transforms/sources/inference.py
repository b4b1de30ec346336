"""Settles the type of a column from a sample of its values, for formats that do not say it.

No type is settled in which a value of the sample would lose digits. What comes after the sample and does not fit costs
its row, so columns that feed inputs of floats get a type that holds whole numbers and fractions alike: float64, or text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chunks import NUMBERS
from handlers.isolation import isolate
from transforms.sources.digits import has_floats, held, keeps_digits

SAMPLE_FILES = 5
SAMPLE_BYTES = 1 << 20
SAMPLE_ROWS = 10_000

T = TypeVar("T")

_TEMPORAL = (pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
# As numbers, these would come out otherwise than they went in: a postcode or a hash; as floats, an id of 20 digits.
_CODE = r"^[+-]?0[\dxX]"
_ID = rf"{_CODE}|^[+-]?\d{{16,}}$"


def sampled(files: Sequence[T]) -> list[T]:
    """The files whose heads are the sample: a few, from the first to the last in even steps."""
    count = min(SAMPLE_FILES, len(files))
    return [files[index * (len(files) - 1) // max(count - 1, 1)] for index in range(count)]


def text_field(name: str, values: pa.Array, *, numeric: bool, whole: bool = False) -> pa.Field:
    """The column called `name` of which `values`, strings, are a sample; see `text_type`."""
    kind, metadata = _settled_text(pc.utf8_trim_whitespace(values.drop_null()), numeric, whole)
    return pa.field(name, kind, metadata=metadata)


def text_type(values: pa.Array, *, numeric: bool, whole: bool = False) -> pa.DataType:
    """The type of a column of which `values`, strings, are a sample.

    Args:
        values: the sample; nulls do not count.
        numeric: the column feeds an input of floats. What is no number in it then does not decide its type, and whole
            numbers become float64, since a fraction further on must not cost its row; where float64 does not hold one
            of them, text. The field of `text_field` then has the metadata `NUMBERS`.
        whole: the sample is all that there is, and numbers that float64 does not hold become int64 where that holds all.
    """
    return text_field("", values, numeric=numeric, whole=whole).type


def _settled_text(values: pa.Array, numeric: bool, whole: bool) -> tuple[pa.DataType, dict[bytes, bytes] | None]:
    if not len(values):
        return pa.float64() if numeric else pa.string(), None
    # Floats before flags, which 0 and 1 in text would be, too.
    if not numeric:
        for candidate, code in ((pa.int64(), _CODE), (pa.float64(), _ID)):
            if _holds(values, candidate) and not pc.any(pc.match_substring_regex(values, code)).as_py():
                return candidate, None
    elif _casts(values, pa.float64()):
        return _settled_numbers(values, whole)
    for candidate in (pa.bool_(), *_TEMPORAL):
        if _casts(values, candidate):
            return candidate, None
    if numeric and len(numbers := _numbers(values)):
        return _settled_numbers(numbers, whole)
    return pa.string(), None


def _settled_numbers(values: pa.Array, whole: bool) -> tuple[pa.DataType, dict[bytes, bytes] | None]:
    if _holds(values, pa.float64()):
        return pa.float64(), None
    return (pa.int64(), None) if whole and _casts(values, pa.int64()) else (pa.string(), NUMBERS)


def _holds(values: pa.Array, kind: pa.DataType) -> bool:
    """Whether `values` are numbers of type `kind`, and keep their digits as such."""
    try:
        numbers = pc.cast(values, kind)
    except pa.ArrowInvalid:
        return False
    return not pa.types.is_floating(kind) or bool(held(values, numbers).all())


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


def json_field(name: str, values: list[Any], *, numeric: bool, whole: bool = False) -> pa.Field | None:
    """The JSON column called `name` of which `values` are a sample; see `json_type`."""
    kind, metadata = _settled_json(values, numeric, whole)
    return None if kind is None else pa.field(name, kind, metadata=metadata)


def json_type(values: list[Any], *, numeric: bool, whole: bool = False) -> pa.DataType | None:
    """The type of a JSON column of which `values` are a sample: that of most of them, where they differ.

    Integers and floats count together, and so do structs whose fields can be united. `numeric` and `whole` are as for
    `text_type`. None where most values have no type (lists of numbers and text, or integers of more than 64 bits), or
    where float64 does not hold one of them.
    """
    return _settled_json(values, numeric, whole)[0]


def _settled_json(
    values: list[Any], numeric: bool, whole: bool
) -> tuple[pa.DataType | None, dict[bytes, bytes] | None]:
    values = [value for value in values if value is not None]
    if numeric:
        values = [value for value in values if not isinstance(value, str)] or values
    if not values:
        return pa.float64() if numeric else pa.string(), None
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        kind = _majority(values, numeric=numeric)
    if kind is None:
        return None, None
    if kind == pa.string():
        texts = pa.array([value for value in values if isinstance(value, str)], pa.string())
        return next((each for each in _TEMPORAL if _casts(texts, each)), pa.string()), None
    settled = without_nulls(_as_floats(kind) if numeric else kind)
    if not has_floats(settled) or all(keeps_digits(value, settled) for value in values):
        return settled, None
    if not numeric or pa.types.is_struct(settled):
        return None, None
    if whole and not has_floats(kind):
        return without_nulls(kind), None
    return _as_texts(settled), NUMBERS


def _as_texts(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_as_texts(kind.value_type))
    return pa.string() if pa.types.is_floating(kind) else kind


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
