"""The loop of a training, on small tables."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from prepared_folders import customers, prepared_folder

from handlers.errors import TrainingError, UsageError
from handlers.train.config import ModelConfig
from handlers.train.fit import BEST, LAST
from handlers.train.inputs import find_inputs
from handlers.train.labels import find_labels
from handlers.train.learn import Learned, Wanted, default_settings, learn
from handlers.train.network import built_in
from handlers.train.prepared import Prepared
from handlers.train.rows import Moments, RowTensors
from handlers.train.settings import Epoch, Settings, best_of, is_finished

QUICK = Settings(epochs=4, batch_size=32)


class Recorder:
    def __init__(self, stop_after: int = 0) -> None:
        self.steps = 0
        self.epochs: list[Epoch] = []
        self._stop_after = stop_after

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        assert step <= steps
        assert math.isfinite(loss)
        self.steps += 1

    def epoch(self, done: Epoch, best: Epoch) -> None:
        self.epochs.append(done)
        if len(self.epochs) == self._stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_folder(
        tmp_path_factory.mktemp("customers"), customers().drop_columns(["visits", "spent"]), "churned"
    )


def weights(learned: Learned) -> dict[str, torch.Tensor]:
    return dict(learned.network.module.state_dict())


def test_it_learns_and_keeps_its_best_epoch(tmp_path: Path, prepared: Prepared) -> None:
    recorder = Recorder()
    learned = learn(
        prepared, Wanted("mlp"), dataclasses.replace(QUICK, epochs=12, learning_rate=0.01), tmp_path, recorder
    )
    losses = [epoch.validation_loss for epoch in learned.history]
    assert recorder.epochs == learned.history
    assert recorder.steps == len(losses) * (300 // 32)
    assert min(losses) < min(0.3, losses[0])
    assert learned.best.validation_loss == min(losses)
    saved = torch.load(tmp_path / "checkpoints" / BEST, weights_only=True)["state_dict"]
    for name, tensor in weights(learned).items():
        torch.testing.assert_close(saved[f"network.{name}"], tensor, rtol=0, atol=0)
    lines = (tmp_path / "logs/metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,validation_loss,learning_rate"
    assert [float(line.split(",")[2]) for line in lines[1:]] == losses


def test_the_constants_are_those_of_the_training_rows(tmp_path: Path, prepared: Prepared) -> None:
    learned = learn(prepared, Wanted("mlp"), dataclasses.replace(QUICK, epochs=1), tmp_path, Recorder())
    age = prepared.train.take(np.arange(300)).column("age").to_numpy()
    constants = learned.network.constants["numbers"]
    assert constants.mean[0].item() == pytest.approx(age.mean())
    assert constants.scale[0].item() == pytest.approx(age.std())
    income = prepared.train.take(np.arange(300)).column("income").drop_null().to_numpy()
    assert learned.network.constants["numbers_or_null"].mean.item() == pytest.approx(income.mean())


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, prepared: Prepared) -> None:
    wanted = Wanted("mlp")
    whole = learn(prepared, wanted, QUICK, tmp_path / "whole", Recorder())
    again = learn(prepared, wanted, QUICK, tmp_path / "again", Recorder())
    with pytest.raises(KeyboardInterrupt):
        learn(prepared, wanted, QUICK, tmp_path / "parts", Recorder(stop_after=2))
    recorder = Recorder()
    rest = learn(prepared, wanted, QUICK, tmp_path / "parts", recorder)
    assert [epoch.epoch for epoch in recorder.epochs] == [3, 4]
    assert len((tmp_path / "parts/logs/metrics.csv").read_text().splitlines()) == 5
    assert whole.history == again.history == rest.history
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(again)[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(weights(rest)[name], tensor, rtol=0, atol=0)
    other = learn(prepared, wanted, dataclasses.replace(QUICK, seed=1), tmp_path / "other", Recorder())
    assert other.history != whole.history
    (tmp_path / "parts/checkpoints" / LAST).write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match="cannot be read as a checkpoint"):
        learn(prepared, wanted, QUICK, tmp_path / "parts", Recorder())


def test_rows_that_cannot_be_encoded_are_left_out(tmp_path: Path) -> None:
    x = [None if row % 10 == 0 else float(row % 7) for row in range(200)]
    table = pa.table({"x": x, "y": [row % 7 > 3 for row in range(200)]})
    config = tmp_path / "config.yaml"
    config.write_text("inputs: [{name: x}]\n")
    wanted = Wanted("mlp", ModelConfig.open(config))
    learned = learn(prepared_folder(tmp_path / "p", table, "y"), wanted, QUICK, tmp_path / "out", Recorder())
    assert learned.used == (135, 45)
    assert learned.unusable == {"encode/NullValue": 20}


def test_a_loss_that_is_not_finite(tmp_path: Path, prepared: Prepared) -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 1; lower --learning_rate \(it is 1e\+30\)"):
        learn(prepared, Wanted("mlp"), dataclasses.replace(QUICK, learning_rate=1e30), tmp_path, Recorder())


def test_too_few_rows(tmp_path: Path) -> None:
    def refused(rows: int, held_out: float) -> str:
        table = pa.table({"x": np.arange(float(rows)), "y": ["a", "b"] * (rows // 2)})
        folder = prepared_folder(tmp_path / f"{rows}-{held_out}", table, "y", held_out)
        with pytest.raises(UsageError) as raised:
            learn(folder, Wanted("mlp"), QUICK, tmp_path / "out", Recorder())
        return str(raised.value)

    assert "there are 8 rows" in refused(8, 0.25)
    assert "none of the 20 rows is held out" in refused(20, 0.0)


def test_settings_by_the_number_of_rows() -> None:
    def size(rows: int) -> int:
        return default_settings(Settings(), "mlp", rows, epochs=None, learning_rate=None, batch_size=None).batch_size

    assert [size(rows) for rows in (2, 800, 3200, 10_000_000)] == [16, 16, 64, 1024]
    hub = default_settings(Settings(), "huggingface", 1000, epochs=None, learning_rate=None, batch_size=8)
    assert (hub.epochs, hub.batch_size, hub.learning_rate) == (3, 8, 5e-5)


def test_when_a_training_ends() -> None:
    history = [Epoch(1, 1, 0.5, 0), Epoch(2, 1, 0.3, 0), Epoch(3, 1, 0.3, 0), Epoch(4, 1, 0.4, 0)]
    assert best_of(history).epoch == 2
    assert is_finished(history, Settings(epochs=30, patience=2))
    assert not is_finished(history, Settings(epochs=30, patience=3))
    assert not is_finished(history, Settings(epochs=30, patience=0))
    assert is_finished(history, Settings(epochs=4, patience=0))
    assert not is_finished([], Settings())


def test_tensorboard(tmp_path: Path, prepared: Prepared) -> None:
    learn(prepared, Wanted("mlp"), dataclasses.replace(QUICK, epochs=1, logger="tensorboard"), tmp_path, Recorder())
    assert [path for path in (tmp_path / "logs").iterdir() if path.name.startswith("events.out")]


def test_bfloat16(tmp_path: Path, prepared: Prepared) -> None:
    settings = dataclasses.replace(QUICK, epochs=6, learning_rate=0.01, precision="bfloat16", device="cpu")
    learned = learn(prepared, Wanted("mlp"), settings, tmp_path, Recorder())
    assert learned.best.validation_loss < 0.4
    assert weights(learned)["head.layers.0.weight"].dtype == torch.float32


def test_rows_that_do_not_fit_into_memory_give_the_same(prepared: Prepared) -> None:
    labels = find_labels(prepared)
    specs = find_inputs(prepared.train, "churned").inputs
    network = built_in("mlp", specs, prepared.train.take(np.arange(50)), labels, {})
    kept, read = (
        RowTensors.scan(prepared.train, network.inputs, labels, ["numbers"], size) for size in (1 << 20, 1 << 10)
    )
    assert torch.equal(kept.moments["numbers"].mean, read.moments["numbers"].mean)
    (first, target), (second, other) = (rows.__getitems__([250, 3, 17]) for rows in (kept, read))
    assert torch.equal(target, other)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_moments_are_those_of_numpy() -> None:
    numbers = torch.from_numpy(np.random.default_rng(0).normal(1e6, 1, (1000, 2)))
    numbers[5, 0] = float("nan")
    moments = Moments.of(numbers[:300])
    moments.add(Moments.of(numbers[300:]))
    np.testing.assert_allclose(moments.mean, np.nanmean(numbers, axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.deviation, np.nanstd(numbers, axis=0), rtol=1e-9)
    assert moments.count.tolist() == [999, 1000]
