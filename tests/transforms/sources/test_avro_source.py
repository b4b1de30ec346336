import importlib
import io
import json
import re
import uuid
from contextlib import suppress
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from apache_beam.io.filesystem import FileMetadata, MatchResult
from apache_beam.io.localfilesystem import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.columnar.chunks import DEAD_LETTER, DEAD_LETTER_TYPE, ROW, SOURCE, chunk_schema, dead_letter_schema
from handlers.errors import BrokenFileError, UsageError
from transforms.sinks.write import Writer
from transforms.sources import plan_input, read_split

LIBRARIES = {"snappy": "cramjam", "zstandard": "backports.zstd"}


def record(fields: dict[str, Any], name: str = "row") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": key, "type": kind} for key, kind in fields.items()]}


def write(path: Path, fields: dict[str, Any], rows: list[dict[str, Any]], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fastavro.writer(file, record(fields), rows, **options)
    return str(path)


def block_ends(path: str) -> list[int]:
    with Path(path).open("rb") as file:
        return [block.offset + block.size for block in fastavro.block_reader(file)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 200), st.integers(1, 400), st.integers(1, 40))
def test_chunks_and_row_numbers(tmp_path_factory: Any, rows: int, block_bytes: int, chunk_rows: int) -> None:
    path = tmp_path_factory.mktemp("avro") / "a.avro"
    name = write(path, {"n": "long"}, [{"n": row} for row in range(rows)], sync_interval=block_bytes)
    found = plan_input(name)
    assert (found.format, found.schema, found.rows) == ("avro", pa.schema([("n", pa.int64())]), None)
    chunks: list[Any] = list(read_split(found.splits[0], found.schema, chunk_rows=chunk_rows))
    assert all(0 < chunk.num_rows <= chunk_rows for chunk in chunks)
    assert all(chunk.schema == chunk_schema(found.schema) for chunk in chunks)
    seen = [row for chunk in chunks for row in chunk.to_pylist()]
    assert seen == [{"n": row, SOURCE: name, ROW: row} for row in range(rows)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "e.avro cannot be read: it is empty, and no Avro file"),
        (b"Obj", "e.avro cannot be read: it is no Avro file"),
        (b"a,b\n1,2\n" * 20, "e.avro cannot be read: it is no Avro file"),
        (b"Obj\x01", "e.avro cannot be read: it ends within its header"),
    ],
)
def test_files_that_are_no_avro(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "e.avro"
    path.write_bytes(data)
    found = plan_input(str(path))
    with pytest.raises(BrokenFileError) as raised:
        list(read_split(found.splits[0], found.schema))
    assert str(raised.value) == says


def test_large_rows_make_small_chunks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avro", {"s": "string"}, [{"s": "x" * 10_000}] * 100, sync_interval=1 << 20)
    found = plan_input(path)
    chunks: list[Any] = list(read_split(found.splits[0], found.schema, max_chunk_bytes=50_000))
    assert max(chunk.nbytes for chunk in chunks) <= 50_000
    assert sum(chunk.num_rows for chunk in chunks) == 100


def logical(kind: str, named: str, /, **more: Any) -> dict[str, Any]:
    return {"type": kind, "logicalType": named, **more}


MOMENT = datetime(2024, 5, 1, 12, 30, 15, 5000, UTC)
A_UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
# A type of Avro, a value as fastavro takes it, and the type and the value that it becomes.
TYPES: list[tuple[Any, Any, pa.DataType, Any]] = [
    ("null", None, pa.null(), None),
    ("boolean", True, pa.bool_(), True),
    ("int", -5, pa.int32(), -5),
    ("long", 2**40, pa.int64(), 2**40),
    ("float", 0.5, pa.float32(), 0.5),
    ("double", 0.1, pa.float64(), 0.1),
    ("string", "Größe", pa.string(), "Größe"),
    ("bytes", b"\x00\xff", pa.binary(), b"\x00\xff"),
    ({"type": "string"}, "a", pa.string(), "a"),
    ({"type": "fixed", "name": "f", "size": 2}, b"\x00\xff", pa.binary(2), b"\x00\xff"),
    ({"type": "enum", "name": "e", "symbols": ["A", "B"]}, "B", pa.string(), "B"),
    ({"type": "array", "items": ["null", "int"]}, [1, None], pa.list_(pa.int32()), [1, None]),
    ({"type": "map", "values": "int"}, {"a": 1}, pa.map_(pa.string(), pa.int32()), [("a", 1)]),
    (record({"a": "int"}, "r"), {"a": 1}, pa.struct([("a", pa.int32())]), {"a": 1}),
    (logical("int", "date"), date(2024, 5, 1), pa.date32(), date(2024, 5, 1)),
    (logical("int", "time-millis"), time(1, 2, 3, 4000), pa.time32("ms"), time(1, 2, 3, 4000)),
    (logical("long", "time-micros"), time(1, 2, 3, 4), pa.time64("us"), time(1, 2, 3, 4)),
    (logical("long", "timestamp-millis"), MOMENT, pa.timestamp("ms", "UTC"), MOMENT),
    (logical("long", "timestamp-micros"), MOMENT, pa.timestamp("us", "UTC"), MOMENT),
    (logical("long", "local-timestamp-millis"), MOMENT, pa.timestamp("ms"), MOMENT.replace(tzinfo=None)),
    (logical("long", "local-timestamp-micros"), MOMENT, pa.timestamp("us"), MOMENT.replace(tzinfo=None)),
    (logical("bytes", "decimal", precision=5, scale=2), Decimal("-1.25"), pa.decimal128(5, 2), Decimal("-1.25")),
    (logical("bytes", "decimal", precision=50), Decimal(10**49), pa.decimal256(50, 0), Decimal(10**49)),
    (logical("bytes", "decimal", precision=90), b"\x01", pa.binary(), b"\x01"),
    (logical("fixed", "decimal", name="f", size=4, precision=5, scale=2), Decimal("1.25"), pa.decimal128(5, 2), Decimal("1.25")),
    (logical("string", "uuid"), A_UUID, pa.string(), str(A_UUID)),
    (logical("long", "unheard-of"), 5, pa.int64(), 5),
    (["null", logical("int", "date")], None, pa.date32(), None),
    (["int", "long"], 2**40, pa.int64(), 2**40),
    (["null", "int", "double"], 1, pa.float64(), 1.0),
    (["string", "null", "int"], 5, pa.string(), "5"),
    (["string", "null", "int"], "5", pa.string(), "5"),
    (["string", {"type": "array", "items": "bytes"}], [b"\x00"], pa.string(), '["AA=="]'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "value", "expected", "read_value"), TYPES, ids=[json.dumps(each[0]) for each in TYPES]
)
def test_what_a_type_becomes(read: Any, tmp_path: Path, kind: Any, value: Any, expected: Any, read_value: Any) -> None:
    found = plan_input(write(tmp_path / "a.avro", {"v": kind, "last": "int"}, [{"v": value, "last": 7}]))
    assert found.schema == pa.schema([("v", expected), ("last", pa.int32())])
    rows, dead = read(found)
    assert [(row["v"], row["last"]) for row in rows] == [(read_value, 7)]
    assert dead == []


def test_a_type_within_itself_is_text(read: Any, tmp_path: Path) -> None:
    node = record({"v": "int", "next": ["null", "node"]}, "node")
    path = write(tmp_path / "a.avro", {"n": node}, [{"n": {"v": 1, "next": {"v": 2, "next": None}}}])
    (row,), _ = read(plan_input(path))
    assert row["n"] == {"v": 1, "next": '{"v": 2, "next": null}'}


def test_a_type_that_is_named_again(read: Any, tmp_path: Path) -> None:
    day = {
        "type": "record",
        "name": "day",
        "namespace": "a.b",
        "fields": [{"name": "d", "type": logical("int", "date")}],
    }
    path = write(tmp_path / "a.avro", {"x": day, "y": ["null", "a.b.day"]}, [{"x": {"d": 1}, "y": {"d": 2}}])
    (row,), _ = read(plan_input(path))
    assert (row["x"], row["y"]) == ({"d": date(1970, 1, 2)}, {"d": date(1970, 1, 3)})


def test_schemas_are_united(read: Any, tmp_path: Path) -> None:
    write(tmp_path / "1.avro", {"a": "int", "b": "string"}, [{"a": 1, "b": "x"}])
    write(tmp_path / "2.avro", {"c": "boolean", "a": "double"}, [{"a": 0.5, "c": True}])
    found = plan_input(str(tmp_path))
    assert found.schema == pa.schema([("a", pa.float64()), ("b", pa.string()), ("c", pa.bool_())])
    rows, dead = read(found)
    assert dead == []
    assert [(row["a"], row["b"], row["c"]) for row in rows] == [(1.0, "x", None), (0.5, None, True)]


def test_a_type_that_has_nothing_in_common_breaks_its_file(tmp_path: Path) -> None:
    write(tmp_path / "1.avro", {"a": "long"}, [{"a": 1}])
    write(tmp_path / "2.avro", {"a": "string"}, [{"a": "x"}])
    found = plan_input(str(tmp_path))
    with pytest.raises(BrokenFileError, match=r'column "a" of 2\.avro is string; int64 was expected') as raised:
        list(read_split(found.splits[1], found.schema))
    assert raised.value.rows == 0


def test_needed_columns(read: Any, tmp_path: Path) -> None:
    write(tmp_path / "1.avro", {"a": "int", "b": "int"}, [{"a": 1, "b": 1}])
    write(tmp_path / "2.avro", {"a": "int"}, [{"a": 2}])
    found = plan_input(str(tmp_path))
    assert read(found, needed=frozenset({"a"}))[0][1]["b"] is None
    with pytest.raises(BrokenFileError, match=r'2\.avro has no column "b", which the model needs'):
        list(read_split(found.splits[1], found.schema, frozenset({"a", "b"})))


def test_a_value_that_does_not_fit_costs_its_row(read: Any, tmp_path: Path) -> None:
    fields = {"x": logical("bytes", "decimal", precision=3, scale=1), "s": "string", "n": "long"}
    rows = [{"x": Decimal("1.5"), "s": "ok", "n": 0} for _ in range(5)]
    rows[1]["x"] = b"\x7f\xff"  # type: ignore[assignment] # 3276.7
    rows[3]["s"] = "????"
    path = write(tmp_path / "a.avro", fields, rows, codec="null")
    Path(path).write_bytes(Path(path).read_bytes().replace(b"????", b"?\xff\xfe?"))
    found = plan_input(path)

    good, dead = read(found)

    assert [row[ROW] for row in good] == [0, 2, 4]
    assert [(each["x"], each["s"], each[DEAD_LETTER]["row"]) for each in dead] == [
        (None, "ok", 1),
        (Decimal("1.5"), None, 3),
    ]
    assert 'column "x" holds ' in dead[0][DEAD_LETTER]["message"]
    assert dead[0][DEAD_LETTER]["message"].endswith("in row 1 of a.avro; decimal128(3, 1) was expected")
    assert (
        dead[1][DEAD_LETTER]["message"]
        == 'column "s" holds "?\ufffd\ufffd?" in row 3 of a.avro; valid UTF-8 was expected'
    )
    assert json.loads(dead[1][DEAD_LETTER]["raw"]) == {"x": "\x0f", "s": "?\ufffd\ufffd?", "n": 0}


def test_invalid_text_deep_in_a_value_costs_its_row(read: Any, tmp_path: Path) -> None:
    rows = [{"l": [{"s": "ok"}]}, {"l": [{"s": "????"}]}]
    path = write(
        tmp_path / "a.avro", {"l": {"type": "array", "items": record({"s": "string"}, "r")}}, rows, codec="null"
    )
    Path(path).write_bytes(Path(path).read_bytes().replace(b"????", b"?\xff\xfe?"))
    good, dead = read(plan_input(path))
    assert [row["l"] for row in good] == [[{"s": "ok"}]]
    assert dead[0][DEAD_LETTER]["raw"] == '{"l": [{"s": "?\ufffd\ufffd?"}]}'


def test_a_large_integer_does_not_become_another_number(read: Any, tmp_path: Path) -> None:
    write(tmp_path / "1.avro", {"a": "double"}, [{"a": 0.5}])
    write(tmp_path / "2.avro", {"a": "long"}, [{"a": 1}, {"a": 2**53 + 1}])
    rows, dead = read(plan_input(str(tmp_path)))
    assert [row["a"] for row in rows] == [0.5, 1.0]
    assert [(each["a"], each[DEAD_LETTER]["row"]) for each in dead] == [(None, 1)]


def test_moments_that_python_has_no_value_for(tmp_path: Path) -> None:
    fields = {"t": logical("long", "timestamp-micros"), "d": logical("int", "date")}
    path = write(tmp_path / "a.avro", fields, [{"t": 2**62, "d": 2**31 - 1}])
    found = plan_input(path)
    (chunk,) = read_split(found.splits[0], found.schema)
    assert isinstance(chunk, pa.RecordBatch)
    assert chunk.column("t").cast(pa.int64()).to_pylist() == [2**62]
    assert chunk.column("d").cast(pa.int32()).to_pylist() == [2**31 - 1]


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz", "snappy", "zstandard"])
def test_codecs(read: Any, tmp_path: Path, codec: str) -> None:
    if codec in LIBRARIES:
        pytest.importorskip(LIBRARIES[codec])
    path = write(tmp_path / "a.avro", {"n": "int"}, [{"n": row} for row in range(100)], codec=codec, sync_interval=50)
    rows, _ = read(plan_input(path))
    assert [row["n"] for row in rows] == list(range(100))


@pytest.mark.parametrize("codec", ["snappy", "zstandard", "what"])
def test_a_codec_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, codec: str) -> None:
    if codec in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(LIBRARIES[codec])
            pytest.skip(f"{LIBRARIES[codec]} is there")
    path = tmp_path / "a.avro"
    write(path, {"n": "int"}, [{"n": 1}], codec="null")
    # A string of Avro is its length, doubled, and its bytes.
    named = bytes([2 * len(codec)]) + codec.encode()
    path.write_bytes(path.read_bytes().replace(b"\x08null", named))
    found = plan_input(str(path))
    assert found.schema.names == ["n"]
    with pytest.raises(BrokenFileError, match=rf"^a\.avro cannot be read: [^\n]*{codec}") as raised:
        list(read_split(found.splits[0], found.schema))
    if codec in LIBRARIES:
        assert f"you need to install one of the following libraries: ('{LIBRARIES[codec]}'" in str(raised.value)


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_rows_before_a_break(read_until_break: Any, tmp_path: Path, codec: str) -> None:
    path = write(
        tmp_path / "d.avro",
        {"n": "long", "s": "string"},
        [{"n": n, "s": "x" * 20} for n in range(100)],
        codec=codec,
        sync_interval=500,
    )
    ends = block_ends(path)
    data = bytearray(Path(path).read_bytes())
    data[ends[1] + 2 : ends[2]] = b"\xff" * (ends[2] - ends[1] - 2)
    Path(path).write_bytes(data)
    found = plan_input(path)
    rows, error = read_until_break(found.splits[0], found.schema)
    assert re.search(r"^d\.avro cannot be read to its end: .+", str(error))
    assert [row["n"] for row in rows] == list(range(len(rows)))
    assert error.rows == len(rows) > 20
    assert len(rows) < 100


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_wherever_a_file_is_cut_off_the_rows_before_count(
    read: Any, read_until_break: Any, tmp_path: Path, codec: str
) -> None:
    path = write(tmp_path / "d.avro", {"s": "string"}, [{"s": "y" * 9}] * 200, codec=codec, sync_interval=1000)
    whole, ends = Path(path).read_bytes(), block_ends(path)
    found = plan_input(path)
    for size in range(ends[0], len(whole)):
        Path(path).write_bytes(whole[:size])
        before = sum(end <= size for end in ends)
        if size in ends:
            assert len(read(found)[0]) == 100 * before  # nothing tells that there was more
        else:
            rows, error = read_until_break(found.splits[0], found.schema)
            assert len(rows) == error.rows == 100 * before


