import base64
import datetime
import decimal
import json
import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from apache_beam.io.localfilesystem import LocalFileSystem
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from deadlines import WAIT_SECONDS

from handlers.columnar.chunks import dead_letter_schema, dead_letters, with_provenance
from handlers.errors import TorchbeamError, UsageError
from handlers.failures import RowFailure
from transforms.sinks import write as sinks
from transforms.sinks.formats import SINKS, dead_letter_format, parquet
from transforms.sinks.write import Part, WriteChunks, Writer, conform, write_empty
from transforms.sources import plan_input

SCHEMA = pa.schema([("n", pa.int64()), ("label", pa.string())])


class FakeFileSystem(LocalFileSystem):
    """A remote file system whose `fake:///a/b` is the local `/a/b`."""

    @classmethod
    def scheme(cls) -> str:
        return "fake"

    def create(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().create(path.removeprefix("fake://"), *args, **kwargs)


def chunk(start: int, rows: int) -> pa.RecordBatch:
    numbers = list(range(start, start + rows))
    labels = pa.array(["even" if number % 2 == 0 else "odd" for number in numbers]).dictionary_encode()
    batch = pa.RecordBatch.from_arrays([pa.array(numbers, pa.int64()), labels], names=["n", "label"])
    return with_provenance(batch, "data/a.parquet", start)


def write(folder: Path, chunks: list[pa.RecordBatch], schema: pa.Schema = SCHEMA, **options: Any) -> list[Part]:
    writer = Writer(str(folder), schema, **{"output_format": "parquet", **options})
    for part in chunks:
        writer.write(part)
    return writer.finish()


def sink_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sink")]


def without_threads() -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while sink_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not sink_threads()


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().split("\n")[:-1]]


def avro_rows(path: str) -> list[Any]:
    with Path(path).open("rb") as file:
        return list(fastavro.reader(file))


@pytest.mark.parametrize("output_format", ["parquet", "csv", "jsonl", "avro"])
def test_rows_come_back_from_every_format(tmp_path: Path, output_format: str) -> None:
    (part,) = write(tmp_path / "new", [chunk(0, 3), chunk(3, 2)], output_format=output_format)

    expected = [{"n": n, "label": "odd" if n % 2 else "even"} for n in range(5)]
    assert part.rows == 5
    assert part.path.endswith(f".{output_format}")
    if output_format == "parquet":
        assert pq.read_schema(part.path) == SCHEMA
        assert pq.read_table(part.path).to_pylist() == expected
    elif output_format == "csv":
        assert pyarrow.csv.read_csv(part.path).to_pylist() == expected
    elif output_format == "avro":
        assert avro_rows(part.path) == expected
    else:
        assert lines(part.path) == expected


def test_a_worker_that_outlives_its_run_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "_tmp-1" / "predictions"
    folder.parent.mkdir(parents=True)
    (part,) = write(folder, [chunk(0, 3)], make_parents=False)
    assert pq.read_table(part.path).num_rows == 3

    shutil.rmtree(tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        write(folder, [chunk(0, 3)], make_parents=False)
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_writes_each_bundle_to_a_file_of_its_own(tmp_path: Path) -> None:
    def check(parts: list[Part]) -> None:
        assert sum(part.rows for part in parts) == 60
        assert sorted(map(str, tmp_path.iterdir())) == sorted(part.path for part in parts)
        found = sorted(n for part in parts for n in pq.read_table(part.path)["n"].to_pylist())
        assert found == list(range(60))

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        parts = (
            pipeline
            | beam.Create([0, 20, 40])
            | beam.Map(lambda start: TimestampedValue(chunk(start, 20), start)).with_output_types(pa.RecordBatch)
            | beam.WindowInto(FixedWindows(30))
            | "ToFiles" >> WriteChunks(str(tmp_path), SCHEMA)
        )
        assert_that(parts, check)
    assert without_threads()


def test_nothing_is_written_for_no_rows(tmp_path: Path) -> None:
    assert write(tmp_path / "a", []) == []
    assert write(tmp_path / "a", [chunk(0, 0)]) == []
    assert not (tmp_path / "a").exists()


def test_a_file_that_is_full_is_followed_by_another_in_order(tmp_path: Path) -> None:
    parts = write(tmp_path, [chunk(start, 100) for start in range(0, 1000, 100)], output_format="csv", max_bytes=3000)

    assert len(parts) > 1
    assert sum(part.rows for part in parts) == 1000
    assert [part.path for part in parts] == sorted(part.path for part in parts)
    assert [n for part in parts for n in pyarrow.csv.read_csv(part.path)["n"].to_pylist()] == list(range(1000))
    assert all(Path(part.path).stat().st_size < 6000 for part in parts)


def test_row_groups_are_of_many_chunks_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "GROUP_ROWS", 100)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 100)

    (part,) = write(tmp_path, [chunk(0, 30), chunk(30, 30), chunk(60, 30), chunk(90, 30), chunk(120, 230)])

    file = pq.ParquetFile(part.path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [90, 30, 100, 100, 30]
    assert file.read()["n"].to_pylist() == list(range(350))


def test_only_columns_without_floats_have_parquet_dictionaries(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.float64()), ("v", pa.list_(pa.float32())), ("s", pa.struct([("a", pa.string())]))])
    batch = pa.RecordBatch.from_pylist([{"x": 1.0, "v": [1.0], "s": {"a": "b"}}] * 10, schema=schema)

    (part,) = write(tmp_path, [batch], schema)

    columns = pq.ParquetFile(part.path).metadata.row_group(0)
    assert {columns.column(i).path_in_schema: columns.column(i).has_dictionary_page for i in range(3)} == {
        "x": False,
        "v.list.element": False,
        "s.a": True,
    }
    assert pq.read_table(part.path).to_pylist() == batch.to_pylist()


