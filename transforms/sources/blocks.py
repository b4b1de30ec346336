"""What the readers of all formats share: the split that is read, the blocks of rows it gives, columns that fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chunks import DEAD_LETTER, exact_cast
from handlers.errors import BrokenFileError
from handlers.failures import RowFailure, RowFailures
from handlers.isolation import isolate
from transforms.sources.digits import dumps, keeps_digits
from transforms.sources.files import Partitions

# Of the names of all columns, gives those that feed numeric inputs of the model.
Numeric = Callable[[Collection[str]], Collection[str]]

CHUNK_ROWS = 65_536
MAX_CHUNK_BYTES = 64 << 20
_MANY_VALUES = 50_000  # of a block; starting threads takes as long as casting a few thousand


@dataclass(frozen=True)
class Split:
    """A file or a part of one; each is read by one worker.

    Attributes:
        path: the file.
        format: name of its format.
        partitions: the `key=value` folders that it lies in.
        row_groups: first and one past the last row group of a Parquet file; None for all.
        first_row: row number in the file of the first row.
        rows: how many rows the split holds, where metadata says.
        bytes: its share of the size of the file.
        whole: it is all of the file.
        max_rows: read no more than this many.
        replay: the rows may be dead letters of an earlier run.
        stream: number and name of the stream of a BigQuery table that is read.
        untyped: columns of JSON lines whose values have no type in common; they are read as the text of their JSON.
    """

    path: str
    format: str
    partitions: Partitions = ()
    row_groups: tuple[int, int] | None = None
    first_row: int = 0
    rows: int | None = None
    bytes: int = 0
    whole: bool = True
    max_rows: int | None = None
    replay: bool = False
    stream: tuple[int, str] | None = None
    untyped: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The name of the file, without its folders."""
        return self.path.rpartition("/")[2]

    @property
    def source(self) -> str:
        """What rows say that they come from: the file, or the stream of the table."""
        return self.path if self.stream is None else f"{self.path}#{self.stream[0]}"


@dataclass(frozen=True)
class ReadOptions:
    """How splits are read.

    Attributes:
        needed: columns that a file must have. Any other that it lacks is null.
        chunk_rows: rows of a chunk at most.
        max_chunk_bytes: bytes of a chunk at most, but for a single row that is larger.
    """

    needed: frozenset[str] = frozenset()
    chunk_rows: int = CHUNK_ROWS
    max_chunk_bytes: int = MAX_CHUNK_BYTES


