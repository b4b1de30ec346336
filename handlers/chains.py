"""Chains: users' functions on rows, and SQL features, run so that a row that fails or is left out is known by name.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

from handlers.chunks import single_batch
from handlers.errors import UsageError, one_line
from handlers.functions import import_function
from handlers.isolation import isolate

ROW_ID = "__row_id__"

# The index of frames starts here, so that an index that was reset is never taken for the rows' own.
FIRST_INDEX = 1 << 40


@dataclass(frozen=True)
class Rows:
    """Rows on their way through a chain: the batch, and of each row its number in the chunk that was read.

    Attributes:
        batch: the columns as they are now.
        ids: int64 of (batch.num_rows,).
    """

    batch: pa.RecordBatch
    ids: np.ndarray

    def take(self, keep: np.ndarray) -> Rows:
        """The rows at `keep`, places (int64) or a mask (bool) of them."""
        if keep.dtype == bool:
            return self if keep.all() else Rows(self.batch.filter(pa.array(keep)), self.ids[keep])
        return Rows(self.batch.take(pa.array(keep)), self.ids[keep])


@dataclass(frozen=True)
class Failure:
    """A row that a stage refused: its number in the chunk, and why."""

    id: int
    stage: str
    type: str
    message: str


class ContractError(ValueError):
    """A user's function gave back something that cannot be matched with the rows that it took."""


@dataclass(frozen=True)
class Step:
    """One function of a chain.

    Attributes:
        name: `module:function`, for messages.
        stage: `features`, `preprocess` or `postprocess`.
        call: takes rows and gives those that are left, as they are now. Raises for the rows that it cannot take.
    """

    name: str
    stage: str
    call: Callable[[Rows], Rows]

    def run(self, rows: Rows) -> tuple[Rows, list[Failure]]:
        """The rows that are left, and those that make the function fail, told apart by halving.

        A row that is in neither was left out by the function: it is dropped.
        """

        def call(low: int, high: int) -> Rows:
            return self.call(Rows(rows.batch.slice(low, high - low), rows.ids[low:high]))

        found = isolate(call, 0, rows.batch.num_rows)
        failures = [
            Failure(int(rows.ids[row]), self.stage, type(error).__name__, f"{self.name}: {one_line(error)}")
            for row, error in found.failures
        ]
        parts = [part for _, _, part in found.results]
        if not parts:
            return rows.take(np.zeros(rows.batch.num_rows, dtype=bool)), failures
        if len(parts) == 1:
            return parts[0], failures
        table = pa.concat_tables([pa.Table.from_batches([part.batch]) for part in parts], promote_options="permissive")
        return Rows(single_batch(table), np.concatenate([part.ids for part in parts])), failures


def function_step(name: str, stage: str) -> Step:
    """The step of the function `module:function`; raises `UsageError` where it cannot be used."""
    function = import_function(name, stage)
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        raise UsageError(f'{stage} "{name}" takes no argument; it must take rows')
    try:
        annotation = typing.get_type_hints(function).get(parameters[0].name)
    except Exception:
        annotation = parameters[0].annotation
    kind = typing.get_origin(annotation) or annotation
    adapters = {pa.RecordBatch: _on_batch, pd.DataFrame: _on_frame, dict: _on_dicts}
    if kind not in adapters:
        raise UsageError(
            f'{stage} "{name}" must say what it takes by the annotation of its first argument: pa.RecordBatch, '
            "pd.DataFrame or dict"
        )
    adapter = adapters[kind]
    return Step(name, stage, lambda rows: adapter(function, name, rows))


def feature_step(features: dict[str, str]) -> Step:
    """The step that adds a column for every SQL expression of `features`; raises `UsageError` for a malformed one.

    Expressions are those of Polars' `sql_expr`: over the columns of the row, without access to files or tables. Later
    features may use earlier ones.
    """
    expressions = [(name, _expression(name, text)) for name, text in features.items()]

    def call(rows: Rows) -> Rows:
        frame = pl.DataFrame(rows.batch)
        batch = rows.batch
        for name, expression in expressions:
            column = frame.select(expression.alias(name))
            if len(column) != len(frame):
                column = column[[0] * len(frame)]
            frame = frame.with_columns(column.to_series())
            array = column.to_series().to_arrow(compat_level=pl.CompatLevel.oldest())
            if pa.types.is_large_string(array.type):
                array = array.cast(pa.string())
            batch = set_column(batch, name, array)
        return Rows(batch, rows.ids)

    return Step("features", "features", call)


