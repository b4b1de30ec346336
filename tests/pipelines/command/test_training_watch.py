"""The lines of a training in a log."""

from __future__ import annotations

import re

import pytest

from handlers.train.settings import Epoch
from pipelines.command import training_watch
from pipelines.command.training_watch import TrainingWatch


def test_lines_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(training_watch, "LOG_SECONDS", 0.0)
    first, second = Epoch(1, 0.7, 0.5, 0.001), Epoch(2, 0.6, 0.55, 0.0005)
    with TrainingWatch(3) as watch:
        watch.step(1, 4, 10, 0.69)
        watch.epoch(first, first)
        watch.step(2, 1, 10, 0.65)
        watch.epoch(second, first)
    lines = [re.sub(r", \d+ s$", "", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "training: epoch 1/3, step 4/10, loss 0.69",
        "training: epoch 1/3, loss 0.7, validation 0.5000, best 0.5000",
        "training: epoch 2/3, step 1/10, loss 0.65, validation 0.5000, best 0.5000",
        "training: epoch 2/3, loss 0.6, validation 0.5500, best 0.5000",
    ]


def test_a_log_is_not_flooded(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingWatch(3) as watch:
        for step in range(1, 1000):
            watch.step(1, step, 1000, 0.5)
    assert capsys.readouterr().err == ""
