"""Chains: users' functions on rows, run so that a row that fails or is left out is known by name.

A function says by the annotation of its first parameter what it takes and gives back:

| annotation | takes and gives | leaving rows out | contract |
| --- | --- | --- | --- |
| `pa.RecordBatch` | a record batch | `batch.filter(…)` | as many rows in the same order, or the column `__row_id__` kept |
| `pd.DataFrame` | a data frame | `frame[…]`, `frame.query(…)` | the index stays with its row |
| `dict` | one row at a time (slower) | `None` | none |
"""

from __future__ import annotations

import inspect
import typing
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chunks import ROW_ID, exact_cast, single_batch
from handlers.errors import UsageError, one_line
from handlers.failures import RowFailure, RowFailures
from handlers.isolation import Isolated, isolate
from handlers.model_code import NO_CODE, ModelCode, import_function

# The index of frames starts here, so that a reset index is never mistaken for the rows' original index.
FIRST_INDEX = 1 << 40


@dataclass(frozen=True)
class Rows:
    """The rows in a chain: the batch, and for each row its index in the chunk that was read.

    Attributes:
        batch: the columns as they are now.
        ids: int64 of (batch.num_rows,).
    """

    batch: pa.RecordBatch
    ids: np.ndarray

    def take(self, keep: np.ndarray) -> Rows:
        """The rows at `keep`: indices (int64) or a mask (bool)."""
        if keep.dtype == bool:
            return self if keep.all() else Rows(self.batch.filter(pa.array(keep)), self.ids[keep])
        return Rows(self.batch.take(pa.array(keep)), self.ids[keep])


class ContractError(ValueError):
    """A user's function gave back something that cannot be matched with the rows that it took."""


@dataclass(frozen=True)
class Step:
    """One function of a chain.

    Attributes:
        name: `module:function`, for messages.
        stage: `features`, `preprocess` or `postprocess`.
        call: takes rows and returns those that remain, as they are now. Raises for rows that it cannot process.
    """

    name: str
    stage: str
    call: Callable[[Rows], Rows]

    def run(self, rows: Rows) -> tuple[Rows, RowFailures]:
        """The rows that remain, and by id those that make the function fail, found by halving.

        A row that is in neither was left out by the function: it is dropped.
        """
        broken: list[ContractError] = []

        def call(low: int, high: int) -> Rows:
            try:
                result = self.call(Rows(rows.batch.slice(low, high - low), rows.ids[low:high]))
                if len(result.ids) != result.batch.num_rows:  # Arrow cannot count rows that have no column
                    raise ContractError("gave rows without a single column")
            except ContractError as error:
                broken.append(error)
                raise
            return result

        count = rows.batch.num_rows
        if not count:
            return self._of_nothing(rows), {}
        found = isolate(call, 0, count)
        if (
            broken and not found.failures
        ):  # no single row is at fault, so results for fewer rows cannot be trusted either
            found = Isolated(failures=[(row, broken[0]) for row in range(count)])
        failures = {
            int(rows.ids[row]): RowFailure(self.stage, type(error).__name__, f"{self.name}: {one_line(error)}")
            for row, error in found.failures
        }
        parts = [part for _, _, part in found.results]
        joined, misfits = _join(parts) if parts else (rows.take(np.zeros(rows.batch.num_rows, dtype=bool)), [])
        misfit = RowFailure(self.stage, "ArrowTypeError", f"{self.name}: gave this row in columns of another type")
        failures |= dict.fromkeys(misfits, misfit)
        return joined, failures

    def _of_nothing(self, rows: Rows) -> Rows:
        """What the function makes of no rows, for the columns that it adds; unchanged where it does not accept an empty batch."""
        try:
            return self.call(rows)
        except Exception:
            return rows


def _join(parts: Sequence[Rows]) -> tuple[Rows, list[int]]:
    """All rows of `parts`, and the ids of those whose columns have no common type with the columns of most rows."""
    if len(parts) == 1:
        return parts[0], []
    by_schema: dict[pa.Schema, list[int]] = defaultdict(list)
    for index, part in enumerate(parts):
        by_schema[part.batch.schema].append(index)
    fitting: list[int] = []
    table = pa.Table.from_batches([parts[0].batch])
    for indices in sorted(by_schema.values(), key=lambda indices: -sum(len(parts[index].ids) for index in indices)):
        wanted = sorted([*fitting, *indices])
        tables = [pa.Table.from_batches([parts[index].batch]) for index in wanted]
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # the types have nothing in common, or a value does not fit
            continue
        fitting = wanted
    misfits = [int(id_) for index in set(range(len(parts))) - set(fitting) for id_ in parts[index].ids]
    return Rows(single_batch(table), np.concatenate([parts[index].ids for index in fitting])), sorted(misfits)


