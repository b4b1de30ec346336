"""Data drift: how far the distribution of rows is from that of the training rows, column by column."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.evaluation.fingerprint import Fingerprint, Numeric, as_categories, as_numbers

# An empty bin would make the index infinite, so it gets this share.
_LEAST_SHARE = 1e-4
MAX_NEW = 1000  # distinct new categories that are counted separately
SHOWN_NEW = 5


@dataclass
class ColumnCounts:
    """Counts of one column: rows, nulls, rows by bin or category of the fingerprint, and values that it does not have."""

    rows: int = 0
    nulls: int = 0
    known: Counter[Any] = field(default_factory=Counter)
    new: Counter[str] = field(default_factory=Counter)
    new_rows: int = 0

    def merge(self, other: ColumnCounts) -> None:
        """Adds the counts of another."""
        self.rows += other.rows
        self.nulls += other.nulls
        self.known.update(other.known)
        self.new_rows += other.new_rows
        _update_bounded(self.new, other.new)


@dataclass
class Drift:
    """Counts of all columns that the fingerprint and the rows have."""

    fingerprint: Fingerprint
    columns: dict[str, ColumnCounts] = field(default_factory=dict)

    def add(self, chunk: pa.RecordBatch) -> None:
        """Counts the rows of a chunk."""
        for name, trained in self.fingerprint.columns.items():
            if name not in chunk.schema.names:
                continue
            counts = self.columns.setdefault(name, ColumnCounts())
            array = chunk.column(name)
            if isinstance(trained, Numeric):
                numbers = as_numbers(array)
                if numbers is None:  # text now, where there were numbers
                    numbers = np.full(len(array), np.nan)
                values = numbers[np.isfinite(numbers)]
                found = np.bincount(np.searchsorted(trained.edges, values), minlength=len(trained.edges) + 1)
                counts.known.update(dict(enumerate(found.tolist())))
                counts.nulls += len(array) - len(values)
            else:
                categories = as_categories(array)
                if categories is None:
                    categories = array.cast(pa.string())
                tally = {each["values"]: each["counts"] for each in pc.value_counts(categories.drop_null()).to_pylist()}
                new = Counter({value: rows for value, rows in tally.items() if value not in trained.shares})
                counts.known.update({value: rows for value, rows in tally.items() if value in trained.shares})
                counts.new_rows += new.total()
                _update_bounded(counts.new, new)
                counts.nulls += categories.null_count
            counts.rows += len(array)

    def merge(self, other: Drift) -> None:
        """Adds the counts of another."""
        for name, counts in other.columns.items():
            self.columns.setdefault(name, ColumnCounts()).merge(counts)

    def result(self) -> dict[str, dict[str, Any]]:
        """By column: `psi`, `nulls`, `nulls_in_training`, and of categories `new_rows` and the most frequent `new_categories`.

        PSI below 0.1 is usually called stable, from 0.25 on a shift.
        """
        found = {}
        for name, counts in self.columns.items():
            trained = self.fingerprint.columns[name]
            if isinstance(trained, Numeric):
                expected = list(trained.shares)
                actual = [counts.known[index] for index in range(len(expected))]
                extra: dict[str, Any] = {}
            else:
                expected = [*trained.shares.values(), trained.other]
                actual = [*(counts.known[value] for value in trained.shares), counts.new_rows]
                shown = sorted(counts.new.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_NEW]
                new = (
                    {}
                    if trained.other
                    else {"new_rows": counts.new_rows, "new_categories": [value for value, _ in shown]}
                )
                extra = new
            found[name] = {
                "kind": trained.kind,
                "psi": population_stability_index(expected, actual),
                "nulls": counts.nulls / counts.rows if counts.rows else 0.0,
                "nulls_in_training": trained.nulls,
                **extra,
            }
        return dict(sorted(found.items(), key=lambda item: (-(item[1]["psi"] or 0.0), item[0])))


def population_stability_index(expected: list[float], counts: list[int]) -> float | None:
    """Σ (actual − expected) · ln(actual / expected) over bins; None where there is no value."""
    total = sum(counts)
    if not total:
        return None
    before = np.maximum(np.asarray(expected, dtype=float), _LEAST_SHARE)
    now = np.maximum(np.asarray(counts, dtype=float) / total, _LEAST_SHARE)
    return float(np.sum((now - before) * np.log(now / before)))


def _update_bounded(counts: Counter[str], more: Counter[str]) -> None:
    for value, rows in more.items():
        if value in counts or len(counts) < MAX_NEW:
            counts[value] += rows
