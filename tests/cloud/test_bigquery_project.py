"""BigQuery itself. Run with `TORCHBEAM_GCP_PROJECT=my-project pytest tests/cloud`; it makes a dataset and deletes it."""

import datetime
import json
import os
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch

from handlers import ModelDir
from handlers.columnar.chunks import ROW, SOURCE, merge, without_provenance
from handlers.errors import UsageError
from pipelines import score
from transforms.sources import BadRows, plan_input, read_split

PROJECT = os.environ.get("TORCHBEAM_GCP_PROJECT")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROJECT, reason="set TORCHBEAM_GCP_PROJECT to a project of Google Cloud to run this"),
]

BUCKET = os.environ.get("TORCHBEAM_GCP_BUCKET")

ROWS = 10_000
ORDERS = f"SELECT id, id / 7 AS a FROM UNNEST(GENERATE_ARRAY(0, {ROWS - 1})) AS id"
TYPES = """
SELECT 9007199254740993 AS n, 0.5 AS x, TRUE AS b, 'Größe' AS s, b'\\x00\\xff' AS raw, NUMERIC '-1.25' AS num,
  BIGNUMERIC '1.5' AS big, DATE '2024-05-01' AS day, TIME '01:02:03.000004' AS time,
  DATETIME '2024-05-01 00:00:00' AS local, TIMESTAMP '2024-05-01 00:00:00+00' AS at, JSON '{"a":1}' AS json,
  [1, 2] AS list, STRUCT(1 AS a, ['x'] AS b) AS record
"""


@pytest.fixture(scope="module")
def table() -> Iterator[str]:
    from google.cloud.bigquery import Client

    assert PROJECT is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)
        client = Client(project=PROJECT)
        dataset = f"torchbeam_test_{uuid.uuid4().hex[:8]}"
        client.create_dataset(f"{PROJECT}.{dataset}")
        try:
            client.query(f"CREATE TABLE {dataset}.orders AS {ORDERS}").result()
            yield f"bigquery:{PROJECT}.{dataset}.orders"
        finally:
            client.delete_dataset(dataset, delete_contents=True)


def read(name: str) -> pa.RecordBatch:
    found = plan_input(name)
    pieces = [piece for split in found.splits for piece in read_split(split, found.schema)]
    return merge([piece for piece in pieces if not isinstance(piece, BadRows)])


def test_a_table(table: str) -> None:
    rows = read(table)
    assert sorted(rows.column("id").to_pylist()) == list(range(ROWS))
    indices = set(zip(rows.column(SOURCE).to_pylist(), rows.column(ROW).to_pylist(), strict=True))
    assert len(indices) == ROWS


@pytest.mark.usefixtures("table")
def test_every_type_of_a_query() -> None:
    rows = without_provenance(read(f"bigquery:{TYPES}"))
    assert rows.schema == pa.schema(
        {
            "n": pa.int64(),
            "x": pa.float64(),
            "b": pa.bool_(),
            "s": pa.string(),
            "raw": pa.binary(),
            "num": pa.decimal128(38, 9),
            "big": pa.decimal256(76, 38),
            "day": pa.date32(),
            "time": pa.time64("us"),
            "local": pa.timestamp("us"),
            "at": pa.timestamp("us", "UTC"),
            "json": pa.string(),
            "list": pa.list_(pa.int64()),
            "record": pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
        }
    )
    (row,) = rows.to_pylist()
    assert row == {
        "n": 2**53 + 1,
        "x": 0.5,
        "b": True,
        "s": "Größe",
        "raw": b"\x00\xff",
        "num": Decimal("-1.25"),
        "big": Decimal("1.5"),
        "day": datetime.date(2024, 5, 1),
        "time": datetime.time(1, 2, 3, 4),
        "local": datetime.datetime(2024, 5, 1),
        "at": datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
        "json": '{"a":1}',
        "list": [1, 2],
        "record": {"a": 1, "b": ["x"]},
    }


def test_a_table_that_is_not_there(table: str) -> None:
    with pytest.raises(UsageError, match=r"none cannot be read: 404 .*check the name"):
        plan_input(f"{table}_none")


def test_a_table_is_scored(table: str, tmp_path: Path) -> None:
    net = torch.nn.Linear(1, 1)
    inputs = [{"name": "input", "columns": ["a"]}]
    arguments = {"in_features": 1, "out_features": 1}
    ModelDir.save(net, tmp_path / "m", task="regression", inputs=inputs, arguments=arguments)
    assert score.main([f"--input={table}", f"--model={tmp_path / 'm'}", f"--output={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (found["rows_read"], found["rows_scored"]) == (ROWS, ROWS)
    scored = ds.dataset(tmp_path / "out" / "predictions").to_table().sort_by("id")
    assert scored["id"].to_pylist() == list(range(ROWS))
    with torch.inference_mode():
        expected = net(torch.tensor(scored["a"].to_pylist()).reshape(-1, 1)).flatten()
    assert torch.allclose(torch.tensor(scored["prediction"].to_pylist()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not BUCKET, reason="set TORCHBEAM_GCP_BUCKET to gs://bucket/folder in the US to run this")
def test_a_table_as_output(table: str, tmp_path: Path) -> None:
    net = torch.nn.Linear(1, 1)
    inputs = [{"name": "input", "columns": ["a"]}]
    arguments = {"in_features": 1, "out_features": 1}
    ModelDir.save(net, tmp_path / "m", task="regression", inputs=inputs, arguments=arguments)
    orders = table.removeprefix("bigquery:")
    query = f"SELECT id, IF(id < 10, NULL, a) AS a, [id] AS list, CURRENT_DATETIME() AS at FROM `{orders}`"
    common = [f"--model={tmp_path / 'm'}", f"--temp_location={BUCKET}", f"--report={tmp_path / 'report.json'}"]
    assert score.main([f"--input=bigquery:{query}", f"--output={table}_scored", *common]) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["rows_scored"], found["rows_dead"]) == (ROWS - 10, 10)
    scored = read(f"{table}_scored")
    assert sorted(scored.column("id").to_pylist()) == list(range(10, ROWS))
    assert scored.schema.field("list").type == pa.list_(pa.int64())
    assert scored.schema.field("at").type == pa.timestamp("us")
    dead = read(f"{table}_scored_dead_letters")
    assert sorted(dead.column("id").to_pylist()) == list(range(10))

    again = [f"--input=bigquery:SELECT id, a FROM `{orders}` LIMIT 7", f"--output={table}_scored", *common]
    assert score.main(again) == 2  # there are rows
    assert score.main([*again, "--overwrite"]) == 0
    assert read(f"{table}_scored").num_rows == 7
    emptied = plan_input(f"{table}_scored_dead_letters")
    assert [piece for split in emptied.splits for piece in read_split(split, emptied.schema)] == []
