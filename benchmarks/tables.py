"""Inputs of rows with 20 float64 columns: Parquet, CSV, JSON lines; with 300 more columns, with bad rows, in small files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.bench_model import COLUMNS, FEATURES
from benchmarks.data import Data

FILE_ROWS = 1_000_000
ROW_BYTES = 8 * FEATURES
WIDE_ROWS = 100_000  # of a file of the wide table
WIDE_COLUMNS = 300
WIDE_ROW_BYTES = 2_500
SMALL_FILE_ROWS = 40
TEXT_FILES = 4  # of a compressed table, which readers cannot split
BAD_SHARE = 0.01
BAD_VALUES = (None, np.nan, np.inf, -np.inf, 1e39, -1e300)  # the last two are finite, until they are float32


def numbers(count: int, seed: int) -> pa.Table:
    """`count` rows of 20 float64 columns."""
    random = np.random.default_rng(seed)
    return pa.table({name: random.standard_normal(count) for name in COLUMNS})


def _write(table: pa.Table, path: Path) -> None:
    texts = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
    pq.write_table(table, path, use_dictionary=texts)


def plain(data: Data, rows: int) -> Path:
    """Parquet files of a million rows each; tables of different lengths share their files."""

    def fill(folder: Path) -> None:
        pieces = data.folder / "pieces"
        pieces.mkdir(exist_ok=True)
        for number, start in enumerate(range(0, rows, FILE_ROWS)):
            count = min(FILE_ROWS, rows - start)
            piece = pieces / f"{number:06}-{count}.parquet"
            if not piece.exists():
                _write(numbers(count, number), making := piece.with_suffix(".making"))
                making.rename(piece)
            os.link(piece, folder / piece.name)

    return data.make(f"plain-{rows}", rows * ROW_BYTES, fill)


def wide(data: Data, rows: int) -> Path:
    """The same with 300 columns of mixed types, which the model does not see."""

    def fill(folder: Path) -> None:
        for number, start in enumerate(range(0, rows, WIDE_ROWS)):
            count = min(WIDE_ROWS, rows - start)
            table = numbers(count, number)
            for name, column in _mixed(np.random.default_rng(10_000 + number), count):
                table = table.append_column(name, column)
            _write(table, folder / f"{number:06}.parquet")

    return data.make(f"wide-{rows}", rows * WIDE_ROW_BYTES, fill)


def _mixed(random: np.random.Generator, count: int) -> Iterator[tuple[str, pa.Array]]:
    """300 columns: integers, texts of few and of many values, times, dates, booleans, decimals, with 2 % of nulls."""
    words = pa.array([f"word {number}" for number in range(1000)])
    for index in range(WIDE_COLUMNS // 10):
        nulls = random.random(count) < 0.02
        integers = random.integers(-(2**40), 2**40, count)
        yield f"id_{index}", pa.array(integers)
        yield f"count_{index}", pa.array(random.integers(0, 100, count), mask=nulls)
        yield f"small_{index}", pa.array(random.integers(0, 100, count).astype(np.int16))
        yield f"price_{index}", pa.array(random.standard_normal(count), mask=nulls)
        yield f"share_{index}", pa.array(random.random(count, np.float32))
        yield f"flag_{index}", pa.array(random.random(count) < 0.3, mask=nulls)
        yield f"time_{index}", pa.array(1_700_000_000_000_000 + integers // 2**10, pa.timestamp("us"))
        yield f"day_{index}", pa.array(random.integers(0, 20_000, count).astype(np.int32)).cast(pa.date32())
        yield f"word_{index}", words.take(pa.array(random.integers(0, len(words), count), mask=nulls))
        yield f"code_{index}", pa.array([f"{value:x}" for value in integers.tolist()])


def bad(data: Data, rows: int) -> Path:
    """The plain table in which 1 % of the rows have a value that no model can take: null, not a number, too large."""

    def fill(folder: Path) -> None:
        for number, file in enumerate(sorted(plain(data, rows).iterdir())):
            table = pq.read_table(file)
            random = np.random.default_rng(20_000 + number)
            marked = np.flatnonzero(random.random(table.num_rows) < BAD_SHARE)
            columns = random.integers(0, FEATURES, len(marked))
            for index, name in enumerate(COLUMNS):
                values = table.column(name).to_numpy().astype(object)
                here = marked[columns == index]
                values[here] = [BAD_VALUES[at % len(BAD_VALUES)] for at in range(len(here))]
                table = table.set_column(index, name, pa.array(values, pa.float64(), from_pandas=False))
            _write(table, folder / file.name)

    return data.make(f"bad-{rows}", rows * ROW_BYTES, fill)


def text(data: Data, rows: int, kind: str) -> Path:
    """The same rows as gzip-compressed files of `kind`: csv or jsonl."""

    def fill(folder: Path) -> None:
        for number in range(TEXT_FILES):
            count = rows * (number + 1) // TEXT_FILES - rows * number // TEXT_FILES
            if count:
                with pa.output_stream(str(folder / f"{number:06}.{kind}.gz"), compression="gzip") as stream:
                    (pyarrow.csv.write_csv if kind == "csv" else _write_json)(numbers(count, number), stream)

    return data.make(f"{kind}-gz-{rows}", rows * ROW_BYTES, fill)


def _write_json(table: pa.Table, stream: pa.NativeFile) -> None:
    for batch in table.to_batches(50_000):
        stream.write(polars.DataFrame(polars.from_arrow(batch)).write_ndjson().encode())


def small_files(data: Data, rows: int) -> Path:
    """Parquet files of 40 rows each."""

    def fill(folder: Path) -> None:
        table = numbers(rows, 0)
        for start in range(0, rows, SMALL_FILE_ROWS):
            _write(table.slice(start, SMALL_FILE_ROWS), folder / f"{start:09}.parquet")

    return data.make(f"files-{rows}", 10 * rows * ROW_BYTES, fill)
