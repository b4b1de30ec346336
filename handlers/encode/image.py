"""The image encoder: a column of image files, or of paths of them, becomes a tensor of (rows, channels, height, width).

Decoding and resizing follow torchvision's `v2` transforms on a uint8 tensor: `resize` is the shorter side, bilinear with
antialiasing; `crop` is a centre crop; pixels are scaled to 0 … 1 before `mean` and `std`. EXIF orientation is applied,
palettes, CMYK, grey and 16-bit images become the channels that the model takes, transparency is dropped, and only the first
frame of an animation is used. The number of pixels is read from the header and checked against `max_pixels` before decoding.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from handlers.encode.base import BoundInput, Encoded, Tensors
from handlers.encode.columns import resolve_columns
from handlers.encode.specs import ImageInput
from handlers.encode.values import innermost, is_binary, is_list, is_text
from handlers.errors import UsageError, one_line
from handlers.failures import RowFailure, RowFailures
from handlers.paths import is_remote
from handlers.tensors import TensorInfo

# Formats that Pillow decodes by itself; others start programs (EPS) or are not photographs.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF")
THREADS = min(8, os.cpu_count() or 1)
MAX_FILE_BYTES = 256 << 20
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap height and width
_CANDIDATES = ("image", "bytes", "content", "path")


class ImageError(ValueError):
    """An image that cannot be used; the message says why."""


class TooManyPixelsError(ImageError):
    """An image with more pixels than `max_pixels`."""


@dataclass(frozen=True)
class BoundImage(BoundInput):
    """An image input, bound to its column.

    Attributes:
        spec: as `model.yaml` gives it.
        columns: one column, of bytes or of paths.
        tensor: the name of the model's input.
    """

    spec: ImageInput
    tensor: str = "image"

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """Float32 of (rows, channels, height, width); decoded in threads."""
        failures: RowFailures = {}
        pixels = torch.zeros(batch.num_rows, *self.shape, dtype=torch.uint8)
        index = batch.schema.get_field_index(self.columns[0])
        kind = None if index < 0 else batch.schema.field(index).type
        if kind is None or _problem(kind):
            why = ("MissingColumn", "is missing") if kind is None else ("WrongType", _problem(kind))
            failure = RowFailure("encode", why[0], f'column "{self.columns[0]}" {why[1]}')
            return Encoded({self.tensor: self._floats(pixels)}, dict.fromkeys(range(batch.num_rows), failure))
        column = batch.column(index)
        column = column.dictionary_decode() if pa.types.is_dictionary(kind) else column

        def one(row: int) -> None:
            try:
                pixels[row] = self._pixels(column[row])
            except Exception as error:
                type_ = "NullValue" if not column[row].is_valid else type(error).__name__
                failures[row] = RowFailure("encode", type_, f'column "{self.columns[0]}": {one_line(error)}')

        if batch.num_rows == 1:
            one(0)
        else:
            with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as threads:
                list(threads.map(one, range(batch.num_rows)))
        return Encoded({self.tensor: self._floats(pixels)}, dict(sorted(failures.items())))

    def zeros(self, rows: int) -> Tensors:
        """Black images."""
        return {self.tensor: self._floats(torch.zeros(rows, *self.shape, dtype=torch.uint8))}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (self.spec.channels, *self.spec.size)

    @property
    def row_bytes(self) -> int:
        """Bytes of an image as float32."""
        return 4 * int(np.prod(self.shape))

    @property
    def sample_rows(self) -> int:
        """Images are scored slowly; a few are enough to find the columns."""
        return 8

    def _pixels(self, value: pa.Scalar) -> torch.Tensor:
        """The pixels of one image, uint8 of (channels, height, width)."""
        content = value.as_py()
        if content is None:
            raise ImageError(f'holds null; the model input "{self.spec.name}" needs an image')
        if isinstance(content, str):
            content = _read(content)
        return transform(decode(content, self.spec.mode, self.spec.max_pixels), self.spec)

    def _floats(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scaled to 0 … 1 and normalized."""
        values = pixels.float().mul_(self.spec.scale)
        if self.spec.mean is not None and self.spec.std is not None:
            values.sub_(torch.tensor(self.spec.mean).view(1, -1, 1, 1)).div_(
                torch.tensor(self.spec.std).view(1, -1, 1, 1)
            )
        return values


