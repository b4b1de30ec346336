"""The numeric encoder: numbers, flags, times, numbers in text, and lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from handlers.encode.matrix import BoundMatrix, bind_matrix
from handlers.encode.specs import NumericInput
from handlers.encode.values import Values, innermost, is_time, numbers_of, within
from handlers.tensors import TensorInfo


@dataclass(frozen=True)
class BoundNumeric(BoundMatrix):
    """A numeric input, bound to its columns."""

    spec: NumericInput

    def values(self, array: pa.Array) -> Values:
        """The numbers of `array` (without lists); integers keep every digit where the dtype is one."""
        if self.dtype.is_floating_point:
            return numbers_of(array, self.spec.timestamp)
        return within(numbers_of(array, self.spec.timestamp, exact=True), self.dtype)

    @staticmethod
    def type_problem(kind: pa.DataType, spec: NumericInput) -> str | None:
        """See `BoundMatrix`; times need a unit."""
        if is_time(innermost(kind)) and spec.timestamp is None:
            return f'holds {kind}; say in which unit the model input "{spec.name}" counts it, for example timestamp: s'
        return BoundMatrix.type_problem(kind, spec)

    @property
    def takes_floats(self) -> bool:
        """Whether machine numbers are written to the tensor directly."""
        return self.dtype.is_floating_point


def bind(spec: NumericInput, info: TensorInfo, batch: pa.RecordBatch, _parameters: Sequence[str] = ()) -> BoundNumeric:
    """Binds an input to the columns of `batch`; raises `UsageError` for a column of a type that has no meaning in it."""
    return bind_matrix(BoundNumeric, spec, info, batch)
