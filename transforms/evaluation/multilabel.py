"""Metrics of task multilabel, from counts of each label, which add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transforms.evaluation import intervals
from transforms.evaluation.classification import in_order
from transforms.evaluation.plan import MAX_CLASSES, EvaluationPlan
from transforms.evaluation.rows import LabelRows, label_names, pairs


@dataclass
class LabelTotals:
    """Rows by label: given and predicted, predicted only, given only; and rows of which all labels are right."""

    plan: EvaluationPlan
    whole: bool = True
    rows: int = 0
    exact: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    extra: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    too_many: bool = False

    def add(self, rows: LabelRows) -> None:
        """Counts rows."""
        if not len(rows):
            return
        names = label_names(rows.truth, rows.predicted).to_pylist()
        truth, predicted = pairs(rows.truth, rows.predicted)
        base = max(len(names), 1)
        for counter, found in (
            (self.hits, np.intersect1d(truth, predicted)),
            (self.extra, np.setdiff1d(predicted, truth)),
            (self.missed, np.setdiff1d(truth, predicted)),
        ):
            index, counts = np.unique(found % base, return_counts=True)
            counter.update({names[each]: count for each, count in zip(index.tolist(), counts.tolist(), strict=True)})
        self.rows += len(rows)
        self.exact += int(rows.correct.sum())
        self._bound()

    def merge(self, other: LabelTotals) -> None:
        """Adds the counts of another."""
        self.rows += other.rows
        self.exact += other.exact
        self.hits.update(other.hits)
        self.extra.update(other.extra)
        self.missed.update(other.missed)
        self.too_many |= other.too_many
        self._bound()

    def _bound(self) -> None:
        if len(self.hits) + len(self.extra) + len(self.missed) > MAX_CLASSES and len(self.labels()) > MAX_CLASSES:
            self.too_many = True
            self.hits, self.extra, self.missed = Counter(), Counter(), Counter()

    def labels(self) -> list[str]:
        """The labels that occur."""
        return sorted({*self.hits, *self.extra, *self.missed}, key=in_order)

    def metrics(self) -> dict[str, Any]:
        """Metrics by name, flat, and below `intervals` and `classes`."""
        labels = self.labels()
        hits, extra, missed = (
            np.array([counter[name] for name in labels], float) for counter in (self.hits, self.extra, self.missed)
        )

        def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
            found: np.ndarray = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
            return found

        each = {
            "precision": ratio(hits, hits + extra),
            "recall": ratio(hits, hits + missed),
            "f1": ratio(2 * hits, 2 * hits + extra + missed),
        }
        summed = [np.array([values.sum()]) for values in (hits, extra, missed)]
        micro = {
            "precision": ratio(summed[0], summed[0] + summed[1]),
            "recall": ratio(summed[0], summed[0] + summed[2]),
            "f1": ratio(2 * summed[0], 2 * summed[0] + summed[1] + summed[2]),
        }
        found: dict[str, Any] = {"rows": self.rows, "accuracy": self.exact / self.rows if self.rows else None}
        for name, values in each.items():
            found[f"{name}_macro"] = float(values.mean()) if labels else None
            found[f"{name}_micro"] = float(micro[name][0]) if labels else None
        wrong = float(extra.sum() + missed.sum())
        found["hamming_loss"] = wrong / self.rows / len(labels) if labels and self.rows else None
        limits = intervals.wilson(self.exact, self.rows)
        found["intervals"] = {"accuracy": list(limits)} if limits else {}
        if self.whole:
            found["classes"] = {
                name: {key: float(values[index]) for key, values in each.items()}
                | {"support": int(self.hits[name] + self.missed[name])}
                for index, name in enumerate(labels)
            }
            found |= {"bounds": {}, "charts": {}}
        return found
