"""Metrics of a classification, from a confusion matrix, sums of losses, calibration bins and scores, all of which add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.evaluation import curves, intervals
from transforms.evaluation.curves import Groups, Scores
from transforms.evaluation.plan import MAX_CLASSES, EvaluationPlan
from transforms.evaluation.rows import ClassRows
from transforms.evaluation.sums import Moments

CALIBRATION_BINS = 15
# Drawing 1,000 confusion matrices of more classes than this takes seconds, for intervals that are too wide to be of use.
_BOOTSTRAP_CLASSES = 50


@dataclass
class ClassTotals:
    """What is kept of the rows of a classification.

    Attributes:
        plan: of the evaluation.
        whole: keeps scores and calibration, too, which slices do not need.
        confusion: rows by (true class, predicted class).
        unknown: rows whose true class has no score.
        too_many: there are more than `MAX_CLASSES` classes, and nothing is counted any more.
        calibration: rows, sum of probabilities and sum of hits, by bin of the probability.
    """

    plan: EvaluationPlan
    whole: bool = True
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)
    log_loss: Moments = field(default_factory=Moments.none)
    brier: Moments = field(default_factory=Moments.none)
    unknown: int = 0
    too_many: bool = False
    calibration: np.ndarray = field(default_factory=lambda: np.zeros((CALIBRATION_BINS, 3)))
    scores: Scores | None = None

    def __post_init__(self) -> None:
        if self.whole and self.plan.scored and self.scores is None:
            self.scores = Scores(1 if self.binary else len(self.plan.classes), self.plan.exact_scores)

    @property
    def binary(self) -> bool:
        """Whether there are two classes."""
        return self.plan.positive is not None

    def add(self, rows: ClassRows) -> None:
        """Counts rows."""
        if self.too_many or not len(rows):
            return
        self.confusion.update(_confusion(rows))
        self._bound()
        if self.plan.classes:
            self.unknown += int((rows.codes < 0).sum())
        if rows.probabilities is not None:
            self.log_loss += Moments.of(rows.loss)
            self.brier += Moments.of(self._brier(rows, rows.probabilities))
        if not self.whole:
            return
        if rows.probabilities is not None and self.scores is not None:
            if self.binary:
                positive = self.plan.classes.index(str(self.plan.positive))
                self.scores.add(rows.probabilities[:, [positive]], np.where(rows.codes == positive, 0, 1))
                self._calibrate(rows.probabilities[:, positive].astype(np.float64), rows.codes == positive)
            else:
                self.scores.add(rows.probabilities, rows.codes)
        if not self.binary and rows.confidence is not None:
            self._calibrate(rows.confidence, rows.correct)

    def merge(self, other: ClassTotals) -> None:
        """Adds the counts of another."""
        self.too_many |= other.too_many
        self.confusion.update(other.confusion)
        self._bound()
        self.log_loss += other.log_loss
        self.brier += other.brier
        self.unknown += other.unknown
        self.calibration += other.calibration
        if self.scores is not None and other.scores is not None:
            self.scores.merge(other.scores)

    @property
    def rows(self) -> int:
        """How many rows were counted."""
        return self.confusion.total()

    def labels(self) -> list[str]:
        """The classes that occur, those with scores first and in their order."""
        seen = {name for pair in self.confusion for name in pair}
        return [name for name in self.plan.classes if name in seen] + sorted(
            seen - set(self.plan.classes), key=in_order
        )

    def matrix(self, labels: list[str]) -> np.ndarray:
        """Rows by true (first axis) and predicted class, int64."""
        index = {name: position for position, name in enumerate(labels)}
        found = np.zeros((len(labels), len(labels)), np.int64)
        for (truth, predicted), rows in self.confusion.items():
            found[index[truth], index[predicted]] = rows
        return found

    def metrics(self) -> dict[str, Any]:
        """Metrics by name, flat; and below `intervals`, `bounds`, `classes`, `confusion_matrix` and `charts`."""
        labels = self.labels()
        matrix = self.matrix(labels)
        found: dict[str, Any] = {"rows": self.rows, **summary(matrix)}
        limits = {"accuracy": intervals.wilson(int(matrix.trace()), self.rows)}
        if self.whole and len(labels) <= _BOOTSTRAP_CLASSES:
            limits |= {name: each for name, each in intervals.bootstrap(matrix, summary).items() if name != "accuracy"}
        of_classes = per_class(matrix, labels)
        if self.binary:
            of_positive = of_classes.get(str(self.plan.positive), {"precision": 0.0, "recall": 0.0, "f1": 0.0})
            found |= {name: of_positive[name] for name in ("precision", "recall", "f1")}
        usable = self.plan.scored and self.unknown == 0 and self.log_loss.value() is not None
        for name, moments in (("log_loss", self.log_loss), ("brier", self.brier)):
            found[name] = moments.value() if usable else None
            limits[name] = intervals.normal(found[name], moments.error(), 0) if usable else None
        if not self.whole:
            return found | {"intervals": _given(limits)}
        found["expected_calibration_error"] = self.calibration_error()
        bounds: dict[str, float] = {}
        charts: dict[str, Any] = {"calibration": self._calibration_points()}
        found |= {"roc_auc": None, "average_precision": None}
        if usable and self.scores is not None:
            self._ranked(found, limits, bounds, charts, of_classes)
        return found | {
            "intervals": _given(limits),
            "bounds": bounds,
            "positive_class": self.plan.positive,
            "classes": of_classes,
            "confusion_matrix": {"labels": labels, "counts": matrix.tolist()},
            "charts": charts,
        }

    def calibration_error(self) -> float | None:
        """Σ over bins of their share of the rows × |mean probability − share of hits|."""
        rows = self.calibration[:, 0]
        if not rows.sum():
            return None
        return float(np.abs(self.calibration[:, 1] - self.calibration[:, 2]).sum() / rows.sum())

    def _ranked(
        self,
        found: dict[str, Any],
        limits: dict[str, Any],
        bounds: dict[str, float],
        charts: dict[str, Any],
        of_classes: dict[str, dict[str, Any]],
    ) -> None:
        """What depends on the order of the scores."""
        assert self.scores is not None  # noqa: S101
        names = [str(self.plan.positive)] if self.binary else list(self.plan.classes)
        areas, precisions = [], []
        drawn: list[tuple[int, str, Groups]] = []
        for index, name in enumerate(names):
            groups = self.scores.groups(index)
            areas.append(curves.roc_auc(groups))
            precisions.append(curves.average_precision(groups))
            row = of_classes.setdefault(name, {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0})
            row |= {"roc_auc": areas[-1][0], "average_precision": precisions[-1][0]}
            drawn = sorted([*drawn, (groups.totals[0], name, groups)], key=lambda each: (-each[0], each[1]))[:8]
        if all(area is not None for area, _ in areas):
            found["roc_auc"] = float(np.mean([area for area, _ in areas]))
        found["average_precision"] = float(np.mean([value for value, _ in precisions]))
        if not self.scores.exact:
            bounds["roc_auc"] = float(np.mean([bound for _, bound in areas]))
            bounds["average_precision"] = float(np.mean([bound for _, bound in precisions]))
        if self.binary:
            groups = drawn[0][2]
            limits["roc_auc"] = (
                intervals.normal(found["roc_auc"], curves.auc_error(groups), 0, 1) if found["roc_auc"] else None
            )
            limits["average_precision"] = intervals.logit_interval(found["average_precision"], groups.totals[0])
        charts["roc"] = {name: curves.roc_points(groups) for _, name, groups in drawn}
        charts["precision_recall"] = {name: curves.precision_recall_points(groups) for _, name, groups in drawn}
        charts["lift"] = {name: curves.lift_points(groups) for _, name, groups in drawn}

    def _brier(self, rows: ClassRows, probabilities: np.ndarray) -> np.ndarray:
        wide = probabilities.astype(np.float64)
        if self.binary:
            positive = self.plan.classes.index(str(self.plan.positive))
            found: np.ndarray = (wide[:, positive] - (rows.codes == positive)) ** 2
        else:
            likely = wide[np.arange(len(rows)), np.maximum(rows.codes, 0)]
            found = (wide**2).sum(axis=1) - 2 * likely + 1
        return found

    def _calibrate(self, probability: np.ndarray, hit: np.ndarray) -> None:
        edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
        index = np.searchsorted(edges, probability)
        for column, weights in enumerate((None, probability, hit.astype(np.float64))):
            self.calibration[:, column] += np.bincount(index, weights, CALIBRATION_BINS)

    def _calibration_points(self) -> list[tuple[float, float, int]]:
        """(mean probability, share of hits, rows) of the bins that have rows."""
        return [(total / rows, hits / rows, int(rows)) for rows, total, hits in self.calibration.tolist() if rows]

    def _bound(self) -> None:
        # The pairs are at most the square of the classes, so they are counted only once there are many.
        if len(self.confusion) > MAX_CLASSES and len({name for pair in self.confusion for name in pair}) > MAX_CLASSES:
            self.too_many = True
            self.confusion = Counter(dict(list(self.confusion.items())[:MAX_CLASSES]))


def _confusion(rows: ClassRows) -> dict[tuple[str, str], int]:
    truth, predicted = (pc.dictionary_encode(each) for each in (rows.truth, rows.predicted))
    width = len(predicted.dictionary)
    pairs = truth.indices.to_numpy().astype(np.int64) * width + predicted.indices.to_numpy()
    found, counts = np.unique(pairs, return_counts=True)
    names, answers = truth.dictionary.to_pylist(), predicted.dictionary.to_pylist()
    return {
        (names[pair // width], answers[pair % width]): count
        for pair, count in zip(found.tolist(), counts.tolist(), strict=True)
    }


def in_order(name: str) -> tuple[bool, float, str]:
    """Sorts classes: numbers by value, then text."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _given(limits: dict[str, Any]) -> dict[str, list[float]]:
    return {name: list(each) for name, each in limits.items() if each is not None}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return found