def test_a_size_that_is_damaged_takes_no_memory(read_until_break: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.avro", {"n": "long"}, [{"n": n} for n in range(100)], codec="null", sync_interval=40)
    ends = block_ends(path)
    data = Path(path).read_bytes()
    huge = io.BytesIO()
    fastavro.schemaless_writer(huge, "long", 2**60)
    for damaged in (data[: ends[0] + 1] + huge.getvalue(), data[: ends[0]] + b"\x01" + data[ends[0] + 1 :]):
        Path(path).write_bytes(damaged + b"\0" * 100)
        rows, error = read_until_break(plan_input(path).splits[0], pa.schema([("n", pa.int64())]))
        assert len(rows) == error.rows
        assert "d.avro" in str(error)


class FakeFileSystem(LocalFileSystem):
    """A remote file system whose `fakeavro:///a/b` is the local `/a/b`."""

    @classmethod
    def scheme(cls) -> str:
        return "fakeavro"

    def match(self, patterns: Any, *args: Any, **kwargs: Any) -> Any:
        found = super().match([each.removeprefix("fakeavro://") for each in patterns], *args, **kwargs)
        files = [
            [FileMetadata(f"fakeavro://{each.path}", each.size_in_bytes) for each in result.metadata_list]
            for result in found
        ]
        return [MatchResult(pattern, each) for pattern, each in zip(patterns, files, strict=True)]

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().open(path.removeprefix("fakeavro://"), *args, **kwargs)


def test_a_remote_file_is_read_through_beam(read: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.avro", {"n": "int"}, [{"n": row} for row in range(100)], sync_interval=50)
    rows, _ = read(plan_input(f"fakeavro://{path}"))
    assert [row["n"] for row in rows] == list(range(100))
    assert rows[0][SOURCE] == f"fakeavro://{path}"


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "empty.avro").write_bytes(b"")
    (tmp_path / "text.avro").write_text("hello")
    with (tmp_path / "strings.avro").open("wb") as file:
        fastavro.writer(file, {"type": "string"}, ["a"])
    found = plan_input(str(tmp_path))
    assert found.schema == pa.schema([])
    assert len(found.splits) == found.files == 3
    for split in found.splits:
        with pytest.raises(BrokenFileError, match=f"^{split.name} cannot be read: .+"):
            list(read_split(split, found.schema))


def test_partitions(read: Any, tmp_path: Path) -> None:
    write(tmp_path / "year=2024/1.avro", {"a": "int"}, [{"a": 1}])
    found = plan_input(str(tmp_path))
    assert found.schema == pa.schema([("a", pa.int32()), ("year", pa.int64())])
    (row,), _ = read(found)
    assert (row["a"], row["year"]) == (1, 2024)


@pytest.mark.parametrize("limit", [1, 30, 55, 1000])
def test_limit(read: Any, tmp_path: Path, limit: int) -> None:
    for part in (0, 1):
        write(tmp_path / f"{part}.avro", {"n": "int"}, [{"n": 40 * part + n} for n in range(40)], sync_interval=20)
    found = plan_input(str(tmp_path), limit=limit)
    assert [row["n"] for row in read(found)[0]] == list(range(min(limit, 80)))
    assert found.rows == min(limit, 80)


def test_dead_letters_of_an_earlier_run(read: Any, tmp_path: Path) -> None:
    letters = [
        {"stage": "encode", "type": "T", "message": "m", "source": "old.avro", "row": 70},
        {"stage": "read", "type": "T", "message": "m", "source": "old.avro", "row": 3, "raw": "x,y"},
    ]
    rows = pa.table({"log income": [1.5, None], DEAD_LETTER: pa.array(letters, DEAD_LETTER_TYPE)})
    schema = dead_letter_schema(pa.schema([("log income", pa.float64())]))
    writer = Writer(str(tmp_path), schema, "avro")
    writer.write(rows.to_batches()[0])
    writer.finish()

    found = plan_input(str(tmp_path))
    assert found.replay
    assert found.schema == pa.schema([("log income", pa.float64())])
    good, dead = read(found)
    assert good == [{"log income": 1.5, SOURCE: "old.avro", ROW: 70}]
    assert dead == [{"log income": None, DEAD_LETTER: {**letters[1], "model_version": None}}]


def test_reserved_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'column "__row__" .* reserved name'):
        plan_input(write(tmp_path / "1.avro", {ROW: "int"}, [{ROW: 1}]))
