"""`bring_up`: a model in memory that predicts for dicts, frames and tables."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from handlers.batching import Batching
from handlers.errors import RowsFailedError, UsageError
from transforms.registry.registry import ModelRegistry
from transforms.registry.row_predictor import RowPredictor

Make = Callable[..., Path]

A, B = [3.0, 1.0, 0.5], [1.0, 2.0, 0.0]
CLASSES = ["good", "bad", "good"]
CONFIDENCE = [1 / (1 + np.exp(-abs(a - b))) for a, b in zip(A, B, strict=True)]  # of the larger of two logits, a and b


@pytest.fixture
def predictor(registry: ModelRegistry, make: Make) -> RowPredictor:
    registry.push(make(), "credit")
    registry.push(make(100.0), "credit")
    registry.promote("credit@1", "champion")
    return registry.bring_up("credit@champion", device="cpu", batch_size=2)


def test_dicts(predictor: RowPredictor) -> None:
    rows = [{"id": str(index), "a": a, "b": b} for index, (a, b) in enumerate(zip(A, B, strict=True))]
    found = predictor.predict(rows)
    assert [row["predicted_class"] for row in found] == CLASSES
    assert [row["confidence"] for row in found] == pytest.approx(CONFIDENCE, abs=1e-6)
    assert {row["model_version"] for row in found} == {predictor.version}
    assert [row["id"] for row in found] == ["0", "1", "2"]
    assert "predicted_class" not in rows[0]


def test_a_frame_keeps_its_index_and_types(predictor: RowPredictor) -> None:
    frame = pd.DataFrame({"a": A, "b": B, "kind": pd.Categorical(["x", "y", "x"])}, index=[7, 3, 9])
    found = predictor.predict(frame)
    assert list(found.index) == [7, 3, 9]
    assert list(found["predicted_class"]) == CLASSES
    assert list(found["confidence"]) == pytest.approx(CONFIDENCE, abs=1e-6)
    pd.testing.assert_frame_equal(found[["a", "b", "kind"]], frame)


def test_a_table(predictor: RowPredictor) -> None:
    table = pa.table({"a": pa.chunked_array([A[:1], A[1:]]), "b": B})
    found = predictor.predict(table)
    assert found.column_names == ["a", "b", "predicted_class", "confidence", "model_version"]
    assert found["predicted_class"].to_pylist() == CLASSES


def test_the_latest_version_without_an_alias(predictor: RowPredictor, registry: ModelRegistry) -> None:
    latest = registry.bring_up("credit", device="cpu")
    assert [row["predicted_class"] for row in latest.predict([{"a": 3.0, "b": 1.0}])] == ["bad"]


def test_rows_that_cannot_be_scored(predictor: RowPredictor) -> None:
    rows = [{"a": 3.0, "b": 1.0}, {"a": None, "b": 1.0}, {"b": 2.0, "a": 1.0}, {"b": 2.0}]
    with pytest.raises(
        RowsFailedError, match=r'2 of 4 rows cannot be scored; the first is row 1: .*column "a" holds null'
    ):
        predictor.predict(rows)
    found = predictor.predict(rows, on_failure="null")
    assert [row["predicted_class"] for row in found] == ["good", None, "bad", None]
    assert [row["error"] is None for row in found] == [True, False, True, False]
    assert found[1]["a"] is None
    assert found[1]["model_version"] is None
    mixed = predictor.predict([{"a": "x", "b": 1}, {"a": 1, "b": 0}], on_failure="null")
    added = {"predicted_class": None, "confidence": None, "model_version": None, "error": mixed[0]["error"]}
    assert mixed[0] == {"a": "x", "b": 1, **added}
    assert 'read/ValueError: column "a" holds "x" in row 0' in mixed[0]["error"]
    assert mixed[1]["predicted_class"] == "good"
    frame = predictor.predict(pd.DataFrame({"a": [3.0, np.inf], "b": [1.0, 1.0]}), on_failure="null")
    assert list(frame["predicted_class"].isna()) == [False, True]
    assert "NotFinite" in frame["error"].iloc[1]


def test_rows_beyond_one_chunk(predictor: RowPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor._model, "_batching", Batching(chunk_rows=4))
    a = [float(number) for number in range(11)]
    a[6] = np.nan
    found = predictor.predict(pa.table({"a": a, "b": [4.5] * 11}), on_failure="null")
    expected = [None if number == 6 else "good" if number > 4.5 else "bad" for number in range(11)]
    assert found["predicted_class"].to_pylist() == expected
    assert [reason is not None for reason in found["error"].to_pylist()] == [number == 6 for number in range(11)]


def test_nothing_to_predict_for(predictor: RowPredictor) -> None:
    assert predictor.predict([]) == []
    assert list(predictor.predict(pd.DataFrame({"a": [], "b": []})).columns) == [
        *("a", "b", "predicted_class", "confidence", "model_version")
    ]


def test_rows_that_a_function_drops(registry: ModelRegistry, make: Make, tmp_path: Path) -> None:
    code = tmp_path / "sure.py"
    code.write_text("def only(row: dict):\n    return row if row['confidence'] > 0.8 else None\n")
    registry.push(make(name="dropping", postprocess=["sure:only"], code=[code]), "sure")
    frame = pd.DataFrame({"a": A, "b": B}, index=["x", "y", "z"])
    assert list(registry.bring_up("sure", device="cpu").predict(frame).index) == ["x"]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ({"a": 1}, "not a dict"),
        ([1], r"data\[0\] is a int"),
        ([{"b": 1.0}], 'column "a" is missing'),
        (pa.table({"a": [1.0], "b": [1.0]}).to_reader(), "a reader gives them only once"),
        ([{"a": 1.0, "b": 1.0, "confidence": 3}], "confidence"),
    ],
)
def test_wrong_rows(predictor: RowPredictor, rows: object, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        predictor.predict(rows)  # type: ignore[type-var]


def test_threads_share_it(predictor: RowPredictor) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: predictor.predict(pa.table({"a": A, "b": B})), range(8)))
    assert all(each["predicted_class"].to_pylist() == CLASSES for each in found)
