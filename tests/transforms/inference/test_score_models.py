"""`ScoreModels` in pipelines: stages one after the other, and models by key over many chunks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import torch
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from handlers import ModelDir
from handlers.batching import Batching, ResourceHints
from handlers.graph.plan import ByKey, ModelSettings
from transforms.accounting import Counts, total
from transforms.inference.score_models import ScoreModels

pytestmark = pytest.mark.slow(8)

ROWS, MODELS, SIZE = 20_000, 50, 4 * 10_001


class Plus(torch.nn.Module):
    """Gives x + number; fails on rows of which x is -1."""

    def __init__(self, number: float = 0.0) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor([number]))
        self.register_buffer("ballast", torch.zeros(10_000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x == -1).any():
            raise ValueError("negative")
        return x[:, 0] + self.number


def save(path: Path, number: float) -> ModelDir:
    inputs = [{"name": "x", "columns": ["x"]}]
    return ModelDir.save(Plus(number), path, task="regression", inputs=inputs, arguments={"number": number})


FOUND: dict[str, list[Any]] = {}


def keep(name: str, element: Any) -> None:
    """Keeps an element for the test: the runner is in this process."""
    FOUND[name].append(element)


def scored(score: ScoreModels, batches: list[pa.RecordBatch]) -> tuple[pa.Table, list[dict[str, Any]], Counts]:
    """The predictions, dead letters and counts of a pipeline."""
    FOUND.update(rows=[], dead=[], counts=[])
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        found = pipeline | beam.Create(batches, reshuffle=False) | score
        _ = found.predictions | "KeepRows" >> beam.Map(partial(keep, "rows"))
        _ = (
            found.dead_letters
            | beam.FlatMap(lambda batch: batch.to_pylist())
            | "KeepDead" >> beam.Map(partial(keep, "dead"))
        )
        _ = found.counts | "KeepCounts" >> beam.Map(partial(keep, "counts"))
    return pa.Table.from_batches(FOUND["rows"], score.predictions_schema), FOUND["dead"], total(FOUND["counts"])


def test_fifty_models_by_key_in_memory_for_five(tmp_path: Path) -> None:
    for number in range(MODELS):
        save(tmp_path / f"k{number}", float(number))
    random = np.random.default_rng(0)
    numbers, x = random.integers(0, MODELS, ROWS), random.normal(size=ROWS)
    rows = pa.RecordBatch.from_pydict({"id": np.arange(ROWS), "key": [f"k{n}" for n in numbers], "x": x})
    paths = {f"k{number}": str(tmp_path / f"k{number}") for number in range(MODELS)}
    by_key = ByKey("key", str(tmp_path), paths, None, 5 * SIZE)
    score = ScoreModels(
        [ModelSettings("local", ModelDir(tmp_path / "k0"), by_key=by_key)],
        rows.schema,
        rows.slice(0, 100),
        batching=Batching(chunk_rows=2_000),
    )
    found, dead, counts = scored(score, [rows])
    found = found.sort_by("id")
    assert dead == []
    assert found.num_rows == ROWS
    assert np.abs(found["prediction"].to_numpy() - (x + numbers)).max() <= 1e-5
    local = counts.models["local"]
    # Ten chunks, each with rows of all keys; the best order keeps five models from one chunk to the next.
    best = MODELS + 9 * (MODELS - 5)
    assert best <= local.loads <= 3 * best
    assert local.peak_bytes == 5 * SIZE


def test_three_stages(tmp_path: Path) -> None:
    """Rows with their answers so far go through coders; each model that fails costs its own answer or its row."""
    models = [save(tmp_path / f"m{number}", float(number)) for number in range(3)]
    hints = [ResourceHints(min_ram=f"{number + 1}GB") for number in range(3)]
    settings = [
        ModelSettings("one", models[0], hints=hints[0], continues=True),
        ModelSettings("two", models[1], "one_prediction > 0 or one_prediction is null", hints=hints[1]),
        ModelSettings("three", models[2], "two_prediction > 2", hints=hints[2]),
    ]
    x = np.array([3.0, -5.0, 0.5, -1.0, 2.0])
    rows = pa.RecordBatch.from_pydict({"id": np.arange(5), "x": x})
    score = ScoreModels(settings, rows.schema, rows)
    assert len(score.plan.stages) == 3
    found, dead, counts = scored(score, [rows.slice(0, 2), rows.slice(2)])
    found = found.sort_by("id")
    assert found["one_prediction"].to_pylist() == [3.0, -5.0, 0.5, 2.0]
    assert found["two_prediction"].to_pylist() == [4.0, None, 1.5, 3.0]
    assert found["three_prediction"].to_pylist() == [5.0, None, None, 4.0]
    (letter,) = dead
    assert (letter["id"], letter["x"], letter["dead_letter"]["model"]) == (3, -1.0, "two")
    assert (counts.rows_scored, counts.rows_dropped, counts.rows_dead) == (4, 0, 1)
    of = {name: (c.rows_in, c.scored, c.dropped, c.dead, c.skipped) for name, c in counts.models.items()}
    assert of == {"one": (5, 4, 0, 1, 0), "two": (5, 3, 0, 1, 1), "three": (4, 2, 0, 0, 2)}