def test_a_remote_file_is_written_through_beam(tmp_path: Path) -> None:
    for output_format in SINKS:
        writer = Writer(f"fake://{tmp_path}", SCHEMA, output_format)
        writer.write(chunk(0, 3))
        (part,) = writer.finish()
        assert part.path.startswith(f"fake://{tmp_path}/part-")
        assert Path(part.path.removeprefix("fake://")).stat().st_size > 0


def test_empty_files_have_a_schema(tmp_path: Path) -> None:
    for output_format in SINKS:
        write_empty(str(tmp_path / "deep" / f"a.{output_format}"), SCHEMA, output_format)

    assert pq.read_table(tmp_path / "deep" / "a.parquet").schema == SCHEMA
    assert (tmp_path / "deep" / "a.csv").read_text() == '"n","label"\n'
    assert (tmp_path / "deep" / "a.jsonl").read_text() == ""
    assert avro_rows(str(tmp_path / "deep" / "a.avro")) == []
    assert plan_input(str(tmp_path / "deep" / "a.avro")).schema == SCHEMA


def test_csv_keeps_null_and_the_empty_string_apart(tmp_path: Path) -> None:
    schema = pa.schema([("s", pa.string()), ("x", pa.float64())])
    batch = pa.RecordBatch.from_pylist(
        [{"s": 'a"b,\n', "x": 1.5}, {"s": "", "x": math.nan}, {"s": None}], schema=schema
    )

    (part,) = write(tmp_path, [batch], schema, output_format="csv")

    assert Path(part.path).read_text() == '"s","x"\n"a""b,\n",1.5\n"",nan\n,\n'


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()), pa.binary()]
)
def test_csv_refuses_a_column_that_it_cannot_hold(kind: pa.DataType) -> None:
    with pytest.raises(UsageError, match=r"--output_format=csv cannot hold column wide .*: write parquet or jsonl"):
        WriteChunks("out", pa.schema([("n", pa.int64()), ("wide", kind)]), "csv")


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UsageError, match="--output_format=xml: unknown; write one of parquet, csv, jsonl"):
        WriteChunks("out", SCHEMA, "xml")


def test_dead_letters_are_written_in_a_format_that_holds_them(tmp_path: Path) -> None:
    assert [dead_letter_format(name) for name in SINKS] == ["parquet", "parquet", "jsonl", "avro"]
    failures = [RowFailure("encode", "NotANumber", f"no. {n}", None if n else "raw") for n in range(3)]
    letters = dead_letters(chunk(7, 3), failures, "v1")
    for name in SINKS:
        output_format, folder = dead_letter_format(name), tmp_path / name
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            rows = pipeline | beam.Create([letters]).with_output_types(pa.RecordBatch)
            _ = rows | WriteChunks(str(folder), dead_letter_schema(SCHEMA), output_format)
        (file,) = folder.iterdir()
        if output_format == "parquet":
            assert pq.read_schema(file) == dead_letter_schema(SCHEMA)
            found = pq.read_table(file).to_pylist()
        else:
            found = avro_rows(str(file)) if output_format == "avro" else lines(str(file))
        assert [(row["n"], row["label"]) for row in found] == [(7, "odd"), (8, "even"), (9, "odd")]
        assert [row["dead_letter"] for row in found] == [
            {
                "stage": "encode",
                "type": "NotANumber",
                "message": f"no. {n}",
                "source": "data/a.parquet",
                "row": 7 + n,
                "model_version": "v1",
                "raw": None if n else "raw",
            }
            for n in range(3)
        ]


