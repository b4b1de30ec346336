"""`RowPredictor`: a loaded model that predicts for rows in memory, with the scorer of the columnar path."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from handlers.columnar.chunks import without_provenance
from handlers.columnar.scorer import Scored, Scorer
from handlers.errors import RowsFailedError, UsageError, one_line
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor
from transforms.inference.admit import admit
from transforms.inference.score import Score

RowsT = TypeVar("RowsT", list[dict[str, Any]], pd.DataFrame, pa.Table)

ERROR = "error"  # the column of the reasons
_SOURCE = "rows"
_KEPT = 16  # schemas of rows that are remembered
_CHUNK_ROWS = 65_536


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
        self._predictor = Predictor(model.load(), placement, batch_size)
        self._scorers: OrderedDict[pa.Schema, Scorer] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"RowPredictor({self.model!r} on {self._predictor.device})"

    def predict(self, rows: RowsT, *, on_failure: Literal["raise", "null"] = "raise") -> RowsT:
        """Predicts for rows; gives them back, in the same order and of the same kind, with the columns of the task.

        For a classification these are `predicted_class` and `confidence`; `model_version` is always among them. A row that a
        function of the model leaves out on purpose is left out here, too. The rows given are not changed.

        Args:
            rows: a list of dicts, a pandas frame, or an Arrow table.
            on_failure: what happens if a row cannot be scored: `raise`, or `null`: its new columns are null, and the column
                `error`, which all rows then have, says why (null for the others).

        Raises:
            RowsFailedError: where a row cannot be scored.
            UsageError: for other kinds of rows, and for columns that the model cannot take.
            BrokenModelError: where the model fails on every row.
        """
        if on_failure not in ("raise", "null"):
            raise UsageError(f'on_failure must be "raise" or "null", not "{on_failure}"')
        table = _as_table(rows)
        if not table.num_columns:
            return rows  # none, or rows of nothing
        if on_failure == "null" and ERROR in table.column_names:
            raise UsageError(f'the rows have a column "{ERROR}" already; rename it')
        found = [self._score(table.slice(start, _CHUNK_ROWS)) for start in range(0, max(len(table), 1), _CHUNK_ROWS)]
        failed = {
            int(row) + index * _CHUNK_ROWS: _reason(letter)
            for index, scored in enumerate(found)
            for row, letter in _letters(scored)
        }
        if failed and on_failure == "raise":
            first = min(failed)
            raise RowsFailedError(
                f"{len(failed)} of {len(table)} rows cannot be scored; the first is row {first}: {failed[first]} "
                '(on_failure="null" predicts for the others)'
            )
        ids = np.concatenate([scored.ids + index * _CHUNK_ROWS for index, scored in enumerate(found)])
        added = pa.Table.from_batches([scored.predictions for scored in found])
        added = added.select([name for name in added.column_names if name not in table.column_names])
        if on_failure == "null":
            ids, added = _with_failed(ids, added, failed)
        result: RowsT = _with_columns(rows, ids, added)
        return result

    def _score(self, table: pa.Table) -> Scored:
        batch = table.combine_chunks().to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], table.schema)
        batch = without_provenance(batch)  # a row number is the index here
        schema = batch.schema.remove_metadata()
        with self._lock:
            scorer = self._scorers.get(schema)
            if scorer is None:
                score = Score(self.model, schema, batch, source=_SOURCE)
                scorer = Scorer(self.model, score.settle(self._predictor), self._predictor)
                self._scorers[schema] = scorer
            self._scorers.move_to_end(schema)
            while len(self._scorers) > _KEPT:
                self._scorers.popitem(last=False)
        return scorer.score(admit(batch, schema, scorer.plan.needed, _SOURCE))


def _as_table(rows: Any) -> pa.Table:
    """The rows as a table, whose columns are those of any row."""
    try:
        if isinstance(rows, pa.Table):
            return rows
        if isinstance(rows, pd.DataFrame):
            return pa.Table.from_pandas(rows, preserve_index=False)
        if isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
            names = dict.fromkeys(name for row in rows for name in row)
            return pa.table({name: _column(rows, name) for name in names})
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UsageError(f"the rows cannot be made an Arrow table: {one_line(error)}") from None
    raise UsageError(f"predict takes a list of dicts, a pandas DataFrame or a pyarrow Table, not {type(rows).__name__}")


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> pa.Array:
    try:
        return pa.array([row.get(name) for row in rows])
    except (pa.ArrowException, OverflowError) as error:
        raise UsageError(f'column "{name}" has values of different kinds: {one_line(error)}') from None


def _letters(scored: Scored) -> list[tuple[int, dict[str, Any]]]:
    letters = scored.dead_letters.column("dead_letter").to_pylist()
    return [(letter["row"], letter) for letter in letters]


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


def _with_columns(rows: Any, ids: np.ndarray, added: pa.Table) -> Any:
    """The rows at `ids`, with the columns of `added`."""
    if isinstance(rows, pa.Table):
        kept = rows.take(pa.array(ids))
        for field, column in zip(added.schema, added.columns, strict=True):
            kept = kept.append_column(field, column)
        return kept
    if isinstance(rows, pd.DataFrame):
        kept = rows.iloc[ids]
        return kept.assign(**{name: added[name].to_pandas().to_numpy() for name in added.column_names})
    return [{**rows[index], **new} for index, new in zip(ids.tolist(), added.to_pylist(), strict=True)]
