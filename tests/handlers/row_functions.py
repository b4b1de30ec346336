"""Functions as users write them: found by name by the tests of chains and scorer."""

from __future__ import annotations

import datetime
import decimal
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from pandas import DataFrame
    from pyarrow import RecordBatch

POISON = 666


# Record batches


def batch_doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.append_column("double", pc.multiply(batch.column("a"), 2))


def batch_poisoned(batch: pa.RecordBatch) -> pa.RecordBatch:
    if POISON in batch.column("a").to_pylist():
        raise ValueError("there is poison\nin it")
    return batch_doubled(batch)


def batch_filtered(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.filter(pc.greater(batch.column("a"), 0))


def batch_filtered_without_ids(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch_filtered(batch).select(["a"])


def batch_sorted(batch: RecordBatch) -> RecordBatch:
    return batch.sort_by([("a", "descending")])


def batch_as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch.slice(0, 1), batch.slice(1)])


def batch_twice(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.Table.from_batches([batch, batch]).combine_chunks().to_batches()[0]


def batch_garbage(batch: pa.RecordBatch) -> Any:
    return 42


# Frames


def frame_doubled(frame: pd.DataFrame) -> pd.DataFrame:
    frame["double"] = frame["a"] * 2
    return frame


def frame_poisoned(frame: DataFrame) -> DataFrame:
    if (frame["a"] == POISON).any():
        raise ValueError("there is poison in it")
    return frame_doubled(frame)


def frame_filtered(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["a"] > 0]


def frame_sorted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("a", ascending=False)


def frame_reset(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.reset_index(drop=True)


def frame_twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame])


def frame_as_it_is(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


def frame_copied(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.copy()


def frame_text(frame: pd.DataFrame) -> pd.DataFrame:
    frame["text"] = "n" + frame["a"].astype(str)
    return frame


def frame_clipped(frame: pd.DataFrame) -> pd.DataFrame:
    frame["a"] = frame["a"].clip(0, 1)
    return frame


def frame_halved(frame: pd.DataFrame) -> pd.DataFrame:
    frame["a"] = frame["a"] / 2
    return frame


def frame_lists_changed_in_place(frame: pd.DataFrame) -> pd.DataFrame:
    frame["st"].map(lambda value: value.update(x=7))
    return frame


def frame_without_columns(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[[]]


def frame_garbage(frame: pd.DataFrame) -> Any:
    return frame["a"]


# Rows


def row_doubled(row: dict[str, Any]) -> dict[str, Any] | None:
    return {**row, "double": row["a"] * 2}


def row_poisoned(row: dict) -> dict:
    if row["a"] == POISON:
        raise KeyError("poison")
    return {**row, "double": row["a"] * 2}


def row_filtered(row: dict[str, Any]) -> dict[str, Any] | None:
    return row if row["a"] > 0 else None


def row_as_it_is(row: dict[str, Any]) -> dict[str, Any]:
    return row


def row_second_emptied(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"a": None} if row["b"] == 2 else row


def frame_second_emptied(frame: pd.DataFrame) -> pd.DataFrame:
    if 2 in set(frame["b"]):
        column = frame["a"].copy()
        column[frame["b"] == 2] = None
        frame["a"] = column
    return frame


def row_emptied(row: dict[str, Any]) -> dict[str, Any]:
    return {}


def frame_with_an_index_of_its_own(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.reset_index(drop=True).iloc[1:]


def batch_with_a_column_twice(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.append_column("a", batch.column("a"))


def row_that_ends_the_process(row: dict[str, Any]) -> dict[str, Any]:
    if row["a"] == POISON:
        sys.exit(0)
    return row


def row_sometimes_garbage(row: dict[str, Any]) -> Any:
    return [row] if row["a"] == POISON else row


def row_mixed_types(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "new": "poison" if row["a"] == POISON else 1}


def row_sometimes_fraction(row: dict[str, Any]) -> dict[str, Any]:
    """A fraction for rows below zero, and else a whole number that float64 has not."""
    if row["a"] == 666:
        raise ValueError("poison")
    return {"a": row["a"], "new": 0.5 if row["a"] < 0 else 2**60 + 1}


def row_large(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "f": 1e39 if row["a"] == POISON else row["f"]}


# What cannot be used


def without_annotation(rows):
    return rows


def without_arguments() -> None: ...


def of_a_list(rows: list[int]) -> list[int]:
    return rows


not_a_function = 3


# After the model


def confident(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["confidence"] > 0.6]


def extra_column_when_poisoned(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(surprise=1) if (frame["a"] == POISON).any() else frame


def extra_key_when_poisoned(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "surprise": 1} if row["a"] == POISON else row


def without_confidence(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.drop_columns(["confidence"])


def wide_when_poisoned(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "score": 1.5 if row["a"] == POISON else 1}


def always_failing(frame: pd.DataFrame) -> pd.DataFrame:
    raise RuntimeError("never works")


def odd_types(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "day": datetime.date(2024, 1, 31),
        "price": decimal.Decimal("1.25"),
        "tags": ["a", "b"],
    }


def batch_evens(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows with an even id, in reverse order."""
    rows = [row for row, value in enumerate(batch.column("id").to_pylist()) if value % 2 == 0]
    return batch.take(pa.array(rows[::-1], pa.int64()))
