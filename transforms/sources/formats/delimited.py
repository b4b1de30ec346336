"""CSV and TSV with a header: the first row names the columns; an empty value is null; blank lines are no rows.

Arrow splits the file into fields, all of them read as strings, and the columns are then cast to their types: a value
that does not fit costs only its row. The `raw` text of such a row is written again from its fields, so that quotes may
differ from those in the file; that of a row with too many or too few fields is the text as it was.
"""

from __future__ import annotations

import codecs
import csv
import io
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from handlers.columnar.chunks import single_batch
from handlers.errors import BrokenFileError, UsageError
from handlers.failures import RowFailure
from transforms.sources.blocks import Block, Numeric, Plan, ReadOptions, Split, check_columns, fit, null_batch
from transforms.sources.digits import held
from transforms.sources.files import InputFile, InputStream, open_stream
from transforms.sources.formats.utf8 import INVALID, Utf8
from transforms.sources.inference import HEAD_BYTES, HEAD_THREADS, SAMPLE_BYTES, SAMPLE_ROWS, sampled, text_field

NAME = "csv"
EXTENSIONS = (".csv", ".tsv")
COMPRESSED = True

BLOCK_BYTES = 64 << 20  # a row has to fit in one
# Arrow splits blocks that stay in the processor's cache in half the time. Where a row is longer, the file is read again.
_USUAL_BLOCK_BYTES = 1 << 20
_BLOCK_STEP = 8
_BATCH_BYTES = 4 << 20  # cast at a time: checks of few values cost more each
_HEADERS = 64  # read by one task: a small file is read sooner than a thread takes it up

# The first field of a row that is put behind the last one, and no file holds. Arrow finds it as a row of its own only where
# the last row is whole: it would else be within a quote that is never closed, or a part of a row that breaks off.
_END = uuid.uuid4().hex
# What a value must look like to be cast; a cast may still fail.
_PATTERNS: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_integer, r"[+-]?[0-9]+|-?0x[0-9a-f]+"),
    (pa.types.is_floating, r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)"),
    (pa.types.is_boolean, "true|false|0|1"),
    (pa.types.is_temporal, r"-?[0-9]{4}.*"),
)


class _LongRowError(BrokenFileError):
    """A row does not fit in a block."""


@dataclass
class _Table:
    """An open CSV file.

    Attributes:
        names: of its columns.
        batches: its rows as strings. They end where Arrow cannot go on.
        skipped: the rows so far that Arrow could not split into as many fields as there are names.
        whole: whether the last row that was read is whole, once all were.
        error: why Arrow could not go on.
    """

    names: list[str]
    batches: Iterator[pa.RecordBatch] = field(default_factory=lambda: iter(()))
    skipped: list[pacsv.InvalidRow] = field(default_factory=list)
    whole: bool = False
    error: Exception | None = None


def plan(files: Sequence[InputFile], numeric: Numeric) -> Plan:
    """Settles the columns from samples of a few files and the headers of all; one split a file."""
    splits = [Split(file.path, NAME, file.partitions) for file in files]
    columns: dict[str, list[pa.Array]] = {}
    samples = sampled(splits)
    whole = len(samples) == len(splits)
    for split in samples:
        sample, is_whole = _sample(split)
        whole = whole and is_whole
        for name, values in sample.items():
            columns.setdefault(name, []).append(values)
    for split in _with_other_columns(splits, set(samples), set(columns)):
        sample, _ = _sample(split)
        for name in sample.keys() - columns.keys():
            columns[name] = [sample[name]]
    numbers = numeric(columns)
    fields = [
        text_field(name, pa.concat_arrays(parts), numeric=name in numbers, whole=whole)
        for name, parts in columns.items()
    ]
    return Plan(pa.schema(fields), splits)


def _with_other_columns(splits: Sequence[Split], samples: Collection[Split], names: set[str]) -> Iterator[Split]:
    """The files that were not sampled and have columns that are neither in `names` nor in a file before."""
    others = [split for split in splits if split not in samples]
    tasks = [others[start : start + _HEADERS] for start in range(0, len(others), _HEADERS)]
    with ThreadPoolExecutor(HEAD_THREADS) as pool:
        for split, found in chain.from_iterable(pool.map(_headers, tasks)):
            if not names.issuperset(found):
                names.update(found)
                yield split


def _headers(splits: Sequence[Split]) -> list[tuple[Split, list[str]]]:
    return [(split, _header(split)) for split in splits]


