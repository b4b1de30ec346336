"""The command, run for real: what it writes, that scoring gives what training saw, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from prepared_folders import customers, prepared_folder

import torchbeam
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from pipelines import describe, score, train
from transforms.evaluation.fingerprint import FILE

Refused = Callable[..., str]


def run(*arguments: object, **named: object) -> int:
    return train.main([*map(str, arguments), *(f"--{name}={value}" for name, value in named.items())])


def about(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / FILE).read_text())
    return found


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return customers().drop_columns(["visits", "spent"])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, table: pa.Table) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("rows") / "prepared", table, "churned").folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    output = tmp_path_factory.mktemp("trained") / "churn"
    assert run(prepared=rows, architecture="mlp", output=output, epochs=6, learning_rate=0.01) == 0
    return output


def test_what_is_written(trained: Path) -> None:
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    work = {"checkpoints/CACHEDIR.TAG", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    work |= {"logs/CACHEDIR.TAG", "logs/metrics.csv"}
    assert names == {"model.yaml", "weights.safetensors", FILE, "README.md", *work}
    found = about(trained)
    assert (found["task"], found["label"], found["labels"]) == ("classification", "churned", ["no", "yes"])
    assert found["rows"]["trained"] == 300
    assert found["rows"]["validated"] == 100
    losses = [epoch["validation_loss"] for epoch in found["history"]]
    assert len(losses) == 6
    assert min(losses) == losses[found["best_epoch"] - 1] == found["metrics"]["validation_loss"]
    assert found["settings"]["learning_rate"] == 0.01
    assert "customer_id" in found["left_out"]
    card = (trained / "README.md").read_text()
    assert card.startswith("# churn\n")
    assert f"| Accuracy | {found['metrics']['accuracy']:.4g} |" in card
    assert "| country | categorical | country |" in card
    assert describe.main([f"--model={trained}"]) == 0


def test_scoring_gives_what_training_saw(trained: Path, table: pa.Table, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(table, file)
    assert score.main([f"--input={file}", f"--model={trained}", f"--output={tmp_path / 'out'}", "--probabilities"]) == 0
    assert json.loads((tmp_path / "out/report.json").read_text())["rows_scored"] == 400
    found = pq.read_table(tmp_path / "out/predictions").sort_by("customer_id")
    expected = by_hand(trained, table)
    np.testing.assert_allclose(found["probability_yes"].to_numpy(), expected, atol=1e-6)
    # The validation rows are the last 100; their log loss is what training saw.
    right = np.where(table["churned"].to_numpy() == "yes", expected, 1 - expected)[300:]
    assert -np.log(right).mean() == pytest.approx(about(trained)["metrics"]["validation_loss"], abs=1e-6)


def by_hand(output: Path, table: pa.Table) -> np.ndarray:
    """The probability of "yes" by the weights of the best checkpoint, with numpy."""
    state = torch.load(output / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    weight = {name.removeprefix("network."): tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    spec = ModelDir(output).spec
    parts = []
    numeric = [each for each in spec.inputs if each.encoder == "numeric"]
    for index, each in enumerate(numeric):
        columns = [np.array(table[name].to_pylist(), dtype=np.float64) for name in each.patterns]
        x = np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)
        mean, scale = weight[f"columns.normalize.{index}.mean"], weight[f"columns.normalize.{index}.scale"]
        if each.name == "numbers_or_null":
            parts.append(np.isnan(x).astype(float))
            x = np.where(np.isnan(x), mean, x)
        parts.append((x - mean) / scale)
    (country,) = [each for each in spec.inputs if each.encoder == "categorical"]
    codes = [country.categories.index(value or "(missing)") for value in table["country"].to_pylist()]  # type: ignore[attr-defined]
    hidden = np.concatenate([*parts, weight["columns.embed.0.table.weight"][codes]], axis=1)
    for layer in (0, 3):
        hidden = np.maximum(hidden @ weight[f"head.layers.{layer}.weight"].T + weight[f"head.layers.{layer}.bias"], 0)
    logits = hidden @ weight["head.layers.6.weight"].T + weight["head.layers.6.bias"]
    result: np.ndarray = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    return result


def test_the_same_seed_gives_the_same_version(trained: Path, rows: Path, tmp_path: Path) -> None:
    options = {"prepared": rows, "architecture": "mlp", "epochs": 6, "learning_rate": 0.01}
    assert run(**options, output=tmp_path / "churn") == 0
    assert ModelDir(tmp_path / "churn").version == ModelDir(trained).version
    assert run(**options, output=tmp_path / "other/churn", seed=1) == 0
    assert ModelDir(tmp_path / "other/churn").version != ModelDir(trained).version


def test_a_config_with_options(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "credit.yaml"
    config.write_text(
        "name: credit\narchitecture: mlp\narguments: {hidden: [8], dropout: 0}\ninputs: [{name: x, columns: [age]}]\n"
        "training: {epochs: 2, learning_rate: 0.02, class_weights: balanced, label: churned}\n"
    )
    assert run(prepared=rows, model=config, output=tmp_path / "out", epochs=3) == 0
    found = about(tmp_path / "out")
    assert (found["name"], len(found["history"])) == ("credit", 3)  # the command line wins
    assert found["settings"]["learning_rate"] == 0.02
    assert found["settings"]["balanced"]
    spec = ModelDir(tmp_path / "out").spec
    assert spec.arguments["hidden"] == [8]
    assert spec.inputs[0].patterns == ("age",)
    assert "credit" in (tmp_path / "out/model.yaml").read_text()
    assert f"version {ModelDir(tmp_path / 'out').version}" in capsys.readouterr().out


def test_an_output_that_is_in_use(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"prepared": rows, "architecture": "mlp", "epochs": 1, "output": tmp_path / "out"}

    def refused(*arguments: str, **changed: object) -> str:
        capsys.readouterr()
        assert run(*arguments, **{**options, **changed}) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert run(**options) == 0
    version = ModelDir(tmp_path / "out").version
    assert "holds a trained model; replace it with --overwrite" in refused()
    assert "epochs was 1, and is 2 now" in refused("--resume", epochs=2)
    assert "the rows of --prepared are chosen already" in refused("--overwrite", sample=0.5)
    assert ModelDir(tmp_path / "out").version == version
    capsys.readouterr()
    assert run("--resume", **options) == 0
    assert "has ended already" in capsys.readouterr().err
    assert run("--overwrite", **{**options, "seed": 3}) == 0
    assert ModelDir(tmp_path / "out").version != version

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/note.txt").write_text("")
    assert "is not empty" in refused("--overwrite", output=tmp_path / "notes")
    (tmp_path / "notes/model.yaml").write_text("")
    assert "is a model directory that no training has written" in refused("--overwrite", output=tmp_path / "notes")
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == ["model.yaml", "note.txt"]


@pytest.fixture
def refused(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The error line of a command that writes nothing."""

    def call(*arguments: str, code: int = 2, table: pa.Table | None = None, **changed: object) -> str:
        options: dict[str, object] = {"prepared": rows, "architecture": "mlp", "output": tmp_path / "deep/out"}
        if table is not None:
            options["prepared"] = prepared_folder(tmp_path / f"rows-{id(table)}", table, "y").folder
        kept = {name: value for name, value in (options | changed).items() if value is not None}
        assert run(*arguments, **kept) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "deep").exists()
        return line.removeprefix("torchbeam train: error: ")

    return call