@dataclass(frozen=True)
class Block:
    """Rows of a file as a reader gives them.

    Attributes:
        batch: the columns in their settled types; null where a value does not fit.
        numbers: the row numbers in the file, int64.
        refusals: by position in `batch`, the rows that are not to be handed on.
    """

    batch: pa.RecordBatch
    numbers: np.ndarray
    refusals: RowFailures = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows there are, refused ones included."""
        return len(self.numbers)

    def first(self, rows: int) -> Block:
        """The first `rows` rows."""
        kept = {position: refusal for position, refusal in self.refusals.items() if position < rows}
        return Block(self.batch.slice(0, rows), self.numbers[:rows], kept)

    def after(self, rows: int) -> Block:
        """All but the first `rows` rows."""
        kept = {position - rows: refusal for position, refusal in self.refusals.items() if position >= rows}
        return Block(self.batch.slice(rows), self.numbers[rows:], kept)


@dataclass(frozen=True)
class Plan:
    """What a format says of its files: the columns that they have together, and how they are split."""

    schema: pa.Schema
    splits: list[Split]


def is_dead_letter(kind: pa.DataType) -> bool:
    """Whether a column `DEAD_LETTER` of type `kind` was written by an earlier run."""
    return pa.types.is_struct(kind) and {"stage", "type", "message", "source", "row"} <= {each.name for each in kind}


def batch_of(arrays: Sequence[pa.Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """A batch of `rows` rows, also where there is no column to count them by."""
    if not arrays:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def null_batch(schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """`rows` rows of nulls."""
    return batch_of([pa.nulls(rows, each.type) for each in schema], schema, rows)


def convert(
    schema: pa.Schema, rows: int, column: Callable[[pa.Field, int, int], pa.Array]
) -> tuple[pa.RecordBatch, dict[int, pa.Field]]:
    """Builds a batch column by column, with null in the rows for which `column(field, start, stop)` raises.

    Returns:
        The batch, and the rows that have such a null, each with the first column of which that is so.
    """
    refused: dict[int, pa.Field] = {}
    arrays = []
    for each in schema:
        found = isolate(lambda start, stop, each=each: column(each, start, stop), 0, rows)  # type: ignore[misc]
        parts = [(start, array) for start, _, array in found.results]
        for row, _ in found.failures:
            refused.setdefault(row, each)
            parts.append((row, pa.nulls(1, each.type)))
        parts.sort(key=lambda part: part[0])
        arrays.append(
            parts[0][1] if len(parts) == 1 else pa.concat_arrays([pa.nulls(0, each.type), *(a for _, a in parts)])
        )
    return batch_of(arrays, schema, rows), refused


def fit(
    batch: pa.RecordBatch,
    schema: pa.Schema,
    numbers: np.ndarray,
    split: Split,
    *,
    cast: Callable[[pa.Array, pa.DataType], pa.Array],
    raw: Callable[[dict[str, Any]], str],
    fits: Callable[[pa.Array, pa.DataType], pa.Array] | None = None,
) -> Block:
    """Casts the columns of `batch` to `schema`; rows with a value that does not fit are refused.

    An absent column is null. `raw` makes the text of a refused row from its values as they are in `batch`. `fits` is
    asked for columns that cannot be cast whole: it is false for values that surely cannot be cast, so that halving has
    less to find, which takes long where many values are bad.
    """
    present = dict(zip(batch.schema.names, batch.columns, strict=True))
    refused: dict[int, pa.Field] = {}
    done: dict[str, pa.Array] = {}
    left: dict[str, pa.Array] = {}

    def whole(each: pa.Field) -> pa.Array | None:
        if each.name not in present:
            return pa.nulls(batch.num_rows, each.type)
        with suppress(Exception):
            return cast(present[each.name], each.type)
        return None

    for each, array in zip(schema, _map(whole, schema, batch.num_rows * len(schema)), strict=True):
        if array is not None:
            done[each.name] = array
        else:
            array = left[each.name] = present[each.name]
            if fits is not None:
                good = pc.fill_null(fits(array, each.type), True)
                left[each.name] = pc.if_else(good, array, pa.scalar(None, array.type))
                for row in np.flatnonzero(~good.to_numpy(zero_copy_only=False)).tolist():
                    refused.setdefault(row, each)

    def column(each: pa.Field, start: int, stop: int) -> pa.Array:
        if each.name in done:
            return done[each.name].slice(start, stop - start)
        return cast(left[each.name].slice(start, stop - start), each.type)

    fitted, others = convert(schema, batch.num_rows, column)
    refused = others | refused
    rows = sorted(refused)
    refusals = {}
    for row, values in zip(rows, batch.take(pa.array(rows, pa.int64())).to_pylist() if rows else [], strict=True):
        each = refused[row]
        refusals[row] = misfit(each, values[each.name], numbers[row], split, raw(values))
    return Block(fitted, numbers, refusals)


def _map(function: Callable[[pa.Field], pa.Array | None], schema: pa.Schema, values: int) -> list[pa.Array | None]:
    """The results for all columns, which take turns on the cores where there are many values: Arrow needs no GIL."""
    if values < _MANY_VALUES:
        return [function(each) for each in schema]
    with ThreadPoolExecutor(pa.cpu_count(), thread_name_prefix="cast") as threads:
        return list(threads.map(function, schema))


def widened(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """`array` as the wider type of a column of all files; raises where digits of a value would be lost.

    Arrow refuses integers that a float does not hold, but not decimals.
    """
    return exact_cast(array, kind) if _has_decimals(array.type) else pc.cast(array, kind)


def _has_decimals(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_has_decimals(kind.field(index).type) for index in range(kind.num_fields))
    return bool(pa.types.is_decimal(kind))


def misfit(
    column: pa.Field, value: object, number: int, split: Split, raw: str, expected: str | None = None
) -> RowFailure:
    """The refusal of a row whose `value` does not fit its column. `expected` says what would; else its type does."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if expected is None and not keeps_digits(value, column.type):
        expected = "a number that float64 holds without losing digits"
    text = dumps(value).encode(errors="backslashreplace").decode()  # a lone surrogate is shown as JSON writes it
    shown = text if len(text) <= 80 else text[:79] + "…"
    what = expected or ("valid UTF-8" if column.type == pa.string() and isinstance(value, str) else column.type)
    message = f'column "{column.name}" holds {shown} in row {number} of {split.name}; {what} was expected'
    return RowFailure("read", "ValueError", message, raw)


def check_columns(names: Iterable[str], needed: Iterable[str], split: Split) -> None:
    """Raises `BrokenFileError` where a file has two columns of one name or lacks one that the model needs."""
    counts = Counter(names)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise BrokenFileError(f"{split.name} has more than one column {_quoted(twice)}")
    if missing := [name for name in sorted(needed) if name not in counts]:
        raise BrokenFileError(f"{split.name} has no column {_quoted(missing)}, which the model needs")


def unify(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """The columns of both, by name, in types that hold the values of both."""
    return pa.unify_schemas([first, second], promote_options="permissive")


def check_types(columns: pa.Schema, schema: pa.Schema, split: Split) -> None:
    """Raises `BrokenFileError` where a column of a file has a type that the settled one is not wide enough for."""
    known = set(schema.names)
    for each in columns:
        if each.name not in known or each.name == DEAD_LETTER:
            continue
        settled = schema.field(each.name)
        try:
            fits = unify(pa.schema([settled]), pa.schema([each])).field(0).type == settled.type
        except pa.ArrowException:
            fits = False
        if not fits:
            raise BrokenFileError(f'column "{each.name}" of {split.name} is {each.type}; {settled.type} was expected')


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
