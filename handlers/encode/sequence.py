"""The sequence encoder: list columns become steps, padded with a mask or lengths by the predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from handlers.encode.base import BoundInput, Encoded, Tensors
from handlers.encode.categorical import BoundCategorical
from handlers.encode.columns import resolve_columns
from handlers.encode.matrix import BoundMatrix
from handlers.encode.numeric import BoundNumeric
from handlers.encode.specs import CategoricalInput, NumericInput, SequenceInput
from handlers.encode.values import flatten, is_list, mask_of
from handlers.errors import UsageError
from handlers.failures import RowFailure, RowFailures
from handlers.tensors import Padding, Ragged, TensorInfo

TRUNCATED = "sequences_truncated"


@dataclass(frozen=True)
class BoundSequence(BoundInput):
    """A sequence input, bound to its columns.

    Attributes:
        spec: as `model.yaml` gives it.
        columns: list columns, one a feature.
        steps: encodes single steps, of a column named like the input.
    """

    spec: SequenceInput
    steps: BoundMatrix

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """`Ragged` of (steps of all rows, features), or of (steps of all rows,) for codes."""
        failures: RowFailures = {}
        found = [self._column(batch, name, failures) for name in self.columns]
        lengths = found[0][1]
        self._check_lengths([each for _, each in found], failures)
        good = np.ones(batch.num_rows, dtype=bool)
        good[list(failures)] = False
        kept = np.where(good, lengths, 0)
        most = kept.max(initial=0) if self.spec.max_length is None else self.spec.max_length
        truncated = int((kept > most).sum())
        columns = [_last(values, each, good, most) for values, each in found]
        offsets = np.concatenate([[0], np.cumsum(np.minimum(kept, most))]).astype(np.int64)
        values = columns[0] if self._codes else torch.stack(columns, dim=1)
        counts = {TRUNCATED: truncated} if truncated else {}
        return Encoded({self.spec.name: Ragged(values, offsets)}, failures, counts)

    def zeros(self, rows: int) -> Tensors:
        """Rows of as many steps as there must be, one at least."""
        length = max(1, self.spec.min_length)
        shape = (rows * length,) if self._codes else (rows * length, len(self.columns))
        values = torch.zeros(shape, dtype=self.steps.dtype)
        return {self.spec.name: Ragged(values, np.arange(rows + 1, dtype=np.int64) * length)}

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of `max_length` steps; 0 without one, so that a chunk stays whole."""
        return (
            0 if self.spec.max_length is None else self.spec.max_length * len(self.columns) * self.steps.dtype.itemsize
        )

    @property
    def padding(self) -> Padding:
        """As the spec gives it."""
        mask = self.spec.mask
        return Padding(
            value=self.spec.pad_value,
            left=self.spec.pad == "left",
            mask=mask if mask != "lengths" else None,
            lengths=mask if mask == "lengths" else None,
            inputs=(self.spec.name,),
        )

    @property
    def _codes(self) -> bool:
        return self.steps.spec.codes is not None

    def _column(self, batch: pa.RecordBatch, name: str, failures: RowFailures) -> tuple[torch.Tensor, np.ndarray]:
        """The steps of all rows of a column one after the other, and how many each row has."""
        index = batch.schema.get_field_index(name)
        kind = None if index < 0 else batch.schema.field(index).type
        if kind is None or (problem := _problem(kind, self)) is not None:
            why = ("MissingColumn", "is missing") if kind is None else ("WrongType", problem)
            failure = RowFailure("encode", why[0], f'column "{name}" {why[1]}')
            failures |= {row: failures.get(row, failure) for row in range(batch.num_rows)}
            return torch.zeros(0, dtype=self.steps.dtype), np.zeros(batch.num_rows, np.int64)
        array = batch.column(index)
        flat, lengths, _ = flatten(array)
        for row in np.flatnonzero(mask_of(array.is_null())).tolist():
            message = f'column "{name}" holds null; the model input "{self.spec.name}" needs a list'
            failures.setdefault(row, RowFailure("encode", "NullValue", message))
        encoded = self.steps.encode(pa.RecordBatch.from_arrays([flat], names=[self.spec.name]))
        starts = np.cumsum(lengths) - lengths
        for step, failure in encoded.failures.items():
            row = int(np.searchsorted(starts, step, side="right")) - 1
            inside = step - int(starts[row])
            where = failure.message.replace(f'column "{self.spec.name}"', f'column "{name}"', 1)
            failures.setdefault(row, RowFailure("encode", failure.type, f"{where} (step {inside})"))
        tensor = encoded.tensors[self.spec.name]
        assert isinstance(tensor, torch.Tensor)  # noqa: S101 - of a matrix input
        return tensor, lengths

    def _check_lengths(self, lengths: Sequence[np.ndarray], failures: RowFailures) -> None:
        unequal = (
            np.any([each != lengths[0] for each in lengths[1:]], axis=0) if len(lengths) > 1 else np.zeros(0, bool)
        )
        for row in np.flatnonzero(unequal).tolist():
            found = ", ".join(f"{name} {each[row]}" for name, each in zip(self.columns, lengths, strict=True))
            message = f'the columns of the model input "{self.spec.name}" have lists of unequal length: {found}'
            failures.setdefault(row, RowFailure("encode", "WrongLength", message))
        for row in np.flatnonzero(lengths[0] < self.spec.min_length).tolist():
            message = (
                f'column "{self.columns[0]}" holds a list of {lengths[0][row]} values; the model input "{self.spec.name}" needs '
                f"{self.spec.min_length} at least"
            )
            failures.setdefault(row, RowFailure("encode", "WrongLength", message))


def bind(
    spec: SequenceInput, info: TensorInfo, batch: pa.RecordBatch, _parameters: Sequence[str] = ()
) -> BoundSequence:
    """Binds an input to the columns of `batch`; raises `UsageError` for one that holds no lists of numbers or categories."""
    step = spec.step
    columns = resolve_columns(spec, batch.schema.names)
    kind: type[BoundMatrix] = BoundCategorical if isinstance(step, CategoricalInput) else BoundNumeric
    dtype = info.dtype or (torch.int64 if isinstance(step, CategoricalInput) else torch.float32)
    bound = BoundSequence(spec, columns, kind(step, (spec.name,), (1,), (), dtype))
    for name in columns:
        if (problem := _problem(batch.schema.field(name).type, bound)) is not None:
            raise UsageError(f'column "{name}" {problem}')
    if isinstance(step, NumericInput) or len(columns) == 1:
        return bound
    raise UsageError(f'the sequence input "{spec.name}" of codes takes one column, not {", ".join(columns)}')


def _problem(kind: pa.DataType, bound: BoundSequence) -> str | None:
    if not is_list(kind) or is_list(kind.value_type):
        return f'holds {kind}; the sequence input "{bound.spec.name}" needs a list of steps'
    return bound.steps.type_problem(kind.value_type, bound.steps.spec)


def _last(values: torch.Tensor, lengths: np.ndarray, good: np.ndarray, most: int) -> torch.Tensor:
    """Of each good row the last `most` steps."""
    from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(int(lengths.sum()))
    keep = np.repeat(good, lengths) & (from_end <= most)
    return values if keep.all() else values[torch.from_numpy(keep)]
