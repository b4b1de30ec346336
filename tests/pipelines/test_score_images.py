"""A folder of images through the command: what can be scored is right, the rest are dead letters, one row a file."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peak_memory import peak_of_score
from PIL import Image
from torchvision.transforms import v2
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from handlers import ModelDir
from pipelines import score

sys.path.append(str(Path(__file__).parents[1] / "handlers"))
import image_files

pytestmark = pytest.mark.slow(15)

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
LABELS = {0: "cat", 1: "dog", 2: "owl"}
INPUT = {"name": "pixel_values", "encoder": "image", "columns": ["bytes"], "resize": [32, 32], "mean": MEAN, "std": STD}


class Logits(torch.nn.Module):
    """A ResNet of transformers that gives a plain tensor, as export and TorchScript need it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        self.net = ResNetForImageClassification(ResNetConfig(id2label=LABELS, **sizes)).eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("images") / "photos"
    (target / "day=1").mkdir(parents=True)
    (target / "day=2").mkdir()
    for index in range(12):
        pixels = image_files.photograph(40 + 3 * index, 60, index)
        (target / f"day={1 + index % 2}" / f"{index:02}.jpg").write_bytes(
            image_files.encoded(pixels, "JPEG", quality=90)
        )
    (target / "day=1" / "turned.jpg").write_bytes(image_files.rotated_jpeg(image_files.photograph(30, 50), 6))
    (target / "day=1" / "anim.gif").write_bytes(image_files.encoded(image_files.photograph(), "GIF"))
    (target / "day=1" / "cut.jpg").write_bytes((target / "day=1" / "00.jpg").read_bytes()[:900])
    (target / "day=2" / "text.png").write_text("no image")
    (target / "day=2" / "empty.png").write_bytes(b"")
    (target / "day=2" / "giant.png").write_bytes(image_files.giant_png(10_000, 10_000))
    return target


def run(folder: Path, model: Path, output: Path, *more: str) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    code = score.main([f"--input={folder}", f"--model={model}", f"--output={output}", *more])
    assert code == 0
    tables = [pq.read_table(output / name) for name in ("predictions", "dead_letters")]
    return tables[0].sort_by("path"), tables[1].sort_by("path"), json.loads((output / "report.json").read_text())


