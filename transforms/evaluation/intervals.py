"""Confidence intervals of 95 %, and the paired tests of a comparison. Numbers in, numbers out.

| metric | interval |
| --- | --- |
| accuracy, precision and recall of a class | Wilson |
| balanced accuracy and what is averaged over classes | bootstrap of the confusion matrix, 1,000 draws, fixed seed |
| log loss, Brier score | normal, of a mean |
| ROC-AUC | DeLong |
| average precision | of its logit, Boyd, Eng and Page (2013); near 0 and 1 Wilson |
| of regression | jackknife over 100 random groups of rows |
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb, exp, log, sqrt

import mpmath
import numpy as np

Z = 1.959963984540054  # of 95 %
DRAWS = 1000

Interval = tuple[float, float]


def wilson(hits: float, rows: int) -> Interval | None:
    """Of a share of `hits` among `rows`."""
    if not rows:
        return None
    share, wide = hits / rows, Z * Z / rows
    middle = share + wide / 2
    half = Z * sqrt(share * (1 - share) / rows + wide / rows / 4)
    return max(0.0, (middle - half) / (1 + wide)), min(1.0, (middle + half) / (1 + wide))


def normal(value: float, error: float | None, low: float = -np.inf, high: float = np.inf) -> Interval | None:
    """Of an estimate with a standard error, within its possible values."""
    if error is None or not np.isfinite(error):
        return None
    return max(low, value - Z * error), min(high, value + Z * error)


def logit_interval(value: float, count: int) -> Interval | None:
    """Of an average precision `value` over `count` positive rows.

    Near 0 and 1 the logit is of no use (0.999 of 50 rows would be 0 to 1); there it is the interval of a share.
    """
    if count * value * (1 - value) < 1:
        return wilson(value * count, count)
    middle, error = log(value / (1 - value)), 1 / sqrt(count * value * (1 - value))
    low, high = (
        1 / (1 + exp(-(middle + sign * Z * error))) if abs(middle + sign * Z * error) < 700 else float(sign > 0)
        for sign in (-1, 1)
    )
    return low, high


def bootstrap(matrix: np.ndarray, metrics: Callable[[np.ndarray], dict[str, float | None]]) -> dict[str, Interval]:
    """Of what `metrics` makes of a confusion matrix (int of (K, K)).

    Drawing rows with replacement is drawing a matrix from a multinomial distribution, so the rows are not needed.
    """
    rows = int(matrix.sum())
    used = np.flatnonzero(matrix)
    if not rows or len(used) < 2:
        return {}
    draws = np.random.default_rng(0).multinomial(rows, matrix.ravel()[used] / rows, size=DRAWS)
    found: dict[str, list[float]] = {}
    drawn = np.zeros(matrix.size, np.int64)
    for draw in draws:
        drawn[used] = draw
        for name, value in metrics(drawn.reshape(matrix.shape)).items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {
        name: (float(low), float(high))
        for name, values in found.items()
        for low, high in [np.percentile(values, [2.5, 97.5])]
    }


def jackknife(value: float, without: np.ndarray, low: float = -np.inf, high: float = np.inf) -> Interval | None:
    """Of `value`, from its values without one group each, float64 of (groups,)."""
    groups = len(without)
    if groups < 2 or not np.isfinite(without).all():
        return None
    return normal(value, sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum())), low, high)


def mcnemar(only_first: int, only_second: int) -> float:
    """P-value of McNemar's test: rows that only the first run got right against those that only the second did.

    Exact (binomial) up to 1,000 such rows, else by chi-square with continuity correction.
    """
    rows, fewer = only_first + only_second, min(only_first, only_second)
    if not rows:
        return 1.0
    if rows <= 1000:
        return float(min(1.0, 2 * sum(comb(rows, hits) for hits in range(fewer + 1)) / 2**rows))
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / rows
    return float(mpmath.erfc(sqrt(statistic / 2)))


def paired_t(mean: float, variance: float, rows: int) -> float | None:
    """P-value of a paired t-test: two-sided, of differences with that mean and sample variance."""
    if rows < 2 or not variance > 0:
        return None if rows < 2 else 1.0 if mean == 0 else 0.0
    freedom = rows - 1
    statistic = mean / sqrt(variance / rows)
    return float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + statistic**2), regularized=True))
