"""Networks of users and of Hugging Face, trained for a few steps, saved and loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import image_files
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import text_models
import torch
from prepared_folders import prepared_folder
from test_fit import Recorder

from handlers.columnar.chains import Rows
from handlers.columnar.stage import ModelStage
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.predictor import Predictor
from handlers.stats import Stats
from handlers.train.config import ModelConfig
from handlers.train.learn import Learned, Wanted, learn
from handlers.train.settings import Settings

QUICK = Settings(epochs=2, batch_size=16)

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden: int, outputs: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, point: torch.Tensor) -> torch.Tensor:
        return self.layers(point)
"""


def points(rows: int = 160) -> pa.Table:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, rows))
    return pa.table({"a": a, "b": b, "y": np.where(a > b, "over", "under")})


def scored(learned: Learned, folder: Path, batch: pa.RecordBatch) -> dict[str, Any]:
    """What the saved directory gives, by the code that scores."""
    model = learned.save(folder, "trained")
    stage = ModelStage(model, learned.network.inputs, Predictor(model.load()), probabilities=True)
    answers = stage.answer(Rows(batch, np.arange(batch.num_rows)), Stats())
    assert not answers.failures
    return {name: array.to_pylist() for name, array in answers.columns.items()}


def test_a_class_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/net_beside_config.py").write_text(NET)
    config = tmp_path / "config.yaml"
    config.write_text(
        "architecture: net_beside_config:Net\narguments: {hidden: 8}\nlabels: [under, over]\nthreshold: 0.4\n"
        "features: {total: a + b, difference: a - b}\ninputs: [{name: point, columns: [a, diff*]}]\n"
    )
    opened = ModelConfig.open(config)
    wanted = Wanted(str(opened.spec.architecture), opened)
    table = points()
    table = table.append_column("difference", pc.subtract(table["a"], table["b"]))
    prepared = prepared_folder(tmp_path / "rows", table, "y")
    learned = learn(prepared, wanted, QUICK, tmp_path / "out", Recorder())
    batch = prepared.validation.take(np.arange(40))
    norm = learned.network.module.layers[1]  # type: ignore[index, union-attr]
    assert norm.num_batches_tracked == learned.best.epoch * (120 // 16)  # it was trained in training mode
    found = scored(learned, tmp_path / "model", batch)
    assert set(found) == {"predicted_class", "confidence", "probability_under", "probability_over"}
    x = torch.tensor(np.stack([batch.column("a"), batch.column("difference")], axis=1), dtype=torch.float32)
    with torch.no_grad():
        expected = learned.network.module(x).softmax(dim=1)
    np.testing.assert_allclose(found["probability_over"], expected[:, 1], atol=1e-6)
    spec = ModelDir(tmp_path / "model").spec
    assert (spec.labels, spec.threshold, spec.features) == (("under", "over"), 0.4, {"difference": "a - b"})
    assert spec.inputs[0].given() == {"name": "point", "columns": ("a", "difference")}  # patterns are resolved
    assert (tmp_path / "model/code/net_beside_config.py").read_text() == NET


def test_classes_that_cannot_be_trained(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/net_of_errors.py").write_text(NET)
    config = tmp_path / "config.yaml"
    prepared = prepared_folder(tmp_path / "rows", points(), "y")

    def refused(text: str) -> str:
        config.write_text(text)
        opened = ModelConfig.open(config)
        with pytest.raises(UsageError) as raised:
            learn(prepared, Wanted(str(opened.spec.architecture), opened), QUICK, tmp_path / "out", Recorder())
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "no module named" in refused("architecture: net_of_nobody:Net")
    assert "missing 1 required positional argument: 'hidden'" in refused("architecture: net_of_errors:Net")
    three = "architecture: net_of_errors:Net\narguments: {hidden: 8, outputs: 3}"
    assert "the model gives outputs of (rows, 3), and the label has 2 classes" in refused(three)
    wide = "architecture: net_of_errors:Net\narguments: {hidden: 8}\ninputs: [{name: point, columns: [a]}]"
    assert "the model fails on the first rows: RuntimeError" in refused(wide)
    assert 'takes the label "y"' in refused("architecture: mlp\ninputs: [{name: y}]")
    assert "outputs of --architecture=mlp follows from" in refused("architecture: mlp\narguments: {outputs: 3}")
    assert "unexpected keyword argument 'layer'" in refused("architecture: mlp\narguments: {layer: 3}")
    image = "architecture: mlp\ninputs: [{name: a, encoder: image, crop: 8}]"
    assert "holds double" in refused(image) or "takes numeric and categorical inputs" in refused(image)
    leak = "architecture: mlp\nfeatures: {a: y}\ninputs: [{name: a}]"
    assert 'feature "a" is computed from the label "y"' in refused(leak)
    assert "needs an input with encoder sequence" in refused("architecture: lstm\ninputs: [{name: a}]")


def reviews(rows: int = 64) -> pa.Table:
    random = np.random.default_rng(1)
    good = random.random(rows) < 0.5
    texts = [f"the film was {'good' if each else 'bad'} {random.choice(['a', 'b c', 'd'])}" for each in good]
    return pa.table({"review": texts, "mood": np.where(good, "happy", "sad"), "stars": np.where(good, 4.5, 1.5)})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    text_models.classifier().save_pretrained(folder)
    text_models.tokenizer().save_pretrained(folder)
    return folder


def test_a_text_classifier_is_fine_tuned(tmp_path: Path, pretrained: Path) -> None:
    table = reviews().drop_columns(["stars"])
    prepared = prepared_folder(tmp_path / "rows", table, "mood")
    wanted = Wanted("huggingface", pretrained=pretrained)
    settings = dataclasses.replace(QUICK, epochs=20, batch_size=8, learning_rate=1e-2)
    learned = learn(prepared, wanted, settings, tmp_path / "out", Recorder())
    assert learned.best.validation_loss < 0.3
    batch = prepared.validation.take(np.arange(16))
    found = scored(learned, tmp_path / "model", batch)
    assert np.mean(np.array(found["predicted_class"]) == np.array(batch.column("mood").to_pylist())) > 0.9
    model = ModelDir(tmp_path / "model")
    assert (model.spec.format, model.spec.labels) == ("huggingface", ("happy", "sad"))
    assert model.spec.inputs[0].columns == ("review",)


def test_a_text_regression_gives_the_label_s_unit(tmp_path: Path, pretrained: Path) -> None:
    prepared = prepared_folder(tmp_path / "rows", reviews().drop_columns(["mood"]), "stars")
    settings = dataclasses.replace(QUICK, epochs=12, learning_rate=5e-3)
    learned = learn(prepared, Wanted("huggingface", pretrained=pretrained), settings, tmp_path / "out", Recorder())
    found = scored(learned, tmp_path / "model", prepared.validation.take(np.arange(16)))
    stars = prepared.validation.take(np.arange(16)).column("stars").to_numpy()
    squared = ((np.array(found["prediction"]) - stars) ** 2).mean()
    deviation = prepared.train.take(np.arange(48)).column("stars").to_numpy().std()
    assert squared / deviation**2 == pytest.approx(learned.best.validation_loss, rel=1e-4)


def test_an_image_classifier_is_fine_tuned(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=5)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "resnet")
    images = [image_files.encoded(image_files.photograph(20, 24, seed) // (1 + seed % 2)) for seed in range(32)]
    table = pa.table({"photo": images, "kind": ["bright", "dark"] * 16})
    prepared = prepared_folder(tmp_path / "rows", table, "kind")
    wanted = Wanted("huggingface", pretrained=tmp_path / "resnet")
    learned = learn(prepared, wanted, QUICK, tmp_path / "out", Recorder())
    found = scored(learned, tmp_path / "model", prepared.validation.take(np.arange(8)))
    assert set(found) == {"predicted_class", "confidence", "probability_bright", "probability_dark"}


def test_directories_that_cannot_be_fine_tuned(tmp_path: Path) -> None:
    prepared = prepared_folder(tmp_path / "rows", reviews(), "mood")
    with pytest.raises(UsageError, match="is not a directory that save_pretrained wrote"):
        learn(prepared, Wanted("huggingface", pretrained=tmp_path / "rows"), QUICK, tmp_path / "out", Recorder())


def test_a_class_of_one_input_takes_all_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net_on_the_path.py").write_text(NET.replace("hidden: int", "hidden: int = 4"))
    monkeypatch.syspath_prepend(tmp_path)
    table = points().append_column("kind", pa.array(["k", "l"] * 80))
    prepared = prepared_folder(tmp_path / "rows", table, "y")
    learned = learn(prepared, Wanted("net_on_the_path:Net"), QUICK, tmp_path / "out", Recorder())
    assert learned.network.inputs[0].columns == ("a", "b")
    assert learned.left_out == {"kind": "not a number"}
    assert ModelDir(learned.save(tmp_path / "model", "m").path).spec.architecture == "net_on_the_path:Net"
