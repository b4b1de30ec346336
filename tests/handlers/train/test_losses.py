"""Losses, against PyTorch's own and against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from handlers.errors import UsageError
from handlers.train.labels import Labels
from handlers.train.losses import Loss, class_weights

CLASSES = Labels("y", "classification", ("a", "b", "c"), (6, 3, 1), rows=10)
TWO = Labels("y", "classification", ("a", "b"), (6, 4), rows=10)
TAGS = Labels("y", "multilabel", ("a", "b"), (5, 2), rows=10)
NUMBER = Labels("y", "regression", rows=10)
LOGITS, CODES = torch.tensor([[1.0, 2.0, 0.5], [0.1, -1.0, 3.0]]), torch.tensor([1, 0])


def test_classes() -> None:
    torch.testing.assert_close(Loss(CLASSES)(LOGITS, CODES), functional.cross_entropy(LOGITS, CODES))
    given = Loss(CLASSES, "probabilities")({"other": CODES, "logits": LOGITS.softmax(dim=1)}, CODES)
    torch.testing.assert_close(given, functional.cross_entropy(LOGITS, CODES))
    weights = torch.tensor([10 / 18, 10 / 9, 10 / 3])
    torch.testing.assert_close(class_weights(CLASSES), weights)
    expected = functional.cross_entropy(LOGITS, CODES, weights)
    torch.testing.assert_close(Loss(CLASSES, balanced=True)(LOGITS, CODES), expected)


def test_one_output_for_two_classes() -> None:
    logits, codes = torch.tensor([0.3, -2.0]), torch.tensor([1, 0])
    expected = functional.binary_cross_entropy_with_logits(logits, codes.float())
    torch.testing.assert_close(Loss(TWO)(logits, codes), expected)
    torch.testing.assert_close(Loss(TWO, "probabilities")(logits.sigmoid().unsqueeze(1), codes), expected)
    both = torch.stack([torch.zeros(2), logits], dim=1)  # softmax of (0, x) is (1 - sigmoid(x), sigmoid(x))
    torch.testing.assert_close(Loss(TWO, balanced=True)(logits, codes), Loss(TWO, balanced=True)(both, codes))


def test_labels() -> None:
    logits, flags = torch.tensor([[0.3, -2.0]]), torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(Loss(TAGS)(logits, flags), functional.binary_cross_entropy_with_logits(logits, flags))
    weights = torch.tensor([1.0, 4.0])  # rows without a label to rows with it
    expected = functional.binary_cross_entropy_with_logits(logits, flags, pos_weight=weights)
    torch.testing.assert_close(Loss(TAGS, balanced=True)(logits, flags), expected)
    torch.testing.assert_close(Loss(TAGS, "probabilities", balanced=True)(logits.sigmoid(), flags), expected)


def test_numbers_in_units_of_their_deviation() -> None:
    values, target = torch.tensor([110.0, 100.0]), torch.tensor([[100.0], [130.0]])
    deviation, mean = torch.tensor([10.0], dtype=torch.float64), torch.tensor([100.0], dtype=torch.float64)
    assert Loss(NUMBER, deviation=deviation)(values, target).item() == pytest.approx((1 + 9) / 2)
    huber = Loss(NUMBER, deviation=deviation, regression="huber")(values, target)
    assert huber.item() == pytest.approx((0.5 + 2.5) / 2)
    normalized = (values - 100) / 10
    assert Loss(NUMBER, deviation=deviation, mean=mean)(normalized, target).item() == pytest.approx(5)


def test_outputs_that_do_not_fit() -> None:
    with pytest.raises(
        UsageError, match=r"outputs of \(rows, 3\), and the label has 2 classes: outputs of \(rows, 2\)"
    ):
        Loss(TWO)(LOGITS, CODES)
    with pytest.raises(UsageError, match=r"outputs of \(rows, 1\), and the label has 2 labels"):
        Loss(TAGS)(torch.zeros(2), torch.zeros(2, 2))
