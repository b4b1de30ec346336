"""Daft on its native runner: a class with a batch method, whose model each instance loads once."""

from __future__ import annotations

import daft
import numpy as np
import pyarrow as pa
import torch

from benchmarks.bench_model import COLUMNS, LABELS
from benchmarks.job import Clock, Job
from benchmarks.peers.loop import load

_ANSWER = daft.DataType.struct({"predicted_class": daft.DataType.string(), "confidence": daft.DataType.float32()})


def daft_udf(job: Job, clock: Clock) -> None:
    """Parquet to Parquet."""
    settings = job.settings

    @daft.cls(max_concurrency=settings.get("instances"), use_process=settings.get("use_process"))
    class Predictor:
        """The model, and a method for batches."""

        def __init__(self, model: str) -> None:
            if "threads" in settings:
                torch.set_num_threads(settings["threads"])
            self._net, self._labels = load(model), pa.array(LABELS)

        @daft.method.batch(return_dtype=_ANSWER, unnest=True, batch_size=settings.get("batch_rows"))
        def score(self, *columns: daft.Series) -> pa.Array:
            """The class and the confidence of each row."""
            rows = np.stack([column.to_arrow().to_numpy() for column in columns], axis=1).astype(np.float32)
            with torch.inference_mode():
                confidence, best = self._net(torch.from_numpy(rows)).softmax(1).max(1)
            classes = self._labels.take(pa.array(best.numpy()))
            return pa.StructArray.from_arrays([classes, confidence.numpy()], names=["predicted_class", "confidence"])

    with clock.running():
        table = daft.read_parquet(f"{job.input}/*.parquet")
        table.select("*", Predictor(job.model).score(*(table[name] for name in COLUMNS))).write_parquet(job.output)
