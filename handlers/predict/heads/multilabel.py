"""Task multilabel: every label with its probability, and those above the threshold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from handlers.predict.heads.head import Head
from handlers.predict.heads.outputs import Columns, check_labels, matrix_of, nested
from handlers.tensors import Ragged


def decode(head: Head, outputs: Mapping[str, torch.Tensor | Ragged]) -> Columns:
    """`predicted_labels` and `probabilities`."""
    matrix = matrix_of(head, outputs)
    check_labels(head, matrix.shape[1], "labels")
    probabilities = (matrix.sigmoid() if head.output == "logits" else matrix).numpy()
    chosen = probabilities >= head.threshold
    offsets = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))]).astype(np.int32)
    names = pa.array(head.labels, pa.string()).take(pa.array(np.nonzero(chosen)[1]))
    return {
        "predicted_labels": pa.ListArray.from_arrays(pa.array(offsets), names),
        "probabilities": nested(probabilities),
    }


def of_no_rows(head: Head) -> Columns:
    """The same columns, with no rows."""
    return decode(head, {"output": torch.zeros(0, len(head.labels or ("", "")))})
