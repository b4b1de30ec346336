import re
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.columnar.chunks import DEAD_LETTER, DEAD_LETTER_TYPE, ROW, ROW_ID, SOURCE, chunk_schema
from handlers.errors import BrokenFileError, UsageError
from transforms.sources import Split, plan_input, read_split
from transforms.sources.formats import parquet


def write(path: Path, columns: dict[str, Any] | pa.Table, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return str(path)


def chunks_of(split: Split, schema: pa.Schema) -> list[Any]:
    return list(read_split(split, schema))


def damage(path: str, group: int) -> None:
    """Overwrites the pages of a row group."""
    column = pq.ParquetFile(path).metadata.row_group(group).column(0)
    data = bytearray(Path(path).read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    Path(path).write_bytes(data)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 200), st.integers(1, 70), st.integers(1, 40), st.integers(1, 100))
def test_chunks_and_row_numbers(tmp_path_factory: Any, rows: int, group: int, chunk_rows: int, split_rows: int) -> None:
    path = write(tmp_path_factory.mktemp("pq") / "a.parquet", {"n": list(range(rows))}, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "SPLIT_ROWS", split_rows)
        found = plan_input(path)
    assert found.rows == rows
    seen = []
    for split in found.splits:
        chunks: list[Any] = list(read_split(split, found.schema, chunk_rows=chunk_rows))
        assert all(0 < chunk.num_rows <= chunk_rows for chunk in chunks)
        assert all(chunk.schema == chunk_schema(found.schema) for chunk in chunks)
        assert sum(chunk.num_rows for chunk in chunks) == split.rows
        seen += [row for chunk in chunks for row in chunk.to_pylist()]
    assert seen == [{"n": row, SOURCE: path, ROW: row} for row in range(rows)]


def test_chunk_bytes(tmp_path: Path) -> None:
    values = ["x"] * 900 + ["y" * 10_000] * 100
    path = write(tmp_path / "w.parquet", {"s": values})
    found = plan_input(path)
    chunks: list[Any] = list(read_split(found.splits[0], found.schema, max_chunk_bytes=50_000))
    assert max(chunk.nbytes for chunk in chunks) <= 100_000
    assert [row["s"] for chunk in chunks for row in chunk.to_pylist()] == values


def test_schemas_are_united(read: Any, tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"a": pa.array([1, 2], pa.int32()), "b": pa.array(["x", "y"]).dictionary_encode()})
    write(tmp_path / "2.parquet", {"c": [True], "a": [0.5]})
    found = plan_input(str(tmp_path))
    assert found.schema == pa.schema([("a", pa.float64()), ("b", pa.string()), ("c", pa.bool_())])
    assert found.schema.metadata is None
    rows, dead = read(found)
    assert dead == []
    assert [(row["a"], row["b"], row["c"], row[ROW]) for row in rows] == [
        (1.0, "x", None, 0),
        (2.0, "y", None, 1),
        (0.5, None, True, 0),
    ]


def test_pandas_metadata_is_dropped(tmp_path: Path) -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({"pandas": "{}"})
    assert plan_input(write(tmp_path / "p.parquet", table)).schema.metadata is None


def test_a_type_that_has_nothing_in_common_breaks_its_file(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"a": [1, 2]})
    write(tmp_path / "2.parquet", {"a": ["x"], "b": [1]})
    found = plan_input(str(tmp_path))
    assert found.schema == pa.schema([("a", pa.int64())])
    with pytest.raises(BrokenFileError, match=r'column "a" of 2\.parquet is string; int64 was expected') as raised:
        list(read_split(found.splits[1], found.schema))
    assert raised.value.rows == 0


def test_a_value_that_does_not_fit_costs_its_row(read: Any, tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"a": [0.5]})
    write(tmp_path / "2.parquet", {"a": [1, 2**53 + 1, 3], "b": [date(2024, 1, 1)] * 3})
    rows, dead = read(plan_input(str(tmp_path)))
    assert [(row["a"], row[ROW]) for row in rows] == [(0.5, 0), (1.0, 0), (3.0, 2)]
    assert [(each["a"], each["b"], each["dead_letter"]["row"]) for each in dead] == [(None, date(2024, 1, 1), 1)]
    assert dead[0]["dead_letter"]["raw"] == '{"a": 9007199254740993, "b": "2024-01-01"}'


def test_needed_columns(read: Any, tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"a": [1], "b": [1]})
    write(tmp_path / "2.parquet", {"a": [2]})
    found = plan_input(str(tmp_path))
    assert read(found, needed=frozenset({"a"}))[0][1]["b"] is None
    with pytest.raises(BrokenFileError, match=r'2\.parquet has no column "b", which the model needs'):
        list(read_split(found.splits[1], found.schema, frozenset({"a", "b"})))


