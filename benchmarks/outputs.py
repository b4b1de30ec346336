"""Compares what a contestant has written with what the loop has written, row by row, in whatever order they come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

REFUSED = ("dead_letters", "refused")
TIED_SHARE = 1e-5  # of the rows may have another class: two are equally probable there, in the last bits


@dataclass(frozen=True)
class Shape:
    """What an output holds.

    Attributes:
        key: the column that identifies a row.
        numbers: columns of numbers, or of lists of numbers of one length.
        label: the column of class labels; None if there is none.
        tolerance: how far numbers may be from the loop's.
    """

    key: str = "f_0"
    numbers: tuple[str, ...] = ("confidence",)
    label: str | None = "predicted_class"
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Output:
    """Rows in the order of their keys.

    Attributes:
        keys: (rows,) as they were.
        carried: (rows,) uint64 hashes of the columns of the input; zeros if they are not carried.
        labels: (rows,) uint64 hashes of the class.
        numbers: (rows, columns) float32.
        refused: how many rows are in the folder of the refused ones.
    """

    keys: np.ndarray
    carried: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    refused: int = 0


def read(folder: Path, shape: Shape, schema: pa.Schema | None) -> Output:
    """What is in the Parquet files of a folder, or of its folder `predictions`, if there is one; hidden files are left out.

    Args:
        folder: the output of a contestant.
        shape: its columns.
        schema: that of the input if its columns are carried; values are compared in these types.
    """
    inner = folder / "predictions"
    files = _files(inner if inner.is_dir() else folder)
    parts = [_reduced(batch, shape, schema) for file in files for batch in pq.ParquetFile(file).iter_batches(1_000_000)]
    refused = sum(pq.read_metadata(file).num_rows for name in REFUSED for file in _files(folder / name))
    if not parts:
        return Output(np.empty(0), np.empty(0), np.empty(0), np.empty((0, 0)), refused)
    keys, carried, labels, numbers = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.lexsort((carried, keys))
    return Output(keys[order], carried[order], labels[order], numbers[order], refused)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.parquet") if not file.name.startswith((".", "_")))


def _reduced(batch: pa.RecordBatch, shape: Shape, schema: pa.Schema | None) -> tuple[np.ndarray, ...]:
    """Keys, hashes of the carried columns, hashes of the labels, and numbers of one batch."""
    zeros = np.zeros(batch.num_rows, np.uint64)
    carried = zeros
    if schema is not None:
        carried = _hashes(pa.Table.from_batches([batch.select(schema.names)]).cast(schema))
    labels = zeros
    if shape.label:
        text = pc.cast(batch.column(shape.label), pa.string())
        labels = _hashes(pa.table({"label": text}))
    numbers = [_matrix(batch.column(name)) for name in shape.numbers]
    keys = batch.column(shape.key).to_numpy(zero_copy_only=False)
    return keys, carried, labels, np.concatenate(numbers, axis=1)


def _hashes(table: pa.Table) -> np.ndarray:
    return polars.DataFrame(polars.from_arrow(table)).hash_rows().to_numpy()


def _matrix(column: pa.Array) -> np.ndarray:
    """(rows, 1) of numbers, (rows, n) of lists."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    values = (column.flatten() if is_list else column).to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(len(column), -1)


def difference(found: Output, expected: Output, shape: Shape) -> str | None:
    """In what an output differs from the expected one; None if it does not."""
    if len(found.keys) != len(expected.keys):
        return f"{len(found.keys):,} rows instead of {len(expected.keys):,}"
    if not np.array_equal(found.keys, expected.keys):
        return f"other rows: {int((found.keys != expected.keys).sum()):,} have another {shape.key}"
    if not np.array_equal(found.carried, expected.carried):
        return f"{int((found.carried != expected.carried).sum()):,} rows have other values in columns of the input"
    if found.numbers.shape != expected.numbers.shape:
        return f"numbers of shape {found.numbers.shape} instead of {expected.numbers.shape}"
    far = ~(np.abs(found.numbers - expected.numbers) <= shape.tolerance)  # a NaN is far, too
    if far.any():
        return f"{int(far.any(axis=1).sum()):,} rows are more than {shape.tolerance:g} away"
    other = int((found.labels != expected.labels).sum())
    if other > TIED_SHARE * len(found.labels):
        return f"{other:,} rows have another {shape.label}"
    return None
