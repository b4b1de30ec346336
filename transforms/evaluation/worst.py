"""The rows that the model was most wrong about: the top of all chunks, by loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.evaluation.plan import WORST_ROWS

_WIDTH = 60  # characters of a value that are shown


@dataclass
class Worst:
    """The `WORST_ROWS` rows of the highest loss, worst first, as (loss, values of the `shown` columns as text)."""

    shown: tuple[str, ...]
    rows: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)

    def add(self, loss: np.ndarray, index: np.ndarray, chunk: pa.RecordBatch) -> None:
        """Looks at rows: their loss, float64 of (rows,), and their indices in `chunk`."""
        # Without what cannot come in, so that values are made text for few rows only.
        least = self.rows[-1][0] if len(self.rows) == WORST_ROWS else 0.0
        candidates = np.flatnonzero(loss > least)
        if len(candidates) > WORST_ROWS:
            candidates = candidates[np.argsort(-loss[candidates], kind="stable")[:WORST_ROWS]]
        if not len(candidates):
            return
        rows = chunk.select(list(self.shown)).take(pa.array(index[candidates])).to_pylist()
        found = [
            (float(value), tuple(_text(row[name]) for name in self.shown))
            for value, row in zip(loss[candidates], rows, strict=True)
        ]
        self._keep(found)

    def merge(self, other: Worst) -> None:
        """Adds the rows of another."""
        self._keep(other.rows)

    def _keep(self, rows: list[tuple[float, tuple[str, ...]]]) -> None:
        # Ties by content, so that the order of chunks does not matter.
        self.rows = sorted([*self.rows, *rows], key=lambda row: (-row[0], row[1]))[:WORST_ROWS]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, list) and all(isinstance(each, float) for each in value):
        value = "[" + ", ".join(f"{each:.4g}" for each in value[:50]) + "]"
    text = " ".join(str(value[:200] if isinstance(value, list | str) else value).split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
