"""Forecasts the demand of 40 products for a week ahead, and compares the errors with those of simple forecasts.

    python examples/forecast/run.py out/forecast

makes 200 days of **synthetic** demand, trains a small LSTM on the first 150, scores and evaluates the rest with `torchbeam`, and
prints the mean absolute error of each step ahead. The data is a formula with noise: the figures show that the commands work
together, not how well an LSTM forecasts real sales. `evaluate` warns of 280 rows: these are the forecasts of the last week, whose
actual values are not all known.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, so that its threads do not spin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from demand_model import DemandLstm
from torch import nn

from torchbeam import ModelDir

HERE = Path(__file__).parent
PRODUCTS, DAYS, TRAIN_DAYS = 40, 200, 150
LENGTH, HORIZON, SEASON = 28, 7, 7
START = datetime.date(2025, 1, 1)


def demand() -> np.ndarray:
    """Synthetic units sold, int64 of (products, days).

    Each product has its own level and trend, a week of its own shape, and a slow wave; what is sold is Poisson around that.
    """
    random = np.random.default_rng(0)
    day = np.arange(DAYS)
    level = random.uniform(20, 200, (PRODUCTS, 1))
    trend = 1 + random.uniform(-0.002, 0.003, (PRODUCTS, 1)) * day
    week = np.exp(random.normal(0, 0.35, (PRODUCTS, SEASON)))[:, day % SEASON]
    wave = 1 + 0.2 * np.sin(2 * np.pi * (day / 60 + random.uniform(0, 1, (PRODUCTS, 1))))
    return random.poisson(level * trend * week * wave)


def table(sales: np.ndarray, first_day: int) -> pa.Table:
    """One row for each product and day."""
    products, days = sales.shape
    dates = [START + datetime.timedelta(days=first_day + index) for index in range(days)]
    names = [f"product-{index:02}" for index in range(products)]
    return pa.table({"product": np.repeat(names, days), "day": dates * products, "sales": sales.ravel()})


def train(sales: np.ndarray, epochs: int = 25) -> DemandLstm:
    """Trains on all windows of `sales`, (products, days): `LENGTH` days and the `HORIZON` days after them."""
    torch.manual_seed(0)
    windows = np.lib.stride_tricks.sliding_window_view(sales, LENGTH + HORIZON, axis=1).reshape(-1, LENGTH + HORIZON)
    past, future = torch.from_numpy(windows.astype(np.float32)).split([LENGTH, HORIZON], dim=1)
    scale = past.mean(dim=1, keepdim=True).clamp(min=1)  # large products count no more than small ones
    net = DemandLstm(HORIZON)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(past)).split(128):
            optimizer.zero_grad()
            nn.functional.l1_loss(net(past[batch, :, None]) / scale[batch], future[batch] / scale[batch]).backward()
            optimizer.step()
        schedule.step()
    return net


def torchbeam(*arguments: str) -> None:
    """Runs the command, and ends with its exit code if it fails."""
    print("\n$ torchbeam", *arguments, flush=True)
    if code := subprocess.run([sys.executable, "-m", "torchbeam", *arguments], check=False).returncode:  # noqa: S603
        sys.exit(code)


def show(baselines: dict[str, dict]) -> None:
    """Prints the table of errors."""
    last, seasonal = baselines["last_value"], baselines["seasonal_naive"]
    print(f"\nMean absolute error in units a day, of {last['rows']:,} forecasts of synthetic demand:\n")
    print(f"{'days ahead':>10}  {'LSTM':>8}  {'last value':>10}  {'seasonal naive':>14}")
    rows = [(each["step"], each, other) for each, other in zip(last["steps"], seasonal["steps"], strict=True)]
    for name, each, other in [*rows, ("all", last, seasonal)]:
        print(f"{name:>10}  {each['model_mae']:8.2f}  {each['mae']:10.2f}  {other['mae']:14.2f}")


def main() -> None:
    """Makes the data, trains, scores, evaluates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the model, the table, the forecasts and the evaluation")
    out = parser.parse_args().out

    sales = demand()
    model = ModelDir.save(
        train(sales[:, :TRAIN_DAYS]),
        out / "model",
        name="demand",
        task="forecast",
        arguments={"horizon": HORIZON},
        sequences={"by": "product", "order_by": "day", "columns": "sales", "length": LENGTH, "horizon": HORIZON},
        inputs=[{"name": "sales", "columns": ["sales"], "encoder": "sequence"}],
        code=[HERE / "demand_model.py"],
    )
    # The first forecast is made on the last day of training, for the day after it. The days before are its window only.
    first_day = TRAIN_DAYS - LENGTH
    later = out / "later.parquet"
    pq.write_table(table(sales[:, first_day:], first_day), later)

    torchbeam("score", f"--input={later}", f"--model={model.path}", f"--output={out / 'scored'}", "--overwrite")
    torchbeam(
        "evaluate",
        f"--input={out / 'scored'}",
        f"--actuals={later}",  # it has the days of the first windows, too, which the seasonal naive forecast needs
        "--label=sales",
        "--by=product",
        "--order_by=day",
        f"--season={SEASON}",
        "--fail_below=skill_last_value=0",
        f"--output={out / 'evaluation'}",
        "--overwrite",
    )
    show(json.loads((out / "evaluation" / "metrics.json").read_text())["baselines"])


if __name__ == "__main__":
    main()
