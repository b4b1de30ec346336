"""Rows in the kinds that Python programs have them in, to Arrow and back.

| kind | results are |
| --- | --- |
| `pandas.DataFrame` | data frames that keep the index of their rows |
| `polars.DataFrame`, `polars.LazyFrame` | `polars.DataFrame` |
| `pa.Table`, `pa.RecordBatchReader`, anything with `__arrow_c_stream__` | `pa.Table` |
| `pa.RecordBatch` | `pa.RecordBatch` |
| list or tuple of dicts | list of dicts |

Columns have the types that a Parquet file of them would give: dictionaries (categories) become plain values. Values of a
list of dicts have types as in JSON lines: that of most values of a column, and a row with another value is refused.
A column that scoring did not change is given back as it came, with its own dtype.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chunks import (
    DEAD_LETTER,
    NUMBERS,
    RESERVED,
    chunk_schema,
    exact_cast,
    single_batch,
    with_provenance,
    with_refusals,
)
from handlers.errors import UsageError, one_line
from handlers.failures import RowFailures
from handlers.isolation import isolate
from transforms.accounting import Counts
from transforms.local.rows import Rows
from transforms.sources.blocks import Numeric, Split, misfit
from transforms.sources.digits import dumps, number_texts
from transforms.sources.formats.json_rows import texts
from transforms.sources.inference import json_field

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

KINDS = "a pandas or Polars frame, an Arrow table or reader, a list of dicts, or a path"
SOURCE = "data"  # of rows, in dead letters

_ROWS = Split("data", "python")  # how messages name the origin of a row
_OF_JSON = (str, int, float, list, dict, np.generic, type(None))
_ARROW_ERRORS = (pa.ArrowException, OverflowError, TypeError, ValueError)


class Frame(Rows):
    """Rows in memory. Those that cannot be read are marked as refused in their chunks, not in `dead_letters`.

    Attributes:
        refusals: the rows with a value that does not fit its column, by row number; the value is null in the batches.
    """

    refusals: RowFailures

    @abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in their order, with the columns of `schema`; only once for a reader."""

    def sample(self) -> pa.RecordBatch:
        """The first rows that are together."""
        self._chunks = self._with_provenance()
        first = next(self._chunks, None)
        if first is None:
            return pa.RecordBatch.from_pylist([], schema=chunk_schema(self.schema))
        self._chunks = chain([first], self._chunks)
        return first

    def chunks(self, needed: frozenset[str], model_version: str) -> Iterator[pa.RecordBatch]:
        """The rows as they lie in memory, those with a value that does not fit marked as refused."""
        return self._chunks

    def _with_provenance(self) -> Iterator[pa.RecordBatch]:
        self._passed = 0
        for batch in self.batches():
            start = self._passed
            self._passed += batch.num_rows
            refused = {row - start: found for row, found in self.refusals.items() if start <= row < self._passed}
            if batch.num_rows:
                yield with_refusals(with_provenance(batch, SOURCE, start), refused)

    def counts(self) -> Counts:
        """How many rows came in."""
        return Counts(rows_read=self._passed if self.rows is None else self.rows)


def frame_of(data: Any, numeric: Numeric = lambda _names: ()) -> Frame:
    """The rows of `data`.

    Args:
        data: rows of one of the kinds above.
        numeric: of the names of all columns, gives those that feed inputs of floats; for lists of dicts.

    Raises:
        UsageError: for another kind, duplicate or reserved column names, or a column of a type that Arrow does not have.
    """
    frame = _frame_of(data, numeric)
    if taken := sorted(RESERVED.intersection(frame.schema.names)):
        hint = "; leave it out" if taken == [DEAD_LETTER] else ""
        raise UsageError(f'column "{taken[0]}" of data has a reserved name; rename it{hint}')
    return frame


def _frame_of(data: Any, numeric: Numeric) -> Frame:
    if isinstance(data, pa.Table | pa.RecordBatch | pa.RecordBatchReader):
        return _Arrow(data)
    library = type(data).__module__.partition(".")[0]
    if (library == "pandas" and type(data).__name__ == "DataFrame") or _is_subclass_of_pandas(data):
        return _Pandas(data, numeric)
    if library == "polars" and type(data).__name__ in ("DataFrame", "LazyFrame"):
        return _Polars(data)
    if isinstance(data, list | tuple):
        return _Dicts(data, numeric)
    if hasattr(data, "__arrow_c_stream__"):
        try:
            return _Arrow(pa.table(data))
        except pa.ArrowInvalid:  # one column alone, as a Series
            raise UsageError(f"data must be {KINDS}, not a {type(data).__name__}") from None
    hint = "; put one row into a list" if isinstance(data, dict) else ""
    raise UsageError(f"data must be {KINDS}, not a {type(data).__name__}{hint}")


def _is_subclass_of_pandas(data: Any) -> bool:
    return any(kind.__module__.startswith("pandas.") and kind.__name__ == "DataFrame" for kind in type(data).__mro__)