def test_rows_before_a_break(read_until_break: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", {"n": list(range(100))}, row_group_size=25)
    damage(path, 2)
    found = plan_input(path)
    rows, error = read_until_break(found.splits[0], found.schema)
    assert re.search(r"^d\.parquet cannot be read to its end: .+", str(error))
    assert [row["n"] for row in rows] == list(range(50))
    assert error.rows == 50
    assert "\n" not in str(error)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "text.parquet").write_text("hello")
    found = plan_input(str(tmp_path))
    assert found.schema == pa.schema([])
    assert len(found.splits) == found.files == 2
    assert found.rows is None
    for split in found.splits:
        with pytest.raises(BrokenFileError, match=f"^{split.name} cannot be read: "):
            list(read_split(split, found.schema))


def test_partitions(read: Any, tmp_path: Path) -> None:
    write(tmp_path / "year=2024/city=S%C3%A3o/1.parquet", {"a": [1]})
    write(tmp_path / "year=2025/city=__HIVE_DEFAULT_PARTITION__/2.parquet", {"a": [2]})
    write(tmp_path / "3.parquet", {"a": [3]})
    found = plan_input(str(tmp_path))
    assert found.schema == pa.schema([("a", pa.int64()), ("year", pa.int64()), ("city", pa.string())])
    rows, _ = read(found, needed=frozenset({"a"}))
    assert [(row["a"], row["year"], row["city"]) for row in rows] == [
        (3, None, None),
        (1, 2024, "São"),
        (2, 2025, None),
    ]


def test_a_few_columns_and_none_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "k=1/a.parquet", {"a": [1, 2], "b": [3, 4]})
    (split,) = plan_input(path).splits
    (chunk,) = chunks_of(split, pa.schema([("k", pa.int64())]))
    assert chunk.to_pylist() == [{"k": 1, SOURCE: path, ROW: row} for row in (0, 1)]
    (chunk,) = chunks_of(split, pa.schema([("b", pa.int64()), ("k", pa.int64())]))
    assert chunk.column("b").to_pylist() == [3, 4]


@pytest.mark.parametrize("limit", [1, 30, 55, 1000])
def test_limit(read: Any, tmp_path: Path, limit: int) -> None:
    write(tmp_path / "1.parquet", {"n": list(range(40))}, row_group_size=16)
    write(tmp_path / "2.parquet", {"n": list(range(40, 80))}, row_group_size=16)
    found = plan_input(str(tmp_path), limit=limit)
    rows, _ = read(found)
    assert [row["n"] for row in rows] == list(range(min(limit, 80)))
    assert found.rows == min(limit, 80)


def test_replay(read: Any, tmp_path: Path) -> None:
    letters = pa.array(
        [
            {"stage": "encode", "type": "T", "message": "m", "source": "old.parquet", "row": 70},
            {"stage": "read", "type": "T", "message": "m", "source": "old.csv", "row": 3, "raw": "x,y"},
        ],
        DEAD_LETTER_TYPE,
    )
    path = write(tmp_path / "dead" / "1.parquet", {"a": [1, None], DEAD_LETTER: letters})
    found = plan_input(path)
    assert found.replay
    assert found.schema == pa.schema([("a", pa.int64())])
    rows, dead = read(found)
    assert rows == [{"a": 1, SOURCE: "old.parquet", ROW: 70}]
    assert dead == [{"a": None, DEAD_LETTER: letters[1].as_py()}]


def test_replay_of_a_struct_with_fewer_fields(read: Any, tmp_path: Path) -> None:
    letter = {"row": 70, "stage": "encode", "type": "T", "message": "m", "source": "old.parquet"}
    rows, dead = read(plan_input(write(tmp_path / "1.parquet", {"a": [1], DEAD_LETTER: [letter]})))
    assert rows == [{"a": 1, SOURCE: "old.parquet", ROW: 70}]
    assert dead == []


@pytest.mark.parametrize("name", [SOURCE, ROW, ROW_ID, DEAD_LETTER])
def test_reserved_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f'column "{name}" .* reserved name'):
        plan_input(write(tmp_path / "1.parquet", {name: [1]}))


def test_formats(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"a": [1]})
    (tmp_path / "2.csv").write_text("a\n1\n")
    with pytest.raises(UsageError, match="mixes formats"):
        plan_input(str(tmp_path))
    with pytest.raises(UsageError, match="--input_format=xml is not known; write one of parquet, csv"):
        plan_input(str(tmp_path), "xml")
    assert plan_input(str(tmp_path / "2.csv"), "text").schema.names == ["text"]
    (tmp_path / "3.dat").write_text("x")
    with pytest.raises(UsageError, match=r"the extension of .*3\.dat is of no known format; add --input_format"):
        plan_input(str(tmp_path / "3.dat"))


@pytest.mark.parametrize("names", [["a", "b"], ["b", "c"]])
def test_a_folder_that_has_the_name_of_a_column(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "b=7").mkdir()
    pq.write_table(pa.table({name: [1] for name in names}), tmp_path / "b=7" / "x.parquet")
    with pytest.raises(UsageError) as raised:
        plan_input(str(tmp_path))
    assert str(raised.value) == (
        f'column "b" of {tmp_path}/b=7/x.parquet comes from its folder b=…, and the files have one of that name, too; '
        "rename the folder or the column"
    )
