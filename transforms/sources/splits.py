"""Reading a split into chunks and dead letters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chunks import (
    DEAD_LETTER,
    ROW,
    ROW_FIELD,
    SOURCE,
    SOURCE_FIELD,
    dead_letter_schema,
    dead_letters,
    with_provenance,
)
from handlers.errors import BrokenFileError, ServiceError
from handlers.failures import RowFailure, RowFailures
from handlers.model.stores import explain
from transforms.sources.blocks import CHUNK_ROWS, MAX_CHUNK_BYTES, Block, ReadOptions, Split, batch_of
from transforms.sources.formats import READERS


@dataclass(frozen=True)
class BadRows:
    """Rows that could not be read, as dead letters of the schema that was settled."""

    dead_letters: pa.RecordBatch

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return int(self.dead_letters.num_rows)


def read_split(
    split: Split,
    schema: pa.Schema,
    needed: frozenset[str] = frozenset(),
    chunk_rows: int = CHUNK_ROWS,
    max_chunk_bytes: int = MAX_CHUNK_BYTES,
    model_version: str | None = None,
) -> Iterator[pa.RecordBatch | BadRows]:
    """Reads the rows of a split.

    Args:
        split: what to read.
        schema: the settled columns, or some of them; without provenance.
        needed: columns that a file must have. Any other that it lacks is null.
        chunk_rows: rows of a chunk at most.
        max_chunk_bytes: bytes of a chunk, about.
        model_version: what dead letters are stamped with.

    Yields:
        Chunks of `schema` and provenance, and the rows that could not be read. Row numbers are positions in the file,
        from 0: of data rows in CSV, which a header does not count as, and of lines that are not blank in lines of
        JSON and text.

    Raises:
        BrokenFileError: the file cannot be read, or not to its end. `rows` says how many rows were yielded before.
    """
    options = ReadOptions(needed, chunk_rows, max_chunk_bytes)
    rows = 0
    try:
        for block in _blocks(split, schema, options):
            good, bad = _parted(block, split, schema, model_version)
            for chunk in cut(good, options):
                rows += chunk.num_rows
                yield chunk
            for letters in cut(bad, options) if bad is not None else ():
                rows += letters.num_rows
                yield BadRows(letters)
    except (MemoryError, ServiceError):
        raise
    except Exception as error:
        reason = explain(error)
        if split.name not in reason:
            reason = f"{split.name} cannot be read{' to its end' if rows else ''}: {reason}"
        raise BrokenFileError(reason, rows) from error


def _blocks(split: Split, schema: pa.Schema, options: ReadOptions) -> Iterator[Block]:
    """The blocks of the file of `split`, up to its `max_rows`, with the columns that are not those of folders."""
    folders = dict(split.partitions)
    columns = pa.schema([each for each in schema if each.name not in folders])
    if split.replay:
        columns = dead_letter_schema(columns)
    options = replace(options, needed=options.needed.difference(folders))
    blocks = READERS[split.format].blocks(split, columns, options)
    if split.max_rows is None:
        yield from blocks
        return
    left = split.max_rows
    while left > 0 and (block := next(blocks, None)) is not None:
        block = block.first(int(np.searchsorted(block.numbers, split.first_row + split.max_rows)))
        left -= block.rows
        yield block


def _parted(
    block: Block, split: Split, schema: pa.Schema, model_version: str | None
) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
    """The rows of `block` that go on as a chunk, and the dead letters of the others."""
    chunk = with_provenance(_whole(block, split, schema), split.source, block.numbers)
    refusals = block.refusals
    if split.replay:
        letters = block.batch.column(DEAD_LETTER)
        chunk = _with_first_provenance(chunk, letters, split.source)
        refusals = _dead_again(letters) | refusals
    if not refusals:
        return chunk, None
    positions = sorted(refusals)
    bad = dead_letters(chunk.take(pa.array(positions)), [refusals[position] for position in positions], model_version)
    keep = np.ones(chunk.num_rows, dtype=bool)
    keep[positions] = False
    return chunk.filter(pa.array(keep)), bad


def _whole(block: Block, split: Split, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema`: those of `block`, and those of the folders that it lies in."""
    folders = dict(split.partitions)

    def column(each: pa.Field) -> pa.Array:
        if each.name not in folders:
            return block.batch.column(each.name)
        value = folders[each.name]
        if value is not None and pa.types.is_integer(each.type):
            return pa.repeat(pa.scalar(int(value), each.type), block.rows)
        return pa.repeat(pa.scalar(value, each.type), block.rows)

    return batch_of([column(each) for each in schema], schema, block.rows)


def _with_first_provenance(chunk: pa.RecordBatch, letters: pa.StructArray, source: str) -> pa.RecordBatch:
    """`chunk` with the source and row number that its dead letters had at first."""
    sources = pc.coalesce(pc.struct_field(letters, "source"), pa.scalar(source)).dictionary_encode()
    rows = pc.coalesce(pc.struct_field(letters, "row"), chunk.column(ROW))
    names = chunk.schema.names
    return chunk.set_column(names.index(SOURCE), SOURCE_FIELD, sources).set_column(names.index(ROW), ROW_FIELD, rows)


def _dead_again(letters: pa.StructArray) -> RowFailures:
    """The dead letters whose row never fitted the columns: it still does not."""
    raw = pc.struct_field(letters, "raw")
    positions = np.flatnonzero(raw.is_valid().to_numpy(zero_copy_only=False))
    records = letters.take(pa.array(positions)).to_pylist()
    return {
        int(position): RowFailure(each["stage"], each["type"], each["message"], each["raw"])
        for position, each in zip(positions, records, strict=True)
    }


def cut(batch: pa.RecordBatch, options: ReadOptions) -> Iterator[pa.RecordBatch]:
    """Cuts `batch` into chunks of the size that `options` say."""
    size = options.max_chunk_bytes
    rows = options.chunk_rows
    if batch.nbytes > size:
        rows = max(min(rows, batch.num_rows * size // batch.nbytes), 1)
    for start in range(0, batch.num_rows, rows):
        piece = batch.slice(start, rows)
        if piece.num_rows > 1 and piece.nbytes > 2 * size:  # a few rows are much larger than the others
            yield from cut(piece, options)
        else:
            yield piece