class _Arrow(Frame):
    def __init__(self, data: pa.Table | pa.RecordBatch | pa.RecordBatchReader) -> None:
        self._data = data
        _check_names(data.schema.names)
        self.schema = pa.schema([_plain(each) for each in data.schema])
        self.rows = None if isinstance(data, pa.RecordBatchReader) else data.num_rows
        self.refusals = {}

    def batches(self) -> Iterator[pa.RecordBatch]:
        data = self._data
        batches = [data] if isinstance(data, pa.RecordBatch) else data
        for batch in batches.to_batches() if isinstance(batches, pa.Table) else batches:
            yield as_plain(batch, self.schema)

    def back(self, results: pa.Table, rows: np.ndarray, same: Collection[str] = ()) -> pa.Table | pa.RecordBatch:
        return single_batch(results) if isinstance(self._data, pa.RecordBatch) else results


class _Polars(Frame):
    def __init__(self, data: pl.DataFrame | pl.LazyFrame) -> None:
        import polars as pl

        self._data = data.collect() if isinstance(data, pl.LazyFrame) else data
        if objects := [name for name, kind in self._data.schema.items() if kind == pl.Object]:
            raise UsageError(f'column "{objects[0]}" has Python objects that Arrow has no type for; leave it out')
        self._arrow = _Arrow(self._data.to_arrow(compat_level=pl.CompatLevel.oldest()))
        self.schema, self.rows, self.refusals = self._arrow.schema, self._data.height, {}

    def batches(self) -> Iterator[pa.RecordBatch]:
        return self._arrow.batches()

    def back(self, results: pa.Table, rows: np.ndarray, same: Collection[str] = ()) -> pl.DataFrame:
        import polars as pl

        known = self._data.select([name for name in results.schema.names if name in same])
        made = pl.from_arrow(results.select([name for name in results.schema.names if name not in same]))
        columns = {each.name: each for each in known[rows]} | {each.name: each for each in made}
        return pl.DataFrame([columns[name] for name in results.schema.names])


class _Pandas(Frame):
    def __init__(self, data: pd.DataFrame, numeric: Numeric) -> None:
        self._data = data
        if data.columns.nlevels > 1:
            raise UsageError("the columns of the frame have more than one level; join their names first")
        names = [str(label) for label in data.columns.tolist()]
        _check_names(names)
        self._labels = dict(zip(names, data.columns.tolist(), strict=True))
        numbers = numeric(names)
        self.rows = len(data)
        columns = _Columns(len(data))
        for name, (_, series) in zip(names, data.items(), strict=True):
            try:
                array = _of_series(series)
            except _ARROW_ERRORS as error:
                if series.dtype != object:
                    raise _no_type(name, error) from None
                columns.add_values(name, series.where(series.notna(), None).tolist(), name in numbers)
                continue
            columns.add(pa.field(name, array.type), array)
        self._batch, self.refusals = columns.finish(
            lambda row: dict(zip(names, map(_of_python, data.iloc[row]), strict=True))
        )
        self.schema = self._batch.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield self._batch

    def back(self, results: pa.Table, rows: np.ndarray, same: Collection[str] = ()) -> pd.DataFrame:
        names = results.schema.names
        known = [name for name in names if name in same]
        frame = self._data if len(known) == len(self._labels) else self._data[[self._labels[name] for name in known]]
        frame = (
            frame.copy() if len(rows) == len(frame) and np.array_equal(rows, np.arange(len(rows))) else frame.take(rows)
        )
        for name in names:
            if name not in same:
                series = results.column(name).to_pandas()
                if name in self._labels:  # a function changed it
                    with suppress(ValueError, TypeError, OverflowError):
                        series = series.astype(self._data[self._labels[name]].dtype)
                frame[self._labels.get(name, name)] = (
                    series.array
                )  # a series would be aligned by its index, which takes long
        if known + [name for name in names if name not in same] == names:
            return frame
        return frame[[self._labels.get(name, name) for name in names]]


