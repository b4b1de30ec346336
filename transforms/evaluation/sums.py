"""Means and spreads that add up."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared distances from the mean, of one number a row or, as arrays, of one for each group.

    Adding two is as exact as going through all values at once (Chan, Golub and LeVeque), also where the mean is large.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    @staticmethod
    def none(groups: int = 1) -> Moments:
        """Of no values."""
        return Moments(np.zeros(groups), np.zeros(groups), np.zeros(groups))

    @staticmethod
    def of(values: np.ndarray, group: np.ndarray | None = None, groups: int = 1) -> Moments:
        """Of `values`, float64 of (rows,), each in the group of its index."""
        if group is None:
            group = np.zeros(len(values), np.int64)
        count = np.bincount(group, minlength=groups).astype(np.float64)
        mean = np.bincount(group, values, groups) / np.maximum(count, 1)
        return Moments(count, mean, np.bincount(group, (values - mean[group]) ** 2, groups))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        return Moments(count, self.mean + apart * share, self.m2 + other.m2 + apart**2 * self.count * share)

    def total(self) -> Moments:
        """All groups in one."""
        count = self.count.sum()
        mean = float(np.dot(self.count, self.mean)) / max(count, 1)
        m2 = float(self.m2.sum() + np.dot(self.count, (self.mean - mean) ** 2))
        return Moments(np.array([count]), np.array([mean]), np.array([m2]))

    def without_each(self) -> Moments:
        """For each group that has values, those of all other groups."""
        every = self.total()
        used = self.count > 0
        count = every.count - self.count[used]
        mean = every.mean + (every.mean - self.mean[used]) * self.count[used] / np.maximum(count, 1)
        apart = self.mean[used] - mean
        m2 = every.m2 - self.m2[used] - apart**2 * count * self.count[used] / every.count
        return Moments(count, mean, np.maximum(m2, 0))

    def value(self) -> float | None:
        """The mean of all values."""
        return float(self.total().mean[0]) if self.count.sum() else None

    def error(self) -> float | None:
        """The standard error of the mean of all values."""
        every = self.total()
        rows = float(every.count[0])
        return sqrt(float(every.m2[0]) / (rows - 1) / rows) if rows > 1 else None
