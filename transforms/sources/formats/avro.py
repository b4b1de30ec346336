"""Avro: the columns are those of the files' own schemas; `transforms.avro_types` says what becomes of each type.

The file is read block by block, and rows are decoded as values without logical types, which only Arrow gives them: a
value that does not fit costs its row, not the file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from handlers.errors import BrokenFileError
from transforms.avro_types import Values, columns_of, without_logical_types
from transforms.sources.blocks import (
    Block,
    Numeric,
    Plan,
    ReadOptions,
    Split,
    check_columns,
    check_types,
    convert,
    misfit,
    unify,
    widened,
)
from transforms.sources.digits import dumps
from transforms.sources.files import InputFile, open_input

NAME = "avro"
EXTENSIONS = (".avro",)
COMPRESSED = False

# Rows that are decoded together: as Python's objects they take many times the memory that they will as a chunk.
_ROWS = 8192
_BUFFER = 1 << 20
_HEADER: dict[str, Any] = {
    "type": "record",
    "name": "org.apache.avro.file.Header",
    "fields": [
        {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": 4}},
        {"name": "meta", "type": {"type": "map", "values": "bytes"}},
        {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": 16}},
    ],
}
_MAGIC = b"Obj\x01"

_Columns = dict[str, tuple[str, Values]]


def plan(files: Sequence[InputFile], _numeric: Numeric) -> Plan:
    """Reads the headers of all files; one split a file. One without a header fails when it is read."""
    with ThreadPoolExecutor(16) as pool:
        schemas = list(pool.map(_schema, files))
    schema = pa.schema([])
    for columns in filter(None, schemas):
        try:
            schema = unify(schema, columns)
        except pa.ArrowException:
            continue  # types without a common one: the first file wins, and this one fails when it is read
    return Plan(schema, [Split(file.path, NAME, file.partitions) for file in files])


def _schema(file: InputFile) -> pa.Schema | None:
    try:
        with open_input(file.path) as source:
            return _arrow_schema(columns_of(_header(_Reader(source))[1]))
    except Exception:
        return None


def _arrow_schema(columns: _Columns) -> pa.Schema:
    return pa.schema([(name, values.type) for name, (_, values) in columns.items()])


def blocks(split: Split, schema: pa.Schema, options: ReadOptions) -> Iterator[Block]:
    """Reads the rows of a file. Those of a block that breaks are given as far as they can be decoded."""
    with open_input(split.path) as source:
        reader = _Reader(source)
        header, declared = _header(reader)
        columns = columns_of(declared)
        check_columns(list(columns), options.needed, split)
        check_types(_arrow_schema(columns), schema, split)
        number = 0
        for rows in _pieces(_without_logical_types(reader, header, declared), options):
            yield _block(rows, number, columns, schema, split)
            number += len(rows)


class _Reader:
    """The bytes of a file, of which never more are asked for than it has: a size that is damaged may be any number."""

    def __init__(self, source: pa.NativeFile) -> None:
        self.size = int(source.size())
        self._file = pa.BufferedInputStream(source, _BUFFER)
        self._head = io.BytesIO()
        self._at = 0

    def put_back(self, head: bytes) -> None:
        """Has `head` read before all that is left."""
        self._head = io.BytesIO(head)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.size:
            raise BrokenFileError(f"a block says that it has {size} bytes")
        if data := self._head.read(size):
            return data
        data = bytes(self._file.read(size))
        self._at += len(data)
        return data

    def tell(self) -> int:
        """The position in the file."""
        return self._at


def _header(reader: _Reader) -> tuple[dict[str, Any], Any]:
    """The header of a file, and its schema as JSON has it."""
    if not reader.size:
        raise BrokenFileError("it is empty, and no Avro file")
    magic = reader.read(min(len(_MAGIC), reader.size))
    if magic != _MAGIC:
        raise BrokenFileError("it is no Avro file")
    reader.put_back(magic)
    try:
        header: Any = fastavro.schemaless_reader(reader, _HEADER, None)  # type: ignore[arg-type]
    except EOFError:
        raise BrokenFileError("it ends within its header") from None
    return header, json.loads(header["meta"]["avro.schema"])


def _without_logical_types(reader: _Reader, header: dict[str, Any], declared: Any) -> _Reader:
    """`reader`, which is past the header, with a header again: one whose schema has no logical types."""
    schema = json.dumps(without_logical_types(declared)).encode()
    head = io.BytesIO()
    fastavro.schemaless_writer(head, _HEADER, header | {"meta": header["meta"] | {"avro.schema": schema}})
    reader.put_back(head.getvalue())
    return reader


def _pieces(reader: _Reader, options: ReadOptions) -> Iterator[list[dict[str, Any]]]:
    """The rows, some thousand at a time; an error is raised after all rows before it."""
    rows: list[dict[str, Any]] = []
    error: Exception | None = None
    opened = fastavro.block_reader(reader, handle_unicode_errors="surrogateescape")  # type: ignore[arg-type]
    size = 1
    found = _rows(opened, reader, options)
    while error is None:
        try:
            row, size = next(found)
            rows.append(row)
        except StopIteration:
            break
        except Exception as broken:
            error = broken
        if len(rows) >= size:
            yield rows
            rows = []
    if rows:
        yield rows
    if error is not None:
        raise error


def _rows(opened: Any, reader: _Reader, options: ReadOptions) -> Iterator[tuple[dict[str, Any], int]]:
    """Every row, and how many of its size may be held together."""
    end = reader.tell()
    for block in opened:
        payload: io.BytesIO = block.bytes_
        per_row = max(payload.getbuffer().nbytes // max(block.num_records, 1), 1)
        size = max(min(_ROWS, options.chunk_rows, options.max_chunk_bytes // per_row), 1)
        for row in block:
            yield row, size
        if block.num_records < 0 or payload.read(1):
            raise BrokenFileError("a block holds more than the rows that it tells of")
        end = reader.tell()
    if reader.tell() != end:
        raise EOFError("it ends within a block")


def _block(rows: list[dict[str, Any]], number: int, columns: _Columns, schema: pa.Schema, split: Split) -> Block:
    def column(each: pa.Field, start: int, stop: int) -> pa.Array:
        if each.name not in columns:
            return pa.nulls(stop - start, each.type)
        stored, values = columns[each.name]
        array = values.array([row[stored] for row in rows[start:stop]])
        return array if array.type == each.type else widened(array, each.type)

    batch, misfits = convert(schema, len(rows), column)
    numbers = np.arange(number, number + len(rows), dtype=np.int64)
    refusals = {}
    for position, each in misfits.items():
        row = {name: _valid(rows[position][stored]) for name, (stored, _) in columns.items()}
        refusals[position] = misfit(each, row[each.name], number + position, split, dumps(row))
    return Block(batch, numbers, refusals)


def _valid(value: Any) -> Any:
    """`value` with the usual character for each byte in it that is not UTF-8."""
    if isinstance(value, dict):
        return {_valid(key): _valid(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_valid(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.encode(errors="surrogateescape").decode(errors="replace") if isinstance(value, str) else value
