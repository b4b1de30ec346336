"""Totals of many chunks against scikit-learn on all rows at once."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics as sk

from transforms.evaluation.evaluate import TotalsFn
from transforms.evaluation.plan import EvaluationPlan
from transforms.evaluation.settle import Wanted, settle

EXACT = {"rel": 1e-9, "abs": 1e-9}


def combined(plan: EvaluationPlan, table: pa.Table, chunks: int) -> Any:
    """What a runner does: some workers add chunks, accumulators cross machines, another worker merges them."""
    combine = TotalsFn(plan)
    size = -(-table.num_rows // chunks)
    accumulators = []
    for start in range(0, table.num_rows, 2 * size):
        accumulator = combine.create_accumulator()
        for batch_start in (start, start + size):
            for batch in table.slice(batch_start, size).combine_chunks().to_batches():
                accumulator = combine.add_input(accumulator, batch)
        accumulators.append(pickle.loads(pickle.dumps(accumulator)))
    return combine.merge_accumulators(accumulators)


def metrics(table: pa.Table, chunks: int = 6, exact_scores: int = 2_000_000, **wanted: Any) -> dict[str, Any]:
    sample = table.slice(0, 1000).combine_chunks().to_batches()[0]
    plan = settle(table.schema, sample, Wanted("label", exact_scores=exact_scores, **wanted), "x")
    found: dict[str, Any] = combined(plan, table, chunks).task.metrics()
    return found


def classification(rows: int, classes: int, *, absent: int | None = None, digits: int | None = None) -> pa.Table:
    """A table as `score --probabilities` writes it; `digits` rounds the probabilities, so that there are ties."""
    random = np.random.default_rng(rows + classes)
    logits = random.normal(size=(rows, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if digits is not None:
        probabilities[:, :-1] = np.floor(probabilities[:, :-1] * 10**digits) / 10**digits
        probabilities[:, -1] = np.clip(1 - probabilities[:, :-1].sum(axis=1), 0, 1)
    truth = np.array([random.choice(classes, p=row / row.sum()) for row in probabilities]) if rows < 10_000 else None
    if truth is None:
        truth = (random.random(rows)[:, None] > np.cumsum(probabilities, axis=1)[:, :-1]).sum(axis=1)
    if absent is not None:
        truth[truth == absent] = (absent + 1) % classes
    names = np.array([f"c{index}" for index in range(classes)])
    columns = {f"probability_c{index}": probabilities[:, index] for index in range(classes)}
    answers = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1).astype(np.float32)
    return pa.table({"label": names[truth], "predicted_class": names[answers], "confidence": confidence, **columns})


def expected_of(table: pa.Table) -> dict[str, float]:
    truth, predicted = (np.array(table[name].to_pylist()) for name in ("label", "predicted_class"))
    names = [name.removeprefix("probability_") for name in table.column_names if name.startswith("probability_")]
    probabilities = np.column_stack([table[f"probability_{name}"].to_numpy() for name in names])
    found = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "matthews_corrcoef": sk.matthews_corrcoef(truth, predicted),
        "log_loss": sk.log_loss(truth, probabilities, labels=names),
    }
    for average in ("macro", "weighted"):
        for name in ("precision", "recall", "f1"):
            score = getattr(sk, f"{name}_score")
            found[f"{name}_{average}"] = score(truth, predicted, average=average, zero_division=0)
    if len(names) == 2:
        positive = truth == names[1]
        found["roc_auc"] = sk.roc_auc_score(positive, probabilities[:, 1])
        found["average_precision"] = sk.average_precision_score(positive, probabilities[:, 1])
        found["brier"] = sk.brier_score_loss(positive, probabilities[:, 1])
        found["recall"] = sk.recall_score(positive, predicted == names[1], zero_division=0)
    else:
        found["roc_auc"] = sk.roc_auc_score(truth, probabilities, multi_class="ovr", labels=names)
        indicator = np.array([truth == name for name in names]).T.astype(int)
        found["average_precision"] = sk.average_precision_score(indicator, probabilities)
        found["brier"] = sk.brier_score_loss(truth, probabilities, labels=names)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("rows", [10, 1000])
def test_classification(rows: int, classes: int, digits: int | None) -> None:
    table = classification(rows, classes, digits=digits)
    found, expected = metrics(table), expected_of(table)
    for name, value in expected.items():
        if np.isnan(value):  # a class without rows
            assert found[name] is None
        else:
            assert found[name] == pytest.approx(value, **EXACT), name
    assert found["bounds"] == {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [2, 4])
def test_one_class_missing(classes: int) -> None:
    table = classification(500, classes, absent=1)
    found, expected = metrics(table), expected_of(table)
    assert np.isnan(expected.pop("roc_auc"))
    assert found["roc_auc"] is None
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, **EXACT), name


@pytest.mark.parametrize("classes", [2, 5])
def test_bins_keep_their_bound(classes: int) -> None:
    table = classification(20_000, classes, digits=2)
    found, expected = metrics(table, exact_scores=1000), expected_of(table)
    for name in ("roc_auc", "average_precision"):
        assert 0 < found["bounds"][name] < 0.02
        assert abs(found[name] - expected[name]) <= found["bounds"][name]
    for name in ("accuracy", "f1_macro", "log_loss", "brier"):
        assert found[name] == pytest.approx(expected[name], **EXACT)


def test_bins_hold_also_where_scores_are_far_out() -> None:
    random = np.random.default_rng(3)
    truth = random.random(5000) < 0.02
    score = 1 / (1 + np.exp(-(12 * truth - 9 + 4 * random.normal(size=5000))))
    answers = np.where(score > 0.5, "yes", "no")
    columns = {"probability_no": 1 - score, "probability_yes": score}
    table = pa.table({"label": np.where(truth, "yes", "no"), "predicted_class": answers, **columns})
    found = metrics(table, exact_scores=10)
    assert abs(found["roc_auc"] - sk.roc_auc_score(truth, score)) <= found["bounds"]["roc_auc"] < 1e-3
    value = sk.average_precision_score(truth, score)
    assert abs(found["average_precision"] - value) <= found["bounds"]["average_precision"] < 0.05


def test_confidence_alone_makes_the_curves_of_two_classes() -> None:
    table = classification(1000, 2).drop_columns(["probability_c0", "probability_c1"])
    positive = np.array(table["label"].to_pylist()) == "c1"
    answered = np.array(table["predicted_class"].to_pylist()) == "c1"
    confidence = table["confidence"].to_numpy().astype(np.float64)
    score = np.where(answered, confidence, 1 - confidence)
    found = metrics(table)
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(positive, score), **EXACT)
    assert found["log_loss"] == pytest.approx(sk.log_loss(positive, score), **EXACT)


def test_calibration_error_by_hand() -> None:
    table = pa.table(
        {
            "label": ["a", "b", "b", "a"],
            "predicted_class": ["a", "b", "b", "b"],
            "probability_a": [0.9, 0.1, 0.1, 0.4],
            "probability_b": [0.1, 0.9, 0.9, 0.6],
        }
    )
    # b: bins of width 1/15: 0.1 alone (no hit), 0.9 twice (two hits), 0.6 alone (no hit).
    assert metrics(table, chunks=2)["expected_calibration_error"] == pytest.approx((0.1 + 0.2 + 0.6) / 4)


def test_labels_without_values_are_counted() -> None:
    table = pa.table(
        {
            "label": pa.array([1.0, float("nan"), None, 0.0, 1.0]),
            "predicted_class": pa.array([1, 1, 0, 0, None]),
            "confidence": pa.array([0.9, 0.8, 0.7, 0.6, 0.5]),
        }
    )
    plan = settle(table.schema, table.to_batches()[0], Wanted("label"), "x")
    totals = combined(plan, table, 2)
    assert (totals.missing.label, totals.missing.prediction, totals.task.rows) == (2, 1, 2)
    assert totals.task.metrics()["accuracy"] == 1.0


@pytest.mark.parametrize(("label", "answers"), [([3, 1], ["3", "2"]), ([3.0, 1.0], ["3", "2"]), (["3", "1"], [3, 2])])
def test_classes_are_compared_as_text(label: list[Any], answers: list[Any]) -> None:
    assert metrics(pa.table({"label": label, "predicted_class": answers}), chunks=1)["accuracy"] == 0.5


def test_flags_are_the_classes_0_and_1() -> None:
    table = pa.table({"label": [True, False, True], "predicted_class": [1, 0, 0], "confidence": [0.9, 0.8, 0.6]})
    found = metrics(table, chunks=1)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["positive_class"] == "1"


def regression(rows: int, offset: float = 0.0) -> pa.Table:
    random = np.random.default_rng(rows)
    truth = random.normal(size=rows) + offset
    return pa.table({"label": truth, "prediction": (truth + random.normal(size=rows) * 0.3).astype(np.float32)})


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("rows", [10, 1000, 100_000])
def test_regression(rows: int, offset: float) -> None:
    table = regression(rows, offset)
    truth, predicted = table["label"].to_numpy(), table["prediction"].to_numpy().astype(np.float64)
    found = metrics(table)
    expected = {
        "mae": sk.mean_absolute_error(truth, predicted),
        "mse": sk.mean_squared_error(truth, predicted),
        "rmse": sk.root_mean_squared_error(truth, predicted),
        "r2": sk.r2_score(truth, predicted),
        "explained_variance": sk.explained_variance_score(truth, predicted),
        "mape": sk.mean_absolute_percentage_error(truth, predicted),
        "median_absolute_error": sk.median_absolute_error(truth, predicted),
        "max_error": sk.max_error(truth, predicted),
        "pinball_0.1": sk.mean_pinball_loss(truth, predicted, alpha=0.1),
        "pinball_0.9": sk.mean_pinball_loss(truth, predicted, alpha=0.9),
        "residual_p05": np.quantile(truth - predicted, 0.05),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, **EXACT), name
    low, high = found["intervals"]["mae"]
    assert low < found["mae"] < high


def test_residuals_in_bins_keep_their_bound() -> None:
    table = regression(20_000)
    error = np.abs(table["label"].to_numpy() - table["prediction"].to_numpy())
    found = metrics(table, exact_scores=500)
    assert abs(found["median_absolute_error"] - np.median(error)) <= found["bounds"]["median_absolute_error"]
    assert found["bounds"]["median_absolute_error"] <= 0.0011 * np.median(error)


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_constant_label_of_a_regression(wrong: float) -> None:
    found = metrics(pa.table({"label": [2.0, 2.0, 2.0], "prediction": [2.0, 2.0, 2.0 + wrong]}), chunks=1)
    assert found["r2"] == sk.r2_score([2, 2, 2], [2, 2, 2 + wrong])


def test_several_outputs() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.normal(size=(200, 3)), random.normal(size=(200, 3))
    found = metrics(pa.table({"label": truth.tolist(), "forecast": predicted.tolist()}))
    assert found["r2"] == pytest.approx(sk.r2_score(truth, predicted), **EXACT)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, predicted), **EXACT)
    by_output = sk.mean_absolute_error(truth, predicted, multioutput="raw_values")
    assert [each["mae"] for each in found["outputs"]] == pytest.approx(by_output.tolist(), **EXACT)


def test_multilabel() -> None:
    random = np.random.default_rng(5)
    names = np.array(["a", "b", "c", "d"])
    truth, predicted = random.random((300, 4)) < 0.4, random.random((300, 4)) < 0.5
    lists = [[names[row].tolist() for row in side] for side in (truth, predicted)]
    found = metrics(pa.table({"label": lists[0], "predicted_labels": lists[1]}))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted), **EXACT)
    assert found["hamming_loss"] == pytest.approx(sk.hamming_loss(truth, predicted), **EXACT)
    for average in ("macro", "micro"):
        for name in ("precision", "recall", "f1"):
            value = getattr(sk, f"{name}_score")(truth, predicted, average=average)
            assert found[f"{name}_{average}"] == pytest.approx(value, **EXACT)
    each = sk.f1_score(truth, predicted, average=None)
    assert [found["classes"][name]["f1"] for name in names] == pytest.approx(each.tolist(), **EXACT)