def _header(split: Split) -> list[str]:
    """The names of the columns of a file; none if it cannot be read, in which case reading it fails with a reason."""
    try:
        with open_stream(split.path) as stream:
            source = Utf8(stream)
            try:
                return _names(source, split, HEAD_BYTES)
            except BrokenFileError:
                return _names(source, split)
    except Exception:
        return []


def _sample(split: Split) -> tuple[dict[str, pa.Array], bool]:
    """The columns of the first rows of a file, and whether these are all of them."""
    try:
        with open_stream(split.path) as stream:
            head = stream.read(SAMPLE_BYTES)
        whole = len(head) < SAMPLE_BYTES and stream.error is None
        if not whole:
            head = head[: head.rfind(b"\n") + 1]  # a last row that is cut off says nothing about types
        table = _open(Utf8(InputStream(pa.BufferReader(head))), split, BLOCK_BYTES)
        batches = list(table.batches)
    except Exception:
        return {}, False  # it fails when it is read, with a reason
    if twice := sorted(f'"{name}"' for name, count in Counter(table.names).items() if count > 1):
        raise UsageError(f"{split.path} has more than one column {', '.join(twice)}; rename them in its first line")
    schema = pa.schema([(name, pa.string()) for name in table.names])
    rows = pa.Table.from_batches(batches, schema)
    first = single_batch(rows.slice(0, SAMPLE_ROWS))
    return dict(zip(table.names, first.columns, strict=True)), whole and rows.num_rows <= SAMPLE_ROWS


def blocks(split: Split, schema: pa.Schema, options: ReadOptions) -> Iterator[Block]:
    """Reads the rows of a file. Where it breaks, a last row that is not whole is left out."""
    done, size = 0, min(_USUAL_BLOCK_BYTES, BLOCK_BYTES)
    while True:
        first = done
        try:
            for block in _read(split, schema, options, size):
                before = int(np.searchsorted(block.numbers, first))
                done += block.rows - before
                yield block.after(before) if before else block
            return
        except _LongRowError:
            if size == BLOCK_BYTES:
                raise
            size = min(size * _BLOCK_STEP, BLOCK_BYTES)