def test_refused_options(refused: Refused, tmp_path: Path) -> None:
    assert refused(prepared=None) == "--input and --prepared are both missing; give one of them"
    assert "exclude each other" in refused(input="x.parquet")
    assert "--label is missing" in refused(prepared=None, input="x.parquet")
    assert "say what to train: --architecture=mlp, lstm, huggingface or module:Class" in refused(architecture=None)
    assert 'must be mlp, lstm, huggingface or module:Class, not "mpl"' in refused(architecture="mpl")
    assert "go together" in refused(architecture="huggingface")
    assert "go together" in refused(pretrained="bert")
    assert "must be a whole number of 1 or more" in refused(epochs=0)
    assert "must be a number above 0" in refused(learning_rate="nan")
    assert "training writes to a local folder" in refused(output="gs://bucket/model")
    assert "--device cuda:9 was asked for" in refused(device="cuda:9")
    assert "trains on a GPU only" in refused(precision="float16", device="cpu")
    assert "does not exist" in refused(prepared=tmp_path / "none")
    assert 'no column "churnd"; did you mean "churned"?' in refused(label="churnd")
    assert "have the label" in refused(label="age")
    assert "no module named" in refused(architecture="nowhere:Net")
    assert "unknown option --epoch; did you mean --epochs?" in refused("--epoch=3")


def test_without_lightning(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "handlers.train.fit")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    assert refused() == "training needs lightning; pip install 'torchbeam[train]'"


def test_without_tensorboard(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert refused("--logger=tensorboard") == "--logger=tensorboard needs tensorboard; pip install 'torchbeam[train]'"


def test_refused_configs(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"

    def of(text: str) -> str:
        file.write_text(text)
        return refused(model=file)

    assert 'unknown option "epoch" under training; did you mean "epochs"?' in of("training: {epoch: 3}")
    assert "--epochs must be a whole number" in of("training: {epochs: many}")
    assert "weights is written by the training; remove it" in of("weights: w.safetensors")
    assert "a model with a loader cannot be trained" in of("loader: a:b")
    windows = "sequences: {by: [shop], order_by: day, columns: [sales], length: 3}"
    assert "windows of sequences are not trained on yet" in of(windows)
    file.write_text("task: regression")
    assert "says task: regression; remove one of them" in refused("--task=classification", model=file)


def test_refused_labels(refused: Refused) -> None:
    x = np.arange(40.0)

    def of(values: Any, *arguments: str, code: int = 2) -> str:
        return refused(*arguments, table=pa.table({"x": x, "y": values}), code=code)

    assert "there is nothing to learn" in of(["a"] * 40)
    assert "null or NaN in 20 of 40 rows" in of(["a", None] * 20)
    assert "a regression needs numbers" in of(["a", "b"] * 20, "--task=regression")
    assert "--class_weights=balanced is for classes" in of(x, "--class_weights=balanced")
    many = pa.table({"x": np.arange(10_000.0), "y": [f"class {row}" for row in range(10_000)]})
    assert "more than 1,000 classes" in refused(table=many)
    line = of(["a", "b"] * 20, "--learning_rate=1e30", code=3)
    assert re.search(r"loss is (nan|inf) (in|after) epoch \d+; lower --learning_rate", line)


def test_the_function(rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("inputs: [{name: x, columns: [age]}]\n")
    model = torchbeam.train(tmp_path / "out", prepared=rows, architecture="mlp", model=config, epochs=1, name="small")
    assert (model.spec.name, model.version) == ("small", ModelDir(tmp_path / "out").version)
    with pytest.raises(UsageError, match="replace it with --overwrite"):
        torchbeam.train(tmp_path / "out", prepared=rows, architecture="mlp", overwrite=False)


def test_help_imports_neither_torch_nor_beam() -> None:
    code = (
        "import sys\nfrom pipelines import train\ntry: train.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'apache_beam', 'lightning', 'pyarrow'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--learning_rate" in done.stdout
