"""`torchbeam.spark.score` on a real Spark: what the command gives on the same rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from short_jvms import SHORT_JVM
from small_models import Touchy

import torchbeam
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from pipelines import score as command

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow(60)
pytest.importorskip("pyspark", reason="there is no pyspark here: pip install pyspark==3.5.7")

ROWS = 2_000
BAD = {3: np.nan, 5: 13.0, 1500: 14.0}  # null, the model raises, the model gives NaN


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        # Spark's Python workers find the functions and models of the tests.
        patch.setenv("PYTHONPATH", ":".join(sys.path))
        for name, value in SHORT_JVM.items():
            patch.setenv(name, value)
        session = (
            SparkSession.builder.master("local[2]")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.shuffle.partitions", "2")
            .config("spark.sql.session.timeZone", "Europe/Berlin")
            .config("spark.sql.execution.arrow.maxRecordsPerBatch", "300")
            .getOrCreate()
        )
        yield session
        session.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    folder = tmp_path_factory.mktemp("spark") / "model"
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    return ModelDir.save(Touchy(), folder, task="classification", labels=["no", "yes"], inputs=inputs)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file of rows, three of them bad."""
    a = np.linspace(-2, 2, ROWS)
    a[list(BAD)] = list(BAD.values())
    columns = {
        "id": range(ROWS),
        "a": a,
        "b": np.linspace(0, 1, ROWS).astype(np.float32),
        "text": [f"row {number}" for number in range(ROWS)],
        "at": pd.date_range("2024-03-30", periods=ROWS, freq="h", tz="UTC").as_unit("us"),
        "tags": [["x"] * (number % 3) for number in range(ROWS)],
    }
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pd.DataFrame(columns).to_parquet(file, index=False)
    return file


def records(frame: Any) -> list[dict[str, Any]]:
    return sorted((row.asDict(recursive=True) for row in frame.collect()), key=lambda row: row["id"])


def unlike(letter: dict[str, Any]) -> dict[str, Any]:
    """A dead letter without where the row was read: a file and its row, or a partition and its row."""
    return {name: value for name, value in letter.items() if name not in ("source", "row")}


@pytest.mark.parametrize(
    ("ship_model", "probabilities", "persist"), [(None, False, True), (True, True, False), (None, False, False)]
)
def test_it_gives_what_the_command_gives(
    spark: SparkSession,
    model: ModelDir,
    rows: Path,
    tmp_path: Path,
    ship_model: bool | None,
    probabilities: bool,
    persist: bool,
) -> None:
    flags = ["--probabilities"] * probabilities
    given = [f"--input={rows}", f"--model={model.path}", f"--output={tmp_path / 'out'}", *flags]
    assert command.main(given) == 0
    expected, dead = (
        ds.dataset(tmp_path / "out" / name).to_table().sort_by("id") for name in ("predictions", "dead_letters")
    )
    found = torchbeam.spark.score(
        spark.read.parquet(str(rows)).repartition(3),
        model.path,
        probabilities=probabilities,
        ship_model=ship_model,
        persist=persist,
    )
    assert found.predictions.columns == expected.schema.names
    predictions = records(
        found.predictions.selectExpr(*(name for name in expected.schema.names if name != "at"), "unix_micros(at) at")
    )
    assert len(predictions) == ROWS - len(BAD)
    at = expected.schema.get_field_index("at")
    plain = expected.set_column(at, "at", expected["at"].cast(pa.int64()))
    for one, other in zip(predictions, plain.to_pylist(), strict=True):
        for name, value in other.items():
            assert one[name] == pytest.approx(value, abs=1e-6) if isinstance(value, float) else one[name] == value, name
    letters = records(found.dead_letters)
    assert [row["id"] for row in letters] == list(BAD)
    assert [unlike(row["dead_letter"]) for row in letters] == [unlike(row) for row in dead["dead_letter"].to_pylist()]
    assert [row["text"] for row in letters] == dead["text"].to_pylist()
    assert {row["dead_letter"]["source"] for row in letters} <= {"partition-0", "partition-1", "partition-2"}
    assert (found.tagged is not None and found.tagged.is_cached) is persist
    found.unpersist()


