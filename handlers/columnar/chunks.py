"""Chunks: Arrow record batches whose rows know where they came from.

A chunk is a `pa.RecordBatch` of input columns and, behind them, two provenance columns: `SOURCE` (the file or table,
dictionary-encoded) and `ROW` (the row number in that source, from 0). Sources add them and sinks remove them, so
that merging, cutting, sorting and filtering in between never lose a row's origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.encode.values import without_validity
from handlers.failures import RowFailure, RowFailures

SOURCE = "__source__"
ROW = "__row__"
PROVENANCE = (SOURCE, ROW)
# The index of a row in its chunk, which functions on record batches get in addition to the columns.
ROW_ID = "__row_id__"
# Why a row was refused before the model; such rows stay in the chunk, so that they become dead letters with the others.
REFUSED = "__refused__"

# The columns of a window, a struct: they replace the columns of their names for the model, while a dead letter and the
# output have the row as it was read, which is the last one of the window.
WINDOW = "__window__"
# The step after the last one of a window, of the type of the column that orders them.
NEXT_STEP = "__next_step__"
HIDDEN = (*PROVENANCE, REFUSED, WINDOW, NEXT_STEP)

# Metadata of a column of text (or lists of it) that holds numbers which float64 does not: they are carried as text, and
# go on to functions and the model as float64.
NUMBERS = {b"torchbeam": b"numbers"}

SOURCE_FIELD = pa.field(SOURCE, pa.dictionary(pa.int32(), pa.string()))
ROW_FIELD = pa.field(ROW, pa.int64())

REFUSED_FIELD = pa.field(
    REFUSED, pa.struct([pa.field(name, pa.string()) for name in ("stage", "type", "message", "raw")])
)

DEAD_LETTER = "dead_letter"
DEAD_LETTER_TYPE = pa.struct(
    [
        pa.field("stage", pa.string()),
        pa.field("type", pa.string()),
        pa.field("message", pa.string()),
        pa.field("source", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("model_version", pa.string()),
        # The text of a row whose values do not fit the columns; null for every row that could be read.
        pa.field("raw", pa.string()),
    ]
)
# The same in a run of several models, with the name of the model that failed; null where a row could not be read.
MODEL_DEAD_LETTER_TYPE = pa.struct([*DEAD_LETTER_TYPE, pa.field("model", pa.string())])


# Names that no column of an input may have.
RESERVED = frozenset({*HIDDEN, ROW_ID, DEAD_LETTER})


def with_provenance(
    batch: pa.RecordBatch, source: str | pa.DictionaryArray, rows: int | np.ndarray | pa.Array
) -> pa.RecordBatch:
    """Adds the provenance columns to `batch`.

    Args:
        batch: rows without provenance.
        source: the file or table that they come from, or one for each row.
        rows: their row numbers, int64 of length `batch.num_rows`, or the number of the first where they are in a run.
    """
    count = batch.num_rows
    if isinstance(rows, int):
        rows = np.arange(rows, rows + count, dtype=np.int64)
    if isinstance(source, str):
        source = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([source], pa.string()))
    return pa.RecordBatch.from_arrays(
        [*batch.columns, source, pa.array(rows, pa.int64())],
        schema=batch.schema.append(SOURCE_FIELD).append(ROW_FIELD),
    )


def without_provenance(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows of `batch` as they were read: without provenance, without what was refused, and without windows."""
    return batch.select([name for name in batch.schema.names if name not in HIDDEN])


def model_rows(chunk: pa.RecordBatch) -> pa.RecordBatch:
    """The rows of `chunk` as the model's functions and encoders take them: the columns of windows in place of a row's own."""
    rows = without_provenance(chunk)
    if WINDOW not in chunk.schema.names:
        return rows
    window = chunk.column(WINDOW)
    for index, column in enumerate(window.type):
        found = rows.schema.get_field_index(column.name)
        array = window.field(index)
        rows = rows.append_column(column, array) if found < 0 else rows.set_column(found, column, array)
    return rows


def with_refusals(chunk: pa.RecordBatch, failures: RowFailures) -> pa.RecordBatch:
    """`chunk` with the rows marked, by their indices, that are not to be scored."""
    if not failures:
        return chunk
    marks = [asdict(failures[row]) if row in failures else None for row in range(chunk.num_rows)]
    return chunk.append_column(REFUSED_FIELD, pa.array(marks, REFUSED_FIELD.type))


def refusals(chunk: pa.RecordBatch) -> RowFailures:
    """The rows of `chunk`, by their indices, that `with_refusals` marked."""
    if REFUSED not in chunk.schema.names:
        return {}
    marks = chunk.column(REFUSED)
    rows = np.flatnonzero(marks.is_valid().to_numpy(zero_copy_only=False))
    found = marks.take(pa.array(rows, pa.int64())).to_pylist()
    return {int(row): RowFailure(**mark) for row, mark in zip(rows, found, strict=True)}


