"""A prepared folder: rows ready to train on, as Arrow shards on a local disk that are read memory-mapped.

    prepared/
      train/part-*.arrow         # Arrow IPC files, uncompressed; in the order in which training reads them
      validation/part-*.arrow    # the same schema
      prepared.json              # written last: where it is, the folder is complete

The rows are as `features` and `preprocess` leave them, which is what the model's inputs are made from in scoring, too. They
have the label as a column, and no provenance.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from handlers.columnar.chunks import single_batch
from handlers.errors import UsageError, one_line

ABOUT = "prepared.json"
TRAIN, VALIDATION = "train", "validation"
SHARD_BYTES = 256 << 20


class Shards:
    """The rows of one part, in the order of its files; a map-style dataset of `torch.utils.data`.

    With a `DataLoader(shards, batch_size=…, shuffle=True, collate_fn=…)` the collate function is given one record batch of
    the rows that were drawn. Picklable: processes of a loader map the files themselves.

    Args:
        files: Arrow IPC files of one schema, at least one.

    Raises:
        UsageError: where a file is no Arrow IPC file, or has other columns than the first.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        for file, batches in zip(self._files, self._mapped, strict=True):
            if not batches.schema.equals(self.schema):
                raise UsageError(f"{file} has other columns than {self._files[0]}; prepare the rows again")

    @property
    def schema(self) -> pa.Schema:
        """The columns of all rows."""
        return self._mapped[0].schema

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> pa.RecordBatch:
        """The row at `index`, from 0, as a record batch of one row."""
        return self.take(np.array([index]))

    def __getitems__(self, indices: Sequence[int]) -> pa.RecordBatch:
        """The rows at `indices`, in that order; what a `DataLoader` calls."""
        return self.take(np.asarray(indices, dtype=np.int64))

    def take(self, indices: np.ndarray) -> pa.RecordBatch:
        """The rows at `indices`, int64 of (rows,) from 0, in that order; only what they need is read from the disk.

        Raises:
            IndexError: for an index that there is not.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if not len(indices):
            return pa.RecordBatch.from_pylist([], schema=self.schema)
        if indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(f"there are {len(self)} rows; indices are from 0 to {len(self) - 1}")
        batches = np.searchsorted(self._starts, indices, side="right") - 1
        order = np.argsort(batches, kind="stable")
        ends = np.flatnonzero(np.diff(batches[order])) + 1
        pieces = []
        for group in np.split(order, ends):
            batch = int(batches[group[0]])
            pieces.append(self._batches[batch].take(pa.array(indices[group] - self._starts[batch])))
        rows = single_batch(pa.Table.from_batches(pieces))
        if np.array_equal(order, np.arange(len(order))):
            return rows
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return rows.take(pa.array(back))

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows in order, `rows` at a time; the last batch may be smaller."""
        for start in range(0, len(self), rows):
            stop = min(start + rows, len(self))
            pieces = []
            while start < stop:
                batch = bisect_right(self._starts, start) - 1
                piece = self._batches[batch].slice(start - self._starts[batch], stop - start)
                pieces.append(piece)
                start += piece.num_rows
            yield pieces[0] if len(pieces) == 1 else single_batch(pa.Table.from_batches(pieces))

    @cached_property
    def _mapped(self) -> list[pa.ipc.RecordBatchFileReader]:
        return [_mapped(file) for file in self._files]

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        """All record batches; their columns point into the mapped files."""
        return [reader.get_batch(index) for reader in self._mapped for index in range(reader.num_record_batches)]

    @cached_property
    def _starts(self) -> list[int]:
        """The index of the first row of each record batch, and the number of all rows."""
        starts = [0]
        for batch in self._batches:
            starts.append(starts[-1] + batch.num_rows)
        return starts

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files}


def _mapped(file: Path) -> pa.ipc.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(file)))
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{file} cannot be read: {one_line(error)}; prepare the rows again") from None


@dataclass(frozen=True)
class Prepared:
    """A complete prepared folder.

    Attributes:
        folder: where it is.
        label: the column of the true answers.
        train: the rows to train on.
        validation: the rows that are held out; there may be none.
        about: the content of `prepared.json`.
    """

    folder: Path
    label: str
    train: Shards
    validation: Shards
    about: Mapping[str, Any]

    @staticmethod
    def open(folder: str | os.PathLike[str]) -> Prepared:
        """Opens a prepared folder.

        Raises:
            UsageError: where it is not complete, or a file of it is missing or damaged.
        """
        root = Path(folder)
        about = _about(root)
        train, validation = (_shards(root, part, about) for part in (TRAIN, VALIDATION))
        if not train.schema.equals(validation.schema):
            raise UsageError(f"{root}: {TRAIN} and {VALIDATION} have different columns; prepare the rows again")
        label = about["label"]
        if label not in train.schema.names:
            raise UsageError(f'{root} has no column "{label}", its label; prepare the rows again')
        return Prepared(root, label, train, validation, about)


def _about(root: Path) -> dict[str, Any]:
    file = root / ABOUT
    if not file.is_file():
        what = "is not complete" if root.is_dir() else "does not exist"
        raise UsageError(f"the prepared folder {root} {what}: it has no {ABOUT}; prepare the rows (again)")
    try:
        about = json.loads(file.read_text())
        for part in (TRAIN, VALIDATION):
            int(about["rows"][part])
        if not isinstance(about["label"], str):
            raise TypeError("label is not a name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is not that of a prepared folder ({type(error).__name__}: {error})") from None
    found: dict[str, Any] = about
    return found


def _shards(root: Path, part: str, about: Mapping[str, Any]) -> Shards:
    files = sorted((root / part).glob("part-*.arrow"))
    if not files:
        raise UsageError(f"{root / part} has no part-*.arrow; prepare the rows again")
    shards = Shards(files)
    if len(shards) != about["rows"][part]:
        raise UsageError(
            f"{root / part} holds {len(shards)} rows, but {ABOUT} says {about['rows'][part]}; prepare the rows again"
        )
    return shards


class ShardWriter:
    """Writes one part of a prepared folder, in files of about `shard_bytes`.

    Without rows there is one file with the schema.
    """

    def __init__(self, folder: Path, schema: pa.Schema, shard_bytes: int = SHARD_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._schema = schema
        self._shard_bytes = shard_bytes
        self._files = 0
        self.rows = 0
        self._open()

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows, as one record batch."""
        if self._file.tell() >= self._shard_bytes:
            self.close()
            self._open()
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def close(self) -> None:
        """Ends the last file."""
        self._writer.close()
        self._file.close()

    def _open(self) -> None:
        self._file = pa.OSFile(str(self._folder / f"part-{self._files:05d}.arrow"), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._files += 1

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_shards(
    folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], shard_bytes: int = SHARD_BYTES
) -> int:
    """Writes one part of a prepared folder, and gives the number of its rows; see `ShardWriter`."""
    with ShardWriter(folder, schema, shard_bytes) as writer:
        for batch in batches:
            writer.write(batch)
    return writer.rows


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes `prepared.json`, all of it or nothing, which makes the folder complete."""
    temporary = folder / f"_{ABOUT}"
    temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(folder / ABOUT)
