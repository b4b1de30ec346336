"""Beam's own `RunInference` with `PytorchModelHandlerTensor`, on the dictionaries that `ReadFromParquet` gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

from benchmarks.bench_model import COLUMNS, LABELS, BenchNet
from benchmarks.job import Clock, Job
from benchmarks.peers.loop import load


def encode(row: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
    """The row beside what the model takes, so that it comes out beside its answer."""
    return row, torch.tensor([row[name] for name in COLUMNS], dtype=torch.float32)


def decode(row: dict[str, Any], result: Any) -> dict[str, Any]:
    """The row with its class and confidence."""
    confidence, code = result.inference.softmax(dim=0).max(dim=0)
    return {**row, "predicted_class": LABELS[int(code)], "confidence": float(confidence)}


def stock(job: Job, clock: Clock) -> None:
    """Parquet to Parquet, on the in-process runner."""
    output = Path(job.output)
    output.mkdir(parents=True)
    torch.save(load(job.model).state_dict(), weights := output / "weights.pt")
    # Of one size: left to Beam, batches may stay at one or two rows, and take ten times as long.
    rows = job.settings.get("batch_rows", 256)
    handler = PytorchModelHandlerTensor(
        state_dict_path=str(weights),
        model_class=BenchNet,
        model_params={},
        device="CPU",
        min_batch_size=rows,
        max_batch_size=rows,
    )
    schema = pq.read_schema(job.files[0]).remove_metadata()
    schema = schema.append(pa.field("predicted_class", pa.string())).append(pa.field("confidence", pa.float32()))
    with clock.running(), beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromParquet(f"{job.input}/*.parquet")
            | beam.Map(encode)
            | RunInference(KeyedModelHandler(handler))
            | beam.MapTuple(decode)
            | beam.io.WriteToParquet(f"{output}/part", schema, codec="snappy", file_name_suffix=".parquet")
        )
