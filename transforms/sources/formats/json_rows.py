"""Lines of JSON objects as columns, by Arrow where it can read them and by Python where it cannot."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from handlers.columnar.chunks import NUMBERS
from transforms.sources.blocks import batch_of
from transforms.sources.digits import SAFE_DIGITS, dumps, has_floats, held, keeps_digits, loads, number_texts

_OPEN, _CLOSE = b"{}"
_HUGE = re.compile(rb"[eE][+-]?[0-9]{3}")  # or tiny
_IN_NUMBER = bytes(code in b"+-.0123456789eE" for code in range(256))


def parse(
    lines: list[bytes], schema: pa.Schema, untyped: Collection[str] = (), *, strict: bool = True
) -> pa.RecordBatch:
    """The rows of `lines` with the columns of `schema`. Raises if a line is not one JSON object that fits it.

    A field without a column fits only if not `strict`, and then has no value in the result.
    """
    if {line[0] for line in lines} != {_OPEN} or {line[-1] for line in lines} != {_CLOSE}:
        raise ValueError("it is no JSON object")  # and Arrow crashes on a lone `null`
    data = b"\n".join(lines)
    data.decode()  # Arrow does not check that strings are UTF-8
    by_arrow = [each for each in schema if not _by_python(each, untyped)]
    rows = [loads(line) for line in lines] if len(by_arrow) < len(schema) else []
    if strict and any(any(unknown_fields(row, schema, untyped)) for row in rows):
        raise ValueError("it has a field without a column")
    _check_digits(lines, data, [each for each in by_arrow if has_floats(each.type)])
    table = pajson.read_json(
        pa.BufferReader(data),
        read_options=pajson.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pajson.ParseOptions(
            explicit_schema=pa.schema([(each.name, _as_read(each.type)) for each in by_arrow]),
            unexpected_field_behavior="error" if strict and not rows else "ignore",
        ),
    )
    if table.num_rows != len(lines):
        raise ValueError("it is more than one JSON object")

    def column(each: pa.Field) -> pa.Array:
        if each.name in untyped:
            return texts(row.get(each.name) for row in rows)
        if _by_python(each, untyped):
            return number_texts((row.get(each.name) for row in rows), each.type)
        return pa.concat_arrays(pc.cast(table.column(each.name), each.type).chunks)

    return batch_of([column(each) for each in schema], schema, len(lines))


def _by_python(column: pa.Field, untyped: Collection[str]) -> bool:
    """Whether a column is read as text from values that may be none, which Arrow cannot."""
    return column.name in untyped or column.metadata == NUMBERS


def _check_digits(lines: list[bytes], data: bytes, columns: Sequence[pa.Field]) -> None:
    """Raises if one of the `lines`, together `data`, has a number that float64 does not hold in one of `columns`.

    Arrow reads it as the nearest that float64 has. Only lines with numbers that are long are looked at closer.
    """
    if not columns or _surely_all_held(data):
        return
    found = _number_pattern(tuple(columns)).findall(data)
    if not _all_held(pa.array(found, pa.binary()).cast(pa.string())):
        for row in map(loads, lines):
            if not all(keeps_digits(row.get(each.name), each.type) for each in columns):
                raise ValueError("float64 does not hold all digits")


def _surely_all_held(data: bytes) -> bool:
    """Whether float64 holds all numbers in JSON text, in strings, too, as far as a quick look shows."""
    if any(_HUGE.match(data, mark) for mark in _exponents(data)):
        return False
    in_number = np.frombuffer(data.translate(_IN_NUMBER), np.int8)
    edges = np.flatnonzero(in_number[1:] != in_number[:-1]) + 1  # the text neither begins nor ends with a number
    starts, ends = edges[::2], edges[1::2]
    long = ends - starts > SAFE_DIGITS
    if not long.any():
        return True
    # Arrow's offsets leave no gaps, so that every other value is what lies between two numbers.
    offsets = np.column_stack([starts[long], ends[long]]).astype(np.int32).ravel()
    offsets = np.append(offsets, np.int32(len(data)))
    texts = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    return _all_held(texts.take(pa.array(np.arange(0, len(texts), 2))))


def _exponents(data: bytes) -> list[int]:
    """Where in JSON text an exponent may begin."""
    codes = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero((codes | 0x20) == ord("e"))
    return list(marks[np.isin(codes.take(marks + 1, mode="clip"), list(b"+-0123456789"))].tolist())


def _all_held(texts: pa.Array) -> bool:
    try:
        return bool(held(texts, pc.cast(texts, pa.float64())).all())
    except pa.ArrowInvalid:  # an address of dots and digits, out of a string
        return False


@functools.lru_cache(maxsize=16)
def _number_pattern(columns: tuple[pa.Field, ...]) -> re.Pattern[bytes]:
    """Finds the numbers of many digits, or of a large exponent, that may be floats of `columns`."""
    number = rb"-?(?:\d[\d.]{15,}(?:[eE][+-]?\d+)?|\d[\d.]*[eE][+-]?\d{3,})"
    names = [each.name for each in columns]
    if not all(pa.types.is_floating(each.type) and re.fullmatch(r"[\w .-]+", each.name, re.ASCII) for each in columns):
        return re.compile(number)
    # A name may be escaped, which hardly anyone does: then all numbers are looked at.
    keys = "|".join(map(re.escape, names)).encode()
    return re.compile(rb'(?:"(?:' + keys + rb')"|\\u[^"]*")\s*:\s*(' + number + rb")")


def texts(values: Iterable[object]) -> pa.Array:
    """JSON values as strings: text as it is, others as their JSON, null as null."""
    return pa.array(
        [value if value is None or isinstance(value, str) else dumps(value) for value in values], pa.string()
    )


def _as_read(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_date(kind) else kind  # Arrow reads a date only from a number of days


def unknown_fields(row: dict[str, Any], schema: pa.Schema, untyped: Collection[str] = ()) -> Iterator[str]:
    """The names of the fields of `row` that hold a value for which `schema` has no field, at any depth."""
    known = {each.name: each.type for each in schema if each.name not in untyped}
    for name, value in row.items():
        if name not in untyped and _is_unknown(value, known.get(name)):
            yield name


def _is_unknown(value: object, kind: pa.DataType | None) -> bool:
    if value is None:
        return False
    if kind is None:
        return True
    if pa.types.is_list(kind) and isinstance(value, list):
        return any(_is_unknown(item, kind.value_type) for item in value)
    if pa.types.is_struct(kind) and isinstance(value, dict):
        known = {each.name: each.type for each in kind}
        return any(_is_unknown(item, known.get(name)) for name, item in value.items())
    return False


def load(line: bytes, read: Callable[[bytes], Any] = loads) -> dict[str, Any] | Exception:
    """The object that a line is, or why it is none; `read` reads JSON, by default with all digits."""
    try:
        row = read(line)
    except (ValueError, RecursionError) as error:
        return error
    return row if isinstance(row, dict) else ValueError("it is no JSON object")


def not_utf8(line: bytes, row: dict[str, Any]) -> str | None:
    """The first field of `row`, read from `line`, with a lone surrogate: JSON can escape it, UTF-8 cannot encode it."""
    if b"\\ud" not in line.lower():
        return None
    return next((name for name, value in row.items() if not is_utf8([name, value])), None)


def is_utf8(value: object) -> bool:
    """Whether no text in a JSON value, names of fields included, has a lone surrogate."""
    try:
        dumps(value).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def as_utf8(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with a question mark for each lone surrogate, and without the fields that are named by one."""
    return {name: loads(dumps(value).encode(errors="replace")) for name, value in row.items() if is_utf8(name)}
