"""What heads share: the output that counts, as a matrix, its NaN, and nested columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from handlers.errors import BrokenModelError
from handlers.predict.heads.head import Head
from handlers.tensors import Ragged, take

MAIN_OUTPUTS = ("logits", "output", "prediction", "predictions", "embedding")
NOT_A_NUMBER = "the model gave NaN, or more than float32 holds, for this row"

Columns = dict[str, pa.Array]


def good_rows(
    head: Head, outputs: Mapping[str, torch.Tensor | Ragged]
) -> tuple[Mapping[str, torch.Tensor | Ragged], np.ndarray]:
    """`outputs` without the rows that have no finite answer, and the mask of those rows."""
    bad = not_a_number(head, outputs)
    if not bad.any():
        return outputs, bad
    good = np.flatnonzero(~bad)
    return {name: take(tensor, good) for name, tensor in outputs.items()}, bad


def not_a_number(head: Head, outputs: Mapping[str, torch.Tensor | Ragged]) -> np.ndarray:
    """Mask (bool) of (rows,): the rows that have no finite answer in the output that the task decodes; see `decode`."""
    if head.task == "raw":
        return np.zeros(len(next(iter(outputs.values()))), dtype=bool)
    main = main_output(outputs)
    bad = torch.zeros(len(main), dtype=torch.bool)
    # A sum is finite only if all values are, and one sum is fast.
    if main.is_floating_point() and not bool(torch.isfinite(main.sum(dtype=torch.float32))):
        values = main.reshape(len(main), -1)
        bad = (torch.isinf(values.float()) & ~torch.isinf(values)).any(dim=1)
        if head.task == "classification" and head.output == "logits" and values.shape[1] > 1:
            values = values.float().softmax(dim=1)
        bad |= torch.isnan(values).any(dim=1)
    mask: np.ndarray = bad.numpy()
    return mask


def main_output(outputs: Mapping[str, torch.Tensor | Ragged]) -> torch.Tensor:
    """The output that a task decodes: the one with a usual name, else the first.

    Raises:
        BrokenModelError: where its rows are of unequal length.
    """
    name = next((name for name in MAIN_OUTPUTS if name in outputs), next(iter(outputs)))
    main = outputs[name]
    if isinstance(main, Ragged):
        raise BrokenModelError(
            f'the model gave "{name}" with rows of unequal length; only task raw has a column for it'
        )
    return main


def matrix_of(head: Head, outputs: Mapping[str, torch.Tensor | Ragged]) -> torch.Tensor:
    """The main output as float32 of (rows, n)."""
    values = main_output(outputs).float()
    if values.dim() == 1:
        return values.unsqueeze(1)
    if values.dim() != 2:
        shape = ", ".join(["rows", *map(str, values.shape[1:])])
        raise BrokenModelError(f"the model gave an output of ({shape}); task {head.task} needs (rows, n); use task raw")
    return values


def check_labels(head: Head, count: int, what: str) -> None:
    """Raises `BrokenModelError` where the model gives another number of `what` than there are labels."""
    if head.labels and len(head.labels) != count:
        raise BrokenModelError(f"the model gave {count} {what}, but model.yaml has {len(head.labels)} labels")


def nested(values: np.ndarray) -> pa.Array:
    """`values` of (rows, …) as an Arrow array of fixed-size lists, one level for every further axis."""
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, int(size))
    return array
