"""No chunk has more bytes than it may, but for a single row that is larger: in every step from the file to the model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.util import BatchElements

from handlers.batching import Batching
from handlers.columnar.chunks import rows_within
from handlers.columnar.handler import ColumnarModelHandler
from handlers.columnar.rechunker import Rechunker
from transforms.sinks import write
from transforms.sources import ReadChunks, plan_input, read_split
from transforms.sources.formats import parquet

LIMIT = 100_000


def texts(sizes: Iterable[int]) -> pa.Table:
    sizes = list(sizes)
    return pa.table({"id": range(len(sizes)), "text": [chr(97 + row % 26) * size for row, size in enumerate(sizes)]})


SHAPES = {
    "equal": texts([20_000] * 200),
    "small and large": texts([10, 10, 90_000, 10, 60_000] * 40),
    "sorted": texts(row * row for row in range(1, 300)),
    "larger than a chunk": texts([5, 300_000, 5] * 10),
    "many columns": pa.table({f"c{index}": np.arange(200.0) for index in range(300)}),
}


def fits(chunk: pa.RecordBatch) -> bool:
    return chunk.num_rows == 1 or chunk.nbytes <= LIMIT


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_read_and_rechunked(shape: str, kind: str, tmp_path: Path) -> None:
    table = SHAPES[shape]
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        pacsv.write_csv(table, path)
    (split,) = plan_input(str(path), numeric_columns=["c*"]).splits
    chunks: list[Any] = list(read_split(split, table.schema, max_chunk_bytes=LIMIT))
    rechunker = Rechunker(65_536, LIMIT)
    again = [each for chunk in chunks for each in rechunker.push(chunk)] + list(rechunker.flush())
    for found in (chunks, again):
        assert all(map(fits, found))
        assert pa.Table.from_batches(found).select(table.schema.names).equals(table)
    # Chunks are full, too: two that follow one another would not have fitted into one.
    assert all(one.nbytes + other.nbytes > LIMIT // 2 for one, other in pairwise(again))


def test_a_text_that_the_file_holds_once_is_not_read_for_all_rows_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The footer tells of some bytes a row, and each takes 20,000 in memory."""
    table = pa.table({"text": ["x" * 20_000] * 5_000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1_000)
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    sizes = []
    fitted = parquet.Block

    def block(batch: pa.RecordBatch, numbers: np.ndarray) -> Any:
        sizes.append(batch.nbytes)
        return fitted(batch, numbers)

    monkeypatch.setattr(parquet, "Block", block)
    found = plan_input(str(tmp_path))
    limit = 1_000_000
    chunks: list[Any] = list(read_split(found.splits[0], found.schema, max_chunk_bytes=limit))
    assert max(sizes) <= limit
    assert max(chunk.nbytes for chunk in chunks) <= limit
    assert sum(chunk.num_rows for chunk in chunks) == 5_000


def test_batches_of_large_rows_are_no_larger_than_a_chunk(tmp_path: Path) -> None:
    """Beam's BatchElements gathers up to so many rows, and 65,536 of them may be all that there are."""
    pq.write_table(texts([20_000] * 200), tmp_path / "a.parquet")
    batching = Batching(chunk_bytes=LIMIT)
    handler = ColumnarModelHandler.__new__(ColumnarModelHandler)  # its batching needs no model
    handler.batching = batching
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        chunks = pipeline | ReadChunks(plan_input(str(tmp_path)), max_chunk_bytes=LIMIT)
        batches = chunks.chunks | BatchElements(**handler.batch_elements_kwargs())
        rows = batches | beam.Map(lambda batch: (handler_bytes(batch) <= LIMIT, sum(each.num_rows for each in batch)))
        kept = rows | "Fits" >> beam.Filter(lambda each: each[0]) | beam.Map(lambda each: each[1])
        assert_that(kept | beam.CombineGlobally(sum), equal_to([200]))


def handler_bytes(batch: list[pa.RecordBatch]) -> int:
    return sum(chunk.nbytes for chunk in batch)


def test_the_sink_gathers_no_more_than_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = texts([20_000] * 50)
    groups: list[int] = []
    wrote = write._Roll.write

    def noted(self: Any, batches: list[pa.RecordBatch]) -> None:
        groups.append(handler_bytes(batches))
        wrote(self, batches)

    monkeypatch.setattr(write._Roll, "write", noted)
    writer = write.Writer(str(tmp_path), table.schema, "parquet", group_bytes=LIMIT)
    for batch in table.to_batches(max_chunksize=3):
        writer.write(batch)
    (part,) = writer.finish()
    assert max(groups) <= LIMIT
    assert len(groups) == 17  # three rows have 60 kB, six would have more
    assert pq.read_table(part.path).equals(table)


def test_rows_within() -> None:
    batch = pa.RecordBatch.from_pydict({"n": np.arange(100)})
    assert rows_within(batch, 0, 1_000, 1 << 20) == 100
    assert rows_within(batch, 90, 1_000, 1 << 20) == 10
    assert rows_within(batch, 0, 50, 80) == 10
    assert rows_within(batch, 0, 50, 7) == 1
