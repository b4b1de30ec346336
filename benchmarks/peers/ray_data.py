"""Ray Data: `map_batches` with a class, whose model each of its actors loads once."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from benchmarks.bench_model import COLUMNS, LABELS
from benchmarks.job import Clock, Job
from benchmarks.peers.loop import Scorer, load


class ArrowPredictor:
    """Takes and gives Arrow tables."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.settings.get("threads", 1))
        self._score = Scorer(job)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with class and confidence."""
        with torch.inference_mode():
            return pa.Table.from_batches([self._score(batch)[0] for batch in table.combine_chunks().to_batches()])


class NumpyPredictor:
    """Takes and gives dictionaries of numpy arrays, which is the default."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.settings.get("threads", 1))
        self._net, self._labels = load(job.model), np.array(LABELS)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """The batch with class and confidence."""
        rows = np.stack([batch[name] for name in COLUMNS], axis=1, dtype=np.float32, casting="same_kind")
        with torch.inference_mode():
            confidence, best = self._net(torch.from_numpy(rows)).softmax(1).max(1)
        return {**batch, "predicted_class": self._labels[best.numpy()], "confidence": confidence.numpy()}


def ray_data(job: Job, clock: Clock) -> None:
    """Parquet to Parquet with an actor pool."""
    actors, form = job.settings.get("actors", 1), job.settings.get("batch_format", "pyarrow")
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    with clock.running():
        scored = ray.data.read_parquet(job.input).map_batches(
            ArrowPredictor if form == "pyarrow" else NumpyPredictor,
            fn_constructor_args=(job,),
            batch_size=job.settings.get("batch_rows", 131_072),
            batch_format=form,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=job.settings.get("actor_cpus", 1),
        )
        scored.write_parquet(job.output, compression="snappy")
    ray.shutdown()
