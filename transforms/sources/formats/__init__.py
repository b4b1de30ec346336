"""The input formats. A new one is a module with the attributes of `Format`, added to `FORMATS`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Protocol

import pyarrow as pa

from handlers.errors import UsageError
from transforms.sources.blocks import Block, Numeric, Plan, ReadOptions, Split
from transforms.sources.files import COMPRESSIONS, InputFile
from transforms.sources.formats import avro, bigquery, delimited, image, jsonl, parquet, text


class Format(Protocol):
    """A format of input files.

    Attributes:
        NAME: what `--input_format` calls it.
        EXTENSIONS: of its files.
        COMPRESSED: whether its files may have the extension of a compression behind their own.
    """

    NAME: str
    EXTENSIONS: tuple[str, ...]
    COMPRESSED: bool

    def plan(self, files: Sequence[InputFile], numeric: Numeric, /) -> Plan:
        """Settles the columns of `files` and splits them.

        `numeric` gives those of the names of all columns that feed numeric inputs of the model.
        """

    def blocks(self, split: Split, schema: pa.Schema, options: ReadOptions, /) -> Iterator[Block]:
        """Reads a split in blocks with the columns of `schema`, refusing rows that do not fit.

        A block may have any size: it is cut later. Raises any exception where the file breaks, after all rows before.
        """


FORMATS: dict[str, Format] = {each.NAME: each for each in (parquet, delimited, jsonl, avro, text, image)}
# What splits are read by: a table of BigQuery is read as files are, by the streams that it is cut into.
READERS: dict[str, Format] = {**FORMATS, bigquery.NAME: bigquery}


def format_of(files: Sequence[InputFile], name: str | None) -> Format:
    """The format called `name`, or the one of the extensions of all `files`."""
    known = ", ".join(FORMATS)
    if name is not None:
        if name not in FORMATS:
            raise UsageError(f"--input_format={name} is not known; write one of {known}")
        return FORMATS[name]
    found: dict[str, str] = {}
    for file in files:
        kind = _by_extension(file.path)
        if kind is None:
            raise UsageError(f"the extension of {file.path} is of no known format; add --input_format (one of {known})")
        found.setdefault(kind, file.path)
    if len(found) > 1:
        examples = ", ".join(f"{path} is {kind}" for kind, path in found.items())
        raise UsageError(f"the input mixes formats: {examples}; narrow the pattern or add --input_format")
    return FORMATS[next(iter(found))]


def _by_extension(path: str) -> str | None:
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    compressed = suffix in COMPRESSIONS
    if compressed:
        suffix = PurePosixPath(name.stem).suffix.lower()
    for kind, each in FORMATS.items():
        if suffix in each.EXTENSIONS and (each.COMPRESSED or not compressed):
            return kind
    return None
