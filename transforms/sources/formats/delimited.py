"""CSV and TSV with a header: the first row names the columns; an empty cell is null; blank lines are no rows.

Arrow splits the file into cells, all of them read as strings, and the columns are then cast to their types: a value
that does not fit costs only its row. The `raw` text of such a row is written anew from its cells, so that quotes may
differ from those in the file; that of a row with too many or too few cells is the text as it was.
"""

from __future__ import annotations

import codecs
import csv
import io
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from transforms.sources.inference import SAMPLE_BYTES, SAMPLE_ROWS, sampled, text_field

NAME = "csv"
EXTENSIONS = (".csv", ".tsv")
COMPRESSED = True

BLOCK_BYTES = 8 << 20  # a row has to fit in one

# Arrow can skip a row with too few cells only where its text is UTF-8. So each byte that is not is replaced by this
# character, which no text may hold, and the cells that have it are refused.
_INVALID = "\U0010ffff"
# The first cell of a row that is put behind the last one, and no file holds. Arrow finds it as a row of its own only where
# the last row is whole: it would else be within a quote that is never closed, or a part of a row that breaks off.
_END = uuid.uuid4().hex
# What a cell at least looks like that can be cast.
_PATTERNS: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_integer, r"[+-]?[0-9]+|-?0x[0-9a-f]+"),
    (pa.types.is_floating, r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)"),
    (pa.types.is_boolean, "true|false|0|1"),
    (pa.types.is_temporal, r"-?[0-9]{4}.*"),
)
codecs.register_error("torchbeam.invalid", lambda error: (_INVALID, error.end))  # type: ignore[attr-defined]


class _Utf8:
    """The bytes of a stream as valid UTF-8, and `end` as a row behind them. `repaired` tells whether some were not."""

    def __init__(self, stream: InputStream) -> None:
        self.repaired = False
        self.end = b""
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("torchbeam.invalid")
        self._ahead = b""
        self._ended = False

    def read(self, size: int) -> bytes:
        data = self.peek(size)
        if self._ended and self.end:
            # In one piece with the last bytes: a block more would make the last row one of too many blocks for Arrow.
            data += self.end if self._stream.error is not None else b"\n" + self.end
            self.end = b""
        self._ahead = data[size:]
        return data[:size]

    def peek(self, size: int) -> bytes:
        """At least `size` of the bytes that come next, or all there are."""
        while len(self._ahead) < size and not self._ended:
            data = self._stream.read(size - len(self._ahead))
            self._ended = not data
            text = self._decoder.decode(data, final=self._ended)
            self.repaired = self.repaired or (not text.isascii() and _INVALID in text)
            self._ahead += text.encode()
        return self._ahead

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return self._stream.closed


@dataclass
class _Table:
    """An open CSV file.

    Attributes:
        names: of its columns.
        batches: its rows as strings. They end where Arrow cannot go on.
        skipped: the rows so far that Arrow could not split into so many cells as there are names.
        whole: whether the last row that was read is whole, once all were.
        error: why Arrow could not go on.
    """

    names: list[str]
    batches: Iterator[pa.RecordBatch] = field(default_factory=lambda: iter(()))
    skipped: list[pacsv.InvalidRow] = field(default_factory=list)
    whole: bool = False
    error: Exception | None = None


def plan(files: Sequence[InputFile], numeric: Numeric) -> Plan:
    """Settles the columns from the heads of a few files, spread over all of them; one split a file."""
    splits = [Split(file.path, NAME, file.partitions) for file in files]
    columns: dict[str, list[pa.Array]] = {}
    heads = sampled(splits)
    whole = len(heads) == len(splits)
    for split in heads:
        sample, is_whole = _sample(split)
        whole = whole and is_whole
        for name, values in sample.items():
            columns.setdefault(name, []).append(values)
    numbers = numeric(columns)
    fields = [
        text_field(name, pa.concat_arrays(parts), numeric=name in numbers, whole=whole)
        for name, parts in columns.items()
    ]
    return Plan(pa.schema(fields), splits)


