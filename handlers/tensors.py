"""What models take: dtype and shape of an input, rows of unequal length (padded with a mask and cut back), data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa
import torch

from handlers.errors import UsageError

# Names of a model input that marks which tokens are padding.
MASKS = ("attention_mask", "mask", "padding_mask")


@dataclass(frozen=True)
class TensorInfo:
    """What a model itself declares about one input; None or empty where it does not.

    Attributes:
        name: of the input.
        dtype: of its tensor.
        shape: of one row.
        columns: the columns that feed it, in order.
        allows_missing: whether it takes NaN, and null as NaN.
        frame: whether it takes a `Frame` instead of a tensor.
        numbers: the columns of a frame that hold numbers, as far as it is known.
    """

    name: str
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None
    columns: tuple[str, ...] = ()
    allows_missing: bool = False
    frame: bool = False
    numbers: frozenset[str] = frozenset()


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
        max_tokens: tokens of a micro-batch at most, padding included; a longer row goes alone. None: 2,048 on the CPU,
            which pads less, and 16,384 on an accelerator.
        cut: the outputs with a token axis, which are cut back to the length of their row; None detects them as the
            outputs that grow with the padding.
    """

    value: float | Mapping[str, float] = 0
    left: bool = False
    lengths: str | None = None
    mask: str | None = None
    inputs: tuple[str, ...] = ()
    max_tokens: int | None = None
    cut: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
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


@dataclass(frozen=True)
class Frame:
    """Rows of named columns, for models that take a data frame. Nothing can write into it."""

    batch: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(self.batch.nbytes)

    def __getitem__(self, rows: slice | torch.Tensor) -> Frame:
        """A range of rows, or those at indices (int64)."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return Frame(self.batch.slice(start, stop - start))
        return Frame(self.batch.take(pa.array(rows.numpy())))

    @staticmethod
    def blank(schema: pa.Schema, rows: int) -> Frame:
        """Rows of zeros and empty texts; null in columns of any other type."""
        return Frame(pa.RecordBatch.from_arrays([_blank(field.type, rows) for field in schema], schema=schema))


Value = torch.Tensor | Ragged | Frame  # the rows of one input


def _blank(kind: pa.DataType, rows: int) -> pa.Array:
    try:
        return pa.array([0] * rows).cast(pa.string()).cast(kind)
    except pa.ArrowException:
        return pa.nulls(rows, kind)


def zeros_like(value: torch.Tensor | Frame) -> torch.Tensor | Frame:
    """As many rows of zeros, of the same shape and types."""
    return Frame.blank(value.batch.schema, len(value)) if isinstance(value, Frame) else torch.zeros_like(value)


def _real(lengths: np.ndarray, length: int, *, left: bool) -> torch.Tensor:
    """Mask (bool) of (rows, length): the tokens that are real."""
    tokens = np.arange(length)
    return torch.from_numpy(tokens >= length - lengths[:, None] if left else tokens < lengths[:, None])


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


@overload
def take(rows: torch.Tensor | Ragged, indices: np.ndarray) -> torch.Tensor | Ragged: ...
@overload
def take(rows: Value, indices: np.ndarray) -> Value: ...
def take(rows: Value, indices: np.ndarray) -> Value:
    """The rows at `indices` (int64), of whatever kind."""
    return rows.take(indices) if isinstance(rows, Ragged) else rows[torch.from_numpy(indices)]
