"""The loop that one would write by hand for one machine: pyarrow and torch, Parquet without dictionaries for floats."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import safetensors.torch
import torch

from benchmarks.bench_model import COLUMNS, FEATURES, LABELS, BenchNet
from benchmarks.job import Clock, Job

_AHEAD = 2  # batches that the thread may have read


def load(model: str) -> BenchNet:
    """The network with its weights."""
    net = BenchNet().eval()
    safetensors.torch.load_model(net, Path(model) / "weights.safetensors")
    return net


def batches(job: Job) -> Iterator[pa.RecordBatch]:
    """Record batches of all files."""
    for file in job.files:
        if job.format == "parquet":
            yield from pq.ParquetFile(file).iter_batches(job.settings.get("read_rows", 131_072))
            continue
        with pa.input_stream(str(file), compression="gzip" if file.suffix == ".gz" else None) as stream:
            yield from (pyarrow.csv.open_csv if job.format == "csv" else pyarrow.json.open_json)(stream)


def read_ahead(source: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, read by a thread while the consumer works."""
    ready: queue.Queue[pa.RecordBatch | None] = queue.Queue(_AHEAD)

    def read() -> None:
        for batch in source:
            ready.put(batch)
        ready.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (batch := ready.get()) is not None:
        yield batch


class Scorer:
    """Scores record batches."""

    def __init__(self, job: Job) -> None:
        self._net = load(job.model)
        self._labels = pa.array(LABELS)
        self._rows = job.settings.get("batch_rows", 8192)
        self._checks = job.settings.get("check", False)

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """The scored rows with all columns of the input; and those with a number that is null or not finite, if it checks."""
        matrix = np.empty((FEATURES, batch.num_rows), np.float32)
        with np.errstate(over="ignore"):
            for row, name in zip(matrix, COLUMNS, strict=True):
                row[:] = batch.column(name).to_numpy(zero_copy_only=False)
        bad = None
        if self._checks and not (good := np.isfinite(matrix).all(axis=0)).all():
            bad, batch, matrix = batch.filter(pa.array(~good)), batch.filter(pa.array(good)), matrix[:, good]
        tensor = torch.from_numpy(matrix).T.contiguous()
        parts = [self._net(part).softmax(dim=1).max(dim=1) for part in tensor.split(self._rows)]
        codes = torch.cat([part.indices for part in parts]).numpy()
        confidence = torch.cat([part.values for part in parts]).numpy()
        columns = {"predicted_class": self._labels.take(pa.array(codes)), "confidence": pa.array(confidence)}
        scored = pa.RecordBatch.from_arrays(
            [*batch.columns, *columns.values()], names=[*batch.schema.names, *columns.keys()]
        )
        return scored, bad


class Sink:
    """One Parquet file, opened with the first batch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends a batch."""
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            texts = [
                field.name for field in batch.schema if not pa.types.is_floating(field.type)
            ]  # dictionaries do not help numbers with all digits
            self._writer = pq.ParquetWriter(self._path, batch.schema, compression="snappy", use_dictionary=texts)
        self._writer.write_batch(batch)

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()


def _run(job: Job, clock: Clock, source: Iterator[pa.RecordBatch]) -> None:
    scorer = Scorer(job)
    good, bad = (Sink(Path(job.output) / name / "part.parquet") for name in ("predictions", "refused"))
    with clock.running(), torch.inference_mode():
        for batch in source:
            scored, refused = scorer(batch)
            good.write(scored)
            if refused is not None:
                bad.write(refused)
        good.close()
        bad.close()


def loop(job: Job, clock: Clock) -> None:
    """Reads, scores and writes one batch after the other."""
    _run(job, clock, batches(job))


def loop_readahead(job: Job, clock: Clock) -> None:
    """The same, and a thread reads up to two batches ahead."""
    _run(job, clock, read_ahead(batches(job)))
