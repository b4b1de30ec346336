"""Metrics of a regression or a forecast, output by output, from sums that add up and residuals that are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transforms.evaluation import intervals
from transforms.evaluation.plan import EvaluationPlan
from transforms.evaluation.rows import NumberRows
from transforms.evaluation.sums import Moments

GROUPS = 100
PINBALL = (0.1, 0.5, 0.9)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# Beyond the bound residuals are counted in bins whose values differ from their middle by this share of it at most.
RELATIVE_ERROR = 0.001
_SCATTER = 400


@dataclass
class Residuals:
    """Residuals of one output: exact up to `limit`, else in bins of equal relative width (as DDSketch has them)."""

    limit: int
    parts: list[np.ndarray] = field(default_factory=list)
    bins: Counter[int] | None = None

    def add(self, values: np.ndarray) -> None:
        """Adds residuals, float64 of (rows,)."""
        if self.bins is not None:
            self.bins.update(_binned(values))
            return
        self.parts.append(values)
        if sum(map(len, self.parts)) > self.limit:
            self._to_bins()
        elif len(self.parts) > 64:
            self.parts = [np.concatenate(self.parts)]

    def merge(self, other: Residuals) -> None:
        """Adds those of another."""
        if other.bins is not None:
            self._to_bins()
            assert self.bins is not None  # noqa: S101
            self.bins.update(other.bins)
            return
        for part in other.parts:
            self.add(part)

    def _to_bins(self) -> None:
        if self.bins is None:
            self.bins = Counter()
            for part in self.parts:
                self.bins.update(_binned(part))
            self.parts = []

    def weighted(self) -> tuple[np.ndarray, np.ndarray]:
        """Values in ascending order, and how many rows have each (of bins the middle)."""
        if self.bins is None:
            values = np.sort(np.concatenate(self.parts)) if self.parts else np.zeros(0)
            return values, np.ones(len(values), np.int64)
        keys = np.array(sorted(self.bins), np.int64)
        return _middle(keys), np.array([self.bins[key] for key in keys.tolist()], np.int64)


_LOG_WIDTH = np.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
_OFFSET = 1 << 20  # keeps the sign of a bin apart from that of its exponent


def _binned(values: np.ndarray) -> dict[int, int]:
    size = np.abs(values)
    with np.errstate(divide="ignore"):
        keys = np.where(size > 0, np.ceil(np.log(np.maximum(size, 1e-300)) / _LOG_WIDTH) + _OFFSET, 0) * np.sign(values)
    found, counts = np.unique(keys.astype(np.int64), return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _middle(keys: np.ndarray) -> np.ndarray:
    top = np.exp((np.abs(keys) - _OFFSET) * _LOG_WIDTH)
    return np.where(keys == 0, 0.0, np.sign(keys) * top * (1 - RELATIVE_ERROR))


def quantile(values: np.ndarray, counts: np.ndarray, share: float) -> float:
    """Of values in ascending order with counts, linear between neighbours, as numpy's default is."""
    position = share * (counts.sum() - 1)
    upto = np.cumsum(counts)
    low, high = (values[np.searchsorted(upto, rank, side="right")] for rank in (int(position), int(np.ceil(position))))
    return float(low + (high - low) * (position - int(position)))


