"""One model on the rows of a chunk: encode → forward → head, in pieces of a bounded size.

The next piece is encoded in a thread while the model runs on the previous one, so that decoding images or tokenizing text
does not keep the model waiting, and a chunk is never in memory as tensors all at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from handlers.columnar.chains import Rows
from handlers.columnar.chunks import other_rows
from handlers.columnar.threads import in_threads
from handlers.encode.base import BoundInput, Tensors
from handlers.errors import BrokenModelError, one_line
from handlers.failures import RowFailure, RowFailures
from handlers.model.directory import ModelDir
from handlers.model.spec import head_of
from handlers.predict import heads
from handlers.predict.heads.outputs import NOT_A_NUMBER, Columns
from handlers.predict.predictor import Predictor
from handlers.stats import Stats
from handlers.tensors import take

# Bytes of the tensors of a piece. Tables stay whole: a chunk of 65,536 rows of 100 floats has 26 MB.
PIECE_BYTES = 64 << 20
NOT_PLANNED = RowFailure(
    "encode",
    "NotPlanned",
    "the first rows had no columns to bind the model's inputs to; start again with rows in the first files",
)


@dataclass(frozen=True)
class Answers:
    """What a model made of rows.

    Attributes:
        ids: int64: the rows that it answered, in the order in which they came.
        columns: of its head, one value a row.
        failures: the other rows, by id.
    """

    ids: np.ndarray
    columns: Columns
    failures: RowFailures


@dataclass(frozen=True)
class _Piece:
    """Some rows, encoded: the ids of the good ones and their tensors."""

    ids: np.ndarray
    tensors: Tensors
    failures: RowFailures
    counts: dict[str, int]
    seconds: float


class ModelStage:
    """A loaded model with its encoders and its head. Several threads may share one.

    Args:
        model: the model directory.
        inputs: its inputs, bound to the columns of the rows.
        predictor: the model, loaded.
        probabilities: whether a classification gives the probability of every class.

    Raises:
        UsageError: where the model directory lacks a file that an encoder needs.
    """

    def __init__(
        self, model: ModelDir, inputs: Sequence[BoundInput], predictor: Predictor, *, probabilities: bool = False
    ) -> None:
        self.version = model.version
        self._head = replace(head_of(model.spec, predictor.model), probabilities=probabilities)
        self._inputs = prepared(inputs, model)
        self._padding = next((bound.padding for bound in self._inputs if bound.padding), None)
        if self._padding is not None and self._head.task != "raw":  # only head raw takes per-token outputs
            self._padding = replace(self._padding, cut=())
        self.predictor = predictor

    @property
    def task(self) -> str:
        """What the outputs mean."""
        return self._head.task

    def answer(self, rows: Rows, stats: Stats) -> Answers:
        """The answers of the model to `rows`; what was done is added to `stats`.

        Raises:
            BrokenModelError: where the model's outputs do not fit its task.
            DeviceLostError: where the accelerator is gone.
        """
        if not self._inputs:
            return Answers(rows.ids[:0], {}, dict.fromkeys(rows.ids.tolist(), NOT_PLANNED))
        failures: RowFailures = {}
        parts: list[tuple[np.ndarray, Columns]] = []
        for piece in self._encoded(rows):
            failures |= piece.failures
            stats.encode_seconds += piece.seconds
            stats.counts.update(piece.counts)
            ids, columns = self._predict(piece, failures, stats)
            if len(ids):
                parts.append((ids, columns))
        return Answers(*_joined(parts, rows), failures)

    def zeros(self, rows: int) -> Columns:
        """The head's columns for `rows` rows of zeros; raises the model's error where it fails on them."""
        tensors: Tensors = {}
        for bound in self._inputs:
            tensors |= bound.zeros(rows)
        prediction = self.predictor.predict(tensors, padding=self._padding)
        if prediction.failures:
            raise prediction.failures[0][1]
        return heads.decode(self._head, prediction.outputs)[0]

    def of_no_rows(self) -> Columns:
        """The columns as far as they are known without calling the model."""
        return heads.of_no_rows(self._head)

    def _encoded(self, rows: Rows) -> Iterator[_Piece]:
        """`rows` in pieces, each encoded while the previous one is scored."""
        pieces = self._pieces(rows.batch)
        if len(pieces) == 1 and pieces[0] is None:
            yield self._encode(rows)
            return
        parts = (rows if indices is None else rows.take(indices) for indices in pieces)
        yield from in_threads(self._encode, parts, 1, "encode")

    def _pieces(self, batch: pa.RecordBatch) -> list[np.ndarray | None]:
        """Indices of the rows of each piece; None for all rows at once, in their order."""
        count = batch.num_rows
        rows = max(1, PIECE_BYTES // max(1, sum(bound.row_bytes for bound in self._inputs)))
        if count <= rows:
            return [None]
        order = next((order for bound in self._inputs if (order := bound.order(batch)) is not None), None)
        indices = np.arange(count) if order is None else order
        return [indices[start : start + rows] for start in range(0, count, rows)]

    def _encode(self, rows: Rows) -> _Piece:
        started = time.perf_counter()
        failed: RowFailures = {}
        tensors: Tensors = {}
        counts: dict[str, int] = {}
        for bound in self._inputs:
            encoded = bound.encode(rows.batch)
            tensors |= encoded.tensors
            failed = encoded.failures | failed  # of two failures of a row the first input's counts
            for name, count in encoded.counts.items():
                counts[name] = counts.get(name, 0) + count
        ids = rows.ids
        failures = {int(ids[index]): failure for index, failure in failed.items()}
        if failed:
            good = other_rows(len(ids), failed)
            tensors = {name: take(tensor, good) for name, tensor in tensors.items()}
            ids = ids[good]
        return _Piece(ids, tensors, failures, counts, time.perf_counter() - started)

    def _predict(self, piece: _Piece, failures: RowFailures, stats: Stats) -> tuple[np.ndarray, Columns]:
        """The ids and columns of the rows of a piece that were answered; the others go into `failures`."""
        ids = piece.ids
        prediction = self.predictor.predict(piece.tensors, padding=self._padding)
        predicted = time.perf_counter()
        stats.add(prediction.stats)
        for row, error in prediction.failures:
            failures[int(ids[row])] = RowFailure("forward", type(error).__name__, one_line(error))
        if len(prediction.rows) < len(ids):
            ids = ids[prediction.rows]
        if not len(ids):
            return ids, {}
        columns, bad = heads.decode(self._head, prediction.outputs)
        if bad.any():
            failures |= dict.fromkeys(ids[bad].tolist(), RowFailure("head", "NotANumber", NOT_A_NUMBER))
            ids = ids[~bad]
        stats.decode_seconds += time.perf_counter() - predicted
        return ids, columns


def prepared(inputs: Sequence[BoundInput], model: ModelDir) -> tuple[BoundInput, ...]:
    """`inputs`, ready to encode in this process."""
    # Resolving the local copy verifies all of it again, so it is done only for an encoder that needs it.
    if all(type(bound).prepare is BoundInput.prepare for bound in inputs):
        return tuple(inputs)
    folder = model.local()
    return tuple(bound.prepare(folder) for bound in inputs)


def _joined(parts: Sequence[tuple[np.ndarray, Columns]], rows: Rows) -> tuple[np.ndarray, Columns]:
    """The ids of all parts, in the order of `rows`, and their columns."""
    if not parts:
        return rows.ids[:0], {}
    if len(parts) == 1:
        return parts[0]
    ids = np.concatenate([part for part, _ in parts])
    try:
        columns = {name: pa.concat_arrays([part[name] for _, part in parts]) for name in parts[0][1]}
    except (KeyError, pa.ArrowException) as error:
        message = f"the model gives other outputs for some rows than for others: {one_line(error)}"
        raise BrokenModelError(message) from error
    sorter = np.argsort(rows.ids)
    positions = sorter[np.searchsorted(rows.ids, ids, sorter=sorter)]
    if np.all(positions[1:] > positions[:-1]):
        return ids, columns
    order = np.argsort(positions)
    return ids[order], {name: array.take(pa.array(order)) for name, array in columns.items()}
