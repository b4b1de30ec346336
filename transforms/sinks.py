"""Writing chunks to files: Parquet, CSV and JSON lines.

A sink writes to a temporary folder, each attempt of a bundle under a name of its own, and says what it wrote only once
the file is closed. `transforms.publish` gives the files their final names; what a failed attempt left behind goes with
the temporary folder.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import base64
import datetime
import decimal
import io
import json
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import apache_beam as beam
import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindows

from handlers.errors import TorchbeamError, UsageError
from handlers.stores import create_empty, explain, mend_s3

mend_s3()

FILE_BYTES = 512 * 2**20
# Rows that are encoded together, and become a row group of a Parquet file: the whole of what a sink holds in memory is
# two of them. Groups of single chunks take as long to write, but many make a file slow to open and to scan.
GROUP_ROWS = 128 * 1024
GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Part:
    """A file that was written to its end."""

    path: str
    rows: int


class Encoder(Protocol):
    """Writes tables of one schema to an open file; closing it completes the format and leaves the file open."""

    def write(self, table: pa.Table) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Sink:
    """An output format.

    Attributes:
        name: what `--output_format` says.
        extension: of the files, with its dot.
        encoder: makes the encoder for an open file and a schema.
        check: raises `UsageError` for a schema that the format cannot hold.
    """

    name: str
    extension: str
    encoder: Callable[[pa.NativeFile, pa.Schema], Encoder]
    check: Callable[[pa.Schema], None]


def sink(output_format: str) -> Sink:
    """The sink called `output_format`."""
    if output_format not in SINKS:
        raise UsageError(f"--output_format={output_format}: unknown; write one of {', '.join(SINKS)}")
    return SINKS[output_format]


def dead_letter_format(output_format: str) -> str:
    """The format of the dead letters beside predictions in `output_format`: the same, but Parquet where it is CSV.

    A dead letter has a struct that CSV cannot hold.
    """
    return "parquet" if output_format == "csv" else output_format


# Parquet


class _ParquetEncoder:
    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        # Trying a dictionary on measured floats takes three times as long as writing them, and is given up anyway.
        self._writer = pq.ParquetWriter(
            file, schema, compression="snappy", use_dictionary=_columns_without_floats(schema) or False
        )

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=GROUP_ROWS)

    def close(self) -> None:
        self._writer.close()


def _columns_without_floats(schema: pa.Schema) -> list[str]:
    """The paths of the columns of a Parquet file of `schema` (leaves, where they are nested) that hold no floats."""
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    leaves = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    columns = [leaves.column(index) for index in range(len(leaves))]
    return [column.path for column in columns if column.physical_type not in ("FLOAT", "DOUBLE", "BOOLEAN")]


def _check_parquet(schema: pa.Schema) -> None:
    try:
        pq.write_table(schema.empty_table(), pa.BufferOutputStream())
    except pa.ArrowException as error:
        raise UsageError(
            f"--output_format=parquet cannot hold these columns ({error}): leave them out by --columns"
        ) from None


# CSV


class _CsvEncoder:
    """Strings are quoted and null is nothing, so that null and the empty string stay apart."""

    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        self._writer = pyarrow.csv.CSVWriter(file, schema)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


def _check_csv(schema: pa.Schema) -> None:
    for column in schema:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if _is_binary(kind) or not _csv_takes(column):
            raise UsageError(
                f"--output_format=csv cannot hold column {column.name} ({column.type}): write parquet or jsonl"
            )


def _csv_takes(column: pa.Field) -> bool:
    try:
        pyarrow.csv.write_csv(pa.schema([column]).empty_table(), pa.BufferOutputStream())
    except pa.ArrowException:
        return False
    return True


# JSON lines


class _JsonlEncoder:
    """One JSON object a line.

    Dates and times are ISO 8601, binary values base64, decimals strings (a JSON number would lose digits). What JSON
    has no number for (NaN, infinity) is null. A map is a list of pairs.
    """

    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        self._file = file
        self._fast = all(_is_binary(column.type) or _polars_writes(column.type) for column in schema)

    def write(self, table: pa.Table) -> None:
        if table.num_rows:
            self._file.write(_by_polars(table) if self._fast else _by_python(table))

    def close(self) -> None:
        pass


def _check_jsonl(schema: pa.Schema) -> None:
    del schema  # JSON takes everything that Arrow has


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _polars_writes(kind: pa.DataType, *, nested: bool = False) -> bool:
    """Whether Polars writes values of `kind` as `_JsonlEncoder` says; about ten times faster than Python does."""
    types = pa.types
    if types.is_struct(kind):
        return all(_polars_writes(member.type, nested=True) for member in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _polars_writes(kind.value_type, nested=True)
    if types.is_dictionary(kind):
        return bool(types.is_string(kind.value_type) or types.is_large_string(kind.value_type))
    if types.is_timestamp(kind):  # written with a space for the T where it has no time zone, which is mended at the top
        return not nested or kind.tz is not None
    return bool(
        types.is_integer(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_date32(kind)
        or types.is_float32(kind)
        or types.is_float64(kind)
        or types.is_null(kind)
    )


def _by_polars(table: pa.Table) -> memoryview:
    for index, column in enumerate(table.schema):
        if _is_binary(column.type):
            table = table.set_column(index, column.name, _base64(table.column(index)))
    frame = pl.DataFrame(pl.from_arrow(table))
    iso = cs.datetime(time_zone=None).dt.to_string("iso:strict")
    lines = io.BytesIO()
    frame.with_columns(iso).write_ndjson(lines)
    return lines.getbuffer()


def _base64(column: pa.ChunkedArray) -> pa.Array:
    encoded = (None if value is None else base64.b64encode(value).decode() for value in column.to_pylist())
    return pa.array(encoded, pa.string())


def _by_python(table: pa.Table) -> bytes:
    lines = (json.dumps(_plain(row), ensure_ascii=False, separators=(",", ":")) for row in table.to_pylist())
    return "".join(line + "\n" for line in lines).encode()


def _plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return f"PT{decimal.Decimal(value // datetime.timedelta(microseconds=1)).scaleb(-6).normalize():f}S"
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value


# A format to come (Avro) is one more line here; BigQuery, which has no files, is a transform beside `WriteChunks`.
SINKS = {
    "parquet": Sink("parquet", ".parquet", _ParquetEncoder, _check_parquet),
    "csv": Sink("csv", ".csv", _CsvEncoder, _check_csv),
    "jsonl": Sink("jsonl", ".jsonl", _JsonlEncoder, _check_jsonl),
}


# Files


def create(path: str) -> pa.NativeFile:
    """Opens `path`, local or remote, for writing; its folders are made."""
    if FileSystems.get_scheme(path) is None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return pa.OSFile(path, "wb")
    return pa.PythonFile(FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED), mode="w")


def write_empty(path: str, schema: pa.Schema, output_format: str) -> None:
    """Writes a file of no rows to `path`: Parquet with its schema, CSV with its header, JSON lines of no line."""
    content = pa.BufferOutputStream()
    encoder = sink(output_format).encoder(content, schema)
    encoder.write(schema.empty_table())
    encoder.close()
    if not content.tell() and FileSystems.get_scheme(path) is not None:
        create_empty(path)
        return
    with create(path) as file:
        file.write(content.getvalue())


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `batch` that `schema` names, in its order and its types.

    Provenance and other columns are left out. A type that differs is cast where no value changes by it, as from a
    dictionary to its values; another one, and a column that is not there, are errors.
    """
    if batch.schema.equals(schema):
        return batch
    missing = [name for name in schema.names if name not in batch.schema.names]
    if missing:
        raise TorchbeamError(
            f"a chunk to be written has no column {', '.join(missing)}; it has {', '.join(batch.schema.names)}"
        )
    try:
        columns = [_cast(batch.column(column.name), column.type) for column in schema]
    except pa.ArrowException as error:
        raise TorchbeamError(f"a chunk to be written does not fit the columns of the output: {error}") from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(column.type):
        return column.cast(kind.value_type).dictionary_encode().cast(kind)
    return column.cast(kind)


