"""The rows of one call of the predictor: their order in the model, and how the original order is restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from handlers.errors import BrokenModelError
from handlers.tensors import Frame, Padding, Ragged, Value

Columns = dict[str, torch.Tensor | Ragged]


class MicroBatches:
    """The rows of one call: in their order where all are alike, else sorted by length.

    The longest come first, so that memory runs out at once or not at all.

    Attributes:
        padding: how ragged inputs are padded.
        longest: int64 of (rows,), in sorted order: tokens of the row, in the longest of its ragged inputs and 1 at least;
            None where no input is ragged.
        primary: the first ragged input; its lengths determine the mask and how outputs are cut back.
        row_bytes: bytes of a row, or of one token of ragged inputs.
    """

    def __init__(self, inputs: Mapping[str, Value], padding: Padding) -> None:
        self.padding = padding
        self._dense = {name: value for name, value in inputs.items() if not isinstance(value, Ragged)}
        self._ragged = {name: value for name, value in inputs.items() if isinstance(value, Ragged)}
        self._count = len(next(iter(inputs.values()))) if inputs else 0
        self._order: np.ndarray | None = None
        self.longest: np.ndarray | None = None
        self.row_bytes = sum(tensor.nbytes // max(1, len(tensor)) for tensor in self._dense.values())
        if not self._ragged:
            return
        self.row_bytes += sum(ragged.values[:1].nbytes for ragged in self._ragged.values())
        self.primary = next(iter(self._ragged))
        lengths = np.stack([ragged.lengths for ragged in self._ragged.values()])
        longest = np.maximum(lengths.max(axis=0), 1)
        self._order = np.argsort(-longest, kind="stable")
        self.longest = longest[self._order]
        self.primary_lengths = lengths[0][self._order]

    def __len__(self) -> int:
        return self._count

    @property
    def order(self) -> np.ndarray:
        """int64 of (rows,): the rows in sorted order."""
        return np.arange(self._count) if self._order is None else self._order

    def cost(self, low: int, high: int) -> int:
        """Tokens of the rows low … high-1, padding included; rows where nothing is padded."""
        return high - low if self.longest is None else (high - low) * int(self.longest[low])

    def tensors(self, low: int, high: int, more: int = 0) -> dict[str, torch.Tensor | Frame]:
        """The inputs of the rows low … high-1 of the sorted order, padded to the longest and `more`, with the mask."""
        if self._order is None:
            return {name: tensor[low:high] for name, tensor in self._dense.items()}
        indices = self._order[low:high]
        index = torch.from_numpy(indices)
        tensors: dict[str, torch.Tensor | Frame] = {name: tensor[index] for name, tensor in self._dense.items()}
        for name, ragged in self._ragged.items():
            length = max(1, int(ragged.lengths[indices].max())) + more
            tensors[name], mask = ragged.pad(indices, length, self.padding.value_of(name), left=self.padding.left)
            if name == self.primary and self.padding.mask:
                tensors[self.padding.mask] = mask.to(self.padding.mask_dtype)
            if name == self.primary and self.padding.lengths:
                tensors[self.padding.lengths] = torch.from_numpy(ragged.lengths[indices])
        return tensors

    def failures(self, found: Sequence[tuple[int, Exception]]) -> list[tuple[int, Exception]]:
        """`found`, with rows in their original order."""
        order = self._order
        return list(found) if order is None else [(int(order[index]), error) for index, error in found]

    def in_order(self, parts: Sequence[tuple[int, int, Columns]]) -> tuple[np.ndarray, Columns]:
        """The rows that were answered, in their original order, and their outputs."""
        if not parts:
            return np.empty(0, np.int64), {}
        indices = np.concatenate([np.arange(low, high) for low, high, _ in parts])
        outputs = {name: _join(name, [part[name] for _, _, part in parts]) for name in parts[0][2]}
        if self._order is None:
            return indices, outputs
        rows = self._order[indices]
        back = np.argsort(rows)
        index = torch.from_numpy(back)
        return rows[back], {
            name: value.take(back) if isinstance(value, Ragged) else value[index] for name, value in outputs.items()
        }


def _join(name: str, parts: Sequence[torch.Tensor | Ragged]) -> torch.Tensor | Ragged:
    if len(parts) == 1:
        return parts[0]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(tensors) == len(parts) and len({tensor.shape[1:] for tensor in tensors}) == 1:
        return torch.cat(tensors)
    # What a model generates may be of another length in every micro-batch.
    ragged = [part if isinstance(part, Ragged) else _by_row(name, part) for part in parts]
    if len({part.values.shape[1:] for part in ragged}) > 1:
        shapes = " and ".join(sorted({str(tuple(part.values.shape[1:])) for part in ragged}))
        raise BrokenModelError(f'the model gave "{name}" with rows of different shapes, (length, …) of {shapes}')
    return Ragged.join(ragged)


def _by_row(name: str, tensor: torch.Tensor) -> Ragged:
    if tensor.dim() < 2:
        raise BrokenModelError(f'the model gave "{name}" now with one value a row and now with several')
    return Ragged(tensor.flatten(0, 1), np.arange(len(tensor) + 1, dtype=np.int64) * tensor.shape[1])
