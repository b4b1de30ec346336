"""Writes chunks to files, in the formats of `transforms.sinks.formats`.

A sink writes to a temporary folder, with a unique file name for each attempt of a bundle, and outputs a `Part` only once
the file is closed. `transforms.sinks.publish` renames the files; the files of failed attempts are removed with the
temporary folder.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindows

from handlers.columnar.chunks import exact_cast
from handlers.errors import TorchbeamError
from handlers.model.stores import SharesS3, create_empty, explain
from handlers.paths import is_remote
from transforms.file_ops import create
from transforms.sinks.formats import Encoder, sink
from transforms.sinks.formats.parquet import GROUP_ROWS

FILE_BYTES = 512 * 2**20
# Rows that are encoded together, at most `GROUP_ROWS`, form a row group of a Parquet file. A sink holds two groups in
# memory: it writes one while it collects the next.
GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Part:
    """A complete file."""

    path: str
    rows: int


def write_empty(path: str, schema: pa.Schema, output_format: str) -> None:
    """Writes a file without rows to `path`, with its schema or header if the format has one."""
    content = pa.BufferOutputStream()
    encoder = sink(output_format).encoder(content, schema)
    encoder.write(schema.empty_table())
    encoder.close()
    if not content.tell() and is_remote(path):
        create_empty(path)
        return
    with create(path) as file:
        file.write(content.getvalue())


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `batch` that `schema` names, in its order and its types.

    Drops provenance and other columns. Casts a column of another type if no value changes, such as a dictionary to its
    values. Raises `TorchbeamError` for other types and for missing columns.
    """
    if batch.schema.equals(schema):
        return batch
    missing = sorted(set(schema.names) - set(batch.schema.names))
    if missing:
        raise TorchbeamError(
            f"a chunk to write has no column {', '.join(missing)}; it has {', '.join(batch.schema.names)}"
        )
    try:
        columns = [_cast(batch.column(column.name), column.type) for column in schema]
    except pa.ArrowException as error:
        raise TorchbeamError(f"a chunk to write does not match the columns of the output: {error}") from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(column.type):
        return exact_cast(column, kind.value_type).dictionary_encode().cast(kind)
    return exact_cast(column, kind)


class _Roll:
    """Writes tables to a sequence of files, each of about `max_bytes` at most."""

    def __init__(
        self, folder: str, schema: pa.Schema, output_format: str, max_bytes: int, *, make_parents: bool
    ) -> None:
        self._folder = folder
        self._make_parents = make_parents
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
            self._file = create(self._path, make_parents=self._make_parents)
            self._encoder = self._sink.encoder(self._file, self._schema)
            self._rows = 0
        assert self._encoder is not None  # noqa: S101 - created with the file
        table = pa.Table.from_batches(batches, self._schema)
        self._encoder.write(table)
        self._rows += table.num_rows
        if self._file.tell() >= self._max_bytes:
            self._end_file()

    def finish(self) -> list[Part]:
        self._end_file()
        return self._parts

    def abandon(self) -> None:
        """Closes the file without outputting a part."""
        file, encoder, self._file, self._encoder = self._file, self._encoder, None, None
        if file is not None:
            # The original error is the one to report, not errors that follow from it.
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
    """A path that no other attempt uses; paths sort by creation time."""
    return f"{folder.rstrip('/')}/part-{time.time_ns() // 1000:014x}-{uuid.uuid4().hex[:12]}{extension}"


class Writer:
    """Writes chunks in a background thread, so that encoding overlaps with scoring; Arrow releases the GIL.

    It encodes one group of chunks while it collects the next. The next call raises an error of the thread.
    """

    def __init__(
        self,
        folder: str,
        schema: pa.Schema,
        output_format: str,
        max_bytes: int = FILE_BYTES,
        group_bytes: int = GROUP_BYTES,
        make_parents: bool = True,
    ) -> None:
        self._schema = schema
        self._group_bytes = min(group_bytes, max_bytes)
        self._roll = _Roll(folder, schema, output_format, max_bytes, make_parents=make_parents)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        self._writing: Future[None] | None = None
        self._group: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def write(self, chunk: pa.RecordBatch) -> None:
        """Adds `chunk`; may wait until the previous group is written."""
        if chunk.num_rows == 0:
            return
        batch = conform(chunk, self._schema)
        size = batch.nbytes
        if self._group and (self._rows + batch.num_rows > GROUP_ROWS or self._bytes + size > self._group_bytes):
            self._hand_over()
        self._group.append(batch)
        self._rows += batch.num_rows
        self._bytes += size
        if self._rows >= GROUP_ROWS or self._bytes >= self._group_bytes:
            self._hand_over()

    def finish(self) -> list[Part]:
        """Writes the remaining rows, closes the file and returns the parts."""
        self._hand_over()
        self._wait()
        parts = self._thread.submit(self._roll.finish).result()
        self._thread.shutdown()
        return parts

    def abandon(self) -> None:
        """Ends the thread and closes the file without outputting a part."""
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
class _WriteFn(SharesS3, beam.DoFn):
    def __init__(
        self,
        folder: str,
        schema: pa.Schema,
        output_format: str,
        max_bytes: int,
        group_bytes: int = GROUP_BYTES,
        make_parents: bool = True,
    ) -> None:
        self._arguments = (folder, schema, output_format, max_bytes, group_bytes, make_parents)
        self._writer: Writer | None = None

    def start_bundle(self) -> None:
        self._abandon()  # if the last bundle failed, in this step or another

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
        super().teardown()

    def _abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()


@dataclass(eq=False)
class WriteChunks(beam.PTransform[Any, Any]):
    """Writes chunks to files under `folder`: `PCollection[pa.RecordBatch]` to `PCollection[Part]`.

    Each attempt of a bundle uses unique file names. If a runner retries a bundle, files of earlier attempts may remain: only
    the files of the parts that are output hold rows of the output.

    Attributes:
        folder: the folder of the files; `transforms.sinks.publish` renames them to their final names.
        schema: the schema of the files, without provenance.
        output_format: a format of `transforms.sinks.formats`.
        max_bytes: the size at which a file is closed and another one opened.
        group_bytes: the size of rows that are encoded together; twice as much is held in memory.
        make_parents: whether the folders above a local `folder` are created. If not, a worker that outlives its run
            writes nothing once they are gone.
    """

    folder: str
    schema: pa.Schema
    output_format: str = "parquet"
    max_bytes: int = FILE_BYTES
    group_bytes: int = GROUP_BYTES
    make_parents: bool = True

    def __post_init__(self) -> None:
        sink(self.output_format).check(self.schema)

    def expand(self, chunks: PCollection[pa.RecordBatch]) -> PCollection[Part]:
        """Writes in each bundle; the windows of the chunks do not affect the files."""
        write = _WriteFn(
            self.folder, self.schema, self.output_format, self.max_bytes, self.group_bytes, self.make_parents
        )
        parts: PCollection[Part] = chunks | "Global" >> beam.WindowInto(GlobalWindows()) | "Write" >> beam.ParDo(write)
        return parts