def feature_columns(features: dict[str, str]) -> frozenset[str]:
    """The input columns that `features` are computed from."""
    used: set[str] = set()
    for name, text in reversed(features.items()):
        used.discard(name)
        used.update(_expression(name, text).meta.root_names())
    return frozenset(used)


def check_features(features: dict[str, str], batch: pa.RecordBatch) -> None:
    """Refuses features whose value in one row depends on other rows, such as aggregates and windows.

    A sample is computed whole and row by row. Values made up from the column types are added to the rows of `batch`, so
    that an aggregate shows even where there is only one row, or all are alike.

    Raises:
        UsageError: names the feature, and why it was refused.
    """
    used = sorted(feature_columns(features))
    missing = [name for name in used if name not in batch.schema.names]
    if missing:
        name = next(name for name, text in features.items() if missing[0] in _expression(name, text).meta.root_names())
        raise UsageError(f'feature "{name}" uses column "{missing[0]}", which the input does not have')
    sample = batch.select(used).slice(0, 32) if used else batch.slice(0, 32)
    for name, text in features.items():
        tables = [_made_up(sample.schema)] if not sample.num_rows else [sample, _made_up(sample.schema)]
        step = feature_step({key: features[key] for key in _up_to(features, name)})
        for rows in tables:
            _compare(step, name, text, rows)


def set_column(batch: pa.RecordBatch, name: str, array: pa.Array) -> pa.RecordBatch:
    """`batch` with the column `name`, replaced where it is there and appended where it is not."""
    place = batch.schema.get_field_index(name)
    return batch.append_column(name, array) if place < 0 else batch.set_column(place, name, array)


def _up_to(features: dict[str, str], name: str) -> list[str]:
    names = list(features)
    return names[: names.index(name) + 1]


def _expression(name: str, text: str) -> pl.Expr:
    try:
        return pl.sql_expr(text)
    except Exception as error:
        raise UsageError(f'feature "{name}": "{text}" is no SQL expression over the row: {one_line(error)}') from None


def _compare(step: Step, name: str, text: str, batch: pa.RecordBatch) -> None:
    def values(part: pa.RecordBatch) -> list[Any] | None:
        try:
            result: list[Any] = step.call(Rows(part, np.arange(part.num_rows))).batch.column(name).to_pylist()
        except Exception:
            return None  # rows that it fails on become dead letters; here they say nothing
        return result

    alone = [values(batch.slice(row, 1)) for row in range(batch.num_rows)]
    usable = [row for row, value in enumerate(alone) if value is not None]
    whole = values(batch.take(pa.array(usable, pa.int64())))
    single = [value[0] for row in usable if (value := alone[row])]
    if whole is None or any(not _same(a, b) for a, b in zip(whole, single, strict=True)):
        raise UsageError(
            f'feature "{name}": "{text}" depends on other rows (an aggregate or a window?); a feature must be computed '
            "from its own row alone"
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other) or abs(one - other) <= 1e-9 * max(abs(one), abs(other))
    return bool(one == other)