def test_avro_is_as_other_readers_expect_it(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 5, 1, 12, 30, 15, 5, UTC)
    rows = {
        "log income": pa.array([1.5, None]),
        "day": pa.array([datetime.date(2024, 5, 1), None]),
        "at": pa.array([moment, None], pa.timestamp("us", "UTC")),
        "price": pa.array([decimal.Decimal("-1.25"), None], pa.decimal128(5, 2)),
        "2nd": pa.array([{"a-b": {"é": 1}}, None], pa.struct([("a-b", pa.struct([("é", pa.int8())]))])),
    }
    (batch,) = pa.table(rows).to_batches()

    (part,) = write(tmp_path, [batch], batch.schema, output_format="avro")

    assert avro_rows(part.path) == [
        {
            "log_x20income": 1.5,
            "day": datetime.date(2024, 5, 1),
            "at": moment,
            "price": decimal.Decimal("-1.25"),
            "_2nd": {"a_x2Db": {"_xE9": 1}},
        },
        {"log_x20income": None, "day": None, "at": None, "price": None, "_2nd": None},
    ]
    with Path(part.path).open("rb") as file:
        declared: Any = fastavro.reader(file).writer_schema
    assert declared["fields"][0] == {
        "name": "log_x20income",
        "type": ["null", "double"],
        "iceberg-field-name": "log income",
    }
    assert plan_input(part.path).schema == batch.schema.set(
        4, pa.field("2nd", pa.struct([("a-b", pa.struct([("é", pa.int32())]))]))
    )


def test_avro_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(
        UsageError, match=r"--output_format=avro cannot hold column wide \(month_day.*\): write parquet"
    ):
        WriteChunks("out", pa.schema([("wide", pa.list_(pa.month_day_nano_interval()))]), "avro")
    with pytest.raises(
        UsageError, match=r"--output_format=avro cannot hold column ids \(list.*uuid.*\): write parquet"
    ):
        WriteChunks("out", pa.schema([("ids", pa.list_(pa.uuid()))]), "avro")
    with pytest.raises(UsageError, match='columns "a b" and "a_x20b" would have one name in Avro: rename one'):
        WriteChunks("out", pa.schema([("a b", pa.int64()), ("a_x20b", pa.int64())]), "avro")


UTC = datetime.UTC
JSON_CASES: list[tuple[pa.DataType, Any, Any]] = [
    (pa.float64(), 0.1, 0.1),
    (pa.float32(), 0.5, 0.5),
    (pa.float64(), math.nan, None),
    (pa.float64(), -math.inf, None),
    (pa.float16(), np.float16(0.5), 0.5),
    (pa.int64(), 2**62 + 1, 2**62 + 1),
    (pa.uint64(), 2**64 - 1, 2**64 - 1),
    (pa.bool_(), True, True),
    (pa.string(), 'é"\n\u2028', 'é"\n\u2028'),
    (pa.dictionary(pa.int32(), pa.string()), "a", "a"),
    (pa.dictionary(pa.int32(), pa.int64()), 7, 7),
    (pa.binary(), b"\xff\x00", base64.b64encode(b"\xff\x00").decode()),
    (pa.binary(2), b"ab", "YWI="),
    (pa.list_(pa.binary()), [b"ab", None], ["YWI=", None]),
    (pa.date32(), datetime.date(2020, 1, 2), "2020-01-02"),
    (pa.timestamp("us"), datetime.datetime(2020, 1, 2, 3, 4, 5, 678), "2020-01-02T03:04:05.000678"),
    (pa.timestamp("us", "UTC"), datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), "2020-01-02T03:04:05+00:00"),
    (pa.list_(pa.timestamp("s")), [datetime.datetime(2020, 1, 2, 3, 4, 5)], ["2020-01-02T03:04:05"]),
    (pa.time64("us"), datetime.time(1, 2, 3), "01:02:03"),
    (pa.duration("us"), datetime.timedelta(days=1, microseconds=5), "PT86400.000005S"),
    (pa.decimal128(5, 2), decimal.Decimal("1.20"), "1.20"),
    (pa.list_(pa.float64()), [1.0, math.nan, None], [1.0, None, None]),
    (pa.list_(pa.float32(), 2), [1.0, 2.0], [1.0, 2.0]),
    (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]), {"a": 1, "b": ["x"]}, {"a": 1, "b": ["x"]}),
    (pa.map_(pa.string(), pa.int64()), [("k", 1)], [["k", 1]]),
    (pa.null(), None, None),
]


