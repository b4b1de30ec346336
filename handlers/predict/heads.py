"""Heads: the raw outputs of a model become columns, by task.

| task | outputs of (rows, …) | columns |
| --- | --- | --- |
| classification | (rows, classes); (rows,) or (rows, 1) for two classes | `predicted_class`, `confidence` |
| multilabel | (rows, labels) | `predicted_labels`, `probabilities` |
| regression | (rows,), (rows, 1) or (rows, k) | `prediction` |
| raw | any | one for every output, named like it |

`predicted_class` is a string where there are labels and int64 where not; `confidence`, `probabilities` (in the order of
the labels) and `prediction` are float32. What has more than one value a row becomes fixed-size lists.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from handlers.errors import BrokenModelError
from handlers.model.spec import ModelSpec

MAIN_OUTPUTS = ("logits", "output", "prediction", "predictions")
FEW_CLASSES = 10
NOT_A_NUMBER = "the model gave NaN, or more than float32 holds, for this row"

Columns = dict[str, pa.Array]


def decode(spec: ModelSpec, outputs: Mapping[str, torch.Tensor]) -> Columns:
    """The columns for `outputs`, tensors of (rows, …) on the CPU by name.

    Raises:
        BrokenModelError: where the outputs do not fit the task, or the number of labels.
    """
    if spec.task == "raw":
        for name, tensor in outputs.items():
            if tensor.is_complex() or 0 in tensor.shape[1:]:
                what = f"of {str(tensor.dtype).removeprefix('torch.')} and (rows{''.join(f', {n}' for n in tensor.shape[1:])})"
                raise BrokenModelError(f'the model gave "{name}" {what}, for which there is no type of column')
        return {name: _nested(tensor.contiguous().numpy()) for name, tensor in outputs.items()}
    main = _main(outputs)
    return {"classification": _classes, "multilabel": _labels, "regression": _numbers}[spec.task](spec, main.float())


def of_no_rows(spec: ModelSpec) -> Columns:
    """The columns of a task as far as they can be told without asking the model, with no rows."""
    if spec.task not in ("classification", "multilabel"):
        return {}
    return decode(spec, {"output": torch.zeros(0, len(spec.labels or ("", "")))})


def not_a_number(spec: ModelSpec, outputs: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Mask of (rows,): the rows for which the model gave NaN, logits of which softmax makes NaN, or more than float32 holds.

    Only the output that a task decodes counts; of raw outputs NaN may be the meaning.
    """
    main = _main(outputs)
    bad = torch.zeros(len(main), dtype=torch.bool)
    # A sum is finite only where all are, and one sum over all is fast.
    if spec.task != "raw" and main.is_floating_point() and not bool(torch.isfinite(main.sum(dtype=torch.float32))):
        values = main.reshape(len(main), -1)
        bad = (torch.isinf(values.float()) & ~torch.isinf(values)).any(dim=1)
        if spec.task == "classification" and spec.output == "logits" and values.shape[1] > 1:
            values = values.float().softmax(dim=1)
        bad |= torch.isnan(values).any(dim=1)
    mask: np.ndarray = bad.numpy()
    return mask


def _main(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return next((outputs[name] for name in MAIN_OUTPUTS if name in outputs), next(iter(outputs.values())))


def _classes(spec: ModelSpec, values: torch.Tensor) -> Columns:
    matrix = _matrix(values, spec)
    if not matrix.shape[1]:
        raise BrokenModelError("the model gave an output of (rows, 0); task classification needs a class at least")
    if matrix.shape[1] == 1:
        positive = matrix.sigmoid() if spec.output == "logits" else matrix
        matrix = torch.cat([1 - positive, positive], dim=1)
        confidence, codes = matrix.max(dim=1)
    else:
        confidence, codes = _most_likely(matrix, spec.output == "logits")
    _check_labels(spec, matrix.shape[1], "classes")
    predicted = pa.array(codes.numpy())
    if spec.labels:
        predicted = pa.array(spec.labels, pa.string()).take(predicted)
    return {"predicted_class": predicted, "confidence": pa.array(confidence.numpy())}


def _most_likely(matrix: torch.Tensor, logits: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest probability of each row, and its place. Few classes go fastest along the rows, many along the classes."""
    dim = 1
    if matrix.shape[1] <= FEW_CLASSES:
        matrix, dim = matrix.T.contiguous(), 0
    confidence, codes = (matrix.softmax(dim=dim) if logits else matrix).max(dim=dim)
    return confidence, codes


def _labels(spec: ModelSpec, values: torch.Tensor) -> Columns:
    matrix = _matrix(values, spec)
    _check_labels(spec, matrix.shape[1], "labels")
    probabilities = (matrix.sigmoid() if spec.output == "logits" else matrix).numpy()
    chosen = probabilities >= spec.threshold
    offsets = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))]).astype(np.int32)
    names = pa.array(spec.labels, pa.string()).take(pa.array(np.nonzero(chosen)[1]))
    return {
        "predicted_labels": pa.ListArray.from_arrays(pa.array(offsets), names),
        "probabilities": _nested(probabilities),
    }


def _numbers(spec: ModelSpec, values: torch.Tensor) -> Columns:
    matrix = _matrix(values, spec)
    return {"prediction": _nested((matrix[:, 0] if matrix.shape[1] == 1 else matrix).contiguous().numpy())}


def _matrix(values: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    """`values` as (rows, n)."""
    if values.dim() == 1:
        return values.unsqueeze(1)
    if values.dim() != 2:
        shape = ", ".join(["rows", *map(str, values.shape[1:])])
        raise BrokenModelError(f"the model gave an output of ({shape}); task {spec.task} needs (rows, n); use task raw")
    return values


def _check_labels(spec: ModelSpec, count: int, what: str) -> None:
    if spec.labels and len(spec.labels) != count:
        raise BrokenModelError(f"the model gave {count} {what}, but model.yaml has {len(spec.labels)} labels")


def _nested(values: np.ndarray) -> pa.Array:
    """`values` of (rows, …) as an Arrow array of fixed-size lists, one level for every further axis."""
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, int(size))
    return array
