"""Task forecast: the next steps of a sequence."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from handlers.errors import BrokenModelError
from handlers.predict.heads.head import FORECAST, Head
from handlers.predict.heads.outputs import Columns, main_output, nested
from handlers.tensors import Ragged


def decode(head: Head, outputs: Mapping[str, torch.Tensor | Ragged]) -> Columns:
    """`forecast`, a fixed-size list of float32 of `horizon` values; with several targets `forecast_TARGET` for each.

    Raises:
        BrokenModelError: where the model gives another number of steps or targets.
    """
    values = main_output(outputs).float()
    count = len(head.targets)
    wanted = (head.horizon, count) if count > 1 else (head.horizon,)
    found = tuple(values.shape[1:])
    single = (1,) if count == 1 else ()
    if found == (*wanted, *single) or (found == () and wanted == (1,)):
        values = values.reshape(len(values), *wanted)
    elif found != wanted:
        shapes = [", ".join(map(str, ("rows", *shape))) for shape in (found, wanted)]
        raise BrokenModelError(
            f"the model gave an output of ({shapes[0]}); task forecast needs ({shapes[1]}), as horizon and target of "
            "sequences say"
        )
    if count == 1:
        return {FORECAST: nested(values.contiguous().numpy())}
    each = values.permute(2, 0, 1).contiguous().numpy()
    return {f"{FORECAST}_{name}": nested(part) for name, part in zip(head.targets, each, strict=True)}


def of_no_rows(head: Head) -> Columns:
    """The same columns, with no rows."""
    shape = (0, head.horizon, len(head.targets)) if len(head.targets) > 1 else (0, head.horizon)
    return decode(head, {"output": torch.zeros(shape)})