class _Dicts(Frame):
    def __init__(self, data: Sequence[Any], numeric: Numeric) -> None:
        self._data = data
        names: dict[str, None] = {}
        for number, row in enumerate(data):
            if not isinstance(row, dict):
                raise UsageError(f"data[{number}] is a {type(row).__name__}; data must be {KINDS}")
            names.update(dict.fromkeys(row))
        if others := [name for name in names if not isinstance(name, str)]:
            raise UsageError(f"data has the key {others[0]!r}; the names of columns must be strings")
        numbers = numeric(names)
        self.rows = len(data)
        columns = _Columns(len(data))
        for name in names:
            columns.add_values(name, [row.get(name) for row in data], name in numbers)
        batch, self.refusals = columns.finish(lambda row: data[row])
        self._batch = batch if names else pa.RecordBatch.from_struct_array(pa.array([{}] * len(data), pa.struct([])))
        self.schema = self._batch.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield self._batch

    def back(self, results: pa.Table, rows: np.ndarray, same: Collection[str] = ()) -> list[dict[str, Any]]:
        columns = {
            name: [self._data[row].get(name) for row in rows] if name in same else results.column(name).to_pylist()
            for name in results.schema.names
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class _Columns:
    """The columns of a batch while it is made, and the rows that have a value that does not fit."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._fields: list[pa.Field] = []
        self._arrays: list[pa.Array] = []
        self._misfits: dict[int, tuple[pa.Field, Any]] = {}

    def add(self, field: pa.Field, array: pa.Array | pa.ChunkedArray) -> None:
        """Adds a column whose values all fit."""
        if isinstance(array, pa.ChunkedArray):
            array = (
                array.chunk(0)
                if array.num_chunks == 1
                else pa.concat_arrays(array.chunks or [pa.array([], array.type)])
            )
        field = _plain(field)
        self._fields.append(field)
        self._arrays.append(_in_plain_type(array, field.type))

    def add_values(self, name: str, values: list[Any], numeric: bool) -> None:
        """Adds a column of Python values; those that do not fit the type of the others are null, and their rows refused."""
        try:
            if (array := _of_one_type(values, numeric)) is not None:
                self.add(pa.field(name, array.type), array)
                return
        except _ARROW_ERRORS:
            pass
        try:
            field = json_field(name, values, numeric=numeric, whole=True)
        except _ARROW_ERRORS as error:
            raise _no_type(name, error) from None
        if field is None:
            if others := [value for value in values if not isinstance(value, _OF_JSON)]:
                raise _no_type(name, TypeError(f"as {type(others[0]).__name__}"))
            self.add(pa.field(name, pa.string()), texts(values))
            return
        make = _maker(field)
        found = isolate(lambda start, stop: make(values[start:stop]), 0, len(values))
        parts = [(start, array) for start, _, array in found.results]
        for row, _ in found.failures:
            self._misfits.setdefault(row, (field, values[row]))
            parts.append((row, pa.nulls(1, field.type)))
        parts.sort(key=lambda part: part[0])
        self.add(field, pa.concat_arrays([pa.nulls(0, field.type), *(array for _, array in parts)]))

    def finish(self, row_of: Callable[[int], dict[str, Any]]) -> tuple[pa.RecordBatch, RowFailures]:
        """The batch, and the refused rows with their values in JSON."""
        refusals = {
            row: misfit(field, value, row, _ROWS, dumps(row_of(row))) for row, (field, value) in self._misfits.items()
        }
        return pa.RecordBatch.from_arrays(self._arrays, schema=pa.schema(self._fields)), refusals


def _of_series(series: pd.Series) -> pa.Array | pa.ChunkedArray:
    if series.dtype.kind == "f" and isinstance(series.dtype, np.dtype):
        values = series.to_numpy()
        if not np.isnan(values).any():
            return pa.array(values)  # zero-copy; looking for nulls would take ten times as long
    return pa.array(series.array.to_dense() if hasattr(series.array, "to_dense") else series, from_pandas=True)


def _of_one_type(values: list[Any], numeric: bool) -> pa.Array | None:
    """A column whose values have one type that needs no closer look, as text and lists do; raises if they have not."""
    array = pa.array(values)
    kind = array.type
    if pa.types.is_integer(kind):
        return pc.cast(array, pa.float64()) if numeric else array
    plain = pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_binary(kind)
    return array if plain else None


def _maker(field: pa.Field) -> Callable[[list[Any]], pa.Array]:
    """Makes an array of the type of `field`; the result raises for a value of another kind, or that would change."""
    if field.metadata == NUMBERS:
        return lambda values: number_texts(values, field.type)

    def make(values: list[Any]) -> pa.Array:
        array = pa.array(values)
        found, kind = array.type, field.type
        if pa.types.is_temporal(kind) and pa.types.is_string(found):  # as JSON has it
            return pc.cast(array, kind)
        alike = (_is_number(found) and _is_number(kind)) or found.id == kind.id or pa.types.is_null(found)
        if not alike:
            raise TypeError(f"a value is {found}, not {kind}")
        return exact_cast(array, kind)

    return make


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def as_plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`batch` with the plain types of `schema`, its own with dictionaries decoded."""
    if batch.schema.equals(schema, check_metadata=True):
        return batch
    if not schema.names:
        return batch
    arrays = [_in_plain_type(array, each.type) for array, each in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _in_plain_type(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    return array.cast(kind)


def _plain(column: pa.Field) -> pa.Field:
    """A column as a Parquet file of it would be read."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = pa.string() if pa.types.is_large_string(kind.value_type) else kind.value_type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        kind = pa.string() if pa.types.is_string_view(kind) else pa.binary()
    numbers = column.metadata is not None and column.metadata.items() >= NUMBERS.items()
    return pa.field(column.name, kind, metadata=NUMBERS if numbers else None)


def _of_python(value: Any) -> Any:
    """A value of a frame as JSON has it: missing ones as None, those of numpy as Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _check_names(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f'data has more than one column "{name}"; rename one of them')
        seen.add(name)


def _no_type(name: str, error: BaseException) -> UsageError:
    return UsageError(
        f'column "{name}" has values that Arrow has no type for ({one_line(error)}); convert it or leave it out'
    )
