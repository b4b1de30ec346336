"""Texts and images on a cluster of Spark: the same answers, dead letters and counts as in process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from spark_cluster import Cluster, Run
from transformers import ResNetConfig, ResNetForImageClassification

from handlers import ModelDir
from pipelines import score

sys.path.append(str(Path(__file__).parents[2] / "handlers"))
import image_files
import text_models

pytestmark = pytest.mark.slow(70)

COUNTED = (
    "rows_read",
    "rows_scored",
    "rows_dropped",
    "rows_dead",
    "files_read",
    "files_dead",
    "dead_by_error",
    "noted",
)


def check_same(
    run: Callable[..., Run], cluster: Cluster, folder: Path, model: Path, key: str, tmp_path: Path
) -> tuple[pa.Table, dict[str, Any]]:
    """Scores a folder on both runners and compares all that they leave; the predictions and the report in process."""
    options = ["--probabilities", f"--input={folder}", f"--model={model}"]
    code, _, err = run(*cluster.arguments, *options, output=tmp_path / "spark").finish()
    assert code == 0, err
    assert score.main([*options, f"--output={tmp_path / 'here'}"]) == 0
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("spark", "here")]
    assert {name: reports[0].get(name) for name in COUNTED} == {name: reports[1].get(name) for name in COUNTED}
    found, expected = (pq.read_table(tmp_path / name / "predictions").sort_by(key) for name in ("spark", "here"))
    assert found.schema.equals(expected.schema)
    floats = [field.name for field in expected.schema if pa.types.is_floating(field.type)]
    assert "confidence" in floats
    assert len(floats) == 4  # the confidence, and a probability for each of three classes
    assert found.drop(floats).equals(expected.drop(floats))
    for name in floats:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6, rtol=0, err_msg=name)
    letters = [pq.read_table(tmp_path / name / "dead_letters").sort_by(key) for name in ("spark", "here")]
    assert letters[0].equals(letters[1])
    return expected, reports[1]


def test_texts(run: Callable[..., Run], cluster: Cluster, tmp_path: Path) -> None:
    """Of every length, some cut, some empty; a missing text is a dead letter."""
    model = tmp_path / "model"
    ModelDir.save(
        text_models.classifier(),
        model,
        format="huggingface",
        tokenizer=text_models.tokenizer(),
        inputs=[{"name": "text", "encoder": "text", "columns": ["review"]}],
    )
    words = text_models.WORDS[4:]
    random = np.random.default_rng(3)
    texts: list[str | None] = [" ".join(random.choice(words, random.integers(0, 40))) for _ in range(300)]
    texts[7] = texts[205] = None
    texts[100] = "good 🎬 film"
    (tmp_path / "reviews").mkdir()
    for index in range(3):
        rows = range(index * 100, index * 100 + 100)
        table = pa.table({"id": list(rows), "review": [texts[row] for row in rows]})
        pq.write_table(table, tmp_path / "reviews" / f"{index}.parquet")
    predictions, report = check_same(run, cluster, tmp_path / "reviews", model, "id", tmp_path)
    assert (report["rows_read"], report["rows_scored"], report["rows_dead"]) == (300, 298, 2)
    assert set(predictions["id"].to_pylist()) == set(range(300)) - {7, 205}
    assert len(set(predictions["confidence"].to_pylist())) > 100


def test_images(run: Callable[..., Run], cluster: Cluster, tmp_path: Path) -> None:
    torch.manual_seed(5)
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    net = ResNetForImageClassification(ResNetConfig(id2label={0: "cat", 1: "dog", 2: "owl"}, **sizes)).eval()
    model = tmp_path / "model"
    pixels = {"name": "pixel_values", "encoder": "image", "columns": ["bytes"], "resize": [32, 32]}
    ModelDir.save(net, model, format="huggingface", inputs=[pixels])
    image_files.write_photographs(tmp_path / "photos", 12)
    image_files.write_hostile(tmp_path / "photos")
    predictions, report = check_same(run, cluster, tmp_path / "photos", model, "path", tmp_path)
    assert (report["rows_read"], report["rows_scored"], report["rows_dead"], report["files_read"]) == (20, 16, 4, 20)
    assert report["dead_by_error"] == {"encode/ImageError": 3, "encode/TooManyPixelsError": 1}
    names = {Path(path).name for path in predictions["path"].to_pylist()}
    assert {"animated.gif", "cmyk.jpg", "grey16.png", "rotated.jpg"} < names
