"""From a table to a model: rows are prepared on the way, with the features that scoring computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from handlers.model.directory import ModelDir
from handlers.train.settings import Epoch
from pipelines import evaluate, score, train
from pipelines.command.training_watch import TrainingWatch

ROWS = 240


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Orders as CSV; one has no weight."""
    random = np.random.default_rng(0)
    days = random.integers(1, 60, ROWS)
    weight = days / 10 + random.normal(0, 0.5, ROWS)
    weights = pa.array(weight, mask=np.arange(ROWS) == 200)
    country = random.choice(["NL", "BE"], ROWS)
    file = tmp_path_factory.mktemp("orders") / "orders.csv"
    pc.write_csv(pa.table({"order": np.arange(ROWS), "days": days, "weight": weights, "country": country}), file)
    return file


def config(folder: Path, feature: str) -> Path:
    file = folder / "late.yaml"
    file.write_text(
        "architecture: mlp\narguments: {hidden: [8], dropout: 0}\n"
        f"features:\n  heavy: {feature}\n  late: CASE WHEN days > 30 THEN 'late' ELSE 'in time' END\n"
        "inputs: [{name: x, columns: [heavy]}]\n"
        "training: {label: late, epochs: 5, learning_rate: 0.02}\n"
    )
    return file


def trained(table: Path, folder: Path, feature: str) -> Path:
    folder.mkdir()
    arguments = [f"--input={table}", f"--model={config(folder, feature)}", f"--output={folder / 'late'}"]
    assert train.main(arguments) == 0
    return folder / "late"


def about(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "training.json").read_text())
    return found


def scored(table: Path, model: Path, output: Path) -> np.ndarray:
    """The probability of "late" by order."""
    assert score.main([f"--input={table}", f"--model={model}", f"--output={output}", "--probabilities"]) == 0
    found = pq.read_table(output / "predictions").sort_by("order")
    probabilities: np.ndarray = found["probability_late"].to_numpy()
    return probabilities


def test_a_feature_changes_training_and_scoring_alike(table: Path, tmp_path: Path) -> None:
    plain = trained(table, tmp_path / "plain", "weight * 1")
    scaled = trained(table, tmp_path / "scaled", "weight * 1000 + 5")
    assert about(plain)["best_epoch"] > 1
    assert about(plain)["metrics"]["accuracy"] > 0.85
    one, other = (load_file(model / "weights.safetensors") for model in (plain, scaled))
    np.testing.assert_allclose(other["columns.normalize.0.mean"], one["columns.normalize.0.mean"] * 1000 + 5, rtol=1e-5)
    # Normalised, both are the same numbers, and so are the predictions, as far as scoring computes what training saw.
    first, second = (scored(table, model, tmp_path / f"out{model.parent.name}") for model in (plain, scaled))
    np.testing.assert_allclose(first, second, atol=1e-3)
    changed = (scaled / "model.yaml").read_text().replace("weight * 1000 + 5", "weight * 1000 + 900")
    (scaled / "model.yaml").write_text(changed)
    assert np.abs(scored(table, scaled, tmp_path / "changed") - first).max() > 0.1


def test_rows_are_accounted_for_and_the_label_s_columns_are_not_needed(table: Path, tmp_path: Path) -> None:
    model = trained(table, tmp_path / "out", "weight * 1")
    rows = about(model)["rows"]
    assert rows["read"] == ROWS
    assert rows["trained"] + rows["validated"] + rows["dropped"] + rows["dead"] + rows["unusable"] == ROWS
    assert (rows["dead"], rows["unusable"]) == (0, 1)
    assert ModelDir(model).spec.features == {"heavy": "weight * 1"}
    assert not (model / "checkpoints/prepared").exists()
    new = tmp_path / "new.csv"
    pc.write_csv(pa.table({"order": [1, 2], "weight": [0.2, 5.5]}), new)
    low, high = scored(new, model, tmp_path / "scored")
    assert low < 0.5 < high


def test_evaluate_finds_drift_by_the_fingerprint(table: Path, tmp_path: Path) -> None:
    model = trained(table, tmp_path / "out", "weight * 1")
    random = np.random.default_rng(1)
    later = tmp_path / "later.csv"
    label = random.choice(["late", "in time"], 100)
    pc.write_csv(pa.table({"order": np.arange(100), "weight": random.normal(50, 1, 100), "late": label}), later)
    output = tmp_path / "evaluation"
    assert evaluate.main([f"--input={later}", f"--model={model}", "--label=late", f"--output={output}"]) == 0
    drift = json.loads((output / "metrics.json").read_text())["drift"]
    assert drift["weight"]["psi"] > 1


def test_refusals(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        output = tmp_path / "out"
        assert train.main([f"--input={table}", "--architecture=mlp", f"--output={output}", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not output.exists()
        return line.removeprefix("torchbeam train: error: ")

    assert 'did you mean "days"' in refused("--label=day")
    assert "epoch" in refused("--label=days", "--epoch=3")
    assert "are needed at least" in refused("--label=country", "--limit=5")
    assert "is held out to validate with" in refused("--label=country", "--validation=0")


def test_labels_that_are_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=100)
    y = pa.array(np.where(x > 0, "up", "down"), mask=np.arange(100) % 20 == 0)
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": x, "y": y}), file)
    options = [f"--input={file}", "--label=y", "--architecture=mlp", f"--output={tmp_path / 'out'}", "--epochs=1"]
    assert train.main(options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'column "y" is null or not finite in 5 of 100 rows' in line
    assert not (tmp_path / "out").exists()
    assert train.main([*options, "--skip_null_labels", "--max_failure_rate=0.01"]) == 3
    assert "5 of 100 rows are dead letters, above --max_failure_rate=0.01" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert train.main([*options, "--skip_null_labels"]) == 0
    rows = about(tmp_path / "out")["rows"]
    assert (rows["dead"], rows["trained"] + rows["validated"]) == (5, 95)
    letters = pq.read_table(tmp_path / "out/checkpoints/dead_letters")
    assert letters.num_rows == 5
    assert "5" in capsys.readouterr().out
    assert "Rows that could not be read or prepared: 5" in (tmp_path / "out/README.md").read_text()


def test_a_resumed_training_does_not_read_its_rows_again(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "orders.csv"
    shutil.copy(table, file)
    output = tmp_path / "late"
    options = [f"--input={file}", f"--model={config(tmp_path, 'weight * 1')}", f"--output={output}"]

    def interrupt(_self: TrainingWatch, done: Epoch, _best: Epoch) -> None:
        if done.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingWatch, "epoch", interrupt)
        assert train.main(options) == 130
    assert "interrupted; continue with --resume" in capsys.readouterr().err
    assert not (output / "model.yaml").exists()
    file.unlink()
    assert train.main([*options, "--resume"]) == 0
    assert len(about(output)["history"]) == 5
    assert not list(output.glob(".*"))
    assert not (output / "_claim.json").exists()
