"""JSON lines: every line that is not blank is a row, one JSON object.

Fields that are not in the schema are left out. One that a line lacks is null, also where the model needs it: which
fields a file has is known only at its end. Values of a column that have no type in common, or whose digits float64
does not hold, become text: text as it is, others as their JSON.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from handlers.columnar.chunks import DEAD_LETTER, DEAD_LETTER_TYPE, NUMBERS
from handlers.errors import BrokenFileError, one_line
from handlers.failures import RowFailure
from handlers.isolation import isolate
from transforms.sources.blocks import (
    Block,
    Numeric,
    Plan,
    ReadOptions,
    Split,
    batch_of,
    convert,
    is_dead_letter,
    misfit,
)
from transforms.sources.digits import Literal, dumps, has_floats, held, keeps_digits, loads, number_texts
from transforms.sources.files import InputFile
from transforms.sources.formats.lines import head_lines, line_blocks
from transforms.sources.inference import SAMPLE_BYTES, SAMPLE_ROWS, json_field, sampled

NAME = "jsonl"
EXTENSIONS = (".jsonl", ".ndjson", ".json")
COMPRESSED = True

_OPEN, _CLOSE = b"{}"
_NUMBERS: set[type] = {type(None), int, float, Literal, str, list}


def plan(files: Sequence[InputFile], numeric: Numeric) -> Plan:
    """Settles the columns from the heads of a few files, spread over all of them; one split a file."""
    splits = [Split(file.path, NAME, file.partitions) for file in files]
    columns: dict[str, list[Any]] = {}
    heads = sampled(splits)
    whole = len(heads) == len(splits)
    for split in heads:
        rows, is_whole = _sample(split)
        whole = whole and is_whole
        for row in rows:
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    numbers = numeric(columns)
    found = {name: json_field(name, values, numeric=name in numbers, whole=whole) for name, values in columns.items()}
    untyped = frozenset(name for name, each in found.items() if each is None)
    fields = {name: each or pa.field(name, pa.string()) for name, each in found.items()}
    if DEAD_LETTER in fields and is_dead_letter(fields[DEAD_LETTER].type):
        fields[DEAD_LETTER] = pa.field(DEAD_LETTER, DEAD_LETTER_TYPE)  # the sample may have only nulls in a field
    return Plan(pa.schema(list(fields.values())), [replace(split, untyped=untyped) for split in splits])


def _sample(split: Split) -> tuple[list[dict[str, Any]], bool]:
    """The first rows of a file, and whether these are all of them."""
    try:
        lines, whole = head_lines(split, SAMPLE_BYTES, SAMPLE_ROWS)
    except Exception:
        return [], False  # the file fails when it is read, with a reason
    rows = []
    for line in lines:
        row = _load(line)
        if isinstance(row, dict):
            rows.append(row if _not_utf8(line, row) is None else _as_utf8(row))
    return rows, whole


def blocks(split: Split, schema: pa.Schema, _options: ReadOptions) -> Iterator[Block]:
    """Reads the lines of a file. A line that is no JSON object or holds a value that does not fit is refused."""
    for number, raw in line_blocks(split):
        lines = [line.strip() for line in raw]
        if number == 0 and _opens_array(lines[0]):
            raise BrokenFileError(f"{split.name} is a JSON array; write one JSON object a line instead")
        numbers = np.arange(number, number + len(lines), dtype=np.int64)
        batches, errors = _sift(lines, schema, split.untyped)
        bad = sorted(errors)
        if batches:
            yield Block(pa.concat_batches(batches), np.delete(numbers, bad))
        if bad:
            failed = [errors[row] for row in bad]
            yield _refused([lines[row] for row in bad], numbers[bad], failed, schema, split)


def _opens_array(line: bytes) -> bool:
    if not line.startswith(b"["):
        return False
    try:
        return any(isinstance(each, dict) for each in json.loads(line))
    except ValueError:
        return True


def _sift(
    lines: list[bytes], schema: pa.Schema, untyped: Collection[str]
) -> tuple[list[pa.RecordBatch], dict[int, Exception]]:
    """The rows of those `lines` that fit `schema`, in order, and by position why the others do not."""
    try:
        return [_parse(lines, schema, untyped)], {}
    except Exception:
        rows = [_load(line) for line in lines]
    # What surely does not fit is set apart in one go, since halving takes long where many lines are bad.
    kinds = _kinds(schema, untyped)
    errors: dict[int, Exception] = {}
    for position, row in enumerate(rows):
        if isinstance(row, Exception):
            errors[position] = row
        elif any(type(row.get(name)) not in fitting for name, fitting in kinds.items()):
            errors[position] = ValueError("a value does not fit its column")
        elif not all(keeps_digits(row.get(each.name), each.type) for each in schema):
            errors[position] = ValueError("float64 does not hold all digits")
        elif _not_utf8(lines[position], row) is not None:
            errors[position] = ValueError("it is not valid UTF-8")
    rest = [position for position in range(len(lines)) if position not in errors]
    found = isolate(
        lambda start, stop: _parse([lines[each] for each in rest[start:stop]], schema, untyped), 0, len(rest)
    )
    errors |= {rest[index]: error for index, error in found.failures}
    return [batch for _, _, batch in found.results], errors


def _parse(lines: list[bytes], schema: pa.Schema, untyped: Collection[str] = ()) -> pa.RecordBatch:
    """The rows of `lines` with the columns of `schema`. Raises if a line is not one JSON object that fits it."""
    if {line[0] for line in lines} != {_OPEN} or {line[-1] for line in lines} != {_CLOSE}:
        raise ValueError("it is no JSON object")  # and Arrow crashes on a lone `null`
    data = b"\n".join(lines)
    data.decode()  # Arrow does not check that strings are UTF-8
    by_arrow = [each for each in schema if not _by_python(each, untyped)]
    _check_digits(lines, data, [each for each in by_arrow if has_floats(each.type)])
    table = pajson.read_json(
        pa.BufferReader(data),
        read_options=pajson.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pajson.ParseOptions(
            explicit_schema=pa.schema([(each.name, _as_read(each.type)) for each in by_arrow]),
            unexpected_field_behavior="ignore",
        ),
    )
    if table.num_rows != len(lines):
        raise ValueError("it is more than one JSON object")
    rows = [loads(line) for line in lines] if len(by_arrow) < len(schema) else []

    def column(each: pa.Field) -> pa.Array:
        if each.name in untyped:
            return _texts(row.get(each.name) for row in rows)
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
    if not columns:
        return
    if not _all_held(_number_pattern(tuple(columns)).findall(data)):
        for row in map(loads, lines):
            if not all(keeps_digits(row.get(each.name), each.type) for each in columns):
                raise ValueError("float64 does not hold all digits")


def _all_held(texts: list[bytes]) -> bool:
    array = pa.array(texts, pa.binary()).cast(pa.string())
    try:
        return bool(held(array, pc.cast(array, pa.float64())).all())
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


def _texts(values: Iterable[object]) -> pa.Array:
    return pa.array(
        [value if value is None or isinstance(value, str) else dumps(value) for value in values], pa.string()
    )


def _as_read(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_date(kind) else kind  # Arrow reads a date only from a number of days


def _kinds(schema: pa.Schema, untyped: Collection[str]) -> dict[str, set[type]]:
    """By column, the Python types of the JSON values that may fit it. Anything fits those that are `untyped`."""
    kinds = {each.name: _python_types(each.type) for each in schema if each.name not in untyped}
    return kinds | {each.name: _NUMBERS for each in schema if each.metadata == NUMBERS}


def _python_types(kind: pa.DataType) -> set[type]:
    """The Python types of the JSON values that may fit a column of type `kind`."""
    if pa.types.is_floating(kind):
        return {type(None), int, float, Literal}
    if pa.types.is_integer(kind):
        return {type(None), int}
    if pa.types.is_boolean(kind):
        return {type(None), bool}
    if pa.types.is_list(kind):
        return {type(None), list}
    return {type(None), dict if pa.types.is_struct(kind) else str}


def _refused(
    lines: list[bytes], numbers: np.ndarray, errors: list[Exception], schema: pa.Schema, split: Split
) -> Block:
    """The rows of `lines`, none of which fits `schema` whole, with those values that do fit."""
    loaded = [row if isinstance(row, dict) else {} for row in map(_load, lines)]
    rows = list(loaded)
    kinds = _kinds(schema, split.untyped)
    broken = [_not_utf8(line, row) for line, row in zip(lines, rows, strict=True)]
    readable = list(lines)
    for position, name in enumerate(broken):
        if name is not None:  # Arrow refuses such a line whole: the other fields are read from a line without this one
            rows[position] = {key: value for key, value in rows[position].items() if _is_utf8([key, value])}
            readable[position] = dumps(rows[position]).encode()

    def column(each: pa.Field, start: int, stop: int) -> pa.Array:
        if each.name in split.untyped:
            return _texts(row.get(each.name) for row in rows[start:stop])
        name, fitting = each.name, kinds[each.name]
        some = zip(rows[start:stop], readable[start:stop], strict=True)
        return _parse(
            [line if row and type(row.get(name)) in fitting else b"{}" for row, line in some], pa.schema([each])
        )[0]

    batch, misfits = convert(schema, len(lines), column)
    refusals = {}
    for position, row in enumerate(rows):
        text = lines[position].decode(errors="replace")
        wrong = (schema.field(name) for name, fitting in kinds.items() if type(row.get(name)) not in fitting)
        if (name := broken[position]) is not None:
            refusals[position] = _surrogate(name, loaded[position], numbers[position], split, text)
        elif (field := next(wrong, misfits.get(position))) is not None:
            refusals[position] = misfit(field, row.get(field.name), numbers[position], split, text)
        else:
            error = errors[position]
            message = f"row {numbers[position]} of {split.name} cannot be read: {one_line(error)}"
            refusals[position] = RowFailure("read", type(error).__name__, message, text)
    return Block(batch, numbers, refusals)


def _surrogate(name: str, row: dict[str, Any], number: int, split: Split, text: str) -> RowFailure:
    """The refusal of a row whose field `name` holds a lone surrogate."""
    if _is_utf8(name):
        return misfit(pa.field(name, pa.string()), row[name], number, split, text, expected="valid UTF-8")
    message = f"row {number} of {split.name} has a field {json.dumps(name)}, whose name is not valid UTF-8"
    return RowFailure("read", "ValueError", message, text)


def _not_utf8(line: bytes, row: dict[str, Any]) -> str | None:
    """The first field of `row`, read from `line`, with a lone surrogate: JSON has an escape for it, UTF-8 has nothing."""
    if b"\\ud" not in line.lower():
        return None
    return next((name for name, value in row.items() if not _is_utf8([name, value])), None)


def _is_utf8(value: object) -> bool:
    try:
        dumps(value).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _as_utf8(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with a question mark for each lone surrogate, and without the fields that are named by one."""
    return {name: loads(dumps(value).encode(errors="replace")) for name, value in row.items() if _is_utf8(name)}


def _load(line: bytes) -> dict[str, Any] | Exception:
    try:
        row = loads(line)
    except (ValueError, RecursionError) as error:
        return error
    return row if isinstance(row, dict) else ValueError("it is no JSON object")