class _Roll:
    """Writes tables to one file after the other, each up to about `max_bytes`."""

    def __init__(self, folder: str, schema: pa.Schema, output_format: str, max_bytes: int) -> None:
        self._folder = folder
        self._schema = schema
        self._sink = sink(output_format)
        self._max_bytes = max_bytes
        self._file: pa.NativeFile | None = None
        self._encoder: Encoder | None = None
        self._path = ""
        self._rows = 0
        self._parts: list[Part] = []

    def write(self, batches: list[pa.RecordBatch]) -> None:
        if self._file is None:
            self._path = _path_of_attempt(self._folder, self._sink.extension)
            self._file = create(self._path)
            self._encoder = self._sink.encoder(self._file, self._schema)
            self._rows = 0
        assert self._encoder is not None  # noqa: S101 - it was opened with the file
        table = pa.Table.from_batches(batches, self._schema)
        self._encoder.write(table)
        self._rows += table.num_rows
        if self._file.tell() >= self._max_bytes:
            self._end_file()

    def finish(self) -> list[Part]:
        self._end_file()
        return self._parts

    def abandon(self) -> None:
        """Closes the file and forgets it: nobody hears of it."""
        file, encoder, self._file, self._encoder = self._file, self._encoder, None, None
        if file is not None:
            # The error that led here is the one to be told, not those that it leads to.
            if encoder is not None:
                with suppress(Exception):
                    encoder.close()
            with suppress(Exception):
                file.close()

    def _end_file(self) -> None:
        if self._file is not None and self._encoder is not None:
            self._encoder.close()
            self._file.close()
            self._parts.append(Part(self._path, self._rows))
            self._file = self._encoder = None


