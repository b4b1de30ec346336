"""The transform that reads an input: splits are shuffled, chunks never are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PBegin, PCollection, TaggedOutput

from handlers.model.stores import SharesS3
from transforms.sources.ahead import ahead
from transforms.sources.blocks import CHUNK_ROWS, MAX_CHUNK_BYTES, ReadOptions, Split
from transforms.sources.planning import Input, grouped
from transforms.sources.splits import BadRows, FileRead, read_splits

_DEAD_LETTERS = "dead_letters"
_FILES = "files"


class Read(NamedTuple):
    """What `ReadChunks` gives.

    Attributes:
        chunks: the rows, in record batches with provenance.
        dead_letters: the rows that could not be read, in record batches.
        files: a `FileRead` for every split, in one list for each group of splits that were read together.
    """

    chunks: PCollection[pa.RecordBatch]
    dead_letters: PCollection[pa.RecordBatch]
    files: PCollection[list[FileRead]]


@dataclass(eq=False)
class ReadChunks(beam.PTransform[PBegin, Read]):
    """Reads an input in chunks.

    Attributes:
        input: what to read, from `plan_input`.
        needed: columns that every file must have.
        chunk_rows: rows of a chunk at most.
        max_chunk_bytes: bytes of a chunk at most, but for a single row that is larger.
        model_version: what dead letters are stamped with.
    """

    input: Input
    needed: frozenset[str] = frozenset()
    chunk_rows: int = CHUNK_ROWS
    max_chunk_bytes: int = MAX_CHUNK_BYTES
    model_version: str | None = None

    def expand(self, pbegin: PBegin) -> Read:
        """Reads every group of splits by itself."""
        options = ReadOptions(self.needed, self.chunk_rows, self.max_chunk_bytes)
        read = _ReadSplits(self.input.schema, options, self.model_version)
        outputs = (
            pbegin
            | "Splits" >> beam.Create(grouped(self.input.splits))
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(read).with_outputs(_DEAD_LETTERS, _FILES, main="chunks")
        )
        return Read(outputs.chunks, outputs[_DEAD_LETTERS], outputs[_FILES])


@beam.typehints.with_output_types(pa.RecordBatch, dead_letters=pa.RecordBatch, files=list[FileRead])
@dataclass
class _ReadSplits(SharesS3, beam.DoFn):
    schema: pa.Schema
    options: ReadOptions
    model_version: str | None

    def process(self, splits: tuple[Split, ...]) -> Iterator[Any]:
        files: list[FileRead] = []
        for piece in ahead(read_splits(splits, self.schema, self.options, self.model_version), _size):
            if isinstance(piece, FileRead):
                files.append(piece)
            elif isinstance(piece, BadRows):
                yield TaggedOutput(_DEAD_LETTERS, piece.dead_letters)
            else:
                yield piece
        yield TaggedOutput(_FILES, files)


def _size(piece: pa.RecordBatch | BadRows | FileRead) -> int:
    return int(piece.nbytes) if isinstance(piece, pa.RecordBatch) else 0
