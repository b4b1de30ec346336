"""Features: SQL expressions over the row, which become columns, and the check that each depends only on its own row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chains import Rows, Step
from handlers.columnar.chunks import ROW_ID
from handlers.errors import UsageError, one_line

MADE_UP_ROWS = 24

# What Polars calls the parts of an expression that look at more than one row.
ACROSS_ROWS = ("Agg", "Over", "Window", "Rolling", "Explode")


def feature_step(features: Mapping[str, str], what: str = "feature") -> Step:
    """The step that adds a column for every SQL expression of `features`; raises `UsageError` for a malformed one.

    Expressions are those of Polars' `sql_expr`: over the columns of the row, without access to files or tables. Later
    features may use earlier ones. `what` they are called in errors.
    """
    expressions = [(name, _expression(name, text, what)) for name, text in features.items()]

    used = sorted(feature_columns(features, what))

    def call(rows: Rows) -> Rows:
        try:
            return Rows(computed(rows), rows.ids)
        except pl.exceptions.PanicException as panic:  # not an Exception; the row is still at fault
            raise ValueError(one_line(panic)) from None

    def computed(rows: Rows) -> pa.RecordBatch:
        columns = {name: _for_polars(rows.batch.column(name)) for name in used} or {ROW_ID: pa.array(rows.ids)}
        frame = pl.DataFrame(pa.RecordBatch.from_pydict(columns))
        batch = rows.batch
        for name, expression in expressions:
            frame = frame.with_columns(expression.alias(name))
            array = frame.get_column(name).to_arrow(compat_level=pl.CompatLevel.oldest())
            if pa.types.is_large_string(array.type):
                array = array.cast(pa.string())
            batch = _set_column(batch, name, array)
        return batch

    return Step("features", "features", call)


def _for_polars(array: pa.Array) -> pa.Array:
    """Whole numbers as int64, since Polars computes in the type of its columns, where 1 - 2 may be 255."""
    if pa.types.is_fixed_size_list(array.type):  # of which Polars 2.1 cannot take a slice with nulls
        return array.cast(pa.list_(array.type.value_type))
    return array.cast(pa.int64()) if pa.types.is_integer(array.type) and array.type != pa.uint64() else array


def feature_columns(features: Mapping[str, str], what: str = "feature") -> frozenset[str]:
    """The input columns that `features` are computed from."""
    used: set[str] = set()
    for name, text in reversed(list(features.items())):
        used.discard(name)
        used.update(_expression(name, text, what).meta.root_names())
    return frozenset(used)


def check_features(features: Mapping[str, str], batch: pa.RecordBatch, what: str = "feature") -> None:
    """Refuses features whose value in one row depends on other rows, such as aggregates and windows.

    A sample is computed whole and row by row. Values made up from the column types are added to the rows of `batch`, so
    that an aggregate shows even where there is only one row, or all are alike.

    Raises:
        UsageError: names the feature, and why it was refused.
    """
    known = set(batch.schema.names)
    for name, text in features.items():
        expression = _expression(name, text, what)
        if missing := [column for column in expression.meta.root_names() if column not in known]:
            raise UsageError(f'{what} "{name}" uses column "{missing[0]}", which {_lacks(what)}')
        if _looks_at_other_rows(expression):
            raise _depends(name, text, what)
        known.add(name)
    used = sorted(feature_columns(features, what))
    sample = batch.select(used).slice(0, 32) if used else batch.slice(0, 32)
    for name, text in features.items():
        tables = [_made_up(sample.schema)] if not sample.num_rows else [sample, _made_up(sample.schema)]
        step = feature_step({key: features[key] for key in _up_to(features, name)}, what)
        for rows in tables:
            _compare(step, name, text, rows, what)


def _set_column(batch: pa.RecordBatch, name: str, array: pa.Array) -> pa.RecordBatch:
    """`batch` with the column `name`, replaced where it is there and appended where it is not."""
    index = batch.schema.get_field_index(name)
    return batch.append_column(name, array) if index < 0 else batch.set_column(index, name, array)


def _up_to(features: Mapping[str, str], name: str) -> list[str]:
    names = list(features)
    return names[: names.index(name) + 1]


def _expression(name: str, text: str, what: str) -> pl.Expr:
    try:
        return pl.sql_expr(text)
    except Exception as error:
        raise UsageError(
            f'{what} "{name}": "{text}" is not an SQL expression over the row: {one_line(error)}'
        ) from None


def _compare(step: Step, name: str, text: str, batch: pa.RecordBatch, what: str) -> None:
    def values(part: pa.RecordBatch) -> list[Any] | None:
        try:
            result: list[Any] = step.call(Rows(part, np.arange(part.num_rows))).batch.column(name).to_pylist()
        except Exception:
            return None  # rows that it fails on become dead letters; they are skipped here
        return result

    alone = [values(batch.slice(row, 1)) for row in range(batch.num_rows)]
    usable = [row for row, value in enumerate(alone) if value is not None]
    if not usable:
        return
    whole = values(batch.take(pa.array(usable, pa.int64())))
    single = [value[0] for row in usable if (value := alone[row])]
    if whole is None or any(not _same(a, b) for a, b in zip(whole, single, strict=True)):
        raise _depends(name, text, what)


def _depends(name: str, text: str, what: str) -> UsageError:
    return UsageError(
        f'{what} "{name}": "{text}" depends on other rows (an aggregate or a window?); it must be computed from its own '
        "row alone"
    )


def _lacks(what: str) -> str:
    return "the input does not have" if what == "feature" else "neither the input nor an earlier model has"


def _looks_at_other_rows(expression: pl.Expr) -> bool:
    """Whether an aggregate or a window is among the parts of an expression, even where no sample would show it."""

    def found(part: Any) -> bool:
        if isinstance(part, dict):
            return any(
                kind in ACROSS_ROWS or (kind not in ("Column", "Literal") and found(inner))
                for kind, inner in part.items()
            )
        return any(map(found, part)) if isinstance(part, list) else part == "Len"

    return found(json.loads(expression.meta.serialize(format="json")))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other) or abs(one - other) <= 1e-9 * max(abs(one), abs(other))
    return bool(one == other)


def _made_up(schema: pa.Schema) -> pa.RecordBatch:
    """Rows of a few values that repeat in other ways in every column; null where a type has no simple ones."""
    arrays = []
    for index, field in enumerate(schema):
        numbers = pa.array(np.random.default_rng(index).integers(1, 5, MADE_UP_ROWS))
        try:
            if pa.types.is_boolean(field.type):
                arrays.append(pc.greater(numbers, 2))
            elif pa.types.is_dictionary(field.type):
                arrays.append(numbers.cast(field.type.value_type).dictionary_encode().cast(field.type))
            else:
                arrays.append(numbers.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            arrays.append(pa.nulls(MADE_UP_ROWS, field.type))
    if not arrays:
        return pa.RecordBatch.from_arrays([pa.array(np.arange(MADE_UP_ROWS))], names=[ROW_ID])
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
