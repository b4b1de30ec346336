"""Parquet: split by runs of row groups, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

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
# Pages are read through a buffer of this size, so that a column chunk of any size never lies in memory whole.
# Not from an object store: there every jump from one column to another would be a request of its own.
_BUFFER = 1 << 20


def plan(files: Sequence[InputFile], numeric: Numeric) -> Plan:
    """Reads the footers of all files. One that cannot be read is a split all the same, and fails when it is read."""
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(_footer, files))
    schema = pa.schema([])
    splits: list[Split] = []
    for file, footer in zip(files, footers, strict=True):
        if footer is None:
            splits.append(Split(file.path, NAME, file.partitions))
            continue
        metadata, columns = footer
        splits += _splits(file, metadata)
        try:
            schema = unify(schema, columns)
        except pa.ArrowException:
            continue  # types without a common one: the first file wins, and this one fails when it is read
    # Text that an earlier run wrote for numbers is numbers again where it feeds an input of floats, as in dead letters.
    numbers = numeric(schema.names)
    schema = pa.schema([each if each.name in numbers else each.remove_metadata() for each in schema])
    return Plan(schema, splits)


def _footer(file: InputFile) -> tuple[pq.FileMetaData, pa.Schema] | None:
    try:
        with open_input(file.path) as source:
            opened = pq.ParquetFile(source)
            return opened.metadata, plain_schema(opened.schema_arrow)
    except Exception:
        return None


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
    with open_input(split.path) as source:
        buffer = 0 if isinstance(source, pa.PythonFile) else _BUFFER
        file = pq.ParquetFile(source, buffer_size=buffer, pre_buffer=False)
        names = file.schema_arrow.names
        check_columns(names, options.needed, split)
        check_types(plain_schema(file.schema_arrow), schema, split)
        known = set(names)
        columns = [name for name in schema.names if name in known] or names[:1]  # one, to count the rows by
        row = split.first_row
        for group in range(*(split.row_groups or (0, file.num_row_groups))):
            metadata = file.metadata.row_group(group)
            fitting = options.max_chunk_bytes * metadata.num_rows // max(metadata.total_byte_size, 1)
            size = max(min(options.chunk_rows, fitting), 1)
            for batch in file.iter_batches(size, row_groups=[group], columns=columns):
                numbers = np.arange(row, row + batch.num_rows, dtype=np.int64)
                if batch.schema.equals(schema):
                    yield Block(batch, numbers)
                else:
                    yield fit(batch, schema, numbers, split, cast=widened, raw=dumps)
                row += batch.num_rows
