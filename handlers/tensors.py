"""Dtype and shape of an input, and rows of unequal length, padded with a mask and cut back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from handlers.errors import UsageError

MAX_TOKENS = 16_384
# Names of a model input that marks which tokens are padding.
MASKS = ("attention_mask", "mask", "padding_mask")


@dataclass(frozen=True)
class TensorInfo:
    """What a model itself declares about one input: its dtype and the shape of one row; None where it does not."""

    name: str
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Padding:
    """How rows of unequal length become one tensor. A token is one index along the first axis of a row.

    Attributes:
        value: the padding value; a mapping by input name where they differ.
        left: whether rows are padded before their start instead of after their end.
        lengths: the model input that gets the number of tokens of each row: int64 of (rows,). None passes no lengths.
        mask: the model input that gets the mask: (rows, longest), 1 for real and 0 for padding; int64
            for `attention_mask`, bool for any other name. None passes no mask.
        inputs: the inputs that are sequences; empty for those whose lengths differ among the rows.
        max_tokens: tokens of a micro-batch at most, padding included; a longer row goes alone.
        cut: the outputs with a token axis, which are cut back to the length of their row; None detects them as the
            outputs that grow with the padding.
    """

    value: float | Mapping[str, float] = 0
    left: bool = False
    lengths: str | None = None
    mask: str | None = None
    inputs: tuple[str, ...] = ()
    max_tokens: int = MAX_TOKENS
    cut: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens must be 1 or more, not {self.max_tokens}")

    def value_of(self, name: str) -> float:
        """The padding value of the input `name`."""
        return self.value.get(name, 0) if isinstance(self.value, Mapping) else self.value

    @property
    def mask_dtype(self) -> torch.dtype:
        """Hugging Face models take int64, PyTorch's own modules bool."""
        return torch.int64 if self.mask == "attention_mask" else torch.bool


@dataclass(frozen=True)
class Ragged:
    """Rows whose first axes differ in length, concatenated.

    Attributes:
        values: of (tokens of all rows, …).
        offsets: int64 of (rows + 1,): row i is `values[offsets[i] : offsets[i + 1]]`.
    """

    values: torch.Tensor
    offsets: np.ndarray

    @staticmethod
    def of(rows: Sequence[torch.Tensor]) -> Ragged:
        """Of tensors of (length, …), alike in dtype and all further axes."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return Ragged(torch.cat(list(rows)), _offsets(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 of (rows,)."""
        lengths: np.ndarray = np.diff(self.offsets)
        return lengths

    def rows(self) -> list[torch.Tensor]:
        """One tensor a row, each a view of `values`."""
        return list(self.values.split(self.lengths.tolist()))

    def take(self, indices: np.ndarray) -> Ragged:
        """The rows at `indices`."""
        lengths = self.lengths[indices]
        offsets = _offsets(lengths)
        tokens = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][indices] - offsets[:-1], lengths)
        return Ragged(self.values[torch.from_numpy(tokens)], offsets)

    def pad(
        self, indices: np.ndarray, length: int, value: float, *, left: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows at `indices` as one tensor of (len(indices), length, …), and the mask (bool) of what is real in it."""
        part = self.take(indices)
        mask = _real(part.lengths, length, left=left)
        padded = torch.full((len(indices), length, *self.values.shape[1:]), value, dtype=self.values.dtype)
        padded[mask] = part.values
        return padded, mask

    @staticmethod
    def cut(padded: torch.Tensor, lengths: np.ndarray, *, left: bool = False) -> Ragged:
        """The opposite of `pad`: of (rows, longest, …), the first (or last) `lengths[i]` tokens of row i."""
        return Ragged(padded[_real(lengths, padded.shape[1], left=left)], _offsets(lengths))

    @staticmethod
    def join(parts: Sequence[Ragged]) -> Ragged:
        """All rows of `parts`, in order."""
        lengths = np.concatenate([part.lengths for part in parts])
        return Ragged(torch.cat([part.values for part in parts]), _offsets(lengths))


def _real(lengths: np.ndarray, length: int, *, left: bool) -> torch.Tensor:
    """Mask (bool) of (rows, length): the tokens that are real."""
    tokens = np.arange(length)
    return torch.from_numpy(tokens >= length - lengths[:, None] if left else tokens < lengths[:, None])


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def take(rows: torch.Tensor | Ragged, indices: np.ndarray) -> torch.Tensor | Ragged:
    """The rows at `indices` (int64), of a tensor or of `Ragged`."""
    return rows.take(indices) if isinstance(rows, Ragged) else rows[torch.from_numpy(indices)]
