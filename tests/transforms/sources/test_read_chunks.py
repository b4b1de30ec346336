import gzip
import pickle
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from handlers.columnar.chunks import ROW
from transforms.sources import FileRead, ReadChunks, plan_input
from transforms.sources.formats import parquet


def test_files_without_and_with_faults(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,x\noops,y\n3\n4,z\n")
    (tmp_path / "2.csv").write_text("b\nq\n")
    (tmp_path / "3.csv.gz").write_bytes(gzip.compress(b"a,b\n5,v\n"))
    (tmp_path / "4.csv.gz").write_bytes(b"no gzip")
    found = plan_input(str(tmp_path), numeric_columns=["a"])
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        read = pipeline | ReadChunks(found, needed=frozenset({"a"}), chunk_rows=1, model_version="v")
        assert_that(read.chunks | beam.FlatMap(rows_of), equal_to([(1, "x", 0), (4, "z", 3), (5, "v", 0)]), "chunks")
        dead = read.dead_letters | beam.FlatMap(lambda batch: batch.column("dead_letter").to_pylist())
        assert_that(
            dead | beam.Map(lambda each: (each["row"], each["model_version"])), equal_to([(1, "v"), (2, "v")]), "dead"
        )
        expected = [
            FileRead(f"{tmp_path}/1.csv", 4, 2),
            FileRead(f"{tmp_path}/2.csv", 0, 0, '2.csv has no column "a", which the model needs'),
            FileRead(f"{tmp_path}/3.csv.gz", 1, 0),
            FileRead(
                f"{tmp_path}/4.csv.gz", 0, 0, "4.csv.gz cannot be read: zlib inflate failed: incorrect header check"
            ),
        ]
        assert_that(read.files | "Each" >> beam.FlatMap(list), equal_to(expected), "files")


def rows_of(chunk: pa.RecordBatch) -> list[Any]:
    return [(row["a"], row["b"], row[ROW]) for row in chunk.to_pylist()]


def test_a_record_for_every_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "SPLIT_ROWS", 20)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(50))}), path, row_group_size=10)
    found = plan_input(str(path))
    assert max(len(pickle.dumps(split)) for split in found.splits) < 400
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        read = pipeline | "Input" >> ReadChunks(found)
        expected = [FileRead(str(path), rows, 0, whole=False) for rows in (20, 20, 10)]
        assert_that(read.files | beam.FlatMap(list), equal_to(expected))
        numbers = read.chunks | beam.FlatMap(lambda chunk: chunk.column(ROW).to_pylist())
        assert_that(numbers, equal_to(list(range(50))), "numbers")
