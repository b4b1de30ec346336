"""Rows of some keys, gathered piece by piece: in memory up to a bound, beyond it in temporary files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chunks import merge
from handlers.columnar.hashes import row_hashes
from handlers.errors import TorchbeamError
from handlers.private import private_folder

SPILL_BYTES = 128 << 20


class KeyedRows:
    """Rows in the order in which they were added; rows are taken by their index.

    When what is in memory exceeds `spill_bytes`, it is written to a temporary Arrow file, ordered by `order`, and mapped
    into memory: the operating system reads its pages when they are needed, and may drop them. A file has no name any more
    once it is mapped, so that also a killed process leaves none.

    Args:
        order: the order of the rows of a chunk, int64 of (rows,), in which rows that are used together are neighbours.
        spill_bytes: bytes of rows that are held in memory.
    """

    def __init__(
        self, order: Callable[[pa.RecordBatch], np.ndarray] | None = None, spill_bytes: int = SPILL_BYTES
    ) -> None:
        self._order = order
        self._spill_bytes = spill_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._runs: list[pa.RecordBatch] = []
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self.bytes = 0
        self.spilled = 0
        self._starts = np.zeros(1, np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runs, self._pending = [], []
        if self._folder is not None:
            self._folder.cleanup()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def add(self, rows: pa.RecordBatch) -> None:
        """Adds rows, which all have one schema."""
        self._pending.append(rows)
        self._pending_bytes += rows.nbytes
        self.bytes += rows.nbytes
        if self._pending_bytes > self._spill_bytes:
            self._end_run(spill=True)

    def complete(self) -> None:
        """Ends the adding; rows can be taken from now on."""
        self._end_run(spill=False)

    def take(self, rows: np.ndarray, names: Sequence[str] | None = None) -> pa.RecordBatch:
        """The rows at these indices (int64 of (n,)), in this order; only the columns `names` if they are given."""
        runs = np.searchsorted(self._starts, rows, side="right") - 1
        parts, indices = [], []
        for run in np.unique(runs) if len(rows) else [0]:
            inside = np.flatnonzero(runs == run)
            batch = self._runs[run] if names is None else self._runs[run].select(list(names))
            parts.append(batch.take(pa.array(rows[inside] - self._starts[run])))
            indices.append(inside)
        merged = merge(parts)
        return merged if len(parts) == 1 else merged.take(pa.array(np.argsort(np.concatenate(indices))))

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all rows, without copying."""
        return pa.chunked_array([run.column(name) for run in self._runs])

    def _end_run(self, *, spill: bool) -> None:
        if not self._pending:
            return
        run = merge(self._pending)
        self._pending, self._pending_bytes = [], 0
        if spill:
            run = self._spill(run)
        self._runs.append(run)
        self._starts = np.append(self._starts, self._starts[-1] + run.num_rows)

    def _spill(self, run: pa.RecordBatch) -> pa.RecordBatch:
        if self._order is not None:
            run = run.take(pa.array(self._order(run)))
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(dir=private_folder("torchbeam-sequences"))
        file = Path(self._folder.name) / f"{len(self._runs)}.arrow"
        try:
            with pa.ipc.new_file(str(file), run.schema) as writer:
                writer.write_batch(run)
        except OSError as error:
            raise TorchbeamError(
                f"the rows of a key cannot be written to {file.parent}: {os.strerror(error.errno or 0)}; set TMPDIR to a "
                "folder with more room"
            ) from error
        mapped = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
        with contextlib.suppress(PermissionError):  # on Windows, where the folder goes in the end
            file.unlink()
        self.spilled += 1
        return mapped


@dataclass(frozen=True)
class Keys:
    """The columns of the key.

    Attributes:
        by: their names.
    """

    by: tuple[str, ...]

    def hashes(self, rows: pa.RecordBatch) -> np.ndarray:
        """uint64 of (rows,): equal for equal keys, on every machine. The key has no null."""
        return row_hashes((rows.column(name) for name in self.by), as_text=False)

    def valid(self, rows: pa.RecordBatch) -> dict[str, np.ndarray]:
        """For each column of the key the mask of the rows in which it has a value; NaN is none."""
        return {name: pc.is_null(rows.column(name), nan_is_null=True).to_numpy(False) == 0 for name in self.by}

    def codes(self, rows: KeyedRows) -> np.ndarray:
        """int64 of (rows,): equal for equal keys, and only for them."""
        found: np.ndarray | None = None
        for array in self._arrays(rows.column(name) for name in self.by):
            encoded = array.dictionary_encode()
            parts = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
            codes = np.concatenate(parts).astype(np.int64)
            if found is None:
                found = codes
            else:  # fewer than 2^63 pairs, since both are below the number of rows
                found = np.unique(found * (codes.max() + 1) + codes, return_inverse=True)[1].astype(np.int64)
        assert found is not None  # noqa: S101 - the spec has one column at least
        return found

    @staticmethod
    def _arrays(columns: Iterable[Any]) -> Iterator[Any]:
        """The columns without dictionaries, whose codes may differ for equal values, and with one zero."""
        for column in columns:
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            yield pc.add(column, 0.0) if pa.types.is_floating(column.type) else column