def keep_even(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of an even id, with a number that Spark has no type for; drops the others."""
    return {**row, "half": np.uint32(row["id"] // 2)} if row["id"] % 2 == 0 else None


def test_functions_and_types(spark: SparkSession, model: ModelDir, rows: Path) -> None:
    found = torchbeam.spark.score(
        spark.read.parquet(str(rows)), model, columns=["id", "at"], postprocess=["test_spark_frames:keep_even"]
    )
    kinds = dict(found.predictions.dtypes)
    assert {name: kinds[name] for name in ("id", "at", "model_version", "predicted_class")} == {
        "id": "bigint",
        "at": "timestamp",
        "model_version": "string",
        "predicted_class": "string",
    }
    predictions = records(found.predictions)
    assert [row["id"] for row in predictions] == [number for number in range(0, ROWS, 2) if number not in BAD]
    assert all(row["half"] == row["id"] // 2 for row in predictions)


def test_row_numbers_go_on_over_chunks(spark: SparkSession, model: ModelDir, rows: Path) -> None:
    """2,000 rows in one partition, in batches of 300 of which the first is a chunk of its own."""
    found = torchbeam.spark.score(spark.read.parquet(str(rows)).coalesce(1), model)
    letters = found.dead_letters.select("id", "dead_letter.row", "dead_letter.source").collect()
    assert sorted(tuple(row) for row in letters) == [(number, number, "partition-0") for number in BAD]


def test_no_rows(spark: SparkSession, model: ModelDir, rows: Path) -> None:
    found = torchbeam.spark.score(spark.read.parquet(str(rows)).limit(0), model)
    assert found.predictions.count() == found.dead_letters.count() == 0
    assert found.predictions.columns[-3:] == ["predicted_class", "confidence", "model_version"]


def with_process(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the process that scored it, and the model that this process holds."""
    from transforms.spark import partition

    held = [id(predictor) for _, predictor in partition._models.values()]
    return {**row, "process": os.getpid(), "held": held[-1] if held else 0}  # the driver, which plans, has none


def test_a_model_is_loaded_once_in_a_worker_process(spark: SparkSession, model: ModelDir, rows: Path) -> None:
    df = spark.read.parquet(str(rows)).repartition(8)
    found = torchbeam.spark.score(df, model, columns=["id"], postprocess=["test_spark_frames:with_process"])
    seen = [
        (row["process"], row["held"], row["partition"])
        for _ in range(2)
        for row in found.predictions.selectExpr("process", "held", "spark_partition_id() partition")
        .distinct()
        .collect()
    ]
    assert len({partition for _, _, partition in seen}) == 8
    processes = {process for process, _, _ in seen}
    assert len(processes) < 8
    assert all(held for _, held, _ in seen)
    assert len({(process, held) for process, held, _ in seen}) == len(processes)


def test_wrong_use_is_one_line(spark: SparkSession, model: ModelDir, rows: Path, tmp_path: Path) -> None:
    df = spark.read.parquet(str(rows))
    windows = ModelDir.save(
        Touchy(),
        tmp_path / "windows",
        task="forecast",
        inputs=[{"name": "x", "columns": ["a"], "encoder": "sequence"}],
        sequences={"by": ["text"], "order_by": "at", "columns": ["a"], "length": 4, "horizon": 1},
    )
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (pd.DataFrame({"a": [1.0]}), model, {}, "df must be a DataFrame of Spark"),
        (df, tmp_path / "none", {}, "does not exist"),
        (df, windows, {}, r"takes windows of rows \(sequences\), which need a pipeline"),
        (df.drop("b"), model, {}, '"b"'),
        (df.select("*", "a"), model, {}, 'more than one column "a"'),
        (df.withColumn("Confidence", df.a), model, {}, "the same to Spark"),
        (df.withColumn("dead_letter", df.a), model, {}, "reserved name"),
        (df, model, {"device": "gpu"}, "is not one of auto"),
        (df, {"path": model.path}, {}, "the model must be a ModelDir, or the path"),
        (df, model.path, {"trust": "x"}, "trust must be"),
        (df, model, {"trust": torchbeam.Trust(code=False)}, "trust is for the path of a model"),
    ]
    for frame, given_model, options, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            torchbeam.spark.score(frame, given_model, **options)
        assert "\n" not in str(caught.value)