def function_step(name: str, stage: str, code: ModelCode = NO_CODE) -> Step:
    """The step of the function `module:function`, in `code` or installed; raises `UsageError` where it cannot be used."""
    function = import_function(name, stage, code)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have none
        parameters = []
    if not parameters:
        raise UsageError(f'{stage} "{name}" takes no argument; it must take rows')
    try:
        annotation = typing.get_type_hints(function).get(parameters[0].name)
    except Exception:
        annotation = parameters[0].annotation
    kind = typing.get_origin(annotation) or annotation
    if isinstance(kind, str):  # its names are imported for type checkers only
        kind = kind.partition("[")[0].rpartition(".")[2]
    adapters: dict[Any, Callable[[Any, Rows], Rows]]
    adapters = {pa.RecordBatch: _on_batch, pd.DataFrame: _on_frame, dict: _on_dicts}
    adapters |= {"RecordBatch": _on_batch, "DataFrame": _on_frame, "dict": _on_dicts, "Dict": _on_dicts}
    if kind not in adapters:
        raise UsageError(
            f'{stage} "{name}" must say what it takes by the annotation of its first argument: pa.RecordBatch, '
            "pd.DataFrame or dict"
        )
    adapter = adapters[kind]
    return Step(name, stage, lambda rows: adapter(function, rows))


def _on_batch(function: Callable[[pa.RecordBatch], Any], rows: Rows) -> Rows:
    result = function(rows.batch.append_column(ROW_ID, pa.array(rows.ids)))
    if isinstance(result, pa.Table):
        result = single_batch(result)
    if not isinstance(result, pa.RecordBatch):
        raise ContractError(f"gave a {type(result).__name__}, not a pa.RecordBatch")
    if len(set(result.schema.names)) != len(result.schema.names):
        raise ContractError("gave a record batch with two columns of one name")
    if ROW_ID in result.schema.names:
        ids = result.column(ROW_ID).to_numpy(zero_copy_only=False).astype(np.int64)
        _check_ids(ids, rows.ids)
        return Rows(result.drop_columns([ROW_ID]), ids)
    if result.num_rows != rows.batch.num_rows:
        raise ContractError(
            f"took {rows.batch.num_rows} rows and gave {result.num_rows} without the column {ROW_ID}; keep that "
            "column, so that rows can be matched"
        )
    return Rows(result, rows.ids)


def _on_frame(function: Callable[[pd.DataFrame], Any], rows: Rows) -> Rows:
    frame = rows.batch.to_pandas(types_mapper=_nullable_integers)
    frame.index = pd.RangeIndex(FIRST_INDEX, FIRST_INDEX + len(frame))
    before = frame.copy(deep=pd.__version__ < "3")  # since pandas 3 copies are made when something is written
    result = function(frame)
    if not isinstance(result, pd.DataFrame):
        raise ContractError(f"gave a {type(result).__name__}, not a pd.DataFrame")
    indices = result.index.to_numpy()
    if not np.issubdtype(indices.dtype, np.integer) or (len(indices) and (indices.min() < FIRST_INDEX)):
        raise ContractError("gave a frame with another index; keep the index that came with the rows (no reset_index)")
    indices = indices - FIRST_INDEX
    _check_ids(indices, np.arange(len(frame)))
    if not result.columns.is_unique:
        raise ContractError("gave a frame with two columns of one name")
    in_place = np.array_equal(indices, np.arange(len(frame)))  # the usual case, which needs no copies
    kept = rows if in_place else rows.take(indices.astype(np.int64))
    known = before if in_place else before.iloc[indices]
    columns = {str(column): _column_of(result[column], known, kept.batch) for column in result.columns}
    return Rows(pa.RecordBatch.from_pydict(columns), kept.ids)


def _column_of(series: pd.Series[Any], before: pd.DataFrame, batch: pa.RecordBatch) -> pa.Array:
    """A column that a function gave back; values that it left unchanged are those of the array that the column was made from.

    Pandas cannot tell null from NaN, has no decimals, dates or dictionaries of Arrow's, and lists of integers with a null
    as floats: what the function left unchanged must not be affected by that.
    """
    index = batch.schema.get_field_index(str(series.name))
    if index < 0:
        array = pa.Array.from_pandas(series)
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        return array.cast(pa.string()) if pa.types.is_large_string(array.type) else array
    # Lists and structs may have been changed in place, and the frame from before with them.
    nested = pa.types.is_nested(batch.schema.field(index).type)
    known = batch.column(index).to_pandas().set_axis(series.index) if nested else before[series.name]
    column = batch.column(index)
    same = _unchanged(series, known)
    part = _replaced(column, same, lambda: _from_pandas(series[~same], column.type))
    return _from_pandas(series, column.type) if part is None else part


