"""Inputs that are a matrix of values: columns of numbers, codes or lists of them become a tensor of (rows, *shape).

What the numeric and the categorical encoder share. Which columns feed an input, and how many values each gives, is
determined once on the driver by `bind_matrix`; `encode` gets every chunk, so an array of an unexpected type fails its
rows and never the run.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from handlers.encode.base import BoundInput, Encoded, Tensors
from handlers.encode.columns import UnknownLengthError, resolve_columns
from handlers.encode.specs import MatrixInput
from handlers.encode.values import (
    Values,
    bounds,
    depth,
    flatten,
    has_numbers,
    is_list,
    is_machine_number,
    list_lengths,
    mask_of,
    numpy_dtype,
    rounded,
    without_validity,
)
from handlers.errors import UsageError
from handlers.failures import RowFailure, RowFailures
from handlers.tensors import TensorInfo

M = TypeVar("M", bound="BoundMatrix")


@dataclass(frozen=True)
class BoundMatrix(BoundInput):
    """A matrix input whose columns, widths, shape and dtype are fixed for the columns of one run.

    Attributes:
        spec: as `model.yaml` gives it.
        columns: names of the columns, patterns resolved.
        widths: values that each column gives: 1, or the length of its lists.
        shape: of one row of the tensor.
        dtype: of the tensor.
    """

    spec: MatrixInput
    widths: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def values(self, array: pa.Array) -> Values:
        """`array` (without lists) as numbers that the dtype of this input can hold."""

    @staticmethod
    def type_problem(kind: pa.DataType, spec: Any) -> str | None:
        """Why a column of type `kind` cannot feed the input, as the end of a sentence about the column; None where it can."""
        return None if has_numbers(kind) else f'holds {kind}, which has no meaning in the model input "{spec.name}"'

    @property
    def fill_value(self) -> Any:
        """The number that replaces a null."""
        return self.spec.fill

    @property
    def takes_floats(self) -> bool:
        """Whether machine numbers are written to the tensor directly, rounded to its dtype."""
        return False

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the tensor."""
        return sum(self.widths) * self.dtype.itemsize

    def zeros(self, rows: int) -> Tensors:
        """A tensor of `rows` rows of zeros."""
        return {self.spec.name: torch.zeros(rows, *self.shape, dtype=self.dtype)}

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """The tensor of the rows of `batch`, of (rows, *shape), contiguous, in newly allocated memory."""
        failures: RowFailures = {}
        rows, total = batch.num_rows, sum(self.widths)
        # Columns of single values are written one after the other, each at once, and then transposed: torch does that
        # faster than numpy writes every 20th number.
        by_column = total == len(self.widths)
        buffer = np.empty((total, rows) if by_column else (rows, total), numpy_dtype(self.dtype))
        matrix = buffer.T if by_column else buffer
        start = 0
        with np.errstate(over="ignore", invalid="ignore"):
            for name, width in zip(self.columns, self.widths, strict=True):
                self._write(matrix[:, start : start + width], batch, name, failures)
                start += width
        tensor = torch.from_numpy(buffer)
        if by_column:
            tensor = tensor.T.contiguous()
        tensor = tensor.to(self.dtype)
        if self.dtype.is_floating_point and not self.spec.allows_nonfinite and not self._finite(tensor, buffer):
            self._note_nonfinite(tensor, batch, failures)
        return Encoded({self.spec.name: tensor.reshape(rows, *self.shape)}, failures)

    @property
    def is_plain(self) -> bool:
        """Whether it takes single values only, and each becomes a float."""
        return self.takes_floats and set(self.widths) == {1}

    def tensor_of(self, numbers: np.ndarray) -> torch.Tensor | None:
        """What `encode` gives for columns of these numbers; only for an input that is plain.

        Args:
            numbers: float64 of (rows, columns); an integer must be one that float64 holds exactly.

        Returns:
            The tensor, of (rows, *shape) in newly allocated memory. None where a number is not finite in the dtype and must
            be: `encode` finds those rows.
        """
        buffer = rounded(numbers, self.dtype)
        tensor = torch.from_numpy(buffer).to(self.dtype)
        if not self.spec.allows_nonfinite and not self._finite(tensor, buffer):
            return None
        return tensor.reshape(len(numbers), *self.shape)

    def _finite(self, tensor: torch.Tensor, buffer: np.ndarray) -> bool:
        """Whether all values are finite. numpy is ten times faster at this, but has no bfloat16, where more overflows."""
        return bool(torch.isfinite(tensor).all() if self.dtype == torch.bfloat16 else np.isfinite(buffer).all())

    def _write(self, target: np.ndarray, batch: pa.RecordBatch, name: str, failures: RowFailures) -> None:
        """Writes the values of one column into `target`, of (rows, width); 0 where a row has none."""
        rows, width = target.shape
        index = batch.schema.get_field_index(name)
        if index < 0:
            failures |= dict.fromkeys(range(rows), RowFailure("encode", "MissingColumn", f'column "{name}" is missing'))
            target[:] = 0
            return
        array = batch.column(index)
        if self.takes_floats and width == 1 and is_machine_number(array.type):  # the hot path
            target[:, 0] = without_validity(array).to_numpy()
            if array.null_count:
                nulls = pc.indices_nonzero(array.is_null()).to_numpy()
                target[nulls] = 0 if self.spec.fill is None else self.fill_value
                if self.spec.fill is None:
                    self._note(failures, "NullValue", name, nulls, array)
            return
        if (problem := self.type_problem(array.type, self.spec)) is not None:
            failures |= dict.fromkeys(range(rows), RowFailure("encode", "WrongType", f'column "{name}" {problem}'))
            target[:] = 0
        elif is_list(array.type):
            self._write_lists(target, array, name, failures)
        elif width > 1:
            target[:] = 0
            self._note(failures, "WrongLength", name, np.arange(rows), array, width)
        else:
            values = self.values(array)
            self._fill(target[:, 0], values)
            for kind, indices in _problems(values, self.spec):
                self._note(failures, kind, name, indices, array)

    def _write_lists(self, target: np.ndarray, array: pa.Array, name: str, failures: RowFailures) -> None:
        width = target.shape[1]
        null = mask_of(array.is_null())
        sizes = self.shape if len(self.columns) == 1 and len(self.shape) == depth(array.type) > 1 else None
        flat, lengths, right = flatten(array, sizes)
        right = right & (lengths == width) & ~null
        if not right.all():
            flat = flat.filter(pa.array(np.repeat(right, lengths)))
            target[~right] = 0
            wrong = ~right
            if self.spec.fill is not None:
                target[null] = self.fill_value
                wrong &= ~null
            for kind, rows in (("NullValue", wrong & null), ("WrongLength", wrong & ~null)):
                self._note(failures, kind, name, np.flatnonzero(rows), array, width)
        values = self.values(flat)
        if right.all():
            self._fill(target, values)
        else:
            part = np.empty((int(right.sum()), width), target.dtype)
            self._fill(part, values)
            target[right] = part
        rows = np.flatnonzero(right)
        for kind, indices in _problems(values, self.spec):
            self._note(failures, kind, name, rows[indices // width], array, width, indices % width)

    def _fill(self, target: np.ndarray, values: Values) -> None:
        target[...] = values.numbers.reshape(target.shape)
        if values.nulls is not None and self.spec.fill is not None:
            target[values.nulls.reshape(target.shape)] = self.fill_value

    def _note_nonfinite(self, tensor: torch.Tensor, batch: pa.RecordBatch, failures: RowFailures) -> None:
        # A sum is finite only if all values are. It may overflow where they are, so those few rows are looked at.
        rows = torch.nonzero(~torch.isfinite(tensor.sum(dim=1)))[:, 0].numpy()
        finite = torch.isfinite(tensor[rows]).numpy()
        bad = ~finite.all(axis=1)
        rows, indices = rows[bad], finite[bad].argmin(axis=1)  # the first such value of each row
        edges = np.cumsum(self.widths)
        columns = np.searchsorted(edges, indices, side="right")
        indices -= (edges - np.asarray(self.widths))[columns]
        for column in np.unique(columns).tolist():
            name, chosen = self.columns[column], columns == column
            if batch.schema.get_field_index(name) >= 0:  # else all rows have failed
                self._note(
                    failures, "NotFinite", name, rows[chosen], batch.column(name), self.widths[column], indices[chosen]
                )

    def _note(
        self,
        failures: RowFailures,
        kind: str,
        name: str,
        rows: np.ndarray,
        array: pa.Array,
        width: int = 1,
        indices: np.ndarray | None = None,
    ) -> None:
        """Notes an error of `rows` that have none yet; `indices` are those of the values in the rows' lists.

        Rows of equal values share a failure: what is wrong is most often null, NaN or infinite.
        """
        rows, first = np.unique(rows, return_index=True)
        if failures:
            new = np.fromiter((row not in failures for row in rows.tolist()), bool, len(rows))
            rows, first = rows[new], first[new]
        # Numbers are converted at once; lists are not, since they take many times their memory as Python's.
        is_number = is_machine_number(array.type)
        values = array.take(pa.array(rows)).to_pylist() if is_number else (array[row].as_py() for row in rows.tolist())
        chosen = repeat(None, len(rows)) if indices is None else indices[first].tolist()
        known: dict[str, RowFailure] = {}
        for row, value, index in zip(rows.tolist(), values, chosen, strict=True):
            found = value if index is None else _leaf(value, index)
            text = f"holds {_short(found)}" if found is value else f"holds a list with {_short(found)}"
            if kind == "WrongLength":
                text = f"holds {_length(value)}, not a list of {_sizes(self.shape, width)} values"
            if text not in known:
                known[text] = self._failure(kind, name, text)
            failures[row] = known[text]

    def _failure(self, kind: str, name: str, text: str) -> RowFailure:
        """The failure of rows of which a column has what `text` says."""
        need = str(self.dtype).removeprefix("torch.")
        if kind == "NotFinite":
            text += f", which is not finite as {need}"
        elif kind == "NotAnInteger":
            text += ", which is not a whole number"
        elif kind == "UnknownCategory":
            text += ", which is not one of the categories"
        elif kind == "OutOfRange":
            size = self.spec.codes
            low, high = bounds(self.dtype) if size is None else (0, size - 1)
            text += f", which is not in {low} … {high}"
        return RowFailure("encode", kind, f'column "{name}" {text}; the model input "{self.spec.name}" needs {need}')


def _problems(values: Values, spec: MatrixInput) -> Iterator[tuple[str, np.ndarray]]:
    """The kinds of errors among `values` with their indices; a null is one unless there is a fill value."""
    if values.nulls is not None and spec.fill is None:
        yield "NullValue", np.flatnonzero(values.nulls)
    for kind, mask in values.errors.items():
        yield kind, np.flatnonzero(mask)


def _leaf(value: Any, index: int) -> Any:
    """The value at `index` among those of a list, inner lists flattened; a single value counts as a list of one."""
    return _leaves(value)[index] if isinstance(value, list) else value


def _leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]


def _length(value: Any) -> str:
    return f"a list of {len(_leaves(value))} values" if isinstance(value, list) else _short(value)


def _sizes(shape: tuple[int, ...], width: int) -> str:
    return " × ".join(map(str, shape)) if len(shape) > 1 and math.prod(shape) == width else str(width)


def _short(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def bind_matrix(bound: type[M], spec: MatrixInput, info: TensorInfo, batch: pa.RecordBatch) -> M:
    """Binds an input to the columns of `batch`; see `handlers.encode.binding.bind_inputs`."""
    columns = resolve_columns(spec, batch.schema.names)
    for name in columns:
        if (problem := bound.type_problem(batch.schema.field(name).type, spec)) is not None:
            raise UsageError(f'column "{name}" {problem}')
    dtype, shape = dtype_of(spec, info), _shape(spec, info)
    widths = _widths(spec, shape, columns, batch)
    values = sum(widths)
    if shape is None:
        shape = (values,)
    if math.prod(shape) != values or min(widths) < 1:
        raise UsageError(
            f'the model input "{spec.name}" takes {math.prod(shape)} values a row, but its columns give {values} '
            f"({', '.join(columns[:8])}{', …' if len(columns) > 8 else ''})"
        )
    return bound(spec, columns, widths, shape, dtype)


def dtype_of(spec: MatrixInput, info: TensorInfo | None) -> torch.dtype:
    """What `model.yaml` says, else what the model says, else float32 for numbers and int64 for codes.

    Raises:
        UsageError: where `model.yaml` and the model give different dtypes, or where it cannot hold the codes or the fill value.
    """
    info = info or TensorInfo(spec.name)
    default = torch.float32 if spec.codes is None else torch.int64
    dtype: torch.dtype = getattr(torch, spec.dtype) if spec.dtype else info.dtype or default
    if info.dtype is not None and dtype != info.dtype:
        raise UsageError(
            f'the model input "{spec.name}" has dtype {spec.dtype} in model.yaml, but the model was exported with '
            f"{str(info.dtype).removeprefix('torch.')}"
        )
    if spec.codes and not dtype.is_floating_point and max(spec.codes - 1, spec.unknown_code or 0) > bounds(dtype)[1]:
        raise UsageError(
            f'the model input "{spec.name}" has more categories than {spec.dtype or str(dtype)[6:]} can hold'
        )
    if isinstance(spec.fill, int | float) and spec.codes is None and not dtype.is_floating_point:
        low, high = bounds(dtype)
        if (
            spec.fill != spec.fill
            or math.isinf(spec.fill)
            or spec.fill != int(spec.fill)
            or not low <= spec.fill <= high
        ):
            raise UsageError(
                f'fill {spec.fill} of the model input "{spec.name}" does not fit {spec.dtype or str(dtype)[6:]}'
            )
    return dtype


def _shape(spec: MatrixInput, info: TensorInfo) -> tuple[int, ...] | None:
    if spec.shape is not None and info.shape is not None and tuple(spec.shape) != tuple(info.shape):
        raise UsageError(
            f'the model input "{spec.name}" has shape {list(spec.shape)} in model.yaml, but the model was exported with '
            f"{list(info.shape)}"
        )
    return spec.shape if spec.shape is not None else info.shape


def _widths(
    spec: MatrixInput, shape: tuple[int, ...] | None, columns: Sequence[str], batch: pa.RecordBatch
) -> tuple[int, ...]:
    is_lists = [is_list(batch.schema.field(name).type) for name in columns]
    if shape is not None and sum(is_lists) == 1:
        rest = math.prod(shape) - (len(columns) - 1)
        return tuple(rest if is_list else 1 for is_list in is_lists)
    return tuple(
        _list_length(batch.column(name), name, spec) if is_list else 1
        for name, is_list in zip(columns, is_lists, strict=True)
    )


def _list_length(array: pa.Array, name: str, spec: MatrixInput) -> int:
    """Values in a row of a list column: its fixed size, or the length that most rows of the sample have."""
    kind, size = array.type, 1
    while pa.types.is_fixed_size_list(kind):
        kind, size = kind.value_type, size * kind.list_size
    if not is_list(kind):
        return int(size)
    if is_list(array.type.value_type):
        raise UsageError(f'column "{name}" holds lists of lists; give the shape of the model input "{spec.name}"')
    lengths = list_lengths(array)
    found, counts = np.unique(lengths[lengths > 0], return_counts=True)
    if not len(found):
        raise UnknownLengthError(
            f'how long the lists of column "{name}" are is not known; give the shape of the model input "{spec.name}"'
        )
    return int(found[counts.argmax()])
