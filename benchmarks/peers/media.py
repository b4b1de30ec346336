"""Texts through a sentence encoder, and JPEGs through a ResNet-18."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.job import Clock, Job


def _batches(job: Job, rows: int) -> Iterator[dict[str, Any]]:
    for file in job.files:
        for batch in pq.ParquetFile(file).iter_batches(rows):
            yield batch.to_pydict()


def _write(job: Job, ids: list[int], name: str, values: np.ndarray) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).astype(np.float32)), values.shape[1])
    Path(job.output).mkdir(parents=True)
    pq.write_table(pa.table({"id": ids, name: lists}), Path(job.output) / "part.parquet")


def sentence_transformers(job: Job, clock: Clock) -> None:
    """`SentenceTransformer.encode`, which sorts the texts by length."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(job.model, device="cpu")
    with clock.running():
        ids, texts = [], []
        for batch in _batches(job, 65_536):
            ids += batch["id"]
            texts += batch["text"]
        vectors = encoder.encode(texts, batch_size=job.settings.get("batch_rows", 32), show_progress_bar=False)
        _write(job, ids, "embedding", np.asarray(vectors))


def texts_loop(job: Job, clock: Clock) -> None:
    """A loop over batches of texts in the order in which they come, each padded to its longest."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(job.model, device="cpu")
    with clock.running(), torch.inference_mode():
        ids, parts = [], []
        for batch in _batches(job, job.settings.get("batch_rows", 32)):
            ids += batch["id"]
            tensors = encoder.tokenize(batch["text"])
            parts.append(encoder(tensors)["sentence_embedding"].numpy())
        _write(job, ids, "embedding", np.concatenate(parts))


def images_loop(job: Job, clock: Clock) -> None:
    """A loop over batches of images: decoded in threads, then the model, then the next batch."""
    from PIL import Image
    from torchvision.transforms import v2

    from benchmarks.media import MEAN, STD, resnet

    network = resnet()
    cut = v2.Compose([v2.PILToTensor(), v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def decode(file: bytes) -> torch.Tensor:
        pixels: torch.Tensor = cut(Image.open(io.BytesIO(file)).convert("RGB"))
        return pixels

    with clock.running(), torch.inference_mode(), ThreadPoolExecutor(os.cpu_count()) as threads:
        ids, parts = [], []
        for batch in _batches(job, job.settings.get("batch_rows", 32)):
            ids += batch["id"]
            pixels = torch.stack(list(threads.map(decode, batch["image"])))
            parts.append(network(finish(pixels)).numpy())
        _write(job, ids, "output", np.concatenate(parts))
