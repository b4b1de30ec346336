"""`torchbeam.score`: what the command gives on the same rows, for every kind of rows."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import NeverWorks, Touchy

import torchbeam
from handlers.model.directory import ModelDir
from pipelines import score as command
from torchbeam import BrokenModelError, UsageError

ROWS = 200


def keep_even(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of an even id; drops the others."""
    return row if row["id"] % 2 == 0 else None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    folder = tmp_path_factory.mktemp("local") / "model"
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    return ModelDir.save(Touchy(), folder, task="classification", labels=["no", "yes"], inputs=inputs)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Rows of which 3 is null, 5 makes the model raise, and 7 makes it give NaN."""
    a = np.linspace(-2, 2, ROWS)
    a[[3, 5, 7]] = [np.nan, 13.0, 14.0]
    columns = {
        "id": range(ROWS),
        "a": a,
        "b": np.linspace(0, 1, ROWS),
        "kind": pd.Categorical(["u", "v"] * (ROWS // 2)),
    }
    return pd.DataFrame(columns, index=[f"r{number}" for number in range(ROWS)])


def run(model: ModelDir, frame: pd.DataFrame, folder: Path, *options: str) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """What the command gives."""
    frame.to_parquet(folder / "x.parquet", index=False)
    given = [f"--input={folder / 'x.parquet'}", f"--model={model.path}", f"--output={folder / 'out'}", *options]
    assert command.main(given) == 0
    tables = [ds.dataset(folder / "out" / name).to_table().sort_by("id") for name in ("predictions", "dead_letters")]
    return tables[0], tables[1], json.loads((folder / "out" / "report.json").read_text())


@pytest.mark.parametrize("options", [{}, {"postprocess": ["test_local_scoring:keep_even"], "probabilities": True}])
def test_it_gives_what_the_command_gives(
    model: ModelDir, frame: pd.DataFrame, tmp_path: Path, options: dict[str, Any]
) -> None:
    flags = [f"--postprocess={name}" for name in options.get("postprocess", ())]
    predictions, dead, report = run(
        model, frame, tmp_path, *flags, *["--probabilities"] * bool(options.get("probabilities"))
    )
    found = torchbeam.score(model.path, pq.read_table(tmp_path / "x.parquet"), device="cpu", **options)
    assert found.predictions.schema.names == predictions.schema.names
    for name in predictions.schema.names:
        one, other = found.predictions[name].to_pylist(), predictions[name].to_pylist()
        assert one == pytest.approx(other, abs=1e-6) if name.startswith(("conf", "prob")) else one == other, name
    assert found.dead_letters.drop(["dead_letter"]).equals(dead.drop(["dead_letter"]))
    letters = [
        [{key: value for key, value in each.items() if key != "source"} for each in table["dead_letter"].to_pylist()]
        for table in (found.dead_letters, dead)
    ]
    assert letters[0] == letters[1]
    assert [each["row"] for each in letters[0]] == [3, 5, 7]
    for name in ("rows_read", "rows_scored", "rows_dropped", "rows_dead", "dead_by_error", "model", "failure_rate"):
        assert found.report[name] == report[name], name
    assert set(report) - set(found.report) == {"run_id"}


def test_every_kind_gives_the_same_rows(model: ModelDir, frame: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    expected = torchbeam.score(model, table, device="cpu").predictions.to_pylist()
    good = [number for number in range(ROWS) if number not in (3, 5, 7)]
    found = torchbeam.score(model, frame, device="cpu")
    assert found.predictions.index.tolist() == [f"r{number}" for number in good]
    assert found.dead_letters.index.tolist() == ["r3", "r5", "r7"]
    pd.testing.assert_frame_equal(found.predictions[frame.columns.tolist()], frame.iloc[good])
    assert found.predictions.to_dict("records") == expected
    polars = torchbeam.score(model, pl.from_pandas(frame), device="cpu")
    assert isinstance(polars.predictions, pl.DataFrame)
    assert polars.predictions.to_dicts() == expected
    assert polars.dead_letters["dead_letter"].struct.field("row").to_list() == [3, 5, 7]
    dicts = torchbeam.score(model, table.to_pylist(), device="cpu")
    assert dicts.predictions == expected
    assert [row["dead_letter"]["type"] for row in dicts.dead_letters] == ["NullValue", "RuntimeError", "NotANumber"]
    batch = torchbeam.score(model, table.combine_chunks().to_batches()[0], device="cpu")
    assert isinstance(batch.predictions, pa.RecordBatch)
    reader = torchbeam.score(model, table.to_reader(50), device="cpu")
    assert reader.predictions.to_pylist() == batch.predictions.to_pylist() == expected
    assert repr(found) == f"ScoreResult(200 rows read: 197 scored, 0 dropped, 3 dead; model {model.version})"
    assert "<td>197</td>" in found._repr_html_()


@settings(max_examples=15)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_how_rows_are_cut_changes_nothing(model: ModelDir, frame: pd.DataFrame, sizes: list[int]) -> None:
    table = pa.Table.from_pandas(frame.head(sum(sizes)), preserve_index=False)
    edges = np.cumsum([0, *sizes])
    parts = [table.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]
    found = torchbeam.score(model, pa.concat_tables(parts), device="cpu")
    whole = torchbeam.score(model, table.combine_chunks(), device="cpu")
    assert found.predictions["id"].equals(whole.predictions["id"])
    assert np.abs(found.predictions["confidence"].to_numpy() - whole.predictions["confidence"].to_numpy()).max() <= 1e-6
    assert found.dead_letters.to_pylist() == whole.dead_letters.to_pylist()


def test_values_that_do_not_fit_and_large_ones(model: ModelDir) -> None:
    rows = [{"a": 1.0, "b": 2.0, "text": "x" * 5_000_000}, {"a": "n/a", "b": 2.0}, {"a": 1, "b": 2}]
    found = torchbeam.score(model, rows, device="cpu")
    assert [len(row["text"] or "") for row in found.predictions] == [5_000_000, 0]
    (dead,) = found.dead_letters
    assert dead["a"] == "n/a"
    assert dead["dead_letter"]["stage"] == "read"
    assert json.loads(dead["dead_letter"]["raw"]) == rows[1]


def test_empty_frames_keep_their_columns(model: ModelDir, frame: pd.DataFrame) -> None:
    found = torchbeam.score(model, frame.head(0), device="cpu")
    assert found.predictions.columns.tolist() == [*frame.columns, "predicted_class", "confidence", "model_version"]
    assert found.dead_letters.columns.tolist() == [*frame.columns, "dead_letter"]
    assert found.report["rows_read"] == 0


def test_a_loaded_model_and_threads(model: ModelDir, frame: pd.DataFrame) -> None:
    loaded = torchbeam.load(model.path, device="cpu")
    expected = loaded.score(frame).predictions
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: torchbeam.score(model.path, frame, device="cpu"), range(12)):
            pd.testing.assert_frame_equal(found.predictions, expected)
    assert torchbeam.load(model.path, device="cpu") is loaded
    torch.testing.assert_close(torch.tensor(expected["confidence"].to_numpy()).min() >= 0.5, torch.tensor(True))


def test_a_model_that_is_written_again_is_loaded_again(tmp_path: Path, frame: pd.DataFrame) -> None:
    versions = []
    for labels in (["no", "yes"], ["bad", "good"]):
        inputs = [{"name": "x", "columns": ["a", "b"]}]
        saved = ModelDir.save(Touchy(), tmp_path / "m", task="classification", labels=labels, inputs=inputs)
        found = torchbeam.score(tmp_path / "m", frame, device="cpu")
        assert set(found.predictions["predicted_class"]) <= set(labels)
        assert found.report["model"]["version"] == saved.version
        versions.append(saved.version)
    assert versions[0] != versions[1]


def test_wrong_use_is_one_line(model: ModelDir, frame: pd.DataFrame, tmp_path: Path) -> None:
    broken = ModelDir.save(NeverWorks(), tmp_path / "b", task="regression", inputs=[{"name": "x", "columns": ["a"]}])
    loaded = torchbeam.load(model, device="cpu")
    cases: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (tmp_path / "none", frame, {}, UsageError, "does not exist"),
        (model, frame[["a"]], {}, UsageError, '"b"'),
        (model, frame, {"columns": ["nothing"]}, UsageError, 'there is no column "nothing"'),
        (model, frame.assign(dead_letter=1), {}, UsageError, "has a reserved name"),
        (model, frame, {"postprocess": ["os:nothing"]}, UsageError, "nothing"),
        (model, 3, {}, UsageError, "data must be a pandas or Polars frame"),
        ({"path": model.path}, frame, {}, UsageError, "the model must be a ModelDir, or the path .* not a dict"),
        (None, frame, {}, UsageError, "the model must be .* not a NoneType"),
        (b"models", frame, {}, UsageError, "the model must be .* not b'models'"),
        ("", frame, {}, UsageError, "the model must be .* not ''"),
        (model.path, frame, {"trust": "x"}, UsageError, r"trust must be a torchbeam\.Trust, .*, or None, not 'x'"),
        (model.path, frame, {"trust": {"code": False}}, UsageError, "trust must be .*, not {'code': False}"),
        (model, frame, {"trust": False}, UsageError, "trust must be .*, not False"),
        (loaded, frame, {"trust": "x"}, UsageError, "trust must be .*, not 'x'"),
        (model, frame, {"progress": "x"}, UsageError, "progress must be True, False or None, not 'x'"),
        (broken, frame[["a"]].head(4), {}, BrokenModelError, "the model fails on"),
    ]
    for given_model, data, options, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            torchbeam.score(given_model, data, device="cpu", **options)
        assert "\n" not in str(caught.value)
    dead = frame.assign(a=13.0)
    found = torchbeam.score(model, dead, device="cpu")  # zeros are scored, so the model is not broken
    assert found.report["rows_dead"] == ROWS
