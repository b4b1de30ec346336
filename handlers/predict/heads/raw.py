"""Task raw: every output of the model as a column of its name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from handlers.errors import BrokenModelError
from handlers.predict.heads.head import Head
from handlers.predict.heads.outputs import Columns, nested


def decode(_head: Head, outputs: Mapping[str, torch.Tensor]) -> Columns:
    """One column for every output."""
    for name, tensor in outputs.items():
        if tensor.is_complex() or 0 in tensor.shape[1:]:
            what = (
                f"of {str(tensor.dtype).removeprefix('torch.')} and (rows{''.join(f', {n}' for n in tensor.shape[1:])})"
            )
            raise BrokenModelError(f'the model gave "{name}" {what}, for which there is no type of column')
    return {name: nested(tensor.contiguous().numpy()) for name, tensor in outputs.items()}


def of_no_rows(_head: Head) -> Columns:
    """None: only the model tells what it gives."""
    return {}