@pytest.mark.parametrize(("kind", "value", "expected"), JSON_CASES, ids=lambda case: str(case)[:30])
def test_json_holds_every_type(tmp_path: Path, kind: pa.DataType, value: Any, expected: Any) -> None:
    schema = pa.schema([("c", kind)])
    batch = pa.RecordBatch.from_arrays([pa.array([value, None], kind)], schema=schema)

    (part,) = write(tmp_path, [batch], schema, output_format="jsonl")

    assert lines(part.path) == [{"c": expected}, {"c": None}]


def test_what_is_written_has_the_columns_and_types_of_the_schema() -> None:
    schema = pa.schema([("label", pa.dictionary(pa.int8(), pa.string())), ("n", pa.float64()), ("s", pa.string())])
    batch = pa.RecordBatch.from_pydict({"n": pa.array([1, 2]), "extra": [0, 0], "label": ["a", "b"], "s": ["x", None]})

    found = conform(with_provenance(batch, "a", 0), schema)

    assert found.schema == schema
    assert found.to_pylist() == [{"label": "a", "n": 1.0, "s": "x"}, {"label": "b", "n": 2.0, "s": None}]


def test_what_does_not_fit_the_schema_is_an_error() -> None:
    with pytest.raises(TorchbeamError, match="has no column label; it has n"):
        conform(pa.RecordBatch.from_pydict({"n": [1]}), SCHEMA)
    with pytest.raises(TorchbeamError, match="does not match the columns"):
        conform(pa.RecordBatch.from_pydict({"n": [1.5], "label": ["a"]}), SCHEMA)


def test_chunks_with_different_dictionaries_fit_one_row_group(tmp_path: Path) -> None:
    schema = pa.schema([("label", pa.dictionary(pa.int32(), pa.string()))])
    chunks = [
        pa.RecordBatch.from_arrays([pa.array(v).dictionary_encode()], names=["label"]) for v in (["a"], ["b", "a"])
    ]

    for output_format in SINKS:
        (part,) = write(tmp_path / output_format, chunks, schema, output_format=output_format)
        if output_format == "parquet":
            assert pq.read_table(part.path)["label"].to_pylist() == ["a", "b", "a"]
        elif output_format == "csv":
            assert Path(part.path).read_text() == '"label"\n"a"\n"b"\n"a"\n'
        elif output_format == "avro":
            assert [row["label"] for row in avro_rows(part.path)] == ["a", "b", "a"]
        else:
            assert [line["label"] for line in lines(part.path)] == ["a", "b", "a"]


def run_write(folder: str, schema: pa.Schema = SCHEMA, then: Any = None) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        chunks = (
            pipeline | beam.Create([0]) | beam.FlatMap(lambda _: chunks_then(then)).with_output_types(pa.RecordBatch)
        )
        _ = chunks | WriteChunks(folder, schema)


def chunks_then(then: Any) -> Any:
    yield chunk(0, 100)
    yield chunk(100, 100)
    if then is not None:
        raise then


def test_a_folder_that_cannot_be_made_fails_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(Exception, match=r"Not a directory|File exists"):
        run_write(str(tmp_path / "file" / "folder"))
    assert without_threads()


def full(path: str, **_: Any) -> pa.NativeFile:
    return pa.OSFile("/dev/full", "wb")


def test_a_full_disk_is_told_by_process_or_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "create", full)
    monkeypatch.setattr(sinks, "GROUP_ROWS", 100)

    with pytest.raises(Exception, match="No space left"):
        run_write(str(tmp_path))
    assert without_threads()

    for output_format in SINKS:
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, [chunk(0, 100), chunk(100, 100), chunk(200, 100)], output_format=output_format)


def test_a_bundle_that_fails_elsewhere_leaves_no_thread_and_tells_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="elsewhere"):
        run_write(str(tmp_path), then=ValueError("elsewhere"))
    assert without_threads()


def test_the_next_bundle_forgets_the_one_that_failed(tmp_path: Path) -> None:
    write_fn = sinks._WriteFn(str(tmp_path), SCHEMA, "parquet", sinks.FILE_BYTES)
    write_fn.start_bundle()
    write_fn.process(chunk(0, 10))
    write_fn.start_bundle()
    write_fn.process(chunk(0, 10))
    (found,) = write_fn.finish_bundle()
    write_fn.teardown()

    assert found.value.rows == 10
    assert pq.read_table(found.value.path).num_rows == 10
    assert without_threads()
