"""`RowPredictor`: a loaded model that adds its predictions to rows in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa

from handlers.columnar.chunks import DEAD_LETTER
from handlers.encode.columns import matching
from handlers.errors import RowsFailedError, UsageError
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from transforms.local.frames import frame_of
from transforms.local.scoring import Model

RowsT = TypeVar("RowsT")

ERROR = "error"  # the column of the reasons


class RowPredictor:
    """A model in memory, on its device. Several threads may share one.

    Args:
        model: the model directory.
        placement: where it runs.
        batch_size: rows of a call of the model; chosen by the bytes of a row by default.

    Attributes:
        model: the model directory.
        version: its version, which is also in the column `model_version`.

    Raises:
        UsageError: where it cannot be loaded.
    """

    def __init__(self, model: ModelDir, placement: Placement = Placement(), batch_size: int | None = None) -> None:
        self.model = model
        self.version = model.version
        self._model = Model(model, placement, batch_size)

    def __repr__(self) -> str:
        return f"RowPredictor({self._model!r})"

    def predict(self, rows: RowsT, *, on_failure: Literal["raise", "null"] = "raise") -> RowsT:
        """Predicts for rows; gives them back, in the same order and of the same kind, with the columns of the task.

        For a classification these are `predicted_class` and `confidence`; `model_version` is always among them. A row that a
        function of the model leaves out on purpose is left out here, too. The rows given are not changed.

        Args:
            rows: a list of dicts, a pandas or Polars frame, or an Arrow table or record batch.
            on_failure: what happens if a row cannot be scored: `raise`, or `null`: its new columns are null, and the column
                `error`, which all rows then have, says why (null for the others).

        Raises:
            RowsFailedError: where a row cannot be scored.
            UsageError: for other kinds of rows, and for columns that the model cannot take.
            BrokenModelError: where the model fails on every row.
        """
        if on_failure not in ("raise", "null"):
            raise UsageError(f'on_failure must be "raise" or "null", not "{on_failure}"')
        if isinstance(rows, pa.RecordBatchReader):
            raise UsageError("predict gives rows back, and a reader gives them only once; use read_all() first")
        frame = frame_of(rows, partial(matching, tuple(self.model.spec.numeric_columns)))
        found = self._model.run(frame)
        names = frame.schema.names
        if on_failure == "null" and ERROR in names:
            raise UsageError(f'the rows have a column "{ERROR}" already; rename it')
        reasons = dict(
            zip(found.dead_ids.tolist(), map(_reason, found.dead_letters.column(DEAD_LETTER).to_pylist()), strict=True)
        )
        if reasons and on_failure == "raise":
            first = min(reasons)
            raise RowsFailedError(
                f"{len(reasons)} of {frame.rows} rows cannot be scored; the first is row {first}: {reasons[first]} "
                '(on_failure="null" predicts for the others)'
            )
        ids = found.ids
        added = found.predictions.select([name for name in found.predictions.column_names if name not in names])
        if on_failure == "null":
            ids, added = _with_failed(ids, added, reasons)
        results = pa.Table.from_batches(frame.batches(), schema=frame.schema).take(pa.array(ids))
        for field, column in zip(added.schema, added.columns, strict=True):
            results = results.append_column(field, column)
        given: RowsT = frame.back(results, ids, names)
        return given


def _reason(letter: Mapping[str, Any]) -> str:
    return f"{letter['stage']}/{letter['type']}: {letter['message']}"


def _with_failed(ids: np.ndarray, added: pa.Table, failed: Mapping[int, str]) -> tuple[np.ndarray, pa.Table]:
    """The scored and the failed rows in their order, with the reasons."""
    every = np.concatenate([ids, np.array(sorted(failed), dtype=np.int64)])
    order = np.argsort(every, kind="stable")
    # A take at a null index gives null.
    index = pa.array(np.where(order < len(ids), order, 0), mask=order >= len(ids))
    reasons = pa.array([failed.get(int(row)) for row in every[order]], pa.string())
    return every[order], added.take(index).append_column(ERROR, reasons)