def _read(split: Split, schema: pa.Schema, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    """As `blocks`, if no row is longer than `block_bytes`; else the rows before it."""
    with open_stream(split.path) as stream:
        source = Utf8(stream)
        table = _open(source, split, block_bytes)
        if table.names:
            check_columns(table.names, options.needed, split)
        held: Block | None = None
        for block in _blocks(table, source, schema, split):
            if held is not None:
                yield held
            held = block
        whole = table.whole or table.error is not None  # Arrow gives no parts of rows before it stops
        if held is not None:
            yield held if whole else held.first(held.rows - 1)
        if (error := stream.error or table.error) is not None:
            raise error
        if not whole:
            row = f"row {held.numbers[-1]}" if held is not None else "the last row"
            raise BrokenFileError(f"{split.name} has a quote that {row} opens and nothing closes")


def _open(source: Utf8, split: Split, block_bytes: int) -> _Table:
    delimiter = _delimiter(split)
    names = _names(source, split)
    table = _Table(names)
    if not names:
        table.whole = True
        return table  # Arrow would call that an error

    def skip(row: pacsv.InvalidRow) -> str:
        table.skipped.append(row)
        return "skip"

    source.end = (_END + delimiter * (len(names) - 1)).encode()
    try:
        reader = pacsv.open_csv(
            pa.PythonFile(source, mode="r"),
            read_options=pacsv.ReadOptions(use_threads=False, block_size=block_bytes),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                check_utf8=False,
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid as error:
        raise _explained(error, split, block_bytes) from error
    table.batches = _joined(_batches(reader, table, split, block_bytes))
    return table


def _names(source: Utf8, split: Split, size: int | None = None) -> list[str]:
    """The fields of the first row that is not blank; none where there is no row."""
    size = size or SAMPLE_BYTES
    head = source.peek(size)
    text = head.removeprefix(codecs.BOM_UTF8).decode(errors="ignore")
    lines = io.StringIO(f"{text}\n{_END}", newline="")
    names = next(filter(None, csv.reader(lines, delimiter=_delimiter(split))))
    if names == [_END]:
        return []
    if len(head) >= size and lines.tell() >= len(text):
        raise BrokenFileError(
            f"the header of {split.name} has a quote that is never closed, or is longer than {size} bytes"
        )
    if names[-1].endswith(_END):
        raise BrokenFileError(f"the header of {split.name} has a quote that is never closed")
    if wrong := [name.replace(INVALID, "\ufffd") for name in names if INVALID in name]:
        raise BrokenFileError(f'the header of {split.name} is not UTF-8: column "{wrong[0]}"; save the file as UTF-8')
    return names


def _batches(
    reader: pacsv.CSVStreamingReader, table: _Table, split: Split, block_bytes: int
) -> Iterator[pa.RecordBatch]:
    with reader:
        try:
            for batch in reader:
                if batch.num_rows and batch.column(0)[-1].as_py() == _END:
                    table.whole = True
                    batch = batch.slice(0, batch.num_rows - 1)
                yield batch
        except pa.ArrowInvalid as error:
            table.error = _explained(error, split, block_bytes)


def _joined(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `_BATCH_BYTES` or more."""
    parts: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        parts.append(batch)
        size += batch.nbytes
        if size >= _BATCH_BYTES:
            yield pa.concat_batches(parts)
            parts, size = [], 0
    if parts:
        yield pa.concat_batches(parts)


def _explained(error: Exception, split: Split, block_bytes: int) -> Exception:
    if "straddling" not in str(error):
        return error
    return _LongRowError(f"{split.name} has a row longer than {block_bytes >> 20} MiB, or a quote that is never closed")


def _blocks(table: _Table, source: Utf8, schema: pa.Schema, split: Split) -> Iterator[Block]:
    """The rows of `table` in blocks, numbered together with those that were skipped."""

    def cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
        return _cast(array, kind, check=source.repaired)

    delimiter = _delimiter(split)

    def raw(values: dict[str, str | None]) -> str:
        return _line(values.values(), delimiter)

    number = 0
    for batch in table.batches:
        skipped = np.array([_number(row) for row in table.skipped], np.int64)
        numbers = np.arange(number, number + batch.num_rows + len(skipped), dtype=np.int64)
        if len(skipped):
            numbers = np.setdiff1d(numbers, skipped)[: batch.num_rows]
        if len(numbers):
            number = int(numbers[-1]) + 1
            before = int(np.searchsorted(skipped, number))
            if before:
                yield _shown(_refused(table.skipped[:before], schema, split))
                del table.skipped[:before]
            yield _shown(fit(batch, schema, numbers, split, cast=cast, raw=raw, fits=_may_fit))
    if table.skipped:
        yield _shown(_refused(table.skipped, schema, split))


def _shown(block: Block) -> Block:
    """`block` with refusals that show the usual character for a byte that is not UTF-8."""
    refusals = {
        position: replace(each, message=_readable(each.message), raw=_readable(each.raw or ""))
        for position, each in block.refusals.items()
    }
    return replace(block, refusals=refusals)


def _readable(text: str) -> str:
    return text.replace(INVALID, "\ufffd")


def _refused(rows: Sequence[pacsv.InvalidRow], schema: pa.Schema, split: Split) -> Block:
    refusals = {}
    for position, row in enumerate(rows):
        count = f"{row.actual_columns} field{'s' if row.actual_columns != 1 else ''}"
        message = f"row {_number(row)} of {split.name} has {count}; {row.expected_columns} were expected"
        refusals[position] = RowFailure("read", "ValueError", message, row.text)
    return Block(null_batch(schema, len(rows)), np.array([_number(row) for row in rows], np.int64), refusals)


def _number(row: pacsv.InvalidRow) -> int:
    return int(row.number) - 2  # Arrow counts from 1, and the header too


def _cast(array: pa.Array, kind: pa.DataType, *, check: bool) -> pa.Array:
    if check and pc.any(pc.match_substring(array, INVALID)).as_py():
        raise ValueError("invalid UTF-8")
    try:
        cast = pc.cast(array, kind)
    except pa.ArrowInvalid:
        array = pc.utf8_trim_whitespace(array)
        cast = pc.cast(array, kind)
    if pa.types.is_floating(kind) and not held(array, cast).all():
        raise ValueError("float64 does not hold all digits")
    return cast


def _may_fit(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return pc.invert(pc.match_substring(array, INVALID))
    pattern = next(pattern for is_kind, pattern in _PATTERNS if is_kind(kind))
    array = pc.utf8_trim_whitespace(array)
    fits = pc.match_substring_regex(array, rf"(?i)^({pattern})$")
    if not pa.types.is_floating(kind):
        return fits
    numbers = pc.if_else(fits, array, pa.scalar(None, array.type))
    return pc.and_(fits, pa.array(held(numbers, pc.cast(numbers, kind))))


def _delimiter(split: Split) -> str:
    return "\t" if ".tsv" in PurePosixPath(split.path).suffixes else ","


def _line(values: Iterable[str | None], delimiter: str) -> str:
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="").writerow(values)
    return line.getvalue()
