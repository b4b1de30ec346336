"""Images of every kind, as the bytes of their files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photograph(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, uint8 of (height, width, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + channel) + y / (9 - channel)) * 90 + 128 for channel in range(3)]
    return np.clip(np.stack(waves, axis=-1) + random.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def rotated_jpeg(pixels: np.ndarray, orientation: int) -> bytes:
    """A JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, "JPEG", quality=95, exif=exif)


def giant_png(height: int, width: int) -> bytes:
    """A PNG whose header promises so many pixels, and which would decode to them: zeros compress to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze = zlib.compressobj(9)
    line = bytes(1 + width)
    body = b"".join(squeeze.compress(line) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write_photographs(folder: Path, number: int) -> None:
    """JPEGs `00.jpg` … in a new folder."""
    folder.mkdir()
    for index in range(number):
        (folder / f"{index:02}.jpg").write_bytes(encoded(photograph(40 + 3 * index, 60, index), "JPEG", quality=90))


def write_hostile(folder: Path) -> None:
    """Four files of rare kinds that can be scored, and four that cannot: one is of 30,000 x 30,000 pixels."""
    pixels = photograph(50, 70, 99)
    image, upside_down = Image.fromarray(pixels), Image.fromarray(pixels[::-1])
    files = {
        "animated.gif": encoded(image, "GIF", save_all=True, append_images=[upside_down]),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "grey16.png": encoded(pixels[..., 0].astype(np.uint16) * 257),
        "rotated.jpg": rotated_jpeg(pixels, 6),
        "truncated.jpg": encoded(pixels, "JPEG")[:900],
        "text.png": b"no image",
        "empty.png": b"",
        "giant.png": giant_png(30_000, 30_000),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
