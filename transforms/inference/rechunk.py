"""Resizes chunks: splits large ones and merges small ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import BoundedWindow
from apache_beam.utils.timestamp import TimestampTypes
from apache_beam.utils.windowed_value import WindowedValue

from handlers.columnar.rechunker import Rechunker
from transforms.inference import chunk_coder  # noqa: F401 - registers the coder of chunks


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(pa.RecordBatch)
class _RechunkFn(beam.DoFn):
    """One rechunker for each window of a bundle; it holds no rows between bundles, so a retry loses none."""

    def __init__(self, rows: int, max_bytes: int) -> None:
        self._rows = rows
        self._max_bytes = max_bytes

    def start_bundle(self) -> None:
        self._open: dict[BoundedWindow, tuple[Rechunker, TimestampTypes]] = {}

    def process(
        self,
        batch: pa.RecordBatch,
        window: BoundedWindow = beam.DoFn.WindowParam,  # type: ignore[assignment]
        timestamp: TimestampTypes = beam.DoFn.TimestampParam,  # type: ignore[assignment]
    ) -> Iterator[pa.RecordBatch]:
        found = self._open.get(window)
        rechunker = found[0] if found else Rechunker(self._rows, self._max_bytes)
        self._open[window] = (rechunker, timestamp)
        yield from rechunker.push(batch)

    def finish_bundle(self) -> Iterable[WindowedValue]:
        for window, (rechunker, timestamp) in self._open.items():
            for batch in rechunker.flush():
                yield WindowedValue(batch, timestamp, (window,))
        self._open = {}


@dataclass(eq=False)
class Rechunk(beam.PTransform[Any, Any]):
    """Resizes chunks to `rows` rows and at most `max_bytes` bytes, within a bundle and a window."""

    rows: int
    max_bytes: int

    def expand(self, chunks: PCollection[pa.RecordBatch]) -> PCollection[pa.RecordBatch]:
        """`PCollection[pa.RecordBatch]` to the same rows in other chunks."""
        rechunked: PCollection[pa.RecordBatch] = chunks | "Rechunk" >> beam.ParDo(_RechunkFn(self.rows, self.max_bytes))
        return rechunked
