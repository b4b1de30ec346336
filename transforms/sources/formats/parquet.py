"""Parquet: split by runs of row groups, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from handlers.columnar.chunks import NUMBERS
from transforms.sources.blocks import (
    Block,
    Numeric,
    Plan,
    ReadOptions,
    Split,
    check_columns,
    check_types,
    fit,
    unify,
    widened,
)
from transforms.sources.digits import dumps
from transforms.sources.files import InputFile, open_input

NAME = "parquet"
EXTENSIONS = (".parquet", ".pq", ".parq")
COMPRESSED = False

SPLIT_BYTES = 128 << 20
SPLIT_ROWS = 1_000_000
# Pages are read through a buffer of such a size for each column, so that a column chunk never lies in memory whole.
# Not from an object store: there every jump from one column to another would be a request of its own.
_LEAST_BUFFER, _BUFFER = 16 << 10, 1 << 20
_FIRST_ROWS = 16  # read at first where nobody knows how large rows are, and up to 32 times as many with each step
_STEP = 32
_PROVENANCE_BYTES = 12  # that a row of a chunk has beside its columns
_SMALL = 1 << 20  # a file of up to this size is read at once, and by one thread: more take longer to start
_FOOTERS = 64  # read by one task: the footer of a small file is read sooner than a thread takes it up

_Footer = tuple[list[Split], pa.Schema | None]


def plan(files: Sequence[InputFile], numeric: Numeric) -> Plan:
    """Reads the footers of all files. One that cannot be read is a split all the same, and fails when it is read."""
    tasks = [files[start : start + _FOOTERS] for start in range(0, len(files), _FOOTERS)]
    schema = pa.schema([])
    splits: list[Split] = []
    last: pa.Schema | None = None
    with ThreadPoolExecutor(16) as pool:
        for found, columns in chain.from_iterable(pool.map(_footers, tasks)):
            splits += found
            if columns is None or columns is last:
                continue
            last = columns
            try:
                schema = unify(schema, columns)
            except pa.ArrowException:
                continue  # types without a common one: the first file wins, and this one fails when it is read
    # Text that an earlier run wrote for numbers is numbers again where it feeds an input of floats, as in dead letters.
    numbers = numeric(schema.names)
    schema = pa.schema([each if each.name in numbers else each.remove_metadata() for each in schema])
    return Plan(schema, splits)


def _footers(files: Sequence[InputFile]) -> list[_Footer]:
    """What the footers say. They are not kept: in memory each takes 35 KB for 20 columns, and is as soon read again."""
    found: list[_Footer] = []
    raw = columns = pa.schema([])
    for file in files:
        try:
            with open_input(file.path) as source:
                opened = pq.ParquetFile(source)
                if not opened.schema_arrow.equals(raw):  # mostly that of the file before
                    raw = opened.schema_arrow
                    columns = plain_schema(raw)
                found.append((list(_splits(file, opened.metadata)), columns))
        except Exception:
            found.append(([Split(file.path, NAME, file.partitions)], None))
    return found


def _splits(file: InputFile, metadata: pq.FileMetaData) -> Iterator[Split]:
    start = first_row = rows = size = 0
    for group in range(metadata.num_row_groups):
        each = metadata.row_group(group)
        if group > start and (size + each.total_byte_size > SPLIT_BYTES or rows + each.num_rows > SPLIT_ROWS):
            yield Split(file.path, NAME, file.partitions, (start, group), first_row, rows)
            start, first_row, rows, size = group, first_row + rows, 0, 0
        rows += each.num_rows
        size += each.total_byte_size
    yield Split(file.path, NAME, file.partitions, (start, metadata.num_row_groups), first_row, rows)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` without metadata but `NUMBERS`, its dictionary columns as the values that they stand for."""

    def plain(kind: pa.DataType) -> pa.DataType:
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    return pa.schema([pa.field(each.name, plain(each.type), metadata=_numbers(each)) for each in schema])


def _numbers(column: pa.Field) -> dict[bytes, bytes] | None:
    return NUMBERS if column.metadata and column.metadata.items() >= NUMBERS.items() else None


def blocks(split: Split, schema: pa.Schema, options: ReadOptions) -> Iterator[Block]:
    """Reads the row groups of a split."""
    small = split.whole and 0 < split.bytes <= _SMALL
    with open_input(split.path, whole=small) as source:
        buffered = not small and not isinstance(source, pa.PythonFile)
        file = pq.ParquetFile(source, buffer_size=_buffer(schema, options) if buffered else 0, pre_buffer=False)
        found = file.schema_arrow
        plain = found.equals(schema) and options.needed.issubset(schema.names)
        columns = None if plain else _columns(found, schema, split, options)
        row = split.first_row
        size = _Rows(schema, options)
        for group in range(*(split.row_groups or (0, file.num_row_groups))):
            size.enter(file.metadata.row_group(group))
            for batch in file.iter_batches(size.next(), row_groups=[group], columns=columns, use_threads=not small):
                numbers = np.arange(row, row + batch.num_rows, dtype=np.int64)
                block = Block(batch, numbers)
                if not batch.schema.equals(schema):
                    block = fit(batch, schema, numbers, split, cast=widened, raw=dumps)
                size.seen(block.batch)
                file.reader.set_batch_size(size.next())  # which it looks up for each batch
                row += block.rows
                yield block


def _buffer(schema: pa.Schema, options: ReadOptions) -> int:
    """Bytes of the buffer of each column: half a chunk for all of them."""
    return min(max(options.max_chunk_bytes // 2 // max(len(schema), 1), _LEAST_BUFFER), _BUFFER)


class _Rows:
    """How many rows to read next, so that they have about the bytes of a chunk.

    The footer tells how large rows of fixed width are. Of others it tells only what they take in the file, where a
    text that many rows have is there once: so a few are read, and what they take in memory is looked at.
    """

    def __init__(self, schema: pa.Schema, options: ReadOptions) -> None:
        self._options = options
        self._known = _row_bytes(schema)
        self._most = options.chunk_rows if self._known else min(options.chunk_rows, _FIRST_ROWS)
        self._in_file = 1.0
        self._since = 0  # rows since the last full chunk

    def enter(self, group: pq.RowGroupMetaData) -> None:
        """A row group is read now."""
        self._in_file = group.total_byte_size / max(group.num_rows, 1)

    def seen(self, batch: pa.RecordBatch) -> None:
        """A batch was read."""
        self._since = (self._since + batch.num_rows) % self._options.chunk_rows
        if not self._known:
            fitting = self._options.max_chunk_bytes * batch.num_rows // max(batch.nbytes, 1)
            self._most = max(min(fitting, batch.num_rows * _STEP, self._options.chunk_rows), 1)

    def next(self) -> int:
        """How many rows to read."""
        fitting = int(self._options.max_chunk_bytes / max(self._known or self._in_file, 1.0))
        return max(min(self._most, fitting, self._options.chunk_rows - self._since), 1)


def _row_bytes(schema: pa.Schema) -> float | None:
    """What a row takes in a chunk, where it may be null; None where one may take more than another."""
    try:
        return float(sum(each.type.bit_width + 1 for each in schema)) / 8 + _PROVENANCE_BYTES
    except ValueError:
        return None


def _columns(found: pa.Schema, schema: pa.Schema, split: Split, options: ReadOptions) -> list[str]:
    """The columns to read of a file whose columns are not just those of `schema`; raises where they cannot be used."""
    check_columns(found.names, options.needed, split)
    check_types(plain_schema(found), schema, split)
    known = set(found.names)
    return [name for name in schema.names if name in known] or found.names[:1]  # one, to count the rows by
