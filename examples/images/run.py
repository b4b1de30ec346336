"""Classifies a folder of images with a ResNet-18: from which of two photographs was each cut?

    python examples/images/run.py out/images

cuts scikit-learn's photographs of a temple (china) and a dahlia (flower) into JPEGs of mixed size, trains on those of the left
halves, scores and evaluates the folder with those of the right halves with `torchbeam`, and prints the accuracy. Needs torchvision,
Pillow and scikit-learn. The network starts from random weights, so the task is an easy one: a logistic regression of the mean
colours gets 94 % right.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, so that its threads do not spin

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.io import ImageReadMode, read_image
from torchvision.models import resnet18
from torchvision.transforms import v2

from torchbeam import ModelDir

SIDE = 64  # what the model sees, in pixels
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TRAIN_CROPS, TEST_CROPS = 128, 200  # of each photograph


def cut(out: Path) -> None:
    """Writes `train` and `test`, folders with one folder of JPEGs for each photograph, of 48 to 160 pixels a side."""
    random = np.random.default_rng(0)
    photographs = load_sample_images()
    for file, pixels in zip(photographs.filenames, photographs.images, strict=True):
        middle = pixels.shape[1] // 2
        for part, half, crops in (("train", pixels[:, :middle], TRAIN_CROPS), ("test", pixels[:, middle:], TEST_CROPS)):
            # The name makes a column `photograph`, which `evaluate` takes as the label.
            folder = out / part / f"photograph={Path(file).stem}"
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(crops):
                height, width = random.integers(48, 161, 2)
                top = random.integers(half.shape[0] - height + 1)
                left = random.integers(half.shape[1] - width + 1)
                crop = half[top : top + height, left : left + width]
                Image.fromarray(crop).save(folder / f"{index:03}.jpg", quality=90)


def train(folder: Path, labels: list[str], epochs: int = 3) -> nn.Module:
    """Trains on the images of `folder`, decoded, resized and normalized as the encoder `image` does it."""
    torch.manual_seed(0)
    prepare = v2.Compose(
        [
            v2.Resize((SIDE, SIDE), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    files = sorted(folder.rglob("*.jpg"))
    images = torch.stack([prepare(read_image(str(file), ImageReadMode.RGB)) for file in files])
    classes = torch.tensor([labels.index(file.parent.name.partition("=")[2]) for file in files])
    net = resnet18(num_classes=len(labels))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(files)).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), classes[batch]).backward()
            optimizer.step()
    return net


def torchbeam(*arguments: str) -> None:
    """Runs the command, and ends with its exit code if it fails."""
    print("\n$ torchbeam", *arguments, flush=True)
    if code := subprocess.run([sys.executable, "-m", "torchbeam", *arguments], check=False).returncode:  # noqa: S603
        sys.exit(code)


def main() -> None:
    """Cuts, trains, scores, evaluates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the images, the model, the predictions and the evaluation")
    out = parser.parse_args().out

    cut(out)
    labels = ["china", "flower"]
    model = ModelDir.save(
        train(out / "train", labels),
        out / "model",
        name="photographs",
        task="classification",
        labels=labels,
        architecture="torchvision.models:resnet18",
        arguments={"num_classes": len(labels)},
        inputs=[
            {"name": "x", "encoder": "image", "columns": ["bytes"], "resize": [SIDE, SIDE], "mean": MEAN, "std": STD}
        ],
    )
    torchbeam(
        "score",
        f"--input={out / 'test'}",
        "--input_format=image",
        f"--model={model.path}",
        f"--output={out / 'scored'}",
        "--overwrite",
    )
    torchbeam(
        "evaluate",
        f"--input={out / 'scored'}",
        "--label=photograph",
        f"--output={out / 'evaluation'}",
        "--fail_below=accuracy=0.95",
        "--overwrite",
    )
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    print(f"\n{metrics['accuracy']:.1%} of {metrics['rows']} images, none of which was in the training, are right.")


if __name__ == "__main__":
    main()
