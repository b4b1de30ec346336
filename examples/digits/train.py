"""Trains a classifier on scikit-learn's digits, saves it as a model directory, and writes a table to score with it.

    python examples/digits/train.py out/digits

writes `out/digits/model` and `out/digits/table.parquet`.
"""

import argparse
import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from digits_model import DigitsNet
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from torchbeam import ModelDir

HERE = Path(__file__).parent
CHANNELS = 16


def train(images: np.ndarray, digits: np.ndarray, epochs: int = 30) -> DigitsNet:
    """Trains on `images` of (n, 64) and `digits` of (n,)."""
    torch.manual_seed(0)
    net = DigitsNet(CHANNELS)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    image, digit = torch.from_numpy(images).float().reshape(-1, 1, 8, 8), torch.from_numpy(digits).long()
    for _ in range(epochs):
        for batch in torch.randperm(len(image)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(image[batch]), digit[batch]).backward()
            optimizer.step()
    return net


def table(images: np.ndarray, digits: np.ndarray) -> pa.Table:
    """One row an image: its number, when it was scanned, its 64 pixels, and the digit that was meant.

    Two rows are damaged, as happens to scans: one has no pixels, one only a half of them.
    """
    pixels = [row.tolist() for row in images.astype(np.uint8)]
    pixels[7] = None
    pixels[100] = pixels[100][:32]
    start = datetime.datetime(2024, 5, 1, 9, tzinfo=datetime.UTC)
    return pa.table(
        {
            "scan": pa.array(range(len(pixels))),
            "scanned_at": [start + datetime.timedelta(seconds=3 * scan) for scan in range(len(pixels))],
            "pixels": pa.array(pixels, pa.list_(pa.uint8())),
            "digit": pa.array(digits, pa.int64()),
        }
    )


def main() -> None:
    """Trains, saves and writes."""
    parser = argparse.ArgumentParser(description="Train a digit classifier and write a table to score with it.")
    parser.add_argument("out", type=Path, help="folder for the model directory and the table")
    out = parser.parse_args().out

    images, digits = load_digits(return_X_y=True)
    train_images, other_images, train_digits, other_digits = train_test_split(
        images, digits, test_size=0.5, random_state=0, stratify=digits
    )
    model = ModelDir.save(
        train(train_images, train_digits),
        out / "model",
        name="digits",
        task="classification",
        labels=[str(digit) for digit in range(10)],
        arguments={"channels": CHANNELS},
        inputs=[{"name": "image", "columns": ["pixels"], "shape": [1, 8, 8]}],
        code=[HERE / "digits_model.py"],
    )
    pq.write_table(table(other_images, other_digits), out / "table.parquet")
    print(f"model  {model.path}, version {model.version}, trained on {len(train_digits)} images")
    print(f"table  {out / 'table.parquet'}, {len(other_digits)} other images")


if __name__ == "__main__":
    main()
