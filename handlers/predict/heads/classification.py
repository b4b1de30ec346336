"""Task classification: the most likely class, how likely it is, and on demand the probability of every class."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import torch

from handlers.errors import BrokenModelError
from handlers.predict.heads.head import PROBABILITY, Head
from handlers.predict.heads.outputs import Columns, check_labels, matrix_of
from handlers.tensors import Ragged

FEW_CLASSES = 10


def decode(head: Head, outputs: Mapping[str, torch.Tensor | Ragged]) -> Columns:
    """`predicted_class` and `confidence`, and a column `probability_CLASS` for every class where these are wanted."""
    matrix = matrix_of(head, outputs)
    if not matrix.shape[1]:
        raise BrokenModelError("the model gave an output of (rows, 0); task classification needs a class at least")
    single = matrix.shape[1] == 1
    if single:
        positive = matrix.sigmoid() if head.output == "logits" else matrix
        matrix = torch.cat([1 - positive, positive], dim=1)
        confidence, codes = matrix.max(dim=1)
    else:
        confidence, codes = _most_likely(matrix, head.output == "logits")
    check_labels(head, matrix.shape[1], "classes")
    predicted = pa.array(codes.numpy())
    if head.labels:
        predicted = pa.array(head.labels, pa.string()).take(predicted)
    columns = {"predicted_class": predicted, "confidence": pa.array(confidence.numpy())}
    if head.probabilities:
        each = matrix.T.contiguous()
        if head.output == "logits" and not single:
            each = each.softmax(dim=0)
        names = head.labels or tuple(map(str, range(len(each))))
        columns |= {f"{PROBABILITY}{name}": pa.array(row.numpy()) for name, row in zip(names, each, strict=True)}
    return columns


def _most_likely(matrix: torch.Tensor, logits: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest probability of each row, and its index. Few classes go fastest along the rows, many along the classes."""
    dim = 1
    if matrix.shape[1] <= FEW_CLASSES:
        matrix, dim = matrix.T.contiguous(), 0
    confidence, codes = (matrix.softmax(dim=dim) if logits else matrix).max(dim=dim)
    return confidence, codes


def of_no_rows(head: Head) -> Columns:
    """The same columns, with no rows."""
    return decode(head, {"output": torch.zeros(0, len(head.labels or ("", "")))})
