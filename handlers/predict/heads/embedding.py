"""Task embedding: one vector per row."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from handlers.predict.heads.head import Head
from handlers.predict.heads.outputs import Columns, matrix_of, nested
from handlers.tensors import Ragged


def decode(head: Head, outputs: Mapping[str, torch.Tensor | Ragged]) -> Columns:
    """`embedding`, a fixed-size list of float32."""
    return {"embedding": nested(matrix_of(head, outputs).contiguous().numpy())}


def of_no_rows(_head: Head) -> Columns:
    """Empty: only the model knows the length of its vectors."""
    return {}
