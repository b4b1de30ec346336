"""Data frames of Spark on `local[cores]`: `predict_batch_udf`, an iterator over Arrow batches, and `torchbeam.spark.score`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from benchmarks.bench_model import COLUMNS, FEATURES, LABELS
from benchmarks.job import Clock, Job

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def master() -> str:
    """As many tasks at once as there are cores."""
    return f"local[{os.cpu_count()}]"


def _session(job: Job) -> SparkSession:
    from pyspark.sql import SparkSession

    return (
        SparkSession.builder.master(master())
        .config("spark.driver.memory", "4g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", job.settings.get("arrow_rows", 8192))
        .getOrCreate()
    )


def _run(job: Job, clock: Clock, score: Callable[[DataFrame, Job], DataFrame]) -> None:
    spark = _session(job)
    with clock.running():
        score(spark.read.parquet(job.input), job).write.parquet(job.output)
    spark.stop()


def torchbeam_frame(job: Job, clock: Clock) -> None:
    """`torchbeam.spark.score` on a data frame."""

    def score(table: DataFrame, job: Job) -> DataFrame:
        import torchbeam.spark

        return torchbeam.spark.score(table, job.model).predictions

    _run(job, clock, score)


def predict_batch_udf(job: Job, clock: Clock) -> None:
    """Spark's own way to call a model: a function on numpy batches."""
    _run(job, clock, _by_udf)


def _by_udf(table: DataFrame, job: Job) -> DataFrame:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.functions import array, col, struct
    from pyspark.sql.types import FloatType, StringType, StructField, StructType

    model, form = job.model, job.settings.get("columns", "array")

    def make_predict() -> Callable[..., dict[str, Any]]:
        import inspect

        import numpy as np
        import torch

        from benchmarks.peers.loop import load

        torch.set_num_threads(1)
        net, labels = load(model), np.array(LABELS)

        def predict(rows: np.ndarray) -> dict[str, Any]:
            with torch.inference_mode():
                confidence, best = net(torch.from_numpy(rows.astype(np.float32))).softmax(1).max(1)
            return {"predicted_class": labels[best.numpy()], "confidence": confidence.numpy()}

        def predict_columns(*columns: np.ndarray) -> dict[str, Any]:
            return predict(np.stack(columns, axis=1))

        # Spark counts the parameters.
        by_position = inspect.Parameter.POSITIONAL_ONLY
        signature = inspect.Signature([inspect.Parameter(name, by_position) for name in COLUMNS])
        predict_columns.__signature__ = signature  # type: ignore[attr-defined]
        return predict_columns if form == "separate" else predict

    answer = StructType([StructField("predicted_class", StringType()), StructField("confidence", FloatType())])
    score = predict_batch_udf(
        make_predict,
        return_type=answer,
        batch_size=job.settings.get("batch_rows", 8192),
        input_tensor_shapes=[[FEATURES]] if form == "array" else None,
    )
    columns = [col(name) for name in COLUMNS]
    inputs = {"array": [array(*columns)], "struct": [struct(*columns)], "separate": columns}[form]
    return table.withColumn("scored", score(*inputs)).select("*", "scored.*").drop("scored")


def spark_iterator(job: Job, clock: Clock) -> None:
    """`DataFrame.mapInArrow`: the function of the loop, on an iterator over Arrow batches."""
    _run(job, clock, _by_iterator)


def _by_iterator(table: DataFrame, job: Job) -> DataFrame:
    from pyspark.sql.types import FloatType, StringType, StructField, StructType

    def score(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import torch

        from benchmarks.peers.loop import Scorer

        torch.set_num_threads(1)
        scorer = Scorer(job)
        with torch.inference_mode():
            for batch in batches:
                yield scorer(batch)[0]

    answers = [StructField("predicted_class", StringType()), StructField("confidence", FloatType())]
    return table.mapInArrow(score, StructType([*table.schema.fields, *answers]))
