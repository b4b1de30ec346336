"""The label column: tasks, classes, tensors, and the columns from which nothing can be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prepared_folders import prepared_folder

from handlers.errors import UsageError
from handlers.train.labels import Labels, find_labels


def labels_of(folder: Path, values: Any, task: str | None = None, **more: Any) -> Labels:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    table = pa.table({"x": np.arange(len(array)), "y": array})
    return find_labels(prepared_folder(folder, table, "y"), task, **more)


@pytest.mark.parametrize(
    ("values", "task", "names"),
    [
        (["b", "a"] * 10, "classification", ("a", "b")),
        ([True, False] * 10, "classification", ("false", "true")),
        ([10, 9, 2, 1] * 5, "classification", ("1", "2", "9", "10")),
        (list(range(25)), "regression", ()),
        ([0.5, 1.5] * 10, "regression", ()),
        ([["b"], ["a", "b"], [], None][:3] * 7, "multilabel", ("a", "b")),
        ([[1.0, 2.0], [3.0, 4.0]] * 10, "regression", ()),
    ],
)
def test_the_task_follows_from_the_values(tmp_path: Path, values: Any, task: str, names: tuple[str, ...]) -> None:
    found = labels_of(tmp_path, values)
    assert (found.task, found.names) == (task, names)


def test_floats_are_classes_if_the_user_says_so(tmp_path: Path) -> None:
    found = labels_of(tmp_path, [0.0, 1.0, 1.0, 1.0] * 5, "classification")
    assert (found.names, found.counts, found.rows) == (("0", "1"), (4, 11), 15)
    batch = pa.record_batch({"y": pa.array([1.0, 0.0])})
    assert found.targets(batch).tolist() == [1, 0]


def test_targets(tmp_path: Path) -> None:
    found = labels_of(tmp_path / "tags", [["b"], ["a", "b"], []] * 7)
    batch = pa.record_batch({"y": pa.array([["a"], [], ["b", "a"]])})
    assert found.targets(batch).tolist() == [[1, 0], [0, 0], [1, 1]]
    found = labels_of(tmp_path / "lists", [[1.0, 2.0], [3.0, 4.0]] * 10)
    assert (found.width, found.outputs) == (2, 2)
    assert found.targets(pa.record_batch({"y": pa.array([[5.0, 6.0]])})).tolist() == [[5, 6]]
    with pytest.raises(UsageError, match="\"y\" holds a list with 'z', which is not one of the labels"):
        labels_of(tmp_path / "more", [["b"], ["a"]] * 7).targets(pa.record_batch({"y": pa.array([["z"]])}))


def test_given_classes_have_their_order(tmp_path: Path) -> None:
    assert labels_of(tmp_path / "1", ["a", "b"] * 8, names=("b", "a", "c")).names == ("b", "a", "c")
    with pytest.raises(UsageError, match='holds "b", which is not among labels'):
        labels_of(tmp_path / "2", ["a", "b"] * 8, names=("a",))


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (["a"] * 20, None, 'is "a" in every row; there is nothing to learn'),
        ([2.5] * 20, None, "is 2.5 in every row; there is nothing to learn"),
        (["a", None, "b", "a"] * 5, None, "is null or NaN in 5 of 20 rows"),
        ([1.0, float("nan")] * 10, None, "is null or NaN in 10 of 20 rows"),
        (pa.nulls(20, pa.string()), None, "is null or NaN in every row"),
        (["a", "b"] * 10, "regression", 'column "y" holds text, and a regression needs numbers'),
        ([1, 2] * 10, "multilabel", "it must hold lists of text"),
        ([["a"], ["b"]] * 10, "classification", "a class is a single value"),
        ([str(value) for value in range(10_000)], None, "has more than 1,000 classes"),
        ([str(value) for value in range(20)], None, "has 20 classes in 20 rows, too few rows of each"),
        ([1.0, float("inf")] * 10, None, "holds an infinite number"),
        ([[1.0], [1.0, 2.0]] * 10, None, r"holds lists of unequal length \(1 to 2\)"),
        ([b"a", b"b"] * 10, None, "holds binary; a label is text, a flag, a number or a list of text"),
    ],
)
def test_nothing_can_be_learned(tmp_path: Path, values: Any, task: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        labels_of(tmp_path, values, task)
    assert "\n" not in str(raised.value)
