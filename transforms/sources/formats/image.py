"""Image files: one row a file, with its path, its bytes, and its height and width where its header has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from handlers.encode.image import MAX_FILE_BYTES, image_size
from handlers.errors import BrokenFileError
from transforms.sources.blocks import Block, Numeric, Plan, ReadOptions, Split, check_columns
from transforms.sources.files import InputFile, open_input

NAME = "image"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".avif")
COMPRESSED = False

_SCHEMA = pa.schema([("path", pa.string()), ("bytes", pa.binary()), ("height", pa.int32()), ("width", pa.int32())])


def plan(files: Sequence[InputFile], _numeric: Numeric) -> Plan:
    """One split a file; small ones are read together."""
    return Plan(_SCHEMA, [Split(file.path, NAME, file.partitions, rows=1, bytes=file.size) for file in files])


def blocks(split: Split, schema: pa.Schema, options: ReadOptions) -> Iterator[Block]:
    """Reads the file. A file that is no image is a row all the same: the encoder refuses it with a reason."""
    check_columns(_SCHEMA.names, options.needed, split)
    with open_input(split.path) as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise BrokenFileError(f"{split.name} is larger than {MAX_FILE_BYTES >> 20} MiB")
    height, width = image_size(content) or (None, None)
    row = {"path": split.path, "bytes": content, "height": height, "width": width}
    yield Block(pa.RecordBatch.from_pylist([row], schema=schema), np.zeros(1, np.int64))
