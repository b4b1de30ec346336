"""JPEGs of mixed sizes through a ResNet-18 at 224 × 224: the scorer beside a loop with the same decoder and threads.

    python benchmarks/images.py [--images=2000] [--rounds=3] [--batch=32]

Both score the same files, held in memory, in this process, in turn, the order rotated; the outputs are compared before a time
counts. The loop decodes a batch in as many threads as the scorer has, then calls the model, then decodes the next. Loading the
model is left out. Prints medians, and ratios to the loop. Needs torchvision, whose ResNet has random weights here.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from rounds import Contestant, compare
from torchvision.models import resnet18

from handlers import ModelDir, Predictor
from handlers.columnar.chunks import with_provenance
from handlers.columnar.plan import Chain
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scorer
from handlers.encode.image import THREADS, decode, transform
from handlers.encode.specs import ImageInput

FIELDS = {"resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def jpegs(count: int) -> list[bytes]:
    """Photographs of scikit-learn, cut and scaled to `count` files from 160 × 120 to 1,280 × 960 pixels."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(3)
    sources = [Image.fromarray(each) for each in load_sample_images().images]
    found = []
    for index in range(count):
        width = int(random.integers(160, 1280))
        image = sources[index % len(sources)].resize((width, width * 3 // 4))
        image.save(target := io.BytesIO(), "JPEG", quality=int(random.integers(70, 95)))
        found.append(target.getvalue())
    return found


def contestants(batch: int, folder: str) -> dict[str, Contestant]:
    """What scores images, by name."""
    torch.manual_seed(1)
    network = resnet18().eval()
    inputs = [{"name": "x", "columns": ["image"], "encoder": "image", **FIELDS}]
    example = (torch.zeros(2, 3, 224, 224),)
    model = ModelDir.save(network, f"{folder}/model", format="torch_export", example=example, task="raw", inputs=inputs)
    predictor = Predictor(model.load(), batch_size=batch)
    sample = with_provenance(pa.record_batch({"image": jpegs(2)}), "jpegs", 0)
    scorer = Scorer(model, make_plan(model, predictor, sample, Chain.of(model.spec)), predictor)
    spec = ImageInput(name="x", **FIELDS)
    mean, std = (torch.tensor(FIELDS[name]).view(1, -1, 1, 1) for name in ("mean", "std"))

    def ours(files: list[bytes]) -> np.ndarray:
        scored = scorer.score(with_provenance(pa.record_batch({"image": files}), "jpegs", 0))
        assert not scored.dead_letters.num_rows
        return scored.predictions.column("output").values.to_numpy().reshape(len(files), -1)

    def loop(files: list[bytes]) -> np.ndarray:
        found = []
        with ThreadPoolExecutor(THREADS) as threads, torch.inference_mode():
            for start in range(0, len(files), batch):
                part = files[start : start + batch]
                pixels = torch.stack(list(threads.map(lambda file: transform(decode(file, "RGB", 10**9), spec), part)))
                found.append(predictor.module((pixels.float() / 255 - mean) / std).numpy())
        return np.concatenate(found)

    return {"torchbeam": ours, "loop": loop}


def main() -> None:
    """Runs the rounds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    files = jpegs(options.images)
    with tempfile.TemporaryDirectory() as folder:
        found = contestants(options.batch, folder)
        compare(
            found, files, options.rounds, "loop", lambda outputs, expected: np.allclose(outputs, expected, atol=1e-4)
        )


if __name__ == "__main__":
    main()
