"""Task raw: every output of the model as a column of its name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from handlers.errors import BrokenModelError
from handlers.predict.heads.head import Head
from handlers.predict.heads.outputs import Columns, nested
from handlers.tensors import Ragged


def decode(_head: Head, outputs: Mapping[str, torch.Tensor | Ragged]) -> Columns:
    """One column for every output; `Ragged` ones as lists."""
    return {name: _column(name, output) for name, output in outputs.items()}


def of_no_rows(_head: Head) -> Columns:
    """Empty: only the model knows its outputs."""
    return {}


def _column(name: str, output: torch.Tensor | Ragged) -> pa.Array:
    tensor = output.values if isinstance(output, Ragged) else output
    if tensor.is_complex() or 0 in tensor.shape[1:]:
        what = f"of {str(tensor.dtype).removeprefix('torch.')} and (rows{''.join(f', {n}' for n in tensor.shape[1:])})"
        raise BrokenModelError(f'the model gave "{name}" {what}, which has no column type')
    values = nested(tensor.contiguous().numpy())
    if isinstance(output, Ragged):
        return pa.ListArray.from_arrays(pa.array(output.offsets.astype(np.int32)), values)
    return values
