"""The forecast example, run as its docstring says: errors computed by hand, on days that the model was not trained on."""

from __future__ import annotations

import datetime as dt
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
FIRST_DAY_AFTER_TRAINING = dt.date(2025, 1, 1) + dt.timedelta(days=150)


@pytest.mark.slow(30)
def test_the_model_beats_simple_forecasts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/forecast/run.py"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = {
        name: [float(value) for value in values.split()]
        for name, values in re.findall(r"^ *([1-7]|all) ((?: +\d+\.\d\d){3})$", done.stdout, re.MULTILINE)
    }
    assert list(printed) == ["1", "2", "3", "4", "5", "6", "7", "all"]

    forecasts = pd.read_parquet(tmp_path / "out" / "scored" / "predictions")
    assert forecasts["forecast_from"].min() == FIRST_DAY_AFTER_TRAINING
    sales = pd.read_parquet(tmp_path / "out" / "later.parquet").set_index(["product", "day"])["sales"]
    last_day = max(day for _, day in sales.index)
    known = forecasts[forecasts["day"] <= last_day - dt.timedelta(days=7)]
    assert len(known) == 40 * 44

    def actual(days: int) -> np.ndarray:
        """Units sold that many days after each forecast was made."""
        return sales.loc[list(zip(known["product"], known["day"] + dt.timedelta(days=days), strict=True))].to_numpy()

    answers = np.stack(known["forecast"].to_list())
    by_hand = np.array(
        [
            [
                np.abs(answers[:, step - 1] - actual(step)).mean(),
                np.abs(actual(0) - actual(step)).mean(),
                np.abs(actual(step - 7) - actual(step)).mean(),
            ]
            for step in range(1, 8)
        ]
    )
    np.testing.assert_allclose([printed[str(step)] for step in range(1, 8)], by_hand, atol=0.0051)
    np.testing.assert_allclose(printed["all"], by_hand.mean(axis=0), atol=0.0051)
    for name, (model, last_value, seasonal_naive) in printed.items():
        assert model < min(last_value, seasonal_naive), name
