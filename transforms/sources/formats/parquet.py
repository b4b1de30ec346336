"""Parquet: split by runs of row groups, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.sources.blocks import (
    Block,
    Numeric,
    Plan,
    ReadOptions,
    Split,
    as_json,
    check_columns,
    check_types,
    fit,
    unify,
)
from transforms.sources.files import InputFile, open_input

NAME = "parquet"
EXTENSIONS = (".parquet", ".pq", ".parq")
COMPRESSED = False

SPLIT_BYTES = 128 << 20
SPLIT_ROWS = 1_000_000
# Pages are read through a buffer of this size, so that a column chunk of any size never lies in memory whole.
# Not from an object store: there every jump from one column to another would be a request of its own.
_BUFFER = 1 << 20
_SMALL = 1 << 20  # a file of up to this size is read at once, and by one thread: more take longer to start
_FOOTERS = 64  # read by one task: the footer of a small file is read sooner than a thread takes it up

_Footer = tuple[list[Split], pa.Schema | None]


def plan(files: Sequence[InputFile], _numeric: Numeric) -> Plan:
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
    """`schema` without metadata, its dictionary columns as the values that they stand for."""

    def plain(kind: pa.DataType) -> pa.DataType:
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    return pa.schema([pa.field(each.name, plain(each.type)) for each in schema])


def blocks(split: Split, schema: pa.Schema, options: ReadOptions) -> Iterator[Block]:
    """Reads the row groups of a split."""
    small = 0 < split.bytes <= _SMALL
    with open_input(split.path, whole=small) as source:
        buffer = 0 if small or isinstance(source, pa.PythonFile) else _BUFFER
        file = pq.ParquetFile(source, buffer_size=buffer, pre_buffer=False)
        found = file.schema_arrow
        plain = found.equals(schema) and options.needed.issubset(schema.names)
        columns = None if plain else _columns(found, schema, split, options)
        row = split.first_row
        for group in range(*(split.row_groups or (0, file.num_row_groups))):
            metadata = file.metadata.row_group(group)
            fitting = options.max_chunk_bytes * metadata.num_rows // max(metadata.total_byte_size, 1)
            size = max(min(options.chunk_rows, fitting), 1)
            for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=not small):
                numbers = np.arange(row, row + batch.num_rows, dtype=np.int64)
                if batch.schema.equals(schema):
                    yield Block(batch, numbers)
                else:
                    yield fit(batch, schema, numbers, split, cast=pc.cast, raw=as_json)
                row += batch.num_rows


def _columns(found: pa.Schema, schema: pa.Schema, split: Split, options: ReadOptions) -> list[str]:
    """The columns to read of a file whose columns are not just those of `schema`; raises where they cannot be used."""
    check_columns(found.names, options.needed, split)
    check_types(plain_schema(found), schema, split)
    known = set(found.names)
    return [name for name in schema.names if name in known] or found.names[:1]  # one, to count the rows by
