"""Many small files: grouped, so that there are few elements, while each file keeps its account."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from handlers.columnar.chunks import ROW, SOURCE
from transforms.sources import BadRows, FileRead, ReadChunks, Split, plan_input, read_split
from transforms.sources.blocks import ReadOptions
from transforms.sources.planning import GROUPS, grouped
from transforms.sources.splits import read_splits


def sizes(splits: list[Split]) -> list[int]:
    found = grouped(splits)
    assert [split for group in found for split in group] == splits
    return [len(group) for group in found]


def test_small_splits_share_groups_and_enough_groups_are_left() -> None:
    small = [Split(f"{number}.csv", "csv", bytes=10_000) for number in range(10_000)]
    assert GROUPS <= len(sizes(small)) <= 2 * GROUPS
    assert sizes(small[: GROUPS - 1]) == [1] * (GROUPS - 1)
    assert sizes(small[: 2 * GROUPS]) == [2] * GROUPS
    assert sizes([]) == []
    # Each at most 32 MiB, or the group of a worker would take too long.
    assert max(sizes([Split(f"{number}.csv", "csv", bytes=8 << 20) for number in range(1_000)])) == 3
    assert max(sizes([Split(f"{number}.parquet", "parquet", rows=200_000) for number in range(1_000)])) == 2


def test_large_splits_and_streams_stay_alone() -> None:
    small = [Split(f"{number}.csv", "csv", bytes=10) for number in range(1_000)]
    large = [Split(f"{number}.csv", "csv", bytes=1 << 30) for number in range(100)]
    found = grouped([*small[:500], *large, *small[500:]])
    assert [group for group in found if group[0] in large] == [(split,) for split in large]
    assert len(found) < len(large) + 10
    assert sizes([Split("bigquery:p.d.t", "bigquery", stream=(number, "s")) for number in range(1_000)]) == [1] * 1_000


def test_thousands_of_files_are_some_hundred_elements(tmp_path: Path) -> None:
    first = tmp_path / "0.parquet"
    pq.write_table(pa.table({"a": [1.0, 2.0]}), first)
    for number in range(1, 2_000):
        os.link(first, tmp_path / f"{number}.parquet")
    found = plan_input(str(tmp_path))
    assert (found.files, found.rows, len(found.splits)) == (2_000, 4_000, 2_000)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        read = pipeline | ReadChunks(found)
        for name, elements in (("chunks", read.chunks), ("files", read.files)):
            counted = elements | f"Count {name}" >> beam.combiners.Count.Globally()
            assert_that(counted, few, name)
        rows = read.chunks | beam.Map(lambda chunk: chunk.num_rows) | beam.CombineGlobally(sum)
        assert_that(rows, equal_to([4_000]), "rows")
        paths = read.files | beam.FlatMap(lambda files: [(file.path, file.rows, file.error) for file in files])
        expected = [(str(path), 2, None) for path in tmp_path.iterdir()]
        assert_that(paths, equal_to(expected), "paths")


def few(counts: list[int]) -> None:
    assert GROUPS <= counts[0] <= 2 * GROUPS, counts


def rows_and_records(splits: list[Split], schema: pa.Schema, **options: Any) -> tuple[list[Any], list[Any], list[Any]]:
    rows: list[Any] = []
    dead: list[Any] = []
    records: list[Any] = []
    for piece in read_splits(splits, schema, ReadOptions(**options), "v"):
        if isinstance(piece, FileRead):
            records.append(piece)
        elif isinstance(piece, BadRows):
            dead += piece.dead_letters.to_pylist()
        else:
            assert piece.num_rows <= options.get("chunk_rows", 1 << 20)
            assert piece.schema.names == [*schema.names, SOURCE, ROW]
            rows += piece.to_pylist()
    return rows, dead, records


@pytest.mark.parametrize("chunk_rows", [1, 7, 65_536])
def test_a_group_reads_what_its_files_hold(tmp_path: Path, chunk_rows: int) -> None:
    """Files that break, lack a column, lie in folders of different keys or have bad rows, among good ones."""
    texts = {
        "day=1/a.csv": "a,b\n1,x\n2,y\n",
        "day=1/broken.csv": 'a,b\n3,z\n4,"w\n',
        "day=2/bad-rows.csv": "a,b\n5,v\nno,u\n6\n7,t\n",
        "day=__HIVE_DEFAULT_PARTITION__/empty.csv": "a,b\n",
        "day=__HIVE_DEFAULT_PARTITION__/null.csv": "a,b\n8,s\n",
        "lacks.csv": "b\nr\n",
        "plain.csv": "a,b\n9,q\n",
        "last.csv": "b,a\np,10\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = plan_input(str(tmp_path), numeric_columns=["a"])
    splits = list(found.splits)
    needed = frozenset({"a"})
    rows, dead, records = rows_and_records(splits, found.schema, needed=needed, chunk_rows=chunk_rows)

    def row(a: float, b: str, day: int | None, name: str, number: int) -> dict[str, Any]:
        return {"a": a, "b": b, "day": day, SOURCE: str(tmp_path / name), ROW: number}

    null = "day=__HIVE_DEFAULT_PARTITION__"
    assert sorted(rows, key=lambda each: each["a"]) == [
        row(1, "x", 1, "day=1/a.csv", 0),
        row(2, "y", 1, "day=1/a.csv", 1),
        row(3, "z", 1, "day=1/broken.csv", 0),
        row(5, "v", 2, "day=2/bad-rows.csv", 0),
        row(7, "t", 2, "day=2/bad-rows.csv", 3),
        row(8, "s", None, f"{null}/null.csv", 0),
        row(9, "q", None, "plain.csv", 0),
        row(10, "p", None, "last.csv", 0),
    ]
    assert sorted((each["dead_letter"]["source"], each["dead_letter"]["row"]) for each in dead) == [
        (str(tmp_path / "day=2/bad-rows.csv"), 1),
        (str(tmp_path / "day=2/bad-rows.csv"), 2),
    ]
    accounts = {Path(each.path).name: (each.rows, each.dead, each.error is not None) for each in records}
    assert accounts == {
        "a.csv": (2, 0, False),
        "broken.csv": (1, 0, True),
        "bad-rows.csv": (4, 2, False),
        "empty.csv": (0, 0, False),
        "null.csv": (1, 0, False),
        "lacks.csv": (0, 0, True),
        "plain.csv": (1, 0, False),
        "last.csv": (1, 0, False),
    }


def test_a_group_of_parquet_with_other_types_and_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"b": ["z"], "a": [0.5]}), tmp_path / "2.parquet")
    pq.write_table(pa.table({"a": [3]}), tmp_path / "3.parquet")
    pq.write_table(pa.table({"a": [4], "b": pa.array(["w"]).dictionary_encode()}), tmp_path / "4.parquet")
    (tmp_path / "5.parquet").write_bytes(b"PAR1 not at all PAR1")
    pq.write_table(pa.table({"b": ["v"]}), tmp_path / "6.parquet")
    found = plan_input(str(tmp_path))
    rows, dead, records = rows_and_records(list(found.splits), found.schema, needed=frozenset({"a"}))
    assert [(row["a"], row["b"], Path(row[SOURCE]).name, row[ROW]) for row in rows] == [
        (1.0, "x", "1.parquet", 0),
        (2.0, "y", "1.parquet", 1),
        (0.5, "z", "2.parquet", 0),
        (3.0, None, "3.parquet", 0),
        (4.0, "w", "4.parquet", 0),
    ]
    assert dead == []
    assert [(each.rows, each.error is not None) for each in records] == [
        *((2, False), (1, False), (1, False), (1, False)),
        *((0, True), (0, True)),
    ]
    # Each file by itself gives the same.
    alone = [
        row for split in found.splits[:4] for piece in read_split(split, found.schema) for row in piece.to_pylist()
    ]  # type: ignore[union-attr]
    assert alone == rows
