"""From the files that `Prepare` has written to the shards of a prepared folder: the end of an external sort.

Every batch of these files is sorted by a uniform hash, so the rows of a range of hashes are one slice of each batch. Range
after range is put together, sorted and written: the memory is that of a range, and the order of the shards that of the
hashes, whichever worker has written a row.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from handlers.columnar.chunks import single_batch
from handlers.paths import is_remote
from handlers.train.cleaning import READ
from handlers.train.prepared import TRAIN, VALIDATION, ShardWriter
from transforms.evaluation.fingerprint import Fingerprint, as_categories, as_numbers
from transforms.file_ops import name_of
from transforms.preparation.hashes import Smallest
from transforms.preparation.spill import HELD_OUT, PRIORITY, in_order

RANGE_BYTES = 64 << 20
BATCH_ROWS = 65_536
FINGERPRINT_ROWS = 200_000  # rows are in the order of a hash, so the first of them are a uniform sample


@dataclass(frozen=True)
class Merged:
    """What a merge has written.

    Attributes:
        train: rows to train on.
        validation: rows that are held out.
        fingerprint: of the rows to train on, as they were read.
    """

    train: int
    validation: int
    fingerprint: dict[str, Any]


def merge(files: Sequence[str], schema: pa.Schema, folder: Path, *, rows: int | None = None) -> Merged:
    """Writes the shards of both parts.

    Args:
        files: what `Prepare` has written, on a local disk.
        schema: the columns of the shards.
        folder: where `train/` and `validation/` are made.
        rows: how many rows are taken, those of the smallest hashes; all by default.
    """
    batches = [batch for file in files for batch in _mapped(file)]
    fingerprint = _FirstRows()
    with (
        ShardWriter(folder / TRAIN, schema) as train,
        ShardWriter(folder / VALIDATION, schema) as validation,
    ):
        left = rows
        for piece in _ranges(batches, rows):
            if left is not None:
                piece = piece.slice(0, left)
                left -= piece.num_rows
            held_out = piece.column(HELD_OUT)
            for part, mask in ((train, pa.compute.invert(held_out)), (validation, held_out)):
                mine = piece.filter(mask)
                if part is train:
                    fingerprint.add(mine, schema)
                plain = mine.select(schema.names)
                for start in range(0, plain.num_rows, BATCH_ROWS):
                    part.write(plain.slice(start, BATCH_ROWS))
    return Merged(train.rows, validation.rows, fingerprint.result(train.rows))


def downloaded(files: Sequence[str], folder: Path) -> list[str]:
    """The files on a local disk: those that are remote are copied to `folder`."""
    found = []
    for file in files:
        if is_remote(file):
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / name_of(file)
            with (
                FileSystems.open(file, compression_type=CompressionTypes.UNCOMPRESSED) as source,
                target.open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
            file = str(target)
        found.append(file)
    return found


def _mapped(file: str) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(file))
    return [reader.get_batch(index) for index in range(reader.num_record_batches)]


def _ranges(batches: Sequence[pa.RecordBatch], rows: int | None) -> Iterator[pa.RecordBatch]:
    """The rows in the order of their hashes, some at a time; with `rows` not many more than so many."""
    priorities = [batch.column(PRIORITY).to_numpy() for batch in batches]
    limit = 2**64 - 1
    if rows is not None:
        smallest = Smallest(rows)
        for each in priorities:
            smallest.add(each)
        limit = int(smallest.settle())
    # With few rows the hashes may be far from the limit, which would leave ranges empty.
    limit = min(limit, max((int(each[-1]) for each in priorities), default=0))
    stops = [int(np.searchsorted(each, np.uint64(limit), side="right")) for each in priorities]
    size = sum(batch.nbytes * stop / batch.num_rows for batch, stop in zip(batches, stops, strict=True))
    count = max(1, int(-(-size // RANGE_BYTES)))
    starts = [0] * len(batches)
    for index in range(1, count + 1):
        edge = np.uint64(limit * index // count)
        pieces = []
        for which, batch in enumerate(batches):
            end = int(np.searchsorted(priorities[which], edge, side="right"))
            if end > starts[which]:
                pieces.append(batch.slice(starts[which], end - starts[which]))
                starts[which] = end
        if pieces:
            piece = single_batch(pa.Table.from_batches(pieces))
            yield piece.take(pa.array(in_order(piece)))


class _FirstRows:
    """The first rows of the train part, of columns that a fingerprint has, as they were read where that is kept."""

    def __init__(self) -> None:
        self._pieces: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, rows: pa.RecordBatch, schema: pa.Schema) -> None:
        wanted = FINGERPRINT_ROWS - self._rows
        if wanted <= 0:
            return
        names = [READ + name if READ + name in rows.schema.names else name for name in schema.names]
        columns = {name.removeprefix(READ): rows.column(name).slice(0, wanted) for name in names}
        kept = {name: column for name, column in columns.items() if _has_fingerprint(column)}
        self._rows += min(rows.num_rows, wanted)
        if kept:
            self._pieces.append(pa.RecordBatch.from_pydict(kept))

    def result(self, rows: int) -> dict[str, Any]:
        found = Fingerprint.of(pa.Table.from_batches(self._pieces)) if self._pieces else Fingerprint(0)
        return found.as_json() | {"rows": rows}


def _has_fingerprint(column: pa.Array) -> bool:
    empty = column.slice(0, 0)
    return as_numbers(empty) is not None or as_categories(empty) is not None
