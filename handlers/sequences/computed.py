"""Statistics over the steps of keys: of the last steps, and of all steps so far."""

from __future__ import annotations

import numpy as np
import pandas as pd


def rolling(values: np.ndarray, steps: int, function: str) -> np.ndarray:
    """A statistic of each value and those before it, `steps` in all; NaN where there are not as many.

    Args:
        values: float64 of (rows,). Keys are not separated: a row has a value of its own key only if its key has `steps` rows
            up to it.
        steps: how many.
        function: `mean`, `sum`, `min` or `max`.
    """
    found = np.full(len(values), np.nan)
    if len(values) >= steps:
        windows = np.lib.stride_tricks.sliding_window_view(values, steps)
        found[steps - 1 :] = getattr(windows, function)(axis=1)
    return found


def so_far(values: np.ndarray, keys: np.ndarray, function: str) -> np.ndarray:
    """A statistic of each value and all before it in its key; NaN values are left out.

    Args:
        values: float64 of (rows,), in order.
        keys: int64 of (rows,): equal for the rows of one key.
        function: `mean`, `sum`, `min`, `max` or `count`.
    """
    absent = np.isnan(values)
    counts: np.ndarray = pd.Series(~absent).groupby(keys).cumsum().to_numpy()
    if function == "count":
        return counts
    neutral = {"min": np.inf, "max": -np.inf}.get(function, 0.0)
    grouped = pd.Series(np.where(absent, neutral, values)).groupby(keys)
    found = {"min": grouped.cummin, "max": grouped.cummax}.get(function, grouped.cumsum)().to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        found = found / counts if function == "mean" else found
    return np.where(counts > 0, found, np.nan)