def summary(matrix: np.ndarray) -> dict[str, float | None]:
    """Metrics of a confusion matrix, as scikit-learn defines them with `zero_division=0`.

    Averages go over the classes that occur as labels or predictions; balanced accuracy over those that occur as labels.
    """
    rows = matrix.sum()
    if not rows:
        return {}
    hits, support, answers = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    occur = support + answers > 0
    precision, recall = _ratio(hits, answers), _ratio(hits, support)
    f1 = _ratio(2 * hits, support + answers)
    found: dict[str, float | None] = {
        "accuracy": float(hits.sum() / rows),
        "balanced_accuracy": float(recall[support > 0].mean()),
    }
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        found[f"{name}_macro"] = float(values[occur].mean())
        found[f"{name}_weighted"] = float(np.dot(values, support) / rows)
    share, answered = support / rows, answers / rows
    spread = (1 - np.dot(share, share)) * (1 - np.dot(answered, answered))
    found["matthews_corrcoef"] = (
        float((hits.sum() / rows - np.dot(share, answered)) / np.sqrt(spread)) if spread > 0 else 0.0
    )
    return found


def per_class(matrix: np.ndarray, labels: list[str]) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1 of each class, with intervals of the first two, and its support."""
    hits, support, answers = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    found = {}
    for index, name in enumerate(labels):
        hit, of, given = int(hits[index]), int(support[index]), int(answers[index])
        found[name] = {
            "precision": hit / given if given else 0.0,
            "recall": hit / of if of else 0.0,
            "f1": 2 * hit / (of + given) if of + given else 0.0,
            "support": of,
            "intervals": _given({"precision": intervals.wilson(hit, given), "recall": intervals.wilson(hit, of)}),
        }
    return found


def classes_of(*columns: pa.Array) -> list[str]:
    """The classes in columns of text, in order."""
    return sorted({name for column in columns for name in pc.unique(column.drop_null()).to_pylist()}, key=in_order)
