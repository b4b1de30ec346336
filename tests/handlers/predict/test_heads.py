"""Heads against torch's own softmax, sigmoid and argmax."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from handlers.encode.specs import input_spec
from handlers.errors import BrokenModelError
from handlers.model.spec import ModelSpec
from handlers.predict import heads
from handlers.predict.heads.outputs import not_a_number


def spec(task: str, **fields: Any) -> ModelSpec:
    return ModelSpec(
        name="m", format="torch_export", weights="m.pt2", task=task, inputs=(input_spec(name="x"),), **fields
    )


def decode(task: str, outputs: torch.Tensor | dict[str, torch.Tensor], **fields: Any) -> dict[str, pa.Array]:
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    return heads.decode(spec(task, **fields).head, outputs)[0]


class TestClassification:
    @pytest.mark.parametrize("classes", [2, 3, 10, 11, 200])
    def test_logits(self, classes: int) -> None:
        logits = torch.randn(50, classes, generator=torch.Generator().manual_seed(1))
        columns = decode("classification", logits)
        expected = torch.softmax(logits, 1).max(1)
        assert columns["predicted_class"].type == pa.int64()
        assert columns["predicted_class"].to_pylist() == expected.indices.tolist()
        assert columns["confidence"].type == pa.float32()
        assert np.allclose(columns["confidence"].to_numpy(), expected.values.numpy(), atol=1e-6)

    @pytest.mark.parametrize("classes", [1, 2, 3, 200])
    def test_probabilities_of_every_class(self, classes: int) -> None:
        logits = torch.randn(50, classes, generator=torch.Generator().manual_seed(1))
        head = replace(spec("classification").head, probabilities=True)
        columns, _ = heads.decode(head, {"output": logits})
        expected = torch.softmax(logits, 1)
        if classes == 1:
            expected = torch.cat([1 - logits.sigmoid(), logits.sigmoid()], dim=1)
        names = [f"probability_{index}" for index in range(expected.shape[1])]
        assert list(columns) == ["predicted_class", "confidence", *names]
        found = np.column_stack([columns[name].to_numpy() for name in names])
        assert np.allclose(found, expected.numpy(), atol=1e-6)
        assert np.allclose(found.max(axis=1), columns["confidence"].to_numpy(), atol=1e-6)

    def test_probabilities_are_named_by_label(self) -> None:
        head = replace(spec("classification", labels=("no", "yes")).head, probabilities=True)
        assert list(heads.of_no_rows(head))[2:] == ["probability_no", "probability_yes"]

    def test_labels(self) -> None:
        columns = decode("classification", torch.tensor([[0.0, 2.0], [3.0, 1.0]]), labels=("good", "bad"))
        assert columns["predicted_class"] == pa.array(["bad", "good"])

    @pytest.mark.parametrize("shape", [(3,), (3, 1)])
    def test_a_single_logit_is_that_of_the_second_class(self, shape: tuple[int, ...]) -> None:
        columns = decode("classification", torch.tensor([2.0, -1.0, 0.5]).reshape(shape), labels=("no", "yes"))
        assert columns["predicted_class"].to_pylist() == ["yes", "no", "yes"]
        expected = [
            0.8807970779778823,
            0.7310585786300049,
            0.6224593312018546,
        ]  # sigmoid(2), 1 - sigmoid(-1), sigmoid(.5)
        assert np.allclose(columns["confidence"].to_numpy(), expected, atol=1e-6)

    def test_probabilities_are_taken_as_they_are(self) -> None:
        columns = decode("classification", torch.tensor([[0.3, 0.7], [0.9, 0.1]]), output="probabilities")
        assert columns["predicted_class"].to_pylist() == [1, 0]
        assert np.allclose(columns["confidence"].to_numpy(), [0.7, 0.9])
        columns = decode("classification", torch.tensor([0.3, 0.7]), output="probabilities")
        assert columns["predicted_class"].to_pylist() == [0, 1]
        assert np.allclose(columns["confidence"].to_numpy(), [0.7, 0.7])

    def test_another_number_of_labels(self) -> None:
        with pytest.raises(BrokenModelError, match=r"gave 3 classes, but model.yaml has 2 labels"):
            decode("classification", torch.zeros(1, 3), labels=("a", "b"))
        with pytest.raises(BrokenModelError, match=r"gave 2 classes, but model.yaml has 3 labels"):
            decode("classification", torch.zeros(1), labels=("a", "b", "c"))

    def test_no_classes(self) -> None:
        with pytest.raises(BrokenModelError, match=r"\(rows, 0\)"):
            decode("classification", torch.zeros(2, 0))

    def test_other_dtypes(self) -> None:
        for dtype in (torch.float64, torch.bfloat16, torch.int64):
            columns = decode("classification", torch.tensor([[0, 2]]).to(dtype))
            assert columns["confidence"].type == pa.float32()
            assert columns["confidence"][0].as_py() == pytest.approx(0.8807971)

    def test_the_output_named_logits_is_taken(self) -> None:
        outputs = {"hidden": torch.zeros(2, 9), "logits": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
        assert decode("classification", outputs)["predicted_class"].to_pylist() == [1, 0]


class TestMultilabel:
    def test_labels_above_the_threshold(self) -> None:
        logits = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0], [5.0, 5.0, 5.0]])
        columns = decode("multilabel", logits, labels=("a", "b", "c"))
        assert columns["predicted_labels"].to_pylist() == [["a", "c"], [], ["a", "b", "c"]]
        assert columns["probabilities"].type == pa.list_(pa.float32(), 3)
        assert np.allclose(columns["probabilities"].to_pylist(), torch.sigmoid(logits).numpy())
        columns = decode("multilabel", logits, labels=("a", "b", "c"), threshold=0.9)
        assert columns["predicted_labels"].to_pylist() == [[], [], ["a", "b", "c"]]

    def test_another_number_of_labels(self) -> None:
        with pytest.raises(BrokenModelError, match="gave 3 labels"):
            decode("multilabel", torch.zeros(1, 3), labels=("a", "b"))

    def test_no_rows(self) -> None:
        assert decode("multilabel", torch.zeros(0, 2), labels=("a", "b"))["predicted_labels"].to_pylist() == []


class TestRegression:
    @pytest.mark.parametrize("shape", [(2,), (2, 1)])
    def test_one_number(self, shape: tuple[int, ...]) -> None:
        column = decode("regression", torch.tensor([1.5, -2.0]).reshape(shape))["prediction"]
        assert column == pa.array([1.5, -2.0], pa.float32())

    def test_several_numbers(self) -> None:
        column = decode("regression", torch.tensor([[1.0, 2.0], [3.0, 4.0]]))["prediction"]
        assert column == pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2))

    def test_more_axes_are_refused(self) -> None:
        with pytest.raises(BrokenModelError, match=r"\(rows, 2, 3\); task regression needs \(rows, n\); use task raw"):
            decode("regression", torch.zeros(1, 2, 3))


class TestRaw:
    def test_every_output_by_its_name(self) -> None:
        outputs = {
            "a": torch.tensor([1, 2]),
            "b": torch.arange(12.0).reshape(2, 2, 3),
            "c": torch.tensor([[True], [False]]),
        }
        columns = decode("raw", outputs)
        assert columns["a"] == pa.array([1, 2])
        assert columns["b"].type == pa.list_(pa.list_(pa.float32(), 3), 2)
        assert columns["b"].to_pylist() == outputs["b"].tolist()
        assert columns["c"].to_pylist() == [[True], [False]]

    @pytest.mark.parametrize(
        ("tensor", "what"),
        [
            (torch.zeros(2, 0), r"of float32 and \(rows, 0\)"),
            (torch.zeros(2, 3, dtype=torch.complex64), r"of complex64 and \(rows, 3\)"),
        ],
    )
    def test_what_no_column_holds(self, tensor: torch.Tensor, what: str) -> None:
        with pytest.raises(BrokenModelError, match=f'"output" {what}, which has no column type'):
            decode("raw", tensor)

    def test_a_tensor_that_is_not_contiguous(self) -> None:
        values = torch.arange(6.0).reshape(3, 2).T
        assert decode("raw", values)["output"].to_pylist() == values.tolist()

    def test_no_rows(self) -> None:
        assert decode("raw", torch.zeros(0, 3))["output"].type == pa.list_(pa.float32(), 3)


class TestNotANumber:
    def bad(self, task: str, values: list, **fields: Any) -> list[bool]:
        return not_a_number(spec(task, **fields).head, {"output": torch.tensor(values)}).tolist()

    nan, inf = float("nan"), float("inf")

    def test_nan(self) -> None:
        assert self.bad("regression", [1.0, self.nan, self.inf]) == [False, True, False]
        assert self.bad("classification", [[1.0, 2.0], [1.0, self.nan]]) == [False, True]
        assert self.bad("multilabel", [[self.nan], [1.0]], labels=("a",)) == [True, False]

    def test_infinite_logits_of_which_softmax_makes_nan(self) -> None:
        assert self.bad("classification", [[self.inf, 0.0], [-self.inf, 0.0], [-self.inf, -self.inf]]) == [
            True,
            False,
            True,
        ]
        assert self.bad("classification", [self.inf, 0.0]) == [False, False]  # sigmoid of infinity is 1

    def test_numbers_that_float32_does_not_hold(self) -> None:
        large = torch.tensor([1e39, self.inf, 1.0], dtype=torch.float64)
        assert not_a_number(spec("regression").head, {"output": large}).tolist() == [True, False, False]
        assert not_a_number(spec("raw").head, {"output": large}).tolist() == [False, False, False]

    def test_raw_outputs_may_be_nan(self) -> None:
        assert self.bad("raw", [self.nan]) == [False]

    def test_only_the_output_that_is_decoded_counts(self) -> None:
        outputs = {"logits": torch.zeros(1, 2), "hidden": torch.tensor([self.nan])}
        assert not not_a_number(spec("classification").head, outputs).any()

    def test_a_sum_that_overflows_is_no_nan(self) -> None:
        assert self.bad("regression", [3e38, 3e38, -3e38]) == [False, False, False]