def _made_up(schema: pa.Schema) -> pa.RecordBatch:
    """A few rows of differing values for `schema`; null where its type has no simple ones."""
    numbers = pa.array([3, 1, 4, 2, 5, 9])
    arrays = []
    for field in schema:
        try:
            arrays.append(numbers.cast(pa.bool_()) if pa.types.is_boolean(field.type) else numbers.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            arrays.append(pa.nulls(len(numbers), field.type))
    if not arrays:
        return pa.RecordBatch.from_arrays([numbers], names=[ROW_ID])
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _on_batch(function: Callable[[pa.RecordBatch], Any], name: str, rows: Rows) -> Rows:
    result = function(rows.batch.append_column(ROW_ID, pa.array(rows.ids)))
    if isinstance(result, pa.Table):
        result = single_batch(result)
    if not isinstance(result, pa.RecordBatch):
        raise ContractError(f'"{name}" gave a {type(result).__name__}, not a pa.RecordBatch')
    if ROW_ID in result.schema.names:
        ids = result.column(ROW_ID).to_numpy(zero_copy_only=False).astype(np.int64)
        _check_ids(ids, rows.ids, name)
        return Rows(result.drop_columns([ROW_ID]), ids)
    if result.num_rows != rows.batch.num_rows:
        raise ContractError(
            f'"{name}" took {rows.batch.num_rows} rows and gave {result.num_rows} without the column {ROW_ID}; keep that '
            "column, so that rows can be told apart"
        )
    return Rows(result, rows.ids)


def _on_frame(function: Callable[[pd.DataFrame], Any], name: str, rows: Rows) -> Rows:
    frame = rows.batch.to_pandas(types_mapper=_nullable_integers)
    frame.index = pd.RangeIndex(FIRST_INDEX, FIRST_INDEX + len(frame))
    result = function(frame)
    if not isinstance(result, pd.DataFrame):
        raise ContractError(f'"{name}" gave a {type(result).__name__}, not a pd.DataFrame')
    places = result.index.to_numpy()
    if not np.issubdtype(places.dtype, np.integer) or (len(places) and (places.min() < FIRST_INDEX)):
        raise ContractError(
            f'"{name}" gave a frame with an index of its own; keep the index that came with the rows (no reset_index)'
        )
    places = places - FIRST_INDEX
    _check_ids(places, np.arange(len(frame)), name)
    schema = _known_types(result, rows.batch.schema)
    batch = pa.RecordBatch.from_pandas(result, schema=schema, preserve_index=False)
    return Rows(batch.replace_schema_metadata(None), rows.ids[places])


def _nullable_integers(kind: pa.DataType) -> Any:
    """Pandas' own nullable type for integers and flags, which would turn to float or object where a null is among them."""
    names = {pa.int8(): "Int8", pa.int16(): "Int16", pa.int32(): "Int32", pa.int64(): "Int64"}
    names |= {pa.uint8(): "UInt8", pa.uint16(): "UInt16", pa.uint32(): "UInt32", pa.uint64(): "UInt64"}
    names[pa.bool_()] = "boolean"
    return pd.api.types.pandas_dtype(names[kind]) if kind in names else None


def _known_types(frame: pd.DataFrame, before: pa.Schema) -> pa.Schema | None:
    """The types of `frame`, with those kept that a column had before and still fits, or that pandas cannot tell."""
    inferred = pa.Schema.from_pandas(frame, preserve_index=False)
    fields = []
    for field in inferred:
        place = before.get_field_index(str(field.name))
        if place >= 0 and before.field(place).type != field.type:
            try:
                pa.Array.from_pandas(frame[field.name], type=before.field(place).type)
                field = before.field(place)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
                pass
        fields.append(field.with_name(str(field.name)))
    return pa.schema(fields)


def _on_dicts(function: Callable[[dict[str, Any]], Any], name: str, rows: Rows) -> Rows:
    kept: list[dict[str, Any]] = []
    ids: list[int] = []
    for id_, row in zip(rows.ids.tolist(), rows.batch.to_pylist(), strict=True):
        result = function(row)
        if result is None:
            continue
        if not isinstance(result, dict):
            raise ContractError(f'"{name}" gave a {type(result).__name__} for a row, not a dict or None')
        kept.append(result)
        ids.append(id_)
    if not kept:
        return Rows(rows.batch.slice(0, 0), np.empty(0, np.int64))
    names: dict[str, None] = dict.fromkeys(key for row in kept for key in row)
    arrays = [_column(key, [row.get(key) for row in kept], rows.batch.schema) for key in names]
    return Rows(pa.RecordBatch.from_arrays(arrays, names=list(names)), np.array(ids, np.int64))


def _column(name: str, values: Sequence[Any], before: pa.Schema) -> pa.Array:
    place = before.get_field_index(name)
    if place >= 0:
        try:
            return pa.array(values, before.field(place).type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass
    return pa.array(values)


def _check_ids(ids: np.ndarray, known: np.ndarray, name: str) -> None:
    if len(np.unique(ids)) != len(ids) or not np.isin(ids, known).all():
        raise ContractError(f'"{name}" gave a row twice or one that it did not take; every row may come back once')