def _sample(split: Split) -> tuple[dict[str, pa.Array], bool]:
    """The columns of the first rows of a file, and whether these are all of them."""
    try:
        with open_stream(split.path) as stream:
            head = stream.read(SAMPLE_BYTES)
        whole = len(head) < SAMPLE_BYTES and stream.error is None
        if not whole:
            head = head[: head.rfind(b"\n") + 1]  # a last row that is cut off says nothing about types
        table = _open(_Utf8(InputStream(pa.BufferReader(head))), split)
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
    with open_stream(split.path) as stream:
        source = _Utf8(stream)
        table = _open(source, split)
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


def _open(source: _Utf8, split: Split) -> _Table:
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
            read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                check_utf8=False,
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid as error:
        raise _explained(error, split) from error
    table.batches = _batches(reader, table, split)
    return table


def _names(source: _Utf8, split: Split) -> list[str]:
    """The cells of the first row that is not blank; none where there is no row."""
    head = source.peek(SAMPLE_BYTES)
    text = head.removeprefix(codecs.BOM_UTF8).decode(errors="ignore")
    lines = io.StringIO(f"{text}\n{_END}", newline="")
    names = next(filter(None, csv.reader(lines, delimiter=_delimiter(split))))
    if names == [_END]:
        return []
    if len(head) >= SAMPLE_BYTES and lines.tell() >= len(text):
        raise BrokenFileError(
            f"the header of {split.name} has a quote that is never closed, or is longer than {SAMPLE_BYTES} bytes"
        )
    if names[-1].endswith(_END):
        raise BrokenFileError(f"the header of {split.name} has a quote that is never closed")
    if wrong := [name.replace(_INVALID, "\ufffd") for name in names if _INVALID in name]:
        raise BrokenFileError(f'the header of {split.name} is not UTF-8: column "{wrong[0]}"; save the file as UTF-8')
    return names


def _batches(reader: pacsv.CSVStreamingReader, table: _Table, split: Split) -> Iterator[pa.RecordBatch]:
    with reader:
        try:
            for batch in reader:
                if batch.num_rows and batch.column(0)[-1].as_py() == _END:
                    table.whole = True
                    batch = batch.slice(0, batch.num_rows - 1)
                yield batch
        except pa.ArrowInvalid as error:
            table.error = _explained(error, split)


def _explained(error: Exception, split: Split) -> Exception:
    if "straddling" not in str(error):
        return error
    return BrokenFileError(
        f"{split.name} has a row longer than {BLOCK_BYTES >> 20} MiB, or a quote that is never closed"
    )


def _blocks(table: _Table, source: _Utf8, schema: pa.Schema, split: Split) -> Iterator[Block]:
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
    return text.replace(_INVALID, "\ufffd")


def _refused(rows: Sequence[pacsv.InvalidRow], schema: pa.Schema, split: Split) -> Block:
    refusals = {}
    for position, row in enumerate(rows):
        cells = f"{row.actual_columns} cell{'s' if row.actual_columns != 1 else ''}"
        message = f"row {_number(row)} of {split.name} has {cells}; {row.expected_columns} were expected"
        refusals[position] = RowFailure("read", "ValueError", message, row.text)
    return Block(null_batch(schema, len(rows)), np.array([_number(row) for row in rows], np.int64), refusals)


def _number(row: pacsv.InvalidRow) -> int:
    return int(row.number) - 2  # Arrow counts from 1, and the header too


def _cast(array: pa.Array, kind: pa.DataType, *, check: bool) -> pa.Array:
    if check and pc.any(pc.match_substring(array, _INVALID)).as_py():
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
        return pc.invert(pc.match_substring(array, _INVALID))
    pattern = next(pattern for is_kind, pattern in _PATTERNS if is_kind(kind))
    array = pc.utf8_trim_whitespace(array)
    fits = pc.match_substring_regex(array, rf"(?i)^({pattern})$")
    if not pa.types.is_floating(kind):
        return fits
    numbers = pc.if_else(fits, array, pa.scalar(None, array.type))
    return pc.and_(fits, pa.array(held(numbers, pc.cast(numbers, kind))))


def _delimiter(split: Split) -> str:
    return "\t" if ".tsv" in PurePosixPath(split.path).suffixes else ","


def _line(cells: Iterable[str | None], delimiter: str) -> str:
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="").writerow(cells)
    return line.getvalue()