@dataclass
class Output:
    """What is kept of one output (of a forecast: of one step). `sums` are `Moments` of a number of each row, by group of rows."""

    limit: int | None
    sums: dict[str, Moments] = field(default_factory=dict)
    largest: float = 0.0
    residuals: Residuals | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.residuals is None:
            self.residuals = Residuals(self.limit)

    def add(self, truth: np.ndarray, predicted: np.ndarray, group: np.ndarray) -> None:
        """Adds rows, float64 of (rows,) each."""
        error = truth - predicted
        size = np.abs(error)
        numbers = {
            "truth": truth,
            "error": error,
            "absolute": size,
            "percentage": size / np.maximum(np.abs(truth), np.finfo(np.float64).eps),
        } | {f"pinball_{share}": np.maximum(share * error, (share - 1) * error) for share in PINBALL}
        for name, values in numbers.items():
            self.sums[name] = self._of(name) + Moments.of(values, group, GROUPS)
        self.largest = max(self.largest, float(size.max(initial=0.0)))
        if self.residuals is not None:
            self.residuals.add(error)

    def merge(self, other: Output) -> None:
        """Adds the rows of another."""
        for name, moments in other.sums.items():
            self.sums[name] = self._of(name) + moments
        self.largest = max(self.largest, other.largest)
        if self.residuals is not None and other.residuals is not None:
            self.residuals.merge(other.residuals)

    def _of(self, name: str) -> Moments:
        return self.sums.get(name) or Moments.none(GROUPS)

    def metrics(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics by name, and each without one group of rows, for its interval."""
        whole = _from_sums({name: moments.total() for name, moments in self.sums.items()})
        without = _from_sums({name: moments.without_each() for name, moments in self.sums.items()})
        return {name: float(values[0]) for name, values in whole.items()}, without


def _from_sums(sums: dict[str, Moments]) -> dict[str, np.ndarray]:
    truth, error = sums["truth"], sums["error"]
    rows = np.maximum(truth.count, 1)
    squares = error.m2 + error.count * error.mean**2
    found = {
        "mae": sums["absolute"].mean,
        "mse": squares / rows,
        "rmse": np.sqrt(squares / rows),
        "r2": _explained(squares, truth.m2),
        "explained_variance": _explained(error.m2, truth.m2),
        "mape": sums["percentage"].mean,
        "mean_error": error.mean,
    }
    return found | {f"pinball_{share}": sums[f"pinball_{share}"].mean for share in PINBALL}


def _explained(left: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """1 − left / spread; of a label that never changes 1 where nothing is left, else 0, as scikit-learn has it."""
    constant = np.where(left == 0, 1.0, 0.0)
    return np.where(spread > 0, 1 - left / np.where(spread > 0, spread, 1), constant)


@dataclass
class Baseline:
    """Errors of a baseline, and of the model on the rows for which the baseline has a value; arrays of (steps,)."""

    rows: int = 0
    sums: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, rows: NumberRows, baseline: np.ndarray) -> None:
        """Adds rows; `baseline` is float64 of (rows, steps)."""
        known = np.isfinite(baseline).all(axis=1)
        self.rows += int(known.sum())
        for name, answers in (("", baseline), ("model_", rows.predicted)):
            error = rows.truth[known] - answers[known]
            self._add({f"{name}mae": np.abs(error).sum(axis=0), f"{name}mse": (error**2).sum(axis=0)})

    def merge(self, other: Baseline) -> None:
        """Adds the rows of another."""
        self.rows += other.rows
        self._add(other.sums)

    def _add(self, sums: dict[str, np.ndarray]) -> None:
        for name, values in sums.items():
            mine = self.sums.get(name, np.zeros(0))
            width = max(len(mine), len(values))
            self.sums[name] = np.pad(mine, (0, width - len(mine))) + np.pad(values, (0, width - len(values)))

    def metrics(self) -> dict[str, Any]:
        """Over all steps, and below `steps` of each: MAE and RMSE of the baseline and of the model, and the skill."""
        if not self.rows:
            return {"rows": 0}
        means = {name: values / self.rows for name, values in self.sums.items()}
        steps = [
            _beside({name: float(each[step]) for name, each in means.items()}) for step in range(len(means["mae"]))
        ]
        whole = _beside({name: float(each.mean()) for name, each in means.items()})
        return {"rows": self.rows, **whole, "steps": [{"step": step + 1, **each} for step, each in enumerate(steps)]}


def _beside(means: dict[str, float]) -> dict[str, float | None]:
    return {
        "mae": means["mae"],
        "rmse": means["mse"] ** 0.5,
        "model_mae": means["model_mae"],
        "model_rmse": means["model_mse"] ** 0.5,
        "skill": 1 - means["model_mae"] / means["mae"] if means["mae"] else None,
    }


@dataclass
class NumberTotals:
    """What is kept of the rows of a regression: an `Output` for each number that a row has."""

    plan: EvaluationPlan
    whole: bool = True
    rows: int = 0
    outputs: list[Output] = field(default_factory=list)
    scatter: list[tuple[float, float, float]] = field(default_factory=list)
    baselines: dict[str, Baseline] = field(default_factory=dict)

    def add(self, rows: NumberRows) -> None:
        """Counts rows."""
        if not len(rows):
            return
        # The same groups for every chunk, so that they follow from nothing that is in the rows.
        random = np.random.default_rng(0)
        group = random.integers(0, GROUPS, len(rows))
        if len(rows) <= GROUPS:
            group = (np.arange(len(rows)) + self.rows) % GROUPS
        self._widen(rows.truth.shape[1])
        for index, output in enumerate(self.outputs):
            output.add(rows.truth[:, index], rows.predicted[:, index], group)
        self.rows += len(rows)
        for name, values in rows.baselines.items():
            self.baselines.setdefault(name, Baseline()).add(rows, values)
        if self.whole:
            drawn = random.random(len(rows))
            chosen = np.argsort(drawn)[:_SCATTER]
            points = zip(
                drawn[chosen].tolist(), rows.predicted[chosen, 0].tolist(), rows.truth[chosen, 0].tolist(), strict=True
            )
            self.scatter = sorted([*self.scatter, *points])[:_SCATTER]

    def merge(self, other: NumberTotals) -> None:
        """Adds the rows of another."""
        self._widen(len(other.outputs))
        for mine, others in zip(self.outputs, other.outputs, strict=False):
            mine.merge(others)
        self.rows += other.rows
        for name, baseline in other.baselines.items():
            self.baselines.setdefault(name, Baseline()).merge(baseline)
        self.scatter = sorted([*self.scatter, *other.scatter])[:_SCATTER]

    def _widen(self, outputs: int) -> None:
        while len(self.outputs) < outputs:
            self.outputs.append(Output(self.plan.exact_scores // max(outputs, 1) if self.whole else None))

    def metrics(self) -> dict[str, Any]:
        """Metrics by name, over several outputs their means; and below `intervals`, `bounds`, `outputs` and `charts`."""
        found: dict[str, Any] = {"rows": self.rows}
        every = [output.metrics() for output in self.outputs]
        limits: dict[str, Any] = {}
        for name in every[0][0] if every else ():
            found[name] = float(np.mean([metrics[name] for metrics, _ in every]))
            without = np.mean([values[name] for _, values in every], axis=0)
            low, high = _RANGES.get(name, (0.0, np.inf))
            if name != "mse":
                limits[name] = intervals.jackknife(found[name], without, low, high)
        found["max_error"] = max((output.largest for output in self.outputs), default=None)
        bounds: dict[str, float] = {}
        charts: dict[str, Any] = {}
        if self.whole and every:
            self._distribution(found, bounds, charts)
            charts["scatter"] = [(predicted, truth) for _, predicted, truth in self.scatter]
        if len(every) > 1:
            found["outputs"] = [{"output": index} | metrics for index, (metrics, _) in enumerate(every)]
        if self.plan.baselines:
            found["baselines"] = {name: self.baselines.get(name, Baseline()).metrics() for name in self.plan.baselines}
            found |= {f"skill_{name}": each.get("skill") for name, each in found["baselines"].items()}
        found["intervals"] = {name: list(each) for name, each in limits.items() if each is not None}
        return found | ({"bounds": bounds, "charts": charts} if self.whole else {})

    def _distribution(self, found: dict[str, Any], bounds: dict[str, float], charts: dict[str, Any]) -> None:
        """Quantiles of the residuals of all outputs, and their histogram."""
        held = [output.residuals for output in self.outputs if output.residuals is not None]
        parts = [residuals.weighted() for residuals in held]
        values = np.concatenate([each for each, _ in parts])
        order = np.argsort(values, kind="stable")
        values, counts = values[order], np.concatenate([each for _, each in parts])[order]
        for share in QUANTILES:
            found[f"residual_p{round(share * 100):02d}"] = quantile(values, counts, share)
        medians = []
        for each, rows in parts:
            size = np.argsort(np.abs(each), kind="stable")
            medians.append(quantile(np.abs(each)[size], rows[size], 0.5))
        found["median_absolute_error"] = float(np.mean(medians))
        if any(residuals.bins is not None for residuals in held):
            for name in ["median_absolute_error", *(f"residual_p{round(share * 100):02d}" for share in QUANTILES)]:
                bounds[name] = RELATIVE_ERROR * abs(found[name]) * (1 + RELATIVE_ERROR)
        low, high = quantile(values, counts, 0.005), quantile(values, counts, 0.995)
        if high > low:
            height, edges = np.histogram(values, 40, (low, high), weights=counts)
            charts["residuals"] = {"edges": edges.tolist(), "rows": height.astype(int).tolist()}


_RANGES: dict[str, tuple[float, float]] = {
    "r2": (-np.inf, 1.0),
    "explained_variance": (-np.inf, 1.0),
    "mean_error": (-np.inf, np.inf),
}