def by_hand(file: Path) -> np.ndarray:
    """Probabilities of the classes by torchvision's transforms and one call of the model."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(file.read_bytes()))).convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    steps = [v2.Resize((32, 32), antialias=True), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    with torch.inference_mode():
        return Logits()(v2.Compose(steps)(pixels)[None]).softmax(1)[0].numpy()


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    ModelDir.save(Logits().net, model, format="huggingface", inputs=[INPUT])
    predictions, letters, report = run(folder, model, tmp_path / "out")
    assert (report["rows_read"], report["rows_scored"], report["rows_dead"], report["files_read"]) == (18, 14, 4, 18)
    assert report["dead_by_error"] == {"encode/ImageError": 3, "encode/TooManyPixelsError": 1}
    assert predictions.column_names == [
        "path",
        "height",
        "width",
        "day",
        "predicted_class",
        "confidence",
        "model_version",
    ]
    assert letters.column_names == ["path", "bytes", "height", "width", "day", "dead_letter"]
    for path, label, confidence, height in zip(
        *(predictions.column(name).to_pylist() for name in ("path", "predicted_class", "confidence", "height")),
        strict=True,
    ):
        expected = by_hand(Path(path))
        assert label == LABELS[int(expected.argmax())]
        assert abs(confidence - expected.max()) < 0.02  # pixels may differ by one of 255
        if path.endswith("turned.jpg"):
            assert height == 50
    for path, content in zip(letters.column("path").to_pylist(), letters.column("bytes").to_pylist(), strict=True):
        assert content == Path(path).read_bytes()


def test_a_processor_says_all(folder: Path, tmp_path: Path) -> None:
    """A directory with an image processor needs no model.yaml."""
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD)
    model = tmp_path / "hub"
    Logits().net.save_pretrained(model)
    processor.save_pretrained(model)
    given = ModelDir(model).spec.inputs[0]
    assert given.given() | {"scale": None} == {
        "name": "image",
        "encoder": "image",
        "resize": (32, 32),
        "mean": tuple(MEAN),
        "std": tuple(STD),
        "scale": None,
    }
    saved = tmp_path / "model"
    ModelDir.save(Logits().net, saved, format="huggingface", inputs=[INPUT])
    one, _, _ = run(folder, model, tmp_path / "one")
    other, _, _ = run(folder, saved, tmp_path / "other")
    assert np.allclose(one.column("confidence"), other.column("confidence"), atol=1e-6)


def test_one_model_in_four_formats(folder: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"task": "classification", "labels": list(LABELS.values()), "inputs": [INPUT]}
    example = (torch.zeros(2, 3, 32, 32),)
    traced = torch.jit.trace(Logits(), example)
    (tmp_path / "torchscript").mkdir()
    traced.save(str(tmp_path / "torchscript" / "model.pt"))
    content = {"name": "m", "format": "torchscript", "weights": "model.pt", **fields}
    (tmp_path / "torchscript" / "model.yaml").write_text(json.dumps(content))
    code = Path(__file__)
    ModelDir.save(Logits(), tmp_path / "safetensors", code=[code], **fields)
    ModelDir.save(Logits(), tmp_path / "export", format="torch_export", example=example, **fields)
    ModelDir.save(Logits().net, tmp_path / "huggingface", format="huggingface", inputs=[INPUT])
    found = {}
    for name in ("safetensors", "export", "torchscript", "huggingface"):
        predictions, _, report = run(folder, tmp_path / name, tmp_path / f"out-{name}")
        assert report["rows_scored"] == 14
        found[name] = predictions
    for name, predictions in found.items():
        assert predictions.column("predicted_class") == found["safetensors"].column("predicted_class"), name
        assert np.allclose(predictions.column("confidence"), found["safetensors"].column("confidence"), atol=1e-6), name


def test_bytes_on_demand_and_paths_in_a_table(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    ModelDir.save(Logits().net, model, format="huggingface", inputs=[INPUT])
    predictions, _, _ = run(folder, model, tmp_path / "out", "--columns=path,bytes", "--limit=4")
    assert predictions.column_names[:2] == ["path", "bytes"]
    assert predictions.num_rows <= 4
    files = sorted(str(path) for path in folder.rglob("*.jpg"))
    pq.write_table(pa.table({"path": [*files, str(folder / "nowhere.jpg")]}), tmp_path / "paths.parquet")
    by_path = tmp_path / "by_path"
    ModelDir.save(Logits().net, by_path, format="huggingface", inputs=[{**INPUT, "columns": ["path"]}])
    found, letters, _ = run(tmp_path / "paths.parquet", by_path, tmp_path / "out2")
    expected, _, _ = run(folder, model, tmp_path / "out3")
    both = dict(zip(expected.column("path").to_pylist(), expected.column("confidence").to_pylist(), strict=True))
    for path, confidence in zip(found.column("path").to_pylist(), found.column("confidence").to_pylist(), strict=True):
        assert abs(both[path] - confidence) < 1e-6
    assert {each["type"] for each in letters.column("dead_letter").to_pylist()} == {"ImageError", "FileNotFoundError"}


@pytest.mark.slow(60)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_hostile_files_take_no_memory(tmp_path: Path) -> None:
    """An image of 30,000 x 30,000 pixels would take 0.9 GB as grey and 2.7 GB as RGB."""
    model = tmp_path / "model"
    ModelDir.save(Logits().net, model, format="huggingface", inputs=[INPUT])

    def peak(name: str) -> int:
        """In bytes, of a process that scores the folder."""
        output = tmp_path / f"scored-{name}"
        return peak_of_score(
            f"--input={tmp_path / name}", "--input_format=image", f"--model={model}", f"--output={output}"
        )

    for name in ("clean", "hostile"):
        image_files.write_photographs(tmp_path / name, 24)
    image_files.write_hostile(tmp_path / "hostile")
    clean, hostile = peak("clean"), peak("hostile")
    report = json.loads((tmp_path / "scored-hostile" / "report.json").read_text())
    assert report["dead_by_error"] == {"encode/ImageError": 3, "encode/TooManyPixelsError": 1}
    assert hostile <= 1.3 * clean, f"{hostile / 1e6:.0f} MB, {clean / 1e6:.0f} MB without the hostile files"
