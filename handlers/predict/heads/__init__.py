"""Heads: the raw outputs of a model become columns, by task.

| task | outputs of (rows, …) | columns |
| --- | --- | --- |
| classification | (rows, classes); (rows,) or (rows, 1) for two classes | `predicted_class`, `confidence`; `probability_CLASS` |
| multilabel | (rows, labels) | `predicted_labels`, `probabilities` |
| regression | (rows,), (rows, 1) or (rows, k) | `prediction` |
| embedding | (rows, k) | `embedding` |
| forecast | (rows, horizon); (rows, horizon, targets) | `forecast` (`forecast_TARGET` for several), `forecast_from` |
| raw | any | one per output, with its name |

`predicted_class` is a string where there are labels and int64 where not; `confidence`, `probability_CLASS` (one for every
class, by label or else by index, where these are wanted), `probabilities` (in the order of the labels), `prediction`
and `embedding` are float32. What has more than one value a row becomes fixed-size lists, and what differs in length
by row (raw per-token outputs) becomes lists. `forecast_from` is added by the scorer, which knows the steps of a row.

A new head is a module with `decode` and `of_no_rows`, and its line in `TASKS`. Imports torch only when a head is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from handlers.predict.heads.head import Head

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    from handlers.tensors import Ragged

    Columns = dict[str, pa.Array]

__all__ = ["TASKS", "Head", "decode", "of_no_rows"]

TASKS = {
    "classification": "handlers.predict.heads.classification",
    "multilabel": "handlers.predict.heads.multilabel",
    "regression": "handlers.predict.heads.regression",
    "embedding": "handlers.predict.heads.embedding",
    "forecast": "handlers.predict.heads.forecast",
    "raw": "handlers.predict.heads.raw",
}


def decode(head: Head, outputs: Mapping[str, torch.Tensor | Ragged]) -> tuple[Columns, np.ndarray]:
    """The columns for `outputs`, tensors of (rows, …) or `Ragged` on the CPU by name, and the rows that have no valid answer.

    Returns:
        The columns of the good rows, and a mask (bool) of (rows,) of the other rows: those for which the model gave NaN,
        logits of which softmax makes NaN, or more than float32 holds. Raw outputs may contain NaN.

    Raises:
        BrokenModelError: where the outputs do not fit the task, or the number of labels.
    """
    from handlers.predict.heads.outputs import good_rows

    outputs, bad = good_rows(head, outputs)
    columns: Columns = _module(head).decode(head, outputs)
    return columns, bad


def of_no_rows(head: Head) -> Columns:
    """The columns of a task as far as they are known without calling the model, with no rows."""
    columns: Columns = _module(head).of_no_rows(head)
    return columns


def _module(head: Head) -> Any:
    return importlib.import_module(TASKS[head.task])
