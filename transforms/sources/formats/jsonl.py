"""JSON lines: every line that is not blank is a row, one JSON object.

A row with a field that the schema lacks is refused, unless the value is null. A field that a line lacks is null, also
where the model needs it: which fields a file has is known only at its end. Values of a column that have no type in
common, or whose digits float64 does not hold, become text: text as it is, others as their JSON.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from handlers.columnar.chunks import DEAD_LETTER, MODEL_DEAD_LETTER_TYPE, NUMBERS
from handlers.columnar.threads import in_threads
from handlers.errors import BrokenFileError, one_line
from handlers.failures import RowFailure
from handlers.isolation import isolate
from transforms.sources.blocks import (
    Block,
    Numeric,
    Plan,
    ReadOptions,
    Split,
    convert,
    is_dead_letter,
    misfit,
)
from transforms.sources.digits import Literal, dumps, keeps_digits
from transforms.sources.files import InputFile
from transforms.sources.formats.json_rows import as_utf8, is_utf8, load, not_utf8, parse, texts, unknown_fields
from transforms.sources.formats.lines import head_lines, line_blocks
from transforms.sources.inference import HEAD_BYTES, HEAD_THREADS, SAMPLE_BYTES, SAMPLE_ROWS, json_field, sampled

NAME = "jsonl"
EXTENSIONS = (".jsonl", ".ndjson", ".json")
COMPRESSED = True

# More threads would hold more blocks than they save time: reading the text itself is one thread's work.
PARSERS = 4
HEAD_FILES = 1_000
ALL_HEADS_BYTES = 16 << 20  # of all heads together: many files must not take longer to plan than to read

_NUMBERS: set[type] = {type(None), int, float, Literal, str, list}


def plan(files: Sequence[InputFile], numeric: Numeric) -> Plan:
    """Settles the columns from samples of a few files and the heads of many; one split a file."""
    splits = [Split(file.path, NAME, file.partitions) for file in files]
    columns: dict[str, list[Any]] = {}
    samples = sampled(splits)
    whole = len(samples) == len(splits)
    for split in samples:
        rows, is_whole = _sample(split)
        whole = whole and is_whole
        for row in rows:
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    fields = _settled(columns, numeric, whole)
    added: set[str] = set()
    for name, value in _unsampled_fields(splits, set(samples), *_typed(fields)):
        added.add(name)
        columns.setdefault(name, []).append(value)
    if added:
        numbers = frozenset(numeric(columns))
        fields |= _settled({name: columns[name] for name in columns if name in added}, lambda _: numbers, whole)
    schema, untyped = _typed(fields)
    return Plan(schema, [replace(split, untyped=untyped) for split in splits])


def _settled(columns: dict[str, list[Any]], numeric: Numeric, whole: bool) -> dict[str, pa.Field | None]:
    numbers = numeric(columns)
    fields = {name: json_field(name, values, numeric=name in numbers, whole=whole) for name, values in columns.items()}
    letter = fields.get(DEAD_LETTER)
    if letter is not None and is_dead_letter(letter.type):
        fields[DEAD_LETTER] = pa.field(DEAD_LETTER, MODEL_DEAD_LETTER_TYPE)  # the sample may have only nulls in a field
    return fields


def _typed(fields: dict[str, pa.Field | None]) -> tuple[pa.Schema, frozenset[str]]:
    """The schema of `fields`, and which of them have no type and are read as text."""
    schema = pa.schema([each or pa.field(name, pa.string()) for name, each in fields.items()])
    return schema, frozenset(name for name, each in fields.items() if each is None)


def _unsampled_fields(
    splits: Sequence[Split], samples: Collection[Split], schema: pa.Schema, untyped: Collection[str]
) -> Iterator[tuple[str, object]]:
    """The fields that `schema` lacks, with their values, in the heads of the files that were not sampled."""
    others = [split for split in sampled(splits, HEAD_FILES) if split not in samples]
    size = min(HEAD_BYTES, ALL_HEADS_BYTES // max(len(others), 1))
    with ThreadPoolExecutor(HEAD_THREADS) as pool:
        for found in pool.map(lambda split: _new_fields(split, size, schema, untyped), others):
            yield from found


def _new_fields(split: Split, size: int, schema: pa.Schema, untyped: Collection[str]) -> list[tuple[str, object]]:
    try:
        lines, _ = head_lines(split, size, SAMPLE_ROWS)
    except Exception:
        return []  # the file fails when it is read, with a reason
    lines = [line.strip() for line in lines]
    try:
        if lines:
            parse(lines, schema, untyped)  # many times quicker than a look at each value
        return []
    except Exception:
        rows = [as_utf8(row) for row in map(load, lines) if isinstance(row, dict)]
    return [(name, row[name]) for row in rows for name in unknown_fields(row, schema, untyped)]


def _sample(split: Split) -> tuple[list[dict[str, Any]], bool]:
    """The first rows of a file, and whether these are all of them."""
    try:
        lines, whole = head_lines(split, SAMPLE_BYTES, SAMPLE_ROWS)
    except Exception:
        return [], False  # the file fails when it is read, with a reason
    rows = []
    for line in lines:
        row = load(line)
        if isinstance(row, dict):
            rows.append(row if not_utf8(line, row) is None else as_utf8(row))
    return rows, whole


def blocks(split: Split, schema: pa.Schema, _options: ReadOptions) -> Iterator[Block]:
    """Reads the lines of a file. A line that is no JSON object or holds a value that does not fit is refused."""

    def parsed(block: tuple[int, list[bytes]]) -> list[Block]:
        number, raw = block
        lines = [line.strip() for line in raw]
        if number == 0 and _opens_array(lines[0]):
            raise BrokenFileError(f"{split.name} is a JSON array; write one JSON object a line instead")
        numbers = np.arange(number, number + len(lines), dtype=np.int64)
        return list(rows_of(lines, numbers, schema, split))

    threads = min(PARSERS, pa.cpu_count())
    with closing(in_threads(parsed, line_blocks(split), threads, "parse")) as found:
        yield from chain.from_iterable(found)


def rows_of(
    lines: list[bytes], numbers: np.ndarray, schema: pa.Schema, split: Split, *, strict: bool = True
) -> Iterator[Block]:
    """The rows of `lines`, which have no space around them: those that fit `schema`, then those that do not, as refused.

    A field without a column is refused only if `strict`.
    """
    batches, errors = _sift(lines, schema, split.untyped, strict=strict)
    bad = sorted(errors)
    if batches:
        yield Block(pa.concat_batches(batches), np.delete(numbers, bad))
    if bad:
        failed = [errors[row] for row in bad]
        yield _refused([lines[row] for row in bad], numbers[bad], failed, schema, split, strict=strict)


def _opens_array(line: bytes) -> bool:
    if not line.startswith(b"["):
        return False
    try:
        return any(isinstance(each, dict) for each in json.loads(line))
    except ValueError:
        return True


def _sift(
    lines: list[bytes], schema: pa.Schema, untyped: Collection[str], *, strict: bool
) -> tuple[list[pa.RecordBatch], dict[int, Exception]]:
    """The rows of those `lines` that fit `schema`, in order, and by position why the others do not."""
    try:
        return [parse(lines, schema, untyped, strict=strict)], {}
    except Exception:
        rows = [load(line, json.loads) for line in lines]
    # What surely does not fit is set apart in one go, since halving takes long where many lines are bad.
    kinds = _kinds(schema, untyped)
    errors: dict[int, Exception] = {}
    for position, row in enumerate(rows):
        if isinstance(row, Exception):
            errors[position] = row
        elif any(type(row.get(name)) not in fitting for name, fitting in kinds.items()):
            errors[position] = ValueError("a value does not fit its column")
        elif not_utf8(lines[position], row) is not None:
            errors[position] = ValueError("it is not valid UTF-8")
    rest = [position for position in range(len(lines)) if position not in errors]
    try:
        return [parse([lines[each] for each in rest], schema, untyped, strict=strict)], errors
    except Exception:
        # A look at every digit takes much longer, so it comes after all that is quick.
        for position in rest:
            row = load(lines[position])
            if isinstance(row, Exception):
                errors[position] = row
            elif not all(keeps_digits(row.get(each.name), each.type) for each in schema):
                errors[position] = ValueError("float64 does not hold all digits")
            elif strict and any(unknown_fields(row, schema, untyped)):
                errors[position] = ValueError("it has a field without a column")
    rest = [position for position in rest if position not in errors]
    found = isolate(
        lambda start, stop: parse([lines[each] for each in rest[start:stop]], schema, untyped, strict=False),
        0,
        len(rest),
    )
    errors |= {rest[index]: error for index, error in found.failures}
    return [batch for _, _, batch in found.results], errors


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
    lines: list[bytes], numbers: np.ndarray, errors: list[Exception], schema: pa.Schema, split: Split, *, strict: bool
) -> Block:
    """The rows of `lines`, none of which fits `schema` whole, with those values that do fit."""
    loaded = [row if isinstance(row, dict) else {} for row in map(load, lines)]
    rows = list(loaded)
    kinds = _kinds(schema, split.untyped)
    broken = [not_utf8(line, row) for line, row in zip(lines, rows, strict=True)]
    readable = list(lines)
    for position, name in enumerate(broken):
        if name is not None:  # Arrow refuses such a line whole: the other fields are read from a line without this one
            rows[position] = {key: value for key, value in rows[position].items() if is_utf8([key, value])}
            readable[position] = dumps(rows[position]).encode()

    def column(each: pa.Field, start: int, stop: int) -> pa.Array:
        if each.name in split.untyped:
            return texts(row.get(each.name) for row in rows[start:stop])
        name, fitting = each.name, kinds[each.name]
        some = zip(rows[start:stop], readable[start:stop], strict=True)
        return parse(
            [line if row and type(row.get(name)) in fitting else b"{}" for row, line in some],
            pa.schema([each]),
            strict=False,
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
        elif strict and (name := next(unknown_fields(row, schema, split.untyped), None)) is not None:
            refusals[position] = _without_column(name, name in kinds, numbers[position], split, text)
        else:
            error = errors[position]
            message = f"row {numbers[position]} of {split.name} cannot be read: {one_line(error)}"
            refusals[position] = RowFailure("read", type(error).__name__, message, text)
    return Block(batch, numbers, refusals)


def _surrogate(name: str, row: dict[str, Any], number: int, split: Split, text: str) -> RowFailure:
    """The refusal of a row whose field `name` holds a lone surrogate."""
    if is_utf8(name):
        return misfit(pa.field(name, pa.string()), row[name], number, split, text, expected="valid UTF-8")
    message = f"row {number} of {split.name} has a field {json.dumps(name)}, whose name is not valid UTF-8"
    return RowFailure("read", "ValueError", message, text)


def _without_column(name: str, nested: bool, number: int, split: Split, text: str) -> RowFailure:
    """The refusal of a row whose field `name`, or a field in it if `nested`, has no column."""
    what = f"a field in {dumps(name)}" if nested else f"a field {dumps(name)}"
    message = (
        f"row {number} of {split.name} has {what} that no sampled row has, so there is no column for it; "
        "move a row with this field to the start of its file"
    )
    return RowFailure("read", "ValueError", message, text)
