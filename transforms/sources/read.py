"""The transform that reads an input: splits are shuffled, chunks never are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PBegin, PCollection, TaggedOutput

from handlers.errors import BrokenFileError
from handlers.redact import redact
from transforms.sources.blocks import CHUNK_ROWS, MAX_CHUNK_BYTES, Split
from transforms.sources.planning import Input
from transforms.sources.splits import BadRows, read_split

_DEAD_LETTERS = "dead_letters"
_FILES = "files"


@dataclass(frozen=True)
class FileRead:
    """What was read of one split.

    Attributes:
        path: the file.
        rows: how many rows were handed on, as chunks or as dead letters.
        dead: how many of them were dead letters.
        error: why the file could not be read, or not to its end; one line.
    """

    path: str
    rows: int
    dead: int
    error: str | None = None


class Read(NamedTuple):
    """What `ReadChunks` gives.

    Attributes:
        chunks: the rows, in record batches with provenance.
        dead_letters: the rows that could not be read, in record batches.
        files: a `FileRead` for every split.
    """

    chunks: PCollection[pa.RecordBatch]
    dead_letters: PCollection[pa.RecordBatch]
    files: PCollection[FileRead]


@dataclass(eq=False)
class ReadChunks(beam.PTransform[PBegin, Read]):
    """Reads an input in chunks.

    Attributes:
        input: what to read, from `plan_input`.
        needed: columns that every file must have.
        chunk_rows: rows of a chunk at most.
        max_chunk_bytes: bytes of a chunk, about.
        model_version: what dead letters are stamped with.
    """

    input: Input
    needed: frozenset[str] = frozenset()
    chunk_rows: int = CHUNK_ROWS
    max_chunk_bytes: int = MAX_CHUNK_BYTES
    model_version: str | None = None

    def expand(self, pbegin: PBegin) -> Read:
        """Reads every split by itself."""
        reader = _ReadSplit(self.input.schema, self.needed, self.chunk_rows, self.max_chunk_bytes, self.model_version)
        outputs = (
            pbegin
            | "Splits" >> beam.Create(self.input.splits)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(reader).with_outputs(_DEAD_LETTERS, _FILES, main="chunks")
        )
        return Read(outputs.chunks, outputs[_DEAD_LETTERS], outputs[_FILES])


@beam.typehints.with_output_types(pa.RecordBatch, dead_letters=pa.RecordBatch, files=FileRead)
@dataclass
class _ReadSplit(beam.DoFn):
    schema: pa.Schema
    needed: frozenset[str]
    chunk_rows: int
    max_chunk_bytes: int
    model_version: str | None

    def process(self, split: Split) -> Iterator[Any]:
        rows = dead = 0
        error = None
        try:
            for piece in read_split(
                split, self.schema, self.needed, self.chunk_rows, self.max_chunk_bytes, self.model_version
            ):
                rows += piece.num_rows
                if isinstance(piece, BadRows):
                    dead += piece.num_rows
                    yield TaggedOutput(_DEAD_LETTERS, piece.dead_letters)
                else:
                    yield piece
        except BrokenFileError as broken:
            error = redact(str(broken))
        yield TaggedOutput(_FILES, FileRead(split.path, rows, dead, error))
