"""Two models on the same rows: totals in any order of batches, against pandas and numpy on all rows at once."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from handlers.graph.result import ModelCounts
from transforms.accounting import Counts
from transforms.evaluation import agreement
from transforms.evaluation.agreement import Agreement, AgreementFn, AgreementPlan
from transforms.evaluation.agreement_result import html, pages, result

ROWS = 5_000
COUNTS = Counts(models={"a": ModelCounts(ROWS, ROWS - 100, 0, 100, 0, 2.0), "b": ModelCounts(ROWS, ROWS, 0, 0, 0, 1.0)})
ABOUT = {"a": {"version": "111", "parameter_bytes": 1_000}, "b": {"version": "222", "parameter_bytes": 20}}


def plan_of(task: str, *columns: str) -> AgreementPlan:
    answers = tuple(tuple(f"{name}_{column}" for column in columns) for name in ("a", "b"))
    shown = (*answers[0], *answers[1], "id", "note")
    return AgreementPlan(task, ("a", "b"), ("a_model_version", "b_model_version"), answers, shown)  # type: ignore[arg-type]


def frame_of(a: dict[str, Any], b: dict[str, Any]) -> pa.RecordBatch:
    """Rows with the answers of both; `a` gave none to the first 100 rows, `b` none to the last 200."""
    columns: dict[str, Any] = {"id": pa.array(range(ROWS)), "note": pa.array(["<b>note</b>"] * ROWS)}
    for name, answers, missing in (("a", a, slice(0, 100)), ("b", b, slice(ROWS - 200, ROWS))):
        mask = np.zeros(ROWS, bool)
        mask[missing] = True
        for column, values in answers.items():
            array = values if isinstance(values, pa.Array) else pa.array(values)
            positions = pa.array(np.arange(ROWS), mask=mask)
            columns[f"{name}_{column}"] = array.take(positions)
        columns[f"{name}_model_version"] = pa.array(["v"] * ROWS).dictionary_encode().take(positions)
    return pa.RecordBatch.from_pydict(columns)


def totals(plan: AgreementPlan, rows: pa.RecordBatch, parts: int) -> Agreement:
    """Of `rows` in `parts`, added up in another order by accumulators that are merged."""
    function = AgreementFn(plan)
    cuts = np.linspace(0, ROWS, parts + 1).astype(int)
    accumulators = [
        function.add_input(function.create_accumulator(), rows.slice(low, high - low)) for low, high in pairwise(cuts)
    ]
    return function.extract_output(function.merge_accumulators(reversed(accumulators)))


@pytest.fixture
def classes() -> pa.RecordBatch:
    random = np.random.default_rng(1)
    names = np.array(["<x>", "y", "z"])
    one, two = random.integers(0, 3, ROWS), random.integers(0, 3, ROWS)
    two = np.where(random.random(ROWS) < 0.8, one, two)
    sure = [random.random(ROWS).astype(np.float32) for _ in range(2)]
    return frame_of(
        {"predicted_class": names[one], "confidence": sure[0]}, {"predicted_class": names[two], "confidence": sure[1]}
    )


@pytest.mark.parametrize("parts", [1, 7])
def test_classification(classes: pa.RecordBatch, parts: int) -> None:
    found = result(totals(plan_of("classification", "predicted_class", "confidence"), classes, parts), COUNTS, ABOUT)
    frame = classes.to_pandas().iloc[100 : ROWS - 200]
    assert (found["rows"], found["rows_only_first"], found["rows_only_second"]) == (len(frame), 200, 100)
    same = frame["a_predicted_class"] == frame["b_predicted_class"]
    assert (found["rows_equal"], found["agreement"]) == (same.sum(), pytest.approx(same.mean()))
    low, high = found["agreement_interval"]
    assert low < same.mean() < high
    expected = pd.crosstab(frame["a_predicted_class"], frame["b_predicted_class"])
    assert found["confusion"]["labels"] == list(expected.index)
    assert found["confusion"]["counts"] == expected.to_numpy().tolist()
    difference = (frame["a_confidence"] - frame["b_confidence"]).astype(float)
    assert found["difference"]["mean"] == pytest.approx(difference.mean())
    assert found["difference"]["mean_absolute"] == pytest.approx(difference.abs().mean())
    assert found["difference"]["rmse"] == pytest.approx(np.sqrt((difference**2).mean()))
    assert found["difference"]["correlation"] == pytest.approx(
        frame["a_confidence"].corr(frame["b_confidence"]), abs=1e-6
    )
    assert found["difference"]["quantiles"]["p95"] == pytest.approx(np.quantile(difference, 0.95))
    # Rows outside the middle 99 % are not in the picture.
    assert abs(sum(found["difference"]["histogram"]["rows"]) - 0.99 * len(frame)) < 5
    whole = classes.to_pandas()
    first = found["models"]["a"]
    assert first["classes"] == whole["a_predicted_class"].value_counts().to_dict()
    assert first["mean_confidence"] == pytest.approx(whole["a_confidence"].mean())
    assert (first["rows_scored"], first["rows_dead"], first["seconds"]) == (ROWS - 100, 100, 2.0)
    assert (first["version"], first["parameter_bytes"], first["microseconds_per_row"]) == ("111", 1_000, 400.0)
    apart = frame[~same]
    expected_order = (1 + (apart["a_confidence"] + apart["b_confidence"]) / 2).sort_values(ascending=False)
    rows = found["rows_that_differ_most"]
    assert len(rows) == 50
    assert [row["distance"] for row in rows] == pytest.approx(expected_order.head(50).tolist())
    ids = [int(row["values"][found["columns"].index("id")]) for row in rows]
    assert sorted(ids) == sorted(frame.loc[expected_order.index[:50], "id"])


@pytest.mark.parametrize("width", [None, 3])
def test_regression(width: int | None) -> None:
    random = np.random.default_rng(2)
    shape = (ROWS,) if width is None else (ROWS, width)
    one = random.normal(size=shape).astype(np.float32)
    two = (one + 0.1 * random.normal(size=shape) + 0.05).astype(np.float32)
    two[:500] = one[:500]

    def array(values: np.ndarray) -> pa.Array:
        flat = pa.array(values.reshape(-1))
        return flat if width is None else pa.FixedSizeListArray.from_arrays(flat, width)

    rows = frame_of({"prediction": array(one)}, {"prediction": array(two)})
    found = result(totals(plan_of("regression", "prediction"), rows, 5), COUNTS, ABOUT)
    one, two = (values[100 : ROWS - 200].reshape(ROWS - 300, -1).astype(np.float64) for values in (one, two))
    assert (found["rows"], found["rows_equal"], found["confusion"]) == (ROWS - 300, 400, None)
    assert found["difference"]["mean"] == pytest.approx((one - two).mean())
    assert found["difference"]["mean_absolute"] == pytest.approx(np.abs(one - two).mean())
    distances = np.sort(np.abs(one - two).mean(axis=1))[::-1]
    assert [row["distance"] for row in found["rows_that_differ_most"]] == pytest.approx(distances[:50].tolist())


def test_multilabel() -> None:
    labels = [["x", "y"], ["y", "x"], [], ["x"]] * (ROWS // 4)
    others = [["x", "y"], ["x", "y"], ["y"], ["x"]] * (ROWS // 4)
    probabilities = pa.FixedSizeListArray.from_arrays(pa.array(np.full(2 * ROWS, 0.5, np.float32)), 2)
    rows = frame_of(
        {"predicted_labels": labels, "probabilities": probabilities},
        {"predicted_labels": others, "probabilities": probabilities},
    )
    found = result(totals(plan_of("multilabel", "predicted_labels", "probabilities"), rows, 3), COUNTS, ABOUT)
    assert found["agreement"] == pytest.approx(0.75)
    assert found["rows_that_differ_most"] == []


def test_no_rows() -> None:
    plan = plan_of("classification", "predicted_class", "confidence")
    found = result(Agreement(plan), Counts(), {})
    assert (found["rows"], found["agreement"], found["difference"]) == (0, None, None)
    assert "No row was answered by both" in html(found)


def test_many_classes(classes: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more classes than a matrix shows the most frequent pairs are listed, and their number is bounded."""
    random = np.random.default_rng(4)
    names = [random.integers(0, 200, ROWS) for _ in range(2)]
    sure = np.ones(ROWS, np.float32)
    rows = frame_of(*({"predicted_class": each, "confidence": sure} for each in names))
    plan = plan_of("classification", "predicted_class", "confidence")
    found = result(totals(plan, rows, 3), COUNTS, ABOUT)["confusion"]
    different = int((names[0] != names[1])[100 : ROWS - 200].sum())
    assert len(found["pairs"]) == 50
    assert sum(pair["rows"] for pair in found["pairs"]) + found["rows_in_other_pairs"] == different
    monkeypatch.setattr(agreement, "MAX_PAIRS", 100)
    few = totals(plan, rows, 3)
    assert len(few.pairs) == 100
    assert sum(few.pairs.values()) + few.other_pairs == few.rows


def test_page(classes: pa.RecordBatch) -> None:
    found = totals(plan_of("classification", "predicted_class", "confidence"), classes, 2)
    written = pages(found, COUNTS, ABOUT)
    assert json.loads(written["comparison.json"]) == json.loads(json.dumps(result(found, COUNTS, ABOUT)))
    page = written["comparison.html"]
    assert not re.search(r"<script|<link|<img|\bsrc=|url\(|@import|https?://", page)
    assert "default-src 'none'" in page
    assert "<b>note" not in page
    assert "&lt;x&gt;" in page
    assert "<svg" in page
    for title in ("Confusion between the two", "Distribution of the differences", "The 50 rows that differ most"):
        assert title in page
