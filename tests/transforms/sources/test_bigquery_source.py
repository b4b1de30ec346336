import datetime
import json
import socket
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch
from deadlines import WAIT_SECONDS
from fake_bigquery import FakeBigQuery, serve_queries, serve_storage

from handlers import ModelDir
from handlers.columnar.chunks import DEAD_LETTER, DEAD_LETTER_TYPE, ROW, SOURCE
from handlers.errors import ServiceError, UsageError
from pipelines import score
from transforms.sources import Input, Split, plan_input, read_split
from transforms.sources.formats import bigquery

UTC = datetime.UTC
NAME = "bigquery:my-project.shop.orders"
ROWS = 100

# What BigQuery gives of each of its types, with what it adds to a field.
TYPES: dict[str, tuple[pa.DataType, Any, dict[str, str] | None]] = {
    "n": (pa.int64(), 2**53 + 1, None),
    "x": (pa.float64(), 0.5, None),
    "b": (pa.bool_(), True, None),
    "s": (pa.string(), "Größe", None),
    "raw": (pa.binary(), b"\x00\xff", None),
    "num": (pa.decimal128(38, 9), Decimal("-1.25"), None),
    "big": (pa.decimal256(76, 38), Decimal("1.5"), None),
    "day": (pa.date32(), datetime.date(2024, 5, 1), None),
    "time": (pa.time64("us"), datetime.time(1, 2, 3, 4), None),
    "local": (pa.timestamp("us"), datetime.datetime(2024, 5, 1), {"ARROW:extension:name": "google:sqlType:datetime"}),
    "at": (pa.timestamp("us", "UTC"), datetime.datetime(2024, 5, 1, tzinfo=UTC), None),
    "json": (pa.string(), '{"a":1}', {"ARROW:extension:name": "google:sqlType:json"}),
    "list": (pa.list_(pa.int64()), [1, 2], None),
    "record": (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]), {"a": 1, "b": ["x"]}, None),
}


