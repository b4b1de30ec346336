"""Images against torchvision's own transforms, and files that are none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from image_files import encoded, giant_png, photograph, rotated_jpeg
from PIL import Image
from torchvision.transforms import v2

from handlers.encode.binding import bind_inputs
from handlers.encode.image import FORMATS, BoundImage, image_size
from handlers.encode.specs import input_spec
from handlers.errors import UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bound(batch: pa.RecordBatch, parameters: tuple[str, ...] = (), **fields: Any) -> BoundImage:
    given = {"name": "x", "columns": ["image"], "encoder": "image", **fields}
    (found,) = bind_inputs([input_spec(**given)], (), batch, parameters)
    assert isinstance(found, BoundImage)
    return found


def encode(contents: list[bytes | None] | list[str], **fields: Any) -> tuple[torch.Tensor, dict[int, str]]:
    batch = pa.record_batch({"image": contents})
    result = bound(batch, **fields).encode(batch)
    tensor = result.tensors["x"]
    assert isinstance(tensor, torch.Tensor)
    return tensor, {row: failure.type for row, failure in result.failures.items()}


def reference(content: bytes, *steps: Any) -> torch.Tensor:
    """torchvision's transforms of the decoded image, as float32 of 0 … 1."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])(pixels)


@pytest.mark.parametrize(
    ("height", "width"), [(60, 80), (80, 60), (33, 100), (17, 17), (200, 31), (300, 500), (224, 224)], ids=str
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_and_crop_as_torchvision(height: int, width: int, interpolation: str) -> None:
    content = encoded(photograph(height, width))
    found, failed = encode([content], resize=40, crop=32, interpolation=interpolation)
    mode = v2.InterpolationMode(interpolation)
    expected = reference(content, v2.Resize(40, mode, antialias=True), v2.CenterCrop(32))
    assert not failed
    assert found.shape == (1, 3, 32, 32)
    assert (found[0] - expected).abs().max() <= 1 / 255 + 1e-6


def test_crop_of_a_smaller_image_and_both_sides() -> None:
    content = encoded(photograph(20, 31))
    assert torch.equal(encode([content], crop=[25, 40])[0][0], reference(content, v2.CenterCrop((25, 40))))
    found = encode([content], resize=[30, 12])[0][0]
    assert (found - reference(content, v2.Resize((30, 12), antialias=True))).abs().max() <= 1 / 255 + 1e-6


def test_normalization_and_scale() -> None:
    content = encoded(photograph())
    found = encode([content], resize=[8, 8], mean=MEAN, std=STD)[0][0]
    expected = reference(content, v2.Resize((8, 8), antialias=True))
    expected = v2.Normalize(MEAN, STD)(expected)
    assert torch.allclose(found, expected, atol=1 / 255 / min(STD) + 1e-5)
    assert torch.allclose(encode([content], crop=8, scale=1.0)[0][0] / 255, encode([content], crop=8)[0][0], atol=1e-6)


class TestKinds:
    """What image files hold becomes the channels that the model takes."""

    pixels = photograph(24, 32)

    def check(self, content: bytes, expected: np.ndarray, tolerance: int = 0, **fields: Any) -> None:
        found, failed = encode([content], crop=list(expected.shape[:2]), scale=1.0, **fields)
        assert not failed, failed
        difference = (found[0].permute(1, 2, 0) - torch.from_numpy(expected.astype(np.float32))).abs()
        assert difference.max() <= tolerance

    @pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
    def test_lossless(self, kind: str) -> None:
        self.check(encoded(self.pixels, kind), self.pixels)
        self.check(encoded(self.pixels, "WEBP", lossless=True), self.pixels)

    def test_grey(self) -> None:
        grey = self.pixels[:, :, 0]
        self.check(encoded(grey), np.stack([grey] * 3, axis=-1))
        self.check(encoded(grey), grey[:, :, None], mode="L")

    def test_sixteen_bits(self) -> None:
        grey = self.pixels[:, :, 0].astype(np.uint16) * 257
        expected = np.stack([self.pixels[:, :, 0]] * 3, axis=-1)
        self.check(encoded(Image.fromarray(grey)), expected)
        self.check(encoded(Image.fromarray(grey), "TIFF"), expected)

    def test_a_palette_and_transparency(self) -> None:
        palette = Image.fromarray(self.pixels).quantize(32)
        self.check(encoded(palette), np.array(palette.convert("RGB")))
        alpha = np.dstack([self.pixels, np.full(self.pixels.shape[:2], 7, np.uint8)])
        self.check(encoded(alpha), self.pixels)

    def test_cmyk(self) -> None:
        cmyk = Image.fromarray(self.pixels).convert("CMYK")
        content = encoded(cmyk, "JPEG", quality=98, subsampling=0)
        self.check(content, np.array(Image.open(io.BytesIO(content)).convert("RGB")))

    def test_an_animation_is_its_first_frame(self) -> None:
        frames = [Image.fromarray(photograph(24, 32, seed)).quantize(64) for seed in (0, 1, 2)]
        content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        self.check(content, np.array(frames[0].convert("RGB")))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation(self, orientation: int) -> None:
        content = rotated_jpeg(self.pixels, orientation)
        plain = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
        turned = {
            1: plain,
            2: plain[:, ::-1],
            3: plain[::-1, ::-1],
            4: plain[::-1],
            5: plain.transpose(1, 0, 2),
            6: np.rot90(plain, -1),
            7: plain[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(plain),
        }[orientation]
        self.check(content, turned.copy())
        assert image_size(content) == turned.shape[:2]


class TestFailures:
    good = encoded(photograph())

    def test_each_costs_its_own_row(self) -> None:
        jpeg = encoded(photograph(200, 200), "JPEG")
        contents = [self.good, b"just text", jpeg[: len(jpeg) // 2], None, b"", giant_png(9000, 9000), self.good]
        found, failed = encode(contents, resize=[4, 4])
        assert failed == {1: "ImageError", 2: "ImageError", 3: "NullValue", 4: "ImageError", 5: "TooManyPixelsError"}
        assert torch.equal(found[0], found[6])

    def test_a_bomb_is_not_decoded(self) -> None:
        """Its 900 million pixels would take 0.9 GB."""
        before = torch.zeros(1)
        _, failed = encode([giant_png(30_000, 30_000)], resize=[4, 4], max_pixels=10**9)
        assert failed == {0: "TooManyPixelsError"}
        del before

    def test_no_program_is_started_for_a_file(self) -> None:
        assert "EPS" not in FORMATS
        postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
        assert encode([postscript], resize=[4, 4])[1] == {0: "ImageError"}

    def test_a_tiff_of_floats(self) -> None:
        content = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
        assert encode([content], resize=[4, 4])[1] == {0: "ImageError"}

    def test_paths(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(self.good)
        paths = [str(tmp_path / "a.png"), str(tmp_path / "none.png"), str(tmp_path)]
        found, failed = encode(paths, resize=[4, 4])
        assert failed == {1: "FileNotFoundError", 2: "IsADirectoryError"}
        assert torch.equal(found[0], encode([self.good], resize=[4, 4])[0][0])

    def test_chunks_of_other_schemas(self) -> None:
        ready = bound(pa.record_batch({"image": [self.good]}), resize=[4, 4])
        missing = ready.encode(pa.record_batch({"other": [1, 2]}))
        assert {failure.type for failure in missing.failures.values()} == {"MissingColumn"}
        wrong = ready.encode(pa.record_batch({"image": [1]}))
        assert {failure.type for failure in wrong.failures.values()} == {"WrongType"}


class TestBinding:
    def test_the_column(self) -> None:
        batch = pa.record_batch({"id": [1], "photo": [b"x"], "path": ["p"]})
        assert bound(batch, columns=[], crop=4).columns == ("photo",)
        assert bound(batch, columns=["path"], crop=4).columns == ("path",)
        assert bound(batch, ("pixel_values", "labels"), columns=["path"], crop=4).tensor == "pixel_values"

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"columns": ["id"]}, "holds int64, neither the bytes of images nor their paths"),
            ({"columns": ["photo", "path"]}, "takes one column, not photo, path"),
            ({"columns": ["none"]}, 'column "none" is missing'),
        ],
    )
    def test_refusals(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            bound(pa.record_batch({"id": [1], "photo": [b"x"], "path": ["p"]}), crop=4, **fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({}, "needs crop, or resize as"),
            ({"resize": 8}, "needs crop, or resize as"),
            ({"crop": 8, "mean": [0.5]}, "mean and std must be given together"),
            ({"crop": 8, "mean": [0.5], "std": [0.5]}, "mean has 1 values; mode RGB has 3 channels"),
            ({"crop": 0}, "greater than 0"),
            ({"crop": 8, "interpolation": "nearest"}, "bilinear"),
            ({"crop": 8, "fill": 0}, "Extra inputs"),
        ],
    )
    def test_fields(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            input_spec(name="x", encoder="image", **fields)


def test_a_long_strip_that_resizing_would_blow_up_fails_its_row() -> None:
    strip = encoded(np.zeros((1, 2000, 3), np.uint8), "PNG")
    _, failures = encode([strip], resize=16, crop=16, max_pixels=10_000)
    assert failures == {0: "TooManyPixelsError"}
