"""Reading a split into chunks and dead letters."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chunks import (
    DEAD_LETTER,
    MODEL_DEAD_LETTER_TYPE,
    ROW,
    ROW_FIELD,
    SOURCE,
    SOURCE_FIELD,
    dead_letter_schema,
    dead_letters,
    rows_within,
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


@dataclass(frozen=True)
class FileRead:
    """What was read of one split.

    Attributes:
        path: the file.
        rows: how many rows were handed on, as chunks or as dead letters.
        dead: how many of them were dead letters.
        error: why the file could not be read, or not to its end; one line.
        whole: the split is all of the file.
    """

    path: str
    rows: int
    dead: int
    error: str | None = None
    whole: bool = True


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
        max_chunk_bytes: bytes of a chunk at most, but for a single row that is larger.
        model_version: what dead letters are stamped with.

    Yields:
        Chunks of `schema` and provenance, and the rows that could not be read. Row numbers are positions in the file,
        from 0: of data rows in CSV, which a header does not count as, and of lines that are not blank in lines of
        JSON and text.

    Raises:
        BrokenFileError: the file cannot be read, or not to its end. `rows` says how many rows were yielded before.
    """
    for piece in read_splits([split], schema, ReadOptions(needed, chunk_rows, max_chunk_bytes), model_version):
        if not isinstance(piece, FileRead):
            yield piece
        elif piece.error is not None:
            raise BrokenFileError(piece.error, piece.rows)


def read_splits(
    splits: Iterable[Split], schema: pa.Schema, options: ReadOptions, model_version: str | None = None
) -> Generator[pa.RecordBatch | BadRows | FileRead]:
    """Reads splits one after the other. Rows of several small ones share a chunk, so that many files cost little more.

    Yields:
        What `read_split` does, and after all rows of a split its `FileRead`: where a file breaks, the others are read.
    """
    gathered = _Gathered(schema, options)
    done: list[FileRead] = []
    for split in splits:
        found = _Found()
        for part in _until_break(split, schema, options, model_version, found):
            if isinstance(part, Block):
                yield from gathered.add(split, part)
                continue
            yield from gathered.flush()  # so that the rows of a file stay in order
            good, bad = part
            yield from cut(good, options)
            yield from map(BadRows, cut(bad, options))
        done.append(FileRead(split.path, found.rows, found.dead, found.error, split.whole))
    yield from gathered.flush()
    yield from done


@dataclass
class _Found:
    """What was found in a split so far; the attributes are those of `FileRead`."""

    rows: int = 0
    dead: int = 0
    error: str | None = None


class _Gathered:
    """Blocks that become a chunk together, since they are small."""

    def __init__(self, schema: pa.Schema, options: ReadOptions) -> None:
        self._schema = schema
        self._options = options
        self._blocks: list[tuple[Split, Block]] = []
        self._rows = self._bytes = 0

    def add(self, split: Split, block: Block) -> Iterator[pa.RecordBatch]:
        """Takes a block in and gives the chunks that are full."""
        size = block.batch.get_total_buffer_size()  # cheaper than `nbytes`, and never less
        if self._blocks and (
            self._rows + block.rows > self._options.chunk_rows
            or self._bytes + size > self._options.max_chunk_bytes
            or not block.batch.schema.equals(self._blocks[0][1].batch.schema)  # some lie in folders of other keys
        ):
            yield from self.flush()
        self._blocks.append((split, block))
        self._rows += block.rows
        self._bytes += size
        if self._rows >= self._options.chunk_rows or self._bytes >= self._options.max_chunk_bytes:
            yield from self.flush()

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Gives what is left."""
        blocks, self._blocks, self._rows, self._bytes = self._blocks, [], 0, 0
        return cut(_chunk(blocks, self._schema), self._options) if blocks else iter(())


def _until_break(
    split: Split, schema: pa.Schema, options: ReadOptions, model_version: str | None, found: _Found
) -> Iterator[Block | tuple[pa.RecordBatch, pa.RecordBatch]]:
    """The blocks of a split up to where its file breaks, and `found` in them.

    Instead of a block with refusals, or of dead letters: the chunk of its good rows, and the dead letters.
    """
    try:
        for block in _blocks(split, schema, options):
            if block.refusals or split.replay:
                good, bad = _parted(block, split, schema, model_version)
                found.dead += bad.num_rows
                part: Block | tuple[pa.RecordBatch, pa.RecordBatch] = (good, bad)
            else:
                part = block
            found.rows += block.rows
            yield part
    except (MemoryError, ServiceError):
        raise
    except Exception as error:
        reason = explain(error)
        if split.name not in reason:
            reason = f"{split.name} cannot be read{' to its end' if found.rows else ''}: {reason}"
        found.error = reason


def _blocks(split: Split, schema: pa.Schema, options: ReadOptions) -> Iterator[Block]:
    """The blocks of the file of `split`, up to its `max_rows`, with the columns that are not those of folders."""
    folders = dict(split.partitions)
    columns = pa.schema([each for each in schema if each.name not in folders]) if folders else schema
    if split.replay:
        columns = dead_letter_schema(columns, MODEL_DEAD_LETTER_TYPE)
    if folders:
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
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The rows of `block` that go on as a chunk, and the dead letters of the others."""
    chunk = _chunk([(split, block)], schema)
    refusals = block.refusals
    if split.replay:
        letters = block.batch.column(DEAD_LETTER)
        chunk = _with_first_provenance(chunk, letters, split.source)
        refusals = _dead_again(letters) | refusals
    positions = sorted(refusals)
    failures = [refusals[position] for position in positions]
    bad = dead_letters(chunk.take(pa.array(positions, pa.int64())), failures, model_version)
    keep = np.ones(chunk.num_rows, dtype=bool)
    keep[positions] = False
    return chunk.filter(pa.array(keep)) if positions else chunk, bad


def _chunk(blocks: Sequence[tuple[Split, Block]], schema: pa.Schema) -> pa.RecordBatch:
    """One chunk of the rows of `blocks`, with the columns of the folders that they lie in, and provenance."""
    batches = [block.batch for _, block in blocks]
    batch = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    counts = [block.rows for _, block in blocks]
    rows = sum(counts)
    codes = pa.array(np.repeat(np.arange(len(blocks), dtype=np.int32), counts))
    folders = [dict(split.partitions) for split, _ in blocks]
    arrays = dict(zip(batch.schema.names, batch.columns, strict=True))

    def column(each: pa.Field) -> pa.Array:
        if each.name not in folders[0]:
            return arrays[each.name]
        values = [folder[each.name] for folder in folders]
        if pa.types.is_integer(each.type):
            return pa.array([value and int(value) for value in values], each.type).take(codes)
        return pa.array(values, each.type).take(codes)

    whole = batch_of([column(each) for each in schema], schema, rows)
    sources = pa.array([split.source for split, _ in blocks]).dictionary_encode()
    numbers = np.concatenate([block.numbers for _, block in blocks])
    return with_provenance(whole, sources.take(codes), numbers)


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
    start = 0
    while start < batch.num_rows:
        rows = rows_within(batch, start, options.chunk_rows, options.max_chunk_bytes)
        yield batch.slice(start, rows)
        start += rows
