"""The frame encoder: columns as they are, for models that take a data frame. Numbers stay numbers, and text stays text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.encode.base import BoundInput, Encoded, Tensors
from handlers.encode.columns import resolve_columns
from handlers.encode.specs import FrameInput
from handlers.encode.values import is_number, is_text, numbers_of
from handlers.errors import UsageError
from handlers.failures import RowFailure, RowFailures
from handlers.tensors import Frame, TensorInfo


@dataclass(frozen=True)
class BoundFrame(BoundInput):
    """A frame input, bound to its columns.

    Attributes:
        spec: as `model.yaml` gives it, or the model itself.
        columns: names of the columns, patterns resolved.
        types: of each column: text, float64 (which also means integers), bool or a type of times.
    """

    spec: FrameInput
    types: tuple[pa.DataType, ...]

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """The `Frame` of the rows of `batch`; integers stay integers where all values of a column are."""
        failures: RowFailures = {}
        arrays = []
        for name, kind in zip(self.columns, self.types, strict=True):
            index = batch.schema.get_field_index(name)
            if index < 0:
                missing = RowFailure("encode", "MissingColumn", f'column "{name}" is missing')
                failures = dict.fromkeys(range(batch.num_rows), missing) | failures
                arrays.append(pa.nulls(batch.num_rows, kind))
                continue
            array, wrong = _as(batch.column(index), kind)
            for row in np.flatnonzero(wrong).tolist() if wrong is not None else ():
                value = str(batch.column(index)[row].as_py())[:60]
                message = f'column "{name}" holds {value!r}; the model input "{self.spec.name}" needs {_name(kind)}'
                failures.setdefault(row, RowFailure("encode", "WrongType", message))
            arrays.append(array)
        return Encoded({self.spec.name: Frame(pa.RecordBatch.from_arrays(arrays, list(self.columns)))}, failures)

    def zeros(self, rows: int) -> Tensors:
        """A frame of zeros and empty texts."""
        return {self.spec.name: Frame.blank(pa.schema(list(zip(self.columns, self.types, strict=True))), rows)}


def bind(spec: FrameInput, info: TensorInfo, batch: pa.RecordBatch, _parameters: Sequence[str] = ()) -> BoundFrame:
    """Binds an input to the columns of `batch`; raises `UsageError` for a column of lists, structs or bytes."""
    columns = resolve_columns(spec, batch.schema.names)
    types = []
    for name in columns:
        kind = batch.schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if is_number(kind) or pa.types.is_null(kind) or (is_text(kind) and name in info.numbers):
            kind = pa.float64()
        elif is_text(kind):
            kind = pa.string()
        elif not (pa.types.is_boolean(kind) or pa.types.is_temporal(kind)):
            raise UsageError(f'column "{name}" holds {kind}; encoder frame takes numbers, text, flags and times')
        types.append(kind)
    return BoundFrame(spec, columns, tuple(types))


def _as(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array, np.ndarray | None]:
    """`array` as values of type `kind`, and the mask (bool) of those that are not; None where all are."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == kind or (kind == pa.float64() and pa.types.is_integer(array.type)):
        return array, None
    try:
        if kind == pa.float64() and is_text(array.type):
            values = numbers_of(array)
            return pa.array(values.numbers, kind, mask=values.nulls), values.errors.get("NotANumber")
        if kind == pa.string() and pa.types.is_floating(array.type):  # 3.0 is the text "3", as a category
            whole = array.cast(pa.int64(), safe=False)
            same = pc.equal(whole.cast(array.type), array)
            return pc.if_else(same, whole.cast(kind), array.cast(kind)), None
        return array.cast(kind), None
    except (pa.ArrowException, TypeError, ValueError):
        return pa.nulls(len(array), kind), np.array(array.is_valid().to_numpy(zero_copy_only=False))


def _name(kind: pa.DataType) -> str:
    return "numbers" if kind == pa.float64() else "text" if kind == pa.string() else str(kind)