def rows_of(batch: pa.RecordBatch, ids: np.ndarray) -> pa.RecordBatch:
    """The rows of `batch` at `ids` (int64)."""
    if not len(ids) or not batch.num_columns or not np.all(ids[1:] > ids[:-1]):
        return batch.take(pa.array(ids, pa.int64()))
    if len(ids) == batch.num_rows:
        return batch
    keep = np.zeros(batch.num_rows, dtype=bool)
    keep[ids] = True
    # A column of which only other rows are null needs no validity, with which to copy and to write it takes longer.
    others = batch.take(pa.array(np.flatnonzero(~keep)))
    columns = [
        without_validity(column)
        if pa.types.is_primitive(column.type) and 0 < column.null_count == other.null_count
        else column
        for column, other in zip(batch.columns, others.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema).filter(pa.array(keep))


def other_rows(count: int, rows: Iterable[int]) -> np.ndarray:
    """int64: which of the rows 0 … count-1 are not among `rows`, in order."""
    others = np.ones(count, dtype=bool)
    others[list(rows)] = False
    return np.flatnonzero(others)


def chunk_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of a chunk whose input columns have the schema `schema`."""
    return schema.append(SOURCE_FIELD).append(ROW_FIELD)


def dead_letter_schema(schema: pa.Schema, kind: pa.DataType = DEAD_LETTER_TYPE) -> pa.Schema:
    """The schema of the dead letters of an input with the schema `schema` (without provenance)."""
    return schema.append(pa.field(DEAD_LETTER, kind))


def dead_letters(
    chunk: pa.RecordBatch,
    failures: Sequence[RowFailure],
    model_version: str | Sequence[str | None] | None,
    models: Sequence[str | None] | None = None,
) -> pa.RecordBatch:
    """Turns the rows of `chunk` (with provenance) into dead letters: the input columns and the struct `DEAD_LETTER`.

    Args:
        chunk: the rows as they were read.
        failures: why each of them could not be scored.
        model_version: of the model, or one for each row; None where no model was used yet.
        models: for a run of several models, the name of the one that failed on each row.
    """
    versions = [model_version] * len(failures) if isinstance(model_version, str | None) else model_version
    kind = DEAD_LETTER_TYPE if models is None else MODEL_DEAD_LETTER_TYPE

    def strings(values: Iterable[str | None]) -> pa.Array:
        return pa.array(list(values), pa.string())

    letter = pa.StructArray.from_arrays(
        [
            strings(failure.stage for failure in failures),
            strings(failure.type for failure in failures),
            strings(failure.message for failure in failures),
            pc.cast(chunk.column(SOURCE), pa.string()),
            pc.cast(chunk.column(ROW), pa.int64()),
            strings(versions),
            strings(failure.raw for failure in failures),
            *([] if models is None else [strings(models)]),
        ],
        fields=list(kind),
    )
    rows = without_provenance(chunk)
    return pa.RecordBatch.from_arrays([*rows.columns, letter], schema=dead_letter_schema(rows.schema, kind))


def with_model(letters: pa.RecordBatch) -> pa.RecordBatch:
    """Dead letters of rows that could not be read, for a run of several models: the name of the model is null."""
    letter = letters.column(DEAD_LETTER)
    fields = [*letter.flatten(), pa.nulls(letters.num_rows, pa.string())]
    index = letters.schema.get_field_index(DEAD_LETTER)
    made = pa.StructArray.from_arrays(fields, fields=list(MODEL_DEAD_LETTER_TYPE))
    return letters.set_column(index, pa.field(DEAD_LETTER, MODEL_DEAD_LETTER_TYPE), made)


def rows_within(batch: pa.RecordBatch, start: int, rows: int, max_bytes: int) -> int:
    """How many rows of `batch` from `start` on have `max_bytes` together: at most `rows`, and at least 1."""
    rows = min(rows, batch.num_rows - start)
    while rows > 1 and (size := batch.slice(start, rows).nbytes) > max_bytes:
        rows = max(min(rows * max_bytes // size, rows - 1), 1)
    return rows


def merge(chunks: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One chunk of all the rows of `chunks`, in order; a single chunk is returned as it is.

    Schemas may differ: columns are matched by name, an absent one is null, and types are promoted where Arrow knows a
    common one (int64 and float64 become float64). Raises `pa.ArrowTypeError` where there is none.
    """
    if len(chunks) == 1:
        return chunks[0]
    table = pa.concat_tables([pa.Table.from_batches([chunk]) for chunk in chunks], promote_options="permissive")
    return single_batch(table)


def single_batch(table: pa.Table) -> pa.RecordBatch:
    """The rows of `table` in one contiguous record batch."""
    if table.num_rows == 0:
        return pa.RecordBatch.from_pylist([], schema=table.schema)
    arrays = []
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            column = column.unify_dictionaries()
        array = column.combine_chunks()
        arrays.append(array.chunk(0) if isinstance(array, pa.ChunkedArray) else array)
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def exact_cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """`array` as `kind`; raises `pa.ArrowInvalid` where that would change a value, as 1.5 to an integer or 1e39 to float32.

    Arrow's own safe cast lets floats overflow and lose digits, and reads numbers from text that it cannot give back.
    """
    if array.type == kind:
        return array
    cast = array.cast(kind)
    if not pa.types.is_null(array.type) and not _same_values(cast.cast(array.type), array):
        raise pa.ArrowInvalid(f"values of {array.type} would change as {kind}")
    return cast


def _same_values(one: pa.Array, other: pa.Array) -> bool:
    if pa.types.is_float16(one.type):  # for which Arrow has no comparisons
        one, other = one.cast(pa.float32()), other.cast(pa.float32())
    if pa.types.is_floating(one.type):
        both_nan = pc.and_(pc.is_nan(one), pc.is_nan(other))
        return bool(pc.all(pc.or_(pc.equal(one, other), both_nan)).as_py() is not False)
    # NaN is not equal to itself inside a list either, but it is written alike.
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())
