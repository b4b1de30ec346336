"""Intervals, tests, drift, slices, pairs and the worst rows, against what can be worked out by hand or by SciPy."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from handlers.columnar.chunks import with_provenance
from handlers.errors import UsageError
from transforms.evaluation import curves, intervals
from transforms.evaluation.compare import Outcomes, keys_of, pair
from transforms.evaluation.drift import Drift, population_stability_index
from transforms.evaluation.fingerprint import KEY, Fingerprint, Numeric
from transforms.evaluation.plan import EvaluationPlan
from transforms.evaluation.slices import SAMPLE, Sample, with_bins
from transforms.evaluation.sums import Moments
from transforms.evaluation.worst import Worst


def test_wilson() -> None:
    expected = scipy.stats.binomtest(37, 50).proportion_ci(method="wilson")
    assert intervals.wilson(37, 50) == pytest.approx((expected.low, expected.high))
    assert intervals.wilson(0, 0) is None
    low, high = intervals.wilson(10, 10) or (0, 0)
    assert (low, high) == pytest.approx((0.722, 1.0), abs=1e-3)


@pytest.mark.parametrize(("one", "two"), [(3, 12), (7, 7), (0, 0), (900, 1000)])
def test_mcnemar(one: int, two: int) -> None:
    expected = scipy.stats.binomtest(one, one + two).pvalue if one + two else 1.0
    assert intervals.mcnemar(one, two) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("rows", [5, 50, 4000])
def test_paired_t(rows: int) -> None:
    random = np.random.default_rng(rows)
    first, second = random.normal(size=rows), random.normal(size=rows) + 0.1
    apart = first - second
    found = intervals.paired_t(apart.mean(), apart.var(ddof=1), rows)
    assert found == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue, rel=1e-9)


def test_delong_covers_as_often_as_it_says() -> None:
    random, inside = np.random.default_rng(0), 0
    true_area = scipy.stats.norm.cdf(1 / np.sqrt(2))
    for _ in range(300):
        positive = random.random(200) < 0.4
        groups = curves.group(random.normal(size=200) + positive, positive)
        area, _ = curves.roc_auc(groups)
        low, high = intervals.normal(area or 0.0, curves.auc_error(groups), 0, 1) or (0, 0)
        inside += low <= true_area <= high
    assert 0.92 <= inside / 300 <= 0.98


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=100)
    moments = Moments.of(values, np.arange(100), 100)
    found = intervals.jackknife(float(values.mean()), moments.without_each().mean)
    error = values.std(ddof=1) / 10 * intervals.Z
    assert found == pytest.approx((values.mean() - error, values.mean() + error))


def test_moments_merge_as_one() -> None:
    values = np.random.default_rng(2).normal(size=1000) + 1e8
    merged = Moments.of(values[:1]) + Moments.of(values[1:400]) + Moments.of(values[400:])
    assert float(merged.m2[0]) == pytest.approx(values.var() * 1000, rel=1e-9)


@pytest.mark.parametrize("order", [1, -1])
def test_scores_are_exact_only_while_all_are_few(order: int) -> None:
    random = np.random.default_rng(4)
    scores, codes = random.random((300, 1)), random.integers(0, 2, 300)
    parts = [curves.Scores(1, limit=250) for _ in range(3)]
    for index, part in enumerate(parts):
        part.add(scores[100 * index : 100 * index + 100], codes[100 * index : 100 * index + 100])
        assert part.exact
    first, *others = parts[::order]
    for part in others:
        first.merge(part)
    assert not first.exact
    area, bound = curves.roc_auc(first.groups(0))
    assert area is not None
    assert abs(area - roc_auc_score(codes == 0, scores[:, 0])) <= bound


def test_population_stability_index() -> None:
    found = population_stability_index([0.5, 0.5], [25, 75])
    assert found == pytest.approx((0.25 - 0.5) * np.log(0.25 / 0.5) + (0.75 - 0.5) * np.log(0.75 / 0.5))
    assert population_stability_index([1.0], [0]) is None


def test_fingerprint_and_drift() -> None:
    random = np.random.default_rng(6)
    trained = pa.table(
        {
            "x": pa.array([*random.normal(size=999), None]),
            "country": ["NL"] * 600 + ["BE"] * 400,
            "vector": [[1.0]] * 1000,
            "constant": [7] * 1000,
            "order_id": range(1000),  # an id is no column that drifts
            "store_id": [1, 2] * 500,
        }
    )
    text = json.dumps({KEY: Fingerprint.of(trained).as_json(), "seed": 3})
    fingerprint = Fingerprint.parse(text, "training.json")
    assert fingerprint == Fingerprint.of(trained)
    assert set(fingerprint.columns) == {"x", "country", "constant", "store_id"}
    assert fingerprint.columns["x"].nulls == pytest.approx(0.001)
    column = fingerprint.columns["x"]
    assert isinstance(column, Numeric)
    assert column.shares == pytest.approx([0.1] * 10, abs=0.002)
    same, other = Drift(fingerprint), Drift(fingerprint)
    for batch in trained.to_batches(max_chunksize=300):
        same.add(batch)
    assert all(each["psi"] < 1e-9 for each in same.result().values())
    now = pa.RecordBatch.from_pydict({"x": pa.array(random.normal(size=100) + 2), "country": ["NL"] * 50 + ["LU"] * 50})
    other.add(now.slice(0, 40))
    more = Drift(fingerprint)
    more.add(now.slice(40))
    other.merge(more)
    found = other.result()
    assert list(found) == ["country", "x"]
    assert (found["country"]["new_categories"], found["country"]["new_rows"]) == (["LU"], 50)
    assert found["x"]["psi"] > 0.25


@pytest.mark.parametrize(
    "text",
    ['{"fingerprint": {"rows": 1}}', "[]", "no", '{"fingerprint": {"rows": 1, "columns": {"a": {"kind": "x"}}}}'],
)
def test_fingerprints_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match=r"training\.json"):
        Fingerprint.parse(text, "training.json")


def test_training_without_a_fingerprint() -> None:
    assert Fingerprint.parse('{"seed": 3}', "training.json") is None


def test_bins_of_a_sample_are_those_of_all_rows_whatever_the_order() -> None:
    values = np.arange(100_000.0)
    parts = [
        with_provenance(pa.RecordBatch.from_pydict({"x": values[start : start + 9000]}), "f", start)
        for start in range(0, 100_000, 9000)
    ]
    found = []
    for order in (parts, parts[::-1]):
        sample = Sample(("x",))
        for part in order:
            sample.add(part)
        assert len(sample.values["x"]) == SAMPLE
        found.append(sample.edges())
    assert found[0] == found[1]
    edges = found[0]["x"]
    assert edges is not None
    assert np.allclose(edges, [20_000, 40_000, 60_000, 80_000], atol=1500)
    binned = with_bins(pa.RecordBatch.from_pydict({"x": pa.array([0.0, 99_999.0, None])}), {"x": edges})
    texts = binned.column(1).to_pylist()
    assert texts[0].startswith("0")
    assert texts[1].startswith("4")
    assert texts[2] is None


def test_few_numbers_are_sliced_as_they_are() -> None:
    sample = Sample(("x",))
    sample.add(with_provenance(pa.RecordBatch.from_pydict({"x": [1, 2, 3] * 10}), "f", 0))
    assert sample.edges() == {"x": None}


def outcomes(first: bool, keys: list[int], correct: list[bool], loss: list[float]) -> Outcomes:
    return Outcomes(first, np.array(keys, np.uint64), np.array(correct), np.array(loss))


def test_pairs_by_key() -> None:
    parts = [
        outcomes(True, [1, 2], [True, False], [0.1, 0.9]),
        outcomes(False, [3, 2, 1], [True, True, True], [0.3, 0.2, 0.1]),
        outcomes(True, [4, 5, 5], [True, True, True], [0.0, 0.0, 0.0]),
    ]
    found = pair(parts, unique=True)
    assert (found.rows, found.only_first, found.only_second, found.both) == (2, 0, 1, 1)
    assert (found.unmatched_first, found.unmatched_second, found.repeated) == (1, 1, 2)
    assert found.difference.value() == pytest.approx((0.0 + 0.7) / 2)


def test_equal_rows_are_matched_one_by_one() -> None:
    parts = [outcomes(True, [1, 1, 1], [True] * 3, [0.1] * 3), outcomes(False, [1, 1], [False] * 2, [0.5] * 2)]
    found = pair(parts, unique=False)
    assert (found.rows, found.only_first, found.unmatched_first) == (2, 2, 1)


def test_keys_depend_on_values_alone() -> None:
    batch = pa.RecordBatch.from_pydict({"a": [2**60, 2**60 + 1, None], "b": ["x", "x", None], "c": [[1], [1], None]})
    keys = keys_of(batch, ("a", "b", "c"))
    assert len(set(keys.tolist())) == 3
    assert keys_of(batch.slice(1), ("a", "b", "c")).tolist() == keys[1:].tolist()


def test_worst_rows_are_those_of_all_chunks() -> None:
    loss = np.random.default_rng(7).permutation(1000).astype(float)
    plan = EvaluationPlan("regression", "y", "prediction", shown=("id", "note"))
    batch = pa.RecordBatch.from_pydict({"id": np.arange(1000), "note": ["n" * 200] * 1000})
    parts = [Worst(plan.shown) for _ in range(4)]
    for index, part in enumerate(parts):
        chosen = np.arange(250 * index, 250 * index + 250)
        part.add(loss[chosen], chosen, batch)
    for part in parts[1:]:
        parts[0].merge(part)
    assert [value for value, _ in parts[0].rows] == list(range(999, 949, -1))
    assert parts[0].rows[0][1][0] == str(int(loss.argmax()))
    assert len(parts[0].rows[0][1][1]) == 60


def test_interval_of_an_average_precision_near_one() -> None:
    low, high = intervals.logit_interval(0.999, 50) or (0.0, 0.0)
    assert 0.9 < low < 0.999 < high <= 1
    low, high = intervals.logit_interval(1.0, 50) or (0.0, 0.0)
    assert (low > 0.9, high) == (True, 1.0)
    assert intervals.logit_interval(0.5, 0) is None
