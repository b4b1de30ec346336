"""The images example, run as its docstring says: predictions and accuracy against torchvision, one call of the model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import resnet18
from torchvision.transforms import v2

ROOT = Path(__file__).parents[2]


@pytest.mark.slow(50)
def test_most_images_are_right(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/images/run.py"), str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    predictions = pd.read_parquet(out / "scored" / "predictions")
    files = sorted(str(file) for file in (out / "test").rglob("*.jpg"))
    assert sorted(predictions["path"]) == files
    assert len(files) == 400

    net = resnet18(num_classes=2).eval()
    net.load_state_dict(load_file(out / "model" / "weights.safetensors"))
    prepare = v2.Compose(
        [
            v2.Resize((64, 64), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = [Image.open(path) for path in predictions["path"]]
    assert len({image.size for image in images}) > 300
    pixels = torch.stack([prepare(torch.from_numpy(np.array(image)).permute(2, 0, 1)) for image in images])
    with torch.inference_mode():
        expected = net(pixels).softmax(1)
    # Pixels may differ by 1/255.
    np.testing.assert_allclose(predictions["confidence"], expected.amax(1), atol=0.02)
    sure = (expected.amax(1) > 0.55).numpy()
    classes = np.array(["china", "flower"])[expected.argmax(1)]
    assert (predictions["predicted_class"].to_numpy() == classes)[sure].all()

    named = [Path(path).parent.name.removeprefix("photograph=") for path in predictions["path"]]
    assert predictions["photograph"].tolist() == named
    accuracy = (predictions["predicted_class"] == named).mean()
    assert accuracy > 0.95
    (printed,) = re.findall(r"([\d.]+%) of 400 images", done.stdout)
    assert printed == f"{accuracy:.1%}"
