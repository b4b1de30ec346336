"""Keyed dictionaries with a preprocess and a postprocess function, on the in-process runner: `RunInference` and its likes.

Each gets the same `(key, {"f_0": …, …, "f_19": …})`, brings one field onto another scale and gives
`(key, {"predicted_class": …, "confidence": …})`. The rows are made before the clock runs.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerKeyedTensor, PytorchModelHandlerTensor

from benchmarks.bench_model import COLUMNS, LABELS, BenchNet
from benchmarks.job import Clock, Job
from benchmarks.peers.loop import load

SLICE = 10_000
Element = tuple[int, Any]
_ROWS: dict[int, list[Element]] = {}
_FOUND: list[tuple[int, str, float]] = []


def make_rows(rows: int) -> None:
    """Makes `(key, {name: value})` for the keys 0 … rows - 1, held in this process in slices."""
    random = np.random.default_rng(0)
    for start in range(0, rows, SLICE):
        values = random.normal(size=(min(SLICE, rows - start), len(COLUMNS))).tolist()
        _ROWS[start] = [(start + at, dict(zip(COLUMNS, row, strict=True))) for at, row in enumerate(values)]
    gc.freeze()  # else the collector would walk over all of them time and again, in every contestant


def rows_of(start: int) -> list[Element]:
    """The slice that begins with this key."""
    return _ROWS[start]


def clean(element: Element) -> Element:
    """The preprocess function: one field on another scale."""
    key, row = element
    return key, {**row, "f_0": math.log1p(abs(row["f_0"]))}


def to_tensor(element: Element) -> Element:
    """The same, and what the stock handler of tensors needs."""
    key, row = clean(element)
    return key, torch.tensor([row[name] for name in COLUMNS])


def to_tensors(element: Element) -> Element:
    """The same, and what the stock handler of dictionaries needs."""
    key, tensor = to_tensor(element)
    return key, {"x": tensor}


def decide(element: Element) -> Element:
    """The postprocess function where the model's answer is logits."""
    key, result = element
    probabilities = torch.softmax(result.inference, 0)
    best = int(probabilities.argmax())
    return key, {"predicted_class": LABELS[best], "confidence": float(probabilities[best])}


def take_out(element: Element) -> Element:
    """The postprocess function where the handler has decoded them."""
    key, result = element
    return key, result.inference


class Collect(beam.DoFn):
    """Keeps what came out in this process."""

    def process(self, element: Element) -> None:
        """Looks at one row."""
        key, row = element
        _FOUND.append((key, row["predicted_class"], row["confidence"]))


def _write(job: Job) -> None:
    keys, labels, confidence = zip(*_FOUND, strict=True)
    table = pa.table({"key": keys, "predicted_class": labels, "confidence": pa.array(confidence, pa.float32())})
    Path(job.output).mkdir(parents=True)
    pq.write_table(table, Path(job.output) / "part.parquet")


def _run(job: Job, clock: Clock, score: Callable[[Any], Any]) -> None:
    make_rows(job.rows)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    elements = pipeline | beam.Create(range(0, job.rows, SLICE), reshuffle=False) | beam.FlatMap(rows_of)
    _ = score(elements) | beam.ParDo(Collect())  # type: ignore[no-untyped-call]
    with clock.running():
        pipeline.run().wait_until_finish()
    _write(job)


def _stock(job: Job, clock: Clock, handler: type, preprocess: Callable[[Element], Element], **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.save(load(job.model).state_dict(), weights := str(Path(folder) / "weights.pt"))
        made: Any = KeyedModelHandler(handler(weights, BenchNet, **options))
        whole = made.with_preprocess_fn(preprocess).with_postprocess_fn(decide)
        _run(job, clock, lambda elements: elements | RunInference(whole))


def loop(job: Job, clock: Clock) -> None:
    """A loop over batches of rows."""
    make_rows(job.rows)
    net, size = load(job.model), job.settings.get("batch_rows", 8192)

    def batches() -> Iterator[list[Element]]:
        for part in _ROWS.values():
            for start in range(0, len(part), size):
                yield part[start : start + size]

    with clock.running(), torch.inference_mode():
        for batch in batches():
            rows = [clean(element)[1] for element in batch]
            matrix = torch.tensor([[row[name] for name in COLUMNS] for row in rows])
            confidence, best = net(matrix).softmax(1).max(1)
            for (key, _), code, value in zip(batch, best.tolist(), confidence.tolist(), strict=True):
                _FOUND.append((key, LABELS[code], value))
    _write(job)


def nothing(job: Job, clock: Clock) -> None:
    """The pipeline without a model: what passing on the rows costs."""
    _run(job, clock, lambda elements: elements | beam.Map(pass_on))


def pass_on(element: Element) -> Element:
    """A row as it would come out."""
    return element[0], {"predicted_class": "", "confidence": 0.0}


def stock(job: Job, clock: Clock) -> None:
    """`RunInference` with `PytorchModelHandlerTensor`."""
    sizes = {f"{bound}_batch_size": size for bound in ("min", "max") if (size := job.settings.get("batch_rows"))}
    _stock(job, clock, PytorchModelHandlerTensor, to_tensor, **sizes)


def stock_dicts(job: Job, clock: Clock) -> None:
    """`RunInference` with `PytorchModelHandlerKeyedTensor`."""
    _stock(job, clock, PytorchModelHandlerKeyedTensor, to_tensors)


def handler(job: Job, clock: Clock) -> None:
    """`RunInference` with `TorchModelHandler`."""
    from torchbeam import TorchModelHandler

    made: Any = KeyedModelHandler(TorchModelHandler(job.model, head=True))
    whole = made.with_preprocess_fn(clean).with_postprocess_fn(take_out)
    _run(job, clock, lambda elements: elements | RunInference(whole))


def torchbeam(job: Job, clock: Clock) -> None:
    """`RunTorchInference` with `TorchModelHandler`."""
    from torchbeam import RunTorchInference, TorchModelHandler

    made: Any = TorchModelHandler(job.model, head=True)
    whole = made.with_preprocess_fn(clean).with_postprocess_fn(take_out)
    _run(job, clock, lambda elements: (elements | RunTorchInference(whole)).predictions)
