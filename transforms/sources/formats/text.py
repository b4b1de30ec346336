"""Text: every line that is not blank is a row with one column, `text`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.sources.blocks import Block, Numeric, Plan, ReadOptions, Split, check_columns, fit
from transforms.sources.files import InputFile
from transforms.sources.formats.lines import line_blocks

NAME = "text"
EXTENSIONS = (".txt", ".text")
COMPRESSED = True

_COLUMN = "text"


def plan(files: Sequence[InputFile], _numeric: Numeric) -> Plan:
    """One split a file."""
    return Plan(pa.schema([(_COLUMN, pa.string())]), [Split(file.path, NAME, file.partitions) for file in files])


def blocks(split: Split, schema: pa.Schema, options: ReadOptions) -> Iterator[Block]:
    """Reads the lines of a file; one that is not valid UTF-8 is refused."""
    check_columns([_COLUMN], options.needed, split)
    for number, lines in line_blocks(split):
        values = pa.array([line.removesuffix(b"\r") for line in lines], pa.binary())
        batch = pa.RecordBatch.from_arrays([values], names=[_COLUMN])
        numbers = np.arange(number, number + len(lines), dtype=np.int64)
        yield fit(batch, schema, numbers, split, cast=pc.cast, raw=lambda row: row[_COLUMN].decode(errors="replace"))
