"""`score`: data frames of Spark."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from handlers.batching import Batching
from handlers.columnar.chunks import dead_letter_schema
from handlers.columnar.plan import Plan
from handlers.columnar.tagged import DEAD, DEAD_FIELD
from handlers.errors import TorchbeamError, UsageError, one_line
from handlers.model.directory import ModelDir, opened
from handlers.model.trust import Trust
from handlers.paths import is_remote
from handlers.predict.placement import Placement, Precision
from transforms.inference.score import SAMPLE_ROWS, Score, check_takes_rows
from transforms.shipping import Shipped, ship
from transforms.spark.partition import ScorePartition, as_schema, unpacked
from transforms.spark.types import spark_ready

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import DataType, StructType

_shipped: dict[tuple[str, str], tuple[tempfile.TemporaryDirectory[str], Shipped]] = {}  # by application and digest


@dataclass(frozen=True)
class SparkScores:
    """What becomes of the rows of a data frame of Spark; computed when an action asks for it.

    Attributes:
        predictions: the scored rows.
        dead_letters: the rows that could not be scored, as they came in, with `dead_letter`: stage, type, message, source
            (`partition-N`), row (its number in the partition, from 0), model_version and raw.
        tagged: both in one frame, which is what `persist=True` keeps; None without it.
    """

    predictions: DataFrame
    dead_letters: DataFrame
    tagged: DataFrame | None = None

    def unpersist(self) -> None:
        """Frees what `persist=True` keeps."""
        if self.tagged is not None:
            self.tagged.unpersist()


def score(
    df: DataFrame,
    model: ModelDir | str | os.PathLike[str],
    *,
    columns: Sequence[str] = ("*",),
    probabilities: bool = False,
    preprocess: Sequence[str] = (),
    postprocess: Sequence[str] = (),
    device: str = "auto",
    precision: Precision = "float32",
    batch_size: int | None = None,
    trust: Trust | None = None,
    ship_model: bool | None = None,
    persist: bool = False,
) -> SparkScores:
    """Scores a data frame of Spark with `mapInArrow`: the same columns and reasons as `torchbeam score`, without Beam.

    The output columns are determined here: with functions, or where lists have no fixed length, by scoring the first 1,000
    rows, which runs a small job; else by scoring zeros. Every Python worker loads the model once.
    The executors need this package in the version of the driver.

    Args:
        df: the rows. Spark's batches (`spark.sql.execution.arrow.maxRecordsPerBatch`) are merged into chunks of 32,768 rows.
        model: a model directory, its path, or the path of a bare `.pt2` or TorchScript file; local or remote.
        columns: names and patterns of the columns that are copied into the predictions.
        probabilities: whether a classification also gives the probability of every class.
        preprocess: functions on rows, as `module:function`, after those of the model directory.
        postprocess: functions on predictions, likewise.
        device: `auto` is the GPU that Spark assigned to the task (`spark.task.resource.gpu.amount`), else the CPU. `cpu`,
            `cuda` and `cuda:N` leave that to this package: then each Python worker of a host takes a free GPU.
        precision: `float32`, `bfloat16` or `float16`.
        batch_size: rows of a call of the model; None chooses by the bytes of a row.
        trust: how far the model directory of a path is trusted.
        ship_model: whether Spark copies the model to the executors. None copies local ones where the executors are other
            processes; with False every executor reads the path itself, which must be shared.
        persist: whether rows that were scored are kept (memory, then disk), so that `predictions` and `dead_letters`
            together score them once. Without it an action on each of them scores all rows.

    Raises:
        UsageError: for another kind of data, columns or functions that do not match the model, or a model with
            `sequences`.
        BrokenModelError: if the model fails on each of the first rows, and on zeros.
    """
    _check(df)
    directory = opened(model, trust)
    check_takes_rows(directory)
    schema = _columns(df)
    options = {"columns": columns, "preprocess": preprocess, "postprocess": postprocess, "probabilities": probabilities}
    plan = _plan(df, schema, directory, Batching(batch_size=batch_size), options)
    output = spark_ready(plan.output)
    _check_names(output)
    partition = ScorePartition(
        _placed(df, directory, ship_model),
        directory.digest,
        schema,
        replace(plan, output=output),
        Placement(device, precision),
        batch_size,
    )
    types = {name: (schema.field(name).type, df.schema[name].dataType) for name in schema.names}
    found, dead = _spark_schema(output, types), _spark_schema(dead_letter_schema(schema), types)
    if not persist:
        return SparkScores(
            df.mapInArrow(replace(partition, gives="predictions"), found),
            df.mapInArrow(replace(partition, gives="dead_letters"), dead),
        )
    both = df.mapInArrow(partition, _spark_schema(output.append(DEAD_FIELD), types)).persist()
    missing = both[DEAD].isNull()
    return SparkScores(
        both.where(missing).drop(DEAD), both.where(~missing).select(DEAD).mapInArrow(unpacked, dead), both
    )


def _check(df: Any) -> None:
    if not hasattr(df, "mapInArrow"):
        raise UsageError(f"df must be a DataFrame of Spark 3.3 or later, not a {type(df).__name__}")
    if twice := [name for name, count in Counter(df.columns).items() if count > 1]:
        raise UsageError(f'the frame has more than one column "{twice[0]}"; rename one of them')
    if not df.columns:
        raise UsageError("the frame has no columns, so there is nothing to score")


def _check_names(output: pa.Schema) -> None:
    """Spark does not distinguish upper and lower case by default."""
    seen: dict[str, str] = {}
    for name in output.names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise UsageError(f'the columns "{other}" and "{name}" of the predictions are the same to Spark; rename one')


def _columns(df: DataFrame) -> pa.Schema:
    from pyspark.sql.pandas.types import to_arrow_schema

    try:
        schema = to_arrow_schema(df.schema)
    except TypeError as error:
        raise UsageError(f"the frame has a column that Arrow has no type for: {one_line(error)}") from None
    return pa.schema([pa.field(each.name, _plain(each.type)) for each in schema])


def _plan(df: DataFrame, schema: pa.Schema, model: ModelDir, batching: Batching, options: dict[str, Any]) -> Plan:
    """How a row is scored: by the columns alone where they settle it, else by the first rows, which takes a job."""
    spec = model.spec
    functions = spec.features or spec.preprocess or spec.postprocess or options["preprocess"] or options["postprocess"]
    if not functions and spec.head.task != "raw":
        with suppress(TorchbeamError):  # raised again for the first rows, unless they settle what zeros do not
            return Score(model, schema, batching=batching, **options).plan
    parts = [as_schema(part, schema) for part in _first_batches(df.limit(SAMPLE_ROWS))]
    return Score(model, schema, pa.Table.from_batches(parts, schema=schema), batching=batching, **options).plan


def _first_batches(df: Any) -> list[pa.RecordBatch]:
    """The rows of a small frame as Spark's executors would give them; of Spark 4 `toArrow` is public."""
    found = df.toArrow().to_batches() if hasattr(df, "toArrow") else df._collect_as_arrow()
    return [batch for batch in found if batch.num_rows]


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without what Spark says about nulls within it."""
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(each.name, _plain(each.type)) for each in kind])
    return kind


def _spark_schema(schema: pa.Schema, types: dict[str, tuple[pa.DataType, DataType]]) -> StructType:
    """The columns in Spark: those of the frame keep their types, in which Arrow may not tell all."""
    from pyspark.sql.pandas.types import from_arrow_type
    from pyspark.sql.types import StructField, StructType

    fields = []
    for each in schema:
        before, kind = types.get(each.name, (None, None))
        if kind is None or before != each.type:
            kind = from_arrow_type(each.type, prefer_timestamp_ntz=True)
        fields.append(StructField(each.name, kind))
    return StructType(fields)


def _placed(df: DataFrame, model: ModelDir, ship_model: bool | None) -> ModelDir | Shipped:
    """The model as workers open it."""
    if is_remote(model.path) or ship_model is False:
        return model
    context = getattr(df.sparkSession, "_sc", None)  # Spark Connect has none
    if context is None:
        raise UsageError("Spark Connect cannot copy the model to the executors; use ship_model=False and a shared path")
    if ship_model is None and context.master.partition("[")[0] == "local":
        return model
    key = (context.applicationId, model.digest)
    if key not in _shipped:
        folder = tempfile.TemporaryDirectory(prefix="torchbeam-")  # Spark serves it from there until this process ends
        shipped, file = ship(model, Path(folder.name))
        context.addFile(str(file))
        _shipped[key] = folder, shipped
    return replace(_shipped[key][1], trust=model.trust)
