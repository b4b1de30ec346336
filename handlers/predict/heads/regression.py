"""Task regression: numbers as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from handlers.predict.heads.head import Head
from handlers.predict.heads.outputs import Columns, matrix_of, nested
from handlers.tensors import Ragged


def decode(head: Head, outputs: Mapping[str, torch.Tensor | Ragged]) -> Columns:
    """`prediction`."""
    matrix = matrix_of(head, outputs)
    return {"prediction": nested((matrix[:, 0] if matrix.shape[1] == 1 else matrix).contiguous().numpy())}


def of_no_rows(_head: Head) -> Columns:
    """Empty: only the model knows its outputs."""
    return {}
