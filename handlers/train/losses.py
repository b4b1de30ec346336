"""The loss of a task, on the output that the head decodes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from handlers.errors import UsageError
from handlers.predict.heads.outputs import main_output
from handlers.predict.outputs import named_outputs
from handlers.train.labels import Labels

RegressionLoss = Literal["mse", "huber"]
_LEAST = 1e-12  # of a probability, so that its logarithm is finite


class Loss(nn.Module):
    """The mean loss of a batch.

    Cross entropy for classes, binary cross entropy for a single output and for labels, the squared or Huber loss for
    numbers, in units of the label's deviation.

    Args:
        labels: what is learned.
        output: whether the model gives `logits` or `probabilities`.
        balanced: whether rare classes, or labels, weigh as much as common ones.
        deviation: float of (width,): of the label of a regression.
        mean: the same; given for a network whose outputs are normalised, and not in the label's unit.
        regression: the loss of numbers.
    """

    weights: torch.Tensor | None
    deviation: torch.Tensor | None
    mean: torch.Tensor | None

    def __init__(
        self,
        labels: Labels,
        output: str = "logits",
        *,
        balanced: bool = False,
        deviation: torch.Tensor | None = None,
        mean: torch.Tensor | None = None,
        regression: RegressionLoss = "mse",
    ) -> None:
        super().__init__()
        self._labels = labels
        self._logits = output == "logits"
        self._regression = regression
        weights = class_weights(labels) if balanced else None
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("deviation", None if deviation is None else deviation.float(), persistent=False)
        self.register_buffer("mean", None if mean is None else mean.float(), persistent=False)

    def forward(self, outputs: Any, target: torch.Tensor) -> torch.Tensor:
        """The loss of what the model gave for rows with the targets of `Labels.targets`."""
        with torch.autocast(target.device.type, enabled=False):
            return self._loss(self.values(outputs), target)

    def _loss(self, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self._labels.task == "regression":
            difference = self._difference(values, target)
            if self._regression == "huber":
                return functional.huber_loss(difference, torch.zeros_like(difference))
            return (difference**2).mean()
        if self._labels.task == "multilabel":
            return self._binary(values, target)
        if values.shape[1] == 1:
            weight = None if self.weights is None else self.weights[target]
            each = self._each(values[:, 0], target.to(values.dtype))
            return each.mean() if weight is None else (each * weight).sum() / weight.sum()
        logs = values.log_softmax(dim=1) if self._logits else values.clamp(min=_LEAST).log()
        return functional.nll_loss(logs, target, self.weights)

    def values(self, outputs: Any) -> torch.Tensor:
        """The output that the head decodes, float32 of (rows, n).

        Raises:
            UsageError: where its shape does not fit the labels.
        """
        values = main_output(named_outputs(outputs)[1]).float()
        values = values.unsqueeze(1) if values.dim() == 1 else values
        wanted = {self._labels.outputs}
        if self._labels.task == "classification" and self._labels.outputs == 2:
            wanted.add(1)
        if values.dim() != 2 or values.shape[1] not in wanted:
            shape = ", ".join(["rows", *map(str, values.shape[1:])])
            what = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}[self._labels.task]
            raise UsageError(
                f"the model gives outputs of ({shape}), and the label has {self._labels.outputs} {what}: outputs of "
                f"(rows, {self._labels.outputs}) are needed"
            )
        return values

    def _difference(self, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """In deviations of the label."""
        deviation = torch.ones_like(target) if self.deviation is None else self.deviation
        return (values - target) / deviation if self.mean is None else values - (target - self.mean) / deviation

    def _binary(self, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self._logits:
            return functional.binary_cross_entropy_with_logits(values, target, pos_weight=self.weights)
        each = self._each(values, target)
        return (each if self.weights is None else each * torch.where(target > 0, self.weights, 1)).mean()

    def _each(self, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self._logits:
            return functional.binary_cross_entropy_with_logits(values, target, reduction="none")
        return functional.binary_cross_entropy(values.clamp(_LEAST, 1), target, reduction="none")


def class_weights(labels: Labels) -> torch.Tensor:
    """Float32 of (classes,): such that all classes weigh the same, with mean 1 over the rows.

    Of multilabel how much rows with a label weigh against those without it. A class without training rows has weight 1.
    """
    counts = torch.tensor(labels.counts, dtype=torch.float64)
    total = counts.sum()
    there = counts > 0
    if labels.task == "multilabel":
        return torch.where(there, (labels.rows - counts).clamp(min=1) / counts.clamp(min=1), 1).float()
    return torch.where(there, total / (there.sum() * counts.clamp(min=1)), 1).float()