def _path_of_attempt(folder: str, extension: str) -> str:
    """A name that no other attempt uses; names sort by the time at which they were given."""
    return f"{folder.rstrip('/')}/part-{time.time_ns() // 1000:014x}-{uuid.uuid4().hex[:12]}{extension}"


class Writer:
    """Writes chunks in a thread of its own, so that encoding overlaps with scoring; Arrow lets go of the GIL for it.

    One group of chunks is encoded while the next is gathered. An error in the thread is raised by the next call.
    """

    def __init__(self, folder: str, schema: pa.Schema, output_format: str, max_bytes: int = FILE_BYTES) -> None:
        self._schema = schema
        self._group_bytes = min(GROUP_BYTES, max_bytes)
        self._roll = _Roll(folder, schema, output_format, max_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._writing: Future[None] | None = None
        self._group: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def write(self, chunk: pa.RecordBatch) -> None:
        """Takes `chunk` to be written; may wait for the group before."""
        if chunk.num_rows == 0:
            return
        batch = conform(chunk, self._schema)
        if self._group and self._rows + batch.num_rows > GROUP_ROWS:
            self._hand_over()
        self._group.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= self._group_bytes:
            self._hand_over()

    def finish(self) -> list[Part]:
        """Writes what is left, closes the file and gives the parts."""
        self._hand_over()
        self._wait()
        parts = self._thread.submit(self._roll.finish).result()
        self._thread.shutdown()
        return parts

    def abandon(self) -> None:
        """Ends the thread and closes the file without telling of it."""
        self._group = []
        self._thread.shutdown(cancel_futures=True)
        self._roll.abandon()

    def _hand_over(self) -> None:
        self._wait()
        if self._group:
            group, self._group, self._rows, self._bytes = self._group, [], 0, 0
            self._writing = self._thread.submit(self._roll.write, group)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(Part)
class _WriteFn(beam.DoFn):
    def __init__(self, folder: str, schema: pa.Schema, output_format: str, max_bytes: int) -> None:
        self._arguments = (folder, schema, output_format, max_bytes)
        self._writer: Writer | None = None

    def start_bundle(self) -> None:
        self._abandon()  # where the last bundle failed, in this step or another

    def process(self, chunk: pa.RecordBatch) -> None:
        with self._guarded():
            if self._writer is None:
                self._writer = Writer(*self._arguments)
            self._writer.write(chunk)

    def finish_bundle(self) -> Iterable[Any]:
        if self._writer is None:
            return []
        with self._guarded():
            parts = self._writer.finish()
        self._writer = None
        return [GlobalWindows.windowed_value_at_end_of_window(part) for part in parts]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._abandon()
            if isinstance(error, TorchbeamError):
                raise
            raise TorchbeamError(f"{self._arguments[0]} cannot be written: {explain(error)}") from error

    def teardown(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()


@dataclass(eq=False)
class WriteChunks(beam.PTransform[Any, Any]):
    """Writes chunks to files under `folder`: `PCollection[pa.RecordBatch]` to `PCollection[Part]`.

    Attributes:
        folder: a temporary folder; see `transforms.publish`.
        schema: of the files, without provenance.
        output_format: parquet, csv or jsonl.
        max_bytes: a file that has grown to this size is closed and another one opened.
    """

    folder: str
    schema: pa.Schema
    output_format: str = "parquet"
    max_bytes: int = FILE_BYTES

    def __post_init__(self) -> None:
        sink(self.output_format).check(self.schema)

    def expand(self, chunks: PCollection[pa.RecordBatch]) -> PCollection[Part]:
        """Writes in each bundle; which windows the chunks are in makes no difference to the files."""
        write = _WriteFn(self.folder, self.schema, self.output_format, self.max_bytes)
        parts: PCollection[Part] = chunks | "Global" >> beam.WindowInto(GlobalWindows()) | "Write" >> beam.ParDo(write)
        return parts