def bind(spec: ImageInput, _info: TensorInfo, batch: pa.RecordBatch, parameters: Sequence[str] = ()) -> BoundImage:
    """Binds an input to a column of `batch`; raises `UsageError` for one that holds neither bytes nor paths."""
    names = batch.schema.names
    if spec.columns or spec.name in names:
        columns = resolve_columns(spec, names)
    else:
        binary = [field.name for field in batch.schema if is_binary(innermost(field.type))]
        found = binary if len(binary) == 1 else [name for name in _CANDIDATES if name in names][:1]
        if not found:
            raise UsageError(f'no column is named "{spec.name}" like the model input; write its column in a model.yaml')
        columns = tuple(found)
    if len(columns) != 1:
        raise UsageError(f'the image input "{spec.name}" takes one column, not {", ".join(columns)}')
    if problem := _problem(batch.schema.field(columns[0]).type):
        raise UsageError(f'column "{columns[0]}" {problem}')
    tensor = "pixel_values" if "pixel_values" in parameters else spec.name
    return BoundImage(spec, columns, tensor)


def decode(content: bytes, mode: str, max_pixels: int) -> torch.Tensor:
    """The pixels of an image file, uint8 of (channels, height, width), rotated by its EXIF orientation.

    Raises:
        ImageError: for content that is not an image, or an image of an unsupported kind.
        TooManyPixelsError: for more than `max_pixels`; nothing is decoded then.
    """
    from PIL import Image, ImageOps

    with _opened(content) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise TooManyPixelsError(f"an image of {width} × {height} pixels; max_pixels is {max_pixels:,}")
        try:
            image.load()
            turned = ImageOps.exif_transpose(image)
            array = np.asarray(_eight_bit(turned, Image).convert(mode))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"the {image.format} image cannot be decoded: {one_line(error)}") from None
    pixels = torch.from_numpy(array.copy() if not array.flags.writeable else array)
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def image_size(content: bytes) -> tuple[int, int] | None:
    """Height and width of an image by its header, rotated by its EXIF orientation; None if it is not an image."""
    try:
        with _opened(content) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            return (width, height) if turned else (height, width)
    except Exception:  # decoding it gives the reason
        return None


def transform(pixels: torch.Tensor, spec: ImageInput) -> torch.Tensor:
    """Resizes and crops uint8 pixels of (channels, height, width) as torchvision's v2 transforms do."""
    if spec.resize is not None:
        size = _target(pixels.shape[1:], spec.resize)
        if isinstance(spec.resize, int) and size[0] * size[1] > max(spec.max_pixels, spec.resize**2):
            raise TooManyPixelsError(
                f"resized, an image of {size[1]} × {size[0]} pixels; max_pixels is {spec.max_pixels:,}"
            )
        if size != tuple(pixels.shape[1:]):
            pixels = torch.nn.functional.interpolate(
                pixels.unsqueeze(0), size=size, mode=spec.interpolation, antialias=True
            ).squeeze(0)
    return pixels if spec.crop is None else _centre(pixels, *spec.size)


def _target(size: Sequence[int], resize: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(resize, int):
        return resize
    height, width = size
    longer = int(resize * max(height, width) / min(height, width))
    return (resize, longer) if height <= width else (longer, resize)


def _centre(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The centre of an image, padded with black where the image is smaller."""
    _, rows, columns = pixels.shape
    if rows < height or columns < width:
        missing = (max(0, width - columns), max(0, height - rows))
        left, top = missing[0] // 2, missing[1] // 2
        pixels = torch.nn.functional.pad(pixels, (left, missing[0] - left, top, missing[1] - top))
        _, rows, columns = pixels.shape
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    return pixels[:, top : top + height, left : left + width]


def _opened(content: bytes) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError("encoder image needs Pillow; pip install 'torchbeam[image]'") from None
    try:
        return Image.open(io.BytesIO(content), formats=_formats())
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(one_line(error)) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        what = (
            "not an image" if isinstance(error, UnidentifiedImageError) else f"not a readable image ({one_line(error)})"
        )
        raise ImageError(f"{len(content):,} bytes that are {what}") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """The `FORMATS` that this Pillow supports."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _eight_bit(image: Any, library: Any) -> Any:
    """16-bit grey as 8-bit; Pillow would clip it."""
    if image.mode == "F":
        raise ImageError("a TIFF of floats has no known range; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return library.fromarray((np.asarray(image).astype(np.int64).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    return image


def _read(path: str) -> bytes:
    """An image file, local or in an object store."""
    if is_remote(path):
        from apache_beam.io.filesystems import FileSystems

        with FileSystems.open(path, compression_type="uncompressed") as file:
            content: bytes = file.read(MAX_FILE_BYTES + 1)
    else:
        with Path(path).open("rb") as local:
            content = local.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
    return content


def _problem(kind: pa.DataType) -> str:
    fits = not is_list(kind) and (is_binary(innermost(kind)) or is_text(innermost(kind)) or pa.types.is_null(kind))
    return "" if fits else f"holds {kind}, neither the bytes of images nor their paths"
