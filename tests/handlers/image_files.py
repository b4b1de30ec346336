"""Images of every kind, as the bytes of their files."""

from __future__ import annotations

import io
import struct
import zlib
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
