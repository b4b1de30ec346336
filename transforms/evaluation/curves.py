"""ROC and precision-recall from scores that were gathered in many parts: exact up to a bound, by bins beyond it.

The scores of all parts are kept exactly while they are few. Beyond a limit they are counted in bins of equal width in
logit(score), which are fine near 0 and near 1, where models put most scores. What is computed from bins comes with an
error bound that is computed from the counts themselves, so it always holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Scores that are kept exactly; beyond, they are counted in bins: rows × classes. 8 MB of float32, 16 MB of float64.
EXACT_SCORES = 2_000_000
_LOGIT_LIMIT = 40  # a probability of 4e-18, or of 1 minus that
_BINS_PER_LOGIT = 1024


@dataclass(frozen=True)
class Groups:
    """Scores of one class with the rows that have them, from the highest on.

    Attributes:
        score: float64 of (groups,), descending; for bins the lowest score that can be in them.
        positive: int64 of (groups,): rows of the class with that score.
        negative: int64 of (groups,): rows of other classes.
        exact: a group is a single score, not a bin.
    """

    score: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    exact: bool = True

    @property
    def totals(self) -> tuple[int, int]:
        """All rows of the class, and of other classes."""
        return int(self.positive.sum()), int(self.negative.sum())


@dataclass
class Scores:
    """Scores of rows for some classes, and the class of each row. Adding up keeps them exact up to `limit` scores.

    Attributes:
        classes: the number of classes K that have scores.
        limit: how many scores are kept exactly, rows × K.
    """

    classes: int
    limit: int = EXACT_SCORES
    parts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    bins: np.ndarray | None = None

    @property
    def exact(self) -> bool:
        """Whether the scores themselves are kept."""
        return self.bins is None

    def add(self, scores: np.ndarray, codes: np.ndarray) -> None:
        """Adds rows: probabilities of (rows, K), and the index of the true class of each, int of (rows,)."""
        if not len(scores):
            return
        if self.bins is not None:
            self.bins += self._counted(scores, codes)
            return
        self.parts.append((np.ascontiguousarray(scores), codes.astype(np.int32)))
        self._settle()

    def merge(self, other: Scores) -> None:
        """Adds the rows of another."""
        if other.bins is not None:
            self._to_bins()
            assert self.bins is not None  # noqa: S101
            self.bins += other.bins
            return
        if self.bins is not None:
            for scores, codes in other.parts:
                self.bins += self._counted(scores, codes)
            return
        self.parts += other.parts
        self._settle()

    def groups(self, class_: int) -> Groups:
        """The scores of one class."""
        if self.bins is None:
            scores = np.concatenate([part[:, class_] for part, _ in self.parts]) if self.parts else np.zeros(0)
            truth = np.concatenate([codes for _, codes in self.parts]) if self.parts else np.zeros(0, np.int32)
            return group(scores, truth == class_)
        negative, positive = self.bins[class_]
        used = np.flatnonzero(negative + positive)[::-1]
        lowest = 1 / (1 + np.exp(-(used / self._resolution - _LOGIT_LIMIT)))
        return Groups(lowest, positive[used], negative[used], exact=False)

    @property
    def _resolution(self) -> int:
        # Many classes get coarser bins: 1.3 MB for one class and for 60.
        return max(16, _BINS_PER_LOGIT // self.classes)

    def _settle(self) -> None:
        if sum(scores.size for scores, _ in self.parts) > self.limit:
            self._to_bins()
        elif len(self.parts) > 64:  # many small arrays cost more than one
            scores, codes = zip(*self.parts, strict=True)
            self.parts = [(np.concatenate(scores), np.concatenate(codes))]

    def _to_bins(self) -> None:
        if self.bins is None:
            self.bins = np.zeros((self.classes, 2, 2 * _LOGIT_LIMIT * self._resolution + 1), np.int64)
            for scores, codes in self.parts:
                self.bins += self._counted(scores, codes)
            self.parts = []

    def _counted(self, scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
        bins = 2 * _LOGIT_LIMIT * self._resolution + 1
        counts = np.zeros((self.classes, 2, bins), np.int64)
        for class_ in range(self.classes):
            column = scores[:, class_].astype(np.float64)
            with np.errstate(divide="ignore"):
                logit = np.clip(np.log(column) - np.log1p(-column), -_LOGIT_LIMIT, _LOGIT_LIMIT)
            index = np.floor((logit + _LOGIT_LIMIT) * self._resolution).astype(np.int64)
            truth = codes == class_
            counts[class_, 0] = np.bincount(index[~truth], minlength=bins)
            counts[class_, 1] = np.bincount(index[truth], minlength=bins)
        return counts


def group(scores: np.ndarray, positive: np.ndarray) -> Groups:
    """Groups scores of (rows,) that are equal; `positive` is a mask of (rows,)."""
    order = np.argsort(scores, kind="stable")[::-1]
    ordered, truth = scores[order].astype(np.float64), positive[order]
    if not len(ordered):
        return Groups(ordered, np.zeros(0, np.int64), np.zeros(0, np.int64))
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    positives = np.diff(np.cumsum(truth, dtype=np.int64)[last], prepend=0)
    return Groups(ordered[last], positives, np.diff(last + 1, prepend=0) - positives)


def roc_auc(groups: Groups) -> tuple[float | None, float]:
    """The area under the ROC curve, and how far it may be from that of the scores themselves; None where a class has no rows.

    Within a bin the pairs of a positive and a negative row count one half, and may be worth 0 to 1.
    """
    positive, negative = groups.totals
    if not positive or not negative:
        return None, 0.0
    above = np.cumsum(groups.positive) - groups.positive
    area = float(np.dot(groups.negative.astype(float), above + groups.positive / 2)) / positive / negative
    tied = float(np.dot(groups.negative.astype(float), groups.positive / 2)) / positive / negative
    return area, 0.0 if groups.exact else tied


def average_precision(groups: Groups) -> tuple[float, float]:
    """Average precision as scikit-learn defines it (no interpolation), and how far it may be from the exact one.

    0 where no row is positive. Within a bin of p positives and n negatives, precision is highest with all positives
    first and lowest with all negatives first; the mean of the latter is at least that of its first and last value,
    because it rises ever more slowly.
    """
    positive, _ = groups.totals
    if not positive:
        return 0.0, 0.0
    p, n = groups.positive.astype(float), groups.negative.astype(float)
    hits, misses = np.cumsum(p), np.cumsum(n)
    value = float(np.dot(p, hits / (hits + misses)))
    if groups.exact:
        return value / positive, 0.0
    first = (hits - p + 1) / np.maximum(hits - p + misses + 1, 1)
    lowest = float(np.dot(p, (first + hits / (hits + misses)) / 2))
    highest = float(np.dot(p, hits / np.maximum(hits + misses - n, 1)))
    return value / positive, max(highest - value, value - lowest) / positive


def auc_error(groups: Groups) -> float | None:
    """Standard error of the area under the ROC curve by DeLong, DeLong and Clarke-Pearson (1988)."""
    positive, negative = groups.totals
    area, _ = roc_auc(groups)
    if area is None or min(positive, negative) < 2:
        return None
    above = np.cumsum(groups.positive) - groups.positive
    below = negative - np.cumsum(groups.negative)
    of_positive = (below + groups.negative / 2) / negative
    of_negative = (above + groups.positive / 2) / positive
    spread_p = np.dot(groups.positive.astype(float), (of_positive - area) ** 2) / (positive - 1)
    spread_n = np.dot(groups.negative.astype(float), (of_negative - area) ** 2) / (negative - 1)
    return float(np.sqrt(spread_p / positive + spread_n / negative))


def roc_points(groups: Groups, points: int = 200) -> list[tuple[float, float]]:
    """The ROC curve as (false positive rate, true positive rate), in at most about `points` points."""
    positive, negative = groups.totals
    if not positive or not negative:
        return []
    x = np.concatenate([[0], np.cumsum(groups.negative)]) / negative
    y = np.concatenate([[0], np.cumsum(groups.positive)]) / positive
    return _thinned(x, y, x + y, points)


def precision_recall_points(groups: Groups, points: int = 200) -> list[tuple[float, float]]:
    """The precision-recall curve as (recall, precision), in at most about `points` points."""
    positive, _ = groups.totals
    if not positive:
        return []
    hits, rows = np.cumsum(groups.positive), np.cumsum(groups.positive + groups.negative)
    return _thinned(hits / positive, hits / rows, hits / positive + rows / rows[-1], points)


def lift_points(groups: Groups, points: int = 100) -> list[tuple[float, float]]:
    """Cumulative lift as (share of the rows with the highest scores, their rate of positives over that of all rows).

    It begins at 1 % of the rows: the lift of a handful of rows is chance.
    """
    positive, negative = groups.totals
    if not positive:
        return []
    hits, rows = np.cumsum(groups.positive), np.cumsum(groups.positive + groups.negative)
    share = rows / (positive + negative)
    lift = hits / rows / (positive / (positive + negative))
    kept = share >= 0.01
    return _thinned(share[kept], lift[kept], share[kept], points)


def _thinned(x: np.ndarray, y: np.ndarray, along: np.ndarray, points: int) -> list[tuple[float, float]]:
    """The points of a curve that are about equally spaced `along` it, the first and the last among them."""
    if len(x) > points:
        wanted = np.linspace(along[0], along[-1], points)
        kept = np.unique(np.clip(np.searchsorted(along, wanted), 0, len(x) - 1))
        x, y = x[kept], y[kept]
    return [(float(each), float(value)) for each, value in zip(x, y, strict=True)]