def _from_pandas(series: pd.Series[Any], kind: pa.DataType) -> pa.Array:
    return _in_type(lambda wanted: pa.Array.from_pandas(series, type=wanted), kind)


def _unchanged(one: pd.Series[Any], other: pd.Series[Any]) -> np.ndarray:
    """Mask of the values of `one` that are those of `other`, as far as that can be determined."""
    if one.dtype != other.dtype:
        return np.zeros(len(one), dtype=bool)
    with suppress(ValueError):  # arrays among the values have no single answer
        if one.equals(other):
            return np.ones(len(one), dtype=bool)
    if one.dtype == object:
        return np.fromiter(map(_same, one, other), bool, len(one))
    mask: np.ndarray = (one.eq(other).fillna(False) | (one.isna() & other.isna())).to_numpy(dtype=bool)
    return mask


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    try:
        if isinstance(one, np.ndarray):
            return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        return bool(one == other)
    except (TypeError, ValueError):
        return False


def _replaced(column: pa.Array, same: np.ndarray, others: Callable[[], pa.Array]) -> pa.Array | None:
    """`column` with the values of `others` in the rows that are not the `same`; None where these have another type."""
    if same.all():
        return column
    if not same.any():
        return None
    new = others()
    if new.type != column.type or pa.types.is_dictionary(column.type):  # whose codes do not match
        return None
    indices = np.arange(len(column))
    indices[~same] = np.arange(len(column), len(column) + len(new))
    return pa.concat_arrays([column, new]).take(pa.array(indices))


def _in_type(make: Callable[[pa.DataType | None], pa.Array], kind: pa.DataType) -> pa.Array:
    """The array of the type that a column had before, where its new values fit that; else of the type that they have."""

    def array(wanted: pa.DataType | None) -> pa.Array:
        made = make(wanted)
        return made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made

    try:
        found = array(None)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # as decimals of several scales, or numbers among text
        return array(kind)
    try:
        return exact_cast(found, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        pass
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        try:
            return array(kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            pass
    return found.cast(pa.string()) if pa.types.is_large_string(found.type) else found


def _nullable_integers(kind: pa.DataType) -> Any:
    """Pandas' own nullable type for integers and flags, which would turn to float or object where a null is among them."""
    names = {pa.int8(): "Int8", pa.int16(): "Int16", pa.int32(): "Int32", pa.int64(): "Int64"}
    names |= {pa.uint8(): "UInt8", pa.uint16(): "UInt16", pa.uint32(): "UInt32", pa.uint64(): "UInt64"}
    names[pa.bool_()] = "boolean"
    return pd.api.types.pandas_dtype(names[kind]) if kind in names else None


def _on_dicts(function: Callable[[dict[str, Any]], Any], rows: Rows) -> Rows:
    kept: list[dict[str, Any]] = []
    before: list[dict[str, Any]] = []
    indices: list[int] = []
    for index, row in enumerate(rows.batch.to_pylist()):
        given = dict(row)
        result = function(row)
        if result is None:
            continue
        if not isinstance(result, dict):
            raise TypeError(f"gave a {type(result).__name__} for a row, not a dict or None")
        kept.append(result)
        before.append(given)
        indices.append(index)
    if not kept:
        return Rows(rows.batch.slice(0, 0), np.empty(0, np.int64))
    names: dict[str, None] = dict.fromkeys(key for row in kept for key in row)
    known = rows.take(np.array(indices, np.int64))

    def column(name: str) -> pa.Array:
        values = [row.get(name) for row in kept]
        index = known.batch.schema.get_field_index(name)
        if index < 0:
            return pa.array(values)
        array = known.batch.column(index)
        if pa.types.is_nested(array.type):  # may have been changed in place
            return _column(values, array.type)
        # Python has no nanoseconds of a day, for one: what the function left unchanged must not be affected by that.
        same = np.fromiter((row[name] is value for row, value in zip(before, values, strict=True)), bool, len(values))
        changed = [value for value, is_same in zip(values, same, strict=True) if not is_same]
        part = _replaced(array, same, lambda: _column(changed, array.type))
        return _column(values, array.type) if part is None else part

    return Rows(pa.RecordBatch.from_arrays([column(name) for name in names], names=list(names)), known.ids)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        array = pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array(values)
    # Python's floats have no width: they keep that of the column, unless they are too large for it.
    if pa.types.is_floating(kind) and pc.any(pc.is_inf(array)).as_py():
        wide = pa.array(values, pa.float64())
        return array if pc.is_inf(wide).equals(pc.is_inf(array)) else wide
    return array


def _check_ids(ids: np.ndarray, known: np.ndarray) -> None:
    if len(np.unique(ids)) != len(ids) or not np.isin(ids, known).all():
        raise ContractError("gave a row twice or one that it did not take; every row may come back once")