def table(rows: int) -> pa.Table:
    columns = {"id": pa.array(range(rows), pa.int64()), "a": pa.array([row / 7 for row in range(rows)], pa.float64())}
    return pa.table(columns)


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that nobody can reach."""
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", f"localhost:{closed.getsockname()[1]}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBigQuery]:
    made = FakeBigQuery({"my-project.shop.orders": table(ROWS)})
    storage, address = serve_storage(made)
    queries = serve_queries(made)
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", f"http://localhost:{queries.server_port}")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    yield made
    storage.stop(None)
    queries.shutdown()
    queries.server_close()
    bigquery._read_client_of.cache_clear()


def ids(found: Input, read: Any) -> list[int]:
    rows, dead = read(found)
    assert dead == []
    return [row["id"] for row in rows]


def test_a_table_is_read_by_its_streams(fake: FakeBigQuery, read: Any) -> None:
    found = plan_input(NAME)
    assert (found.format, found.files, found.replay) == ("bigquery", 1, False)
    assert found.schema == pa.schema([("id", pa.int64()), ("a", pa.float64())])
    assert len(found.splits) == 2

    rows, dead = read(found, chunk_rows=7)

    assert dead == []
    assert [(row["id"], row["a"]) for row in rows] == [(row, row / 7) for row in range(ROWS)]
    assert [(row[SOURCE], row[ROW]) for row in rows] == [(f"{NAME}#{row // 50}", row % 50) for row in range(ROWS)]
    assert fake.asked[0].parent == "projects/my-project"
    assert fake.asked[0].read_session.table == "projects/my-project/datasets/shop/tables/orders"


def test_another_project_may_pay(fake: FakeBigQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "payer")
    plan_input(NAME)
    assert fake.asked[0].parent == "projects/payer"


def test_types(fake: FakeBigQuery, read: Any) -> None:
    schema = pa.schema([pa.field(name, kind, metadata=more) for name, (kind, _, more) in TYPES.items()])
    values = {name: value for name, (_, value, _) in TYPES.items()}
    fake.tables["p.d.types"] = pa.Table.from_pylist([values, dict.fromkeys(values)], schema=schema)
    found = plan_input("bigquery:p.d.types")
    assert found.schema.equals(pa.schema([(name, kind) for name, (kind, _, _) in TYPES.items()]), check_metadata=True)
    (row, nulls), _ = read(found)
    assert {name: row[name] for name in TYPES} == values
    assert all(nulls[name] is None for name in TYPES)


def test_a_table_without_rows(fake: FakeBigQuery, read: Any) -> None:
    fake.tables["p.d.empty"] = table(0)
    found = plan_input("bigquery:p.d.empty")
    assert found.schema.names == ["id", "a"]
    assert found.splits == ()


def test_a_stream_that_breaks_off_goes_on_where_it_was(fake: FakeBigQuery, read: Any) -> None:
    found = plan_input(NAME)
    fake.breaks = {1: [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]}
    assert ids(found, read) == list(range(ROWS))
    assert fake.offsets(0) == [0]
    assert fake.offsets(1) == [0, 20, 40]


def test_a_stream_that_fails_is_no_broken_file(fake: FakeBigQuery) -> None:
    found = plan_input(NAME)
    fake.breaks = {1: [grpc.StatusCode.PERMISSION_DENIED]}
    pieces = read_split(found.splits[1], found.schema, chunk_rows=10)
    assert [next(pieces).num_rows, next(pieces).num_rows] == [10, 10]
    with pytest.raises(ServiceError, match=rf"^{NAME}#1 cannot be read to its end: 403 the stream broke off$"):
        next(pieces)


def test_limit(fake: FakeBigQuery, read: Any) -> None:
    assert ids(plan_input(NAME, limit=30), read) == list(range(30))
    assert ids(plan_input(NAME, limit=70), read) == list(range(70))


def test_dead_letters_from_a_table(fake: FakeBigQuery, read: Any) -> None:
    letter = {"stage": "encode", "type": "T", "message": "m", "source": "old.parquet", "row": 7}
    letters = pa.table({"a": [1.5], DEAD_LETTER: pa.array([letter], DEAD_LETTER_TYPE)})
    fake.tables["p.d.dead"], fake.streams = letters, 1
    found = plan_input("bigquery:p.d.dead")
    assert found.replay
    assert read(found)[0] == [{"a": 1.5, SOURCE: "old.parquet", ROW: 7}]


@pytest.mark.parametrize("query", ["SELECT * FROM shop.orders", " with x as (select 1) select * from x", "(select 1)"])
def test_the_result_of_a_query(fake: FakeBigQuery, read: Any, query: str) -> None:
    fake.tables["my-project._anon.result"] = table(10)
    fake.result = "my-project._anon.result"
    found = plan_input(f"bigquery:{query}")
    assert fake.asked[0]["configuration"]["query"]["query"] == query.strip()
    assert ids(found, read) == list(range(10))
    assert found.splits[0].path == "bigquery:my-project._anon.result"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bigquery:shop.orders", "write bigquery:project.dataset.table, or"),
        ("bigquery:", "write bigquery:project.dataset.table, or"),
        ("bigquery:my-project.shop.none", "404 Not found: Table my-project:shop.none; check the name"),
        ("bigquery:forbidden.shop.orders", r"403 .*denied; check the name, the credentials .* its roles"),
        ("bigquery:SELECT nonsense", r"the query of --input failed: 400 .*Syntax error: Unexpected nonsense"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(fake: FakeBigQuery, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        plan_input(name)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("gone")
def test_a_server_that_cannot_be_reached_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigquery, "BEFORE_RUN", 1)
    monkeypatch.setattr(bigquery, "_IN_RUN", 1)
    started = time.monotonic()
    with pytest.raises(UsageError, match=rf"^{NAME} cannot be read: .*503"):
        plan_input(NAME)
    with pytest.raises(ServiceError, match=rf"^{NAME}#0 cannot be read to its end: .*503"):
        list(read_split(Split(NAME, "bigquery", stream=(0, "s/streams/0")), table(0).schema))
    assert time.monotonic() - started < WAIT_SECONDS


def test_an_input_format_is_for_files(fake: FakeBigQuery) -> None:
    with pytest.raises(UsageError, match="--input_format=csv is for files"):
        plan_input(NAME, "csv")


def test_reserved_names(fake: FakeBigQuery) -> None:
    fake.tables["p.d.t"] = pa.table({ROW: [1]})
    with pytest.raises(UsageError, match=r'column "__row__" of bigquery:p\.d\.t has a reserved name'):
        plan_input("bigquery:p.d.t")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Linear]:
    torch.manual_seed(3)
    net = torch.nn.Linear(1, 1)
    folder = tmp_path_factory.mktemp("model") / "m"
    inputs = [{"name": "input", "columns": ["a"]}]
    ModelDir.save(net, folder, task="regression", inputs=inputs, arguments={"in_features": 1, "out_features": 1})
    return folder, net


def run(model: Path, output: Path, *others: str) -> int:
    return score.main([f"--input={NAME}", f"--model={model}", f"--output={output}", *others])


def test_a_table_is_scored(fake: FakeBigQuery, model: tuple[Path, torch.nn.Linear], tmp_path: Path) -> None:
    rows = table(ROWS).to_pylist()
    rows[60]["a"] = None
    fake.tables["my-project.shop.orders"] = pa.Table.from_pylist(rows, schema=table(0).schema)
    fake.breaks = {0: [], 1: [grpc.StatusCode.UNAVAILABLE]}

    assert run(model[0], tmp_path / "out") == 0

    found = json.loads((tmp_path / "out" / "report.json").read_text())
    counts = [found[f"rows_{what}"] for what in ("read", "scored", "dropped", "dead")]
    assert (counts, found["files_read"]) == ([ROWS, ROWS - 1, 0, 1], 1)
    scored = ds.dataset(tmp_path / "out" / "predictions").to_table().sort_by("id").to_pylist()
    with torch.inference_mode():
        expected = model[1](torch.tensor([[row["a"]] for row in rows if row["a"] is not None])).flatten().tolist()
    assert [row["id"] for row in scored] == [row for row in range(ROWS) if row != 60]
    assert [row["prediction"] for row in scored] == pytest.approx(expected, abs=1e-6)
    (dead,) = ds.dataset(tmp_path / "out" / "dead_letters").to_table().to_pylist()
    assert (dead["id"], dead["dead_letter"]["source"], dead["dead_letter"]["row"]) == (60, f"{NAME}#1", 10)


def test_a_table_that_fails_on_the_way_fails_the_run(
    fake: FakeBigQuery, model: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.breaks = {1: [grpc.StatusCode.INTERNAL] * 20}
    assert run(model[0], tmp_path / "out") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"torchbeam score: error: {NAME}#1 cannot be read to its end: 500 the stream broke off")
    assert not (tmp_path / "out" / "report.json").exists()
