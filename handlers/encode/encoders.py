"""Encoders: columns of a chunk become the tensor of one model input, and rows that cannot are told apart.

Which columns feed an input, and with what widths, is settled once on the driver, in `handlers.encode.binding`. What single
values mean as numbers is in `handlers.encode.values`. Here is what happens to every chunk, so an array of a type that was not
foreseen is an error of its rows and never of the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from handlers.encode.values import (
    Values,
    bounds,
    codes_of,
    depth,
    flatten,
    is_list,
    is_machine_number,
    mask_of,
    numbers_of,
    numpy_dtype,
    rounded,
    type_problem,
    within,
)
from handlers.model.spec import InputSpec


class RowError(NamedTuple):
    """Why one row cannot be encoded."""

    type: str
    message: str


RowErrors = dict[int, RowError]


@dataclass(frozen=True)
class BoundInput:
    """A model input whose columns, widths, shape and dtype are settled for the columns of one run.

    Attributes:
        spec: as `model.yaml` gives it.
        columns: names of the columns, patterns resolved.
        widths: values that each column gives: 1, or the length of its lists.
        shape: of one row of the tensor.
        dtype: of the tensor.
    """

    spec: InputSpec
    columns: tuple[str, ...]
    widths: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def zeros(self, rows: int) -> torch.Tensor:
        """A tensor of `rows` rows of zeros, as the model would be given it."""
        return torch.zeros(rows, *self.shape, dtype=self.dtype)

    def encode(self, batch: pa.RecordBatch) -> tuple[torch.Tensor, RowErrors]:
        """The tensor of this input for the rows of `batch`, of (rows, *shape), contiguous and of its own memory.

        The second result tells which rows could not be encoded, and why; what the tensor holds there has no meaning.
        """
        errors: RowErrors = {}
        rows, total = batch.num_rows, sum(self.widths)
        # Columns of single values are written one after the other, each at once, and then transposed: torch does that
        # faster than numpy writes every 20th number.
        by_column = total == len(self.widths)
        buffer = np.empty((total, rows) if by_column else (rows, total), numpy_dtype(self.dtype))
        matrix = buffer.T if by_column else buffer
        start = 0
        with np.errstate(over="ignore", invalid="ignore"):
            for name, width in zip(self.columns, self.widths, strict=True):
                self._write(matrix[:, start : start + width], batch, name, errors)
                start += width
        tensor = torch.from_numpy(buffer)
        if by_column:
            tensor = tensor.T.contiguous()
        tensor = tensor.to(self.dtype)
        if self.dtype.is_floating_point and not self.spec.allow_nonfinite and not self._finite(tensor, buffer):
            self._note_nonfinite(torch.isfinite(tensor).numpy(), batch, errors)
        return tensor.reshape(rows, *self.shape), errors

    @property
    def is_plain(self) -> bool:
        """Whether it takes single values only, and each becomes a float."""
        return self._is_float and set(self.widths) == {1}

    def tensor_of(self, numbers: np.ndarray) -> torch.Tensor | None:
        """What `encode` gives for columns of these numbers; only for an input that is plain.

        Args:
            numbers: float64 of (rows, columns); an integer must be one that float64 holds exactly.

        Returns:
            The tensor, of (rows, *shape) and of its own memory. None where a number is not finite in the dtype and must
            be: `encode` tells the rows apart.
        """
        buffer = rounded(numbers, self.dtype)
        tensor = torch.from_numpy(buffer).to(self.dtype)
        if not self.spec.allow_nonfinite and not self._finite(tensor, buffer):
            return None
        return tensor.reshape(len(numbers), *self.shape)

    @property
    def _is_float(self) -> bool:
        return self.spec.encoder == "numeric" and self.dtype.is_floating_point

    def _finite(self, tensor: torch.Tensor, buffer: np.ndarray) -> bool:
        """Whether all values are finite. numpy is ten times faster at this, but has no bfloat16, where more overflows."""
        return bool(torch.isfinite(tensor).all() if self.dtype == torch.bfloat16 else np.isfinite(buffer).all())

    def _write(self, target: np.ndarray, batch: pa.RecordBatch, name: str, errors: RowErrors) -> None:
        """Writes the values of one column into `target`, of (rows, width); 0 where a row has none."""
        rows, width = target.shape
        index = batch.schema.get_field_index(name)
        if index < 0:
            errors |= dict.fromkeys(range(rows), RowError("MissingColumn", f'column "{name}" is missing'))
            target[:] = 0
            return
        array = batch.column(index)
        if self._is_float and width == 1 and not array.null_count and is_machine_number(array.type):  # the hot path
            target[:, 0] = array.to_numpy()
            return
        if (problem := type_problem(array.type, self.spec)) is not None:
            errors |= dict.fromkeys(range(rows), RowError("WrongType", f'column "{name}" {problem}'))
            target[:] = 0
        elif is_list(array.type):
            self._write_lists(target, array, name, errors)
        elif width > 1:
            target[:] = 0
            for row in range(rows):
                self._note(errors, "WrongLength", name, row, array, 0, width)
        else:
            values = self._values(array)
            self._fill(target[:, 0], values)
            for kind, index in _problems(values, self.spec):
                self._note(errors, kind, name, index, array, 0, width)

    def _write_lists(self, target: np.ndarray, array: pa.Array, name: str, errors: RowErrors) -> None:
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
                target[null] = self._fill_value
                wrong &= ~null
            for row in np.flatnonzero(wrong).tolist():
                self._note(errors, "NullValue" if null[row] else "WrongLength", name, row, array, None, width)
        values = self._values(flat)
        if right.all():
            self._fill(target, values)
        else:
            part = np.empty((int(right.sum()), width), target.dtype)
            self._fill(part, values)
            target[right] = part
        indices = np.flatnonzero(right)
        for kind, index in _problems(values, self.spec):
            self._note(errors, kind, name, int(indices[index // width]), array, index % width, width)

    def _values(self, array: pa.Array) -> Values:
        """`array`, which is no list, as numbers that the dtype of this input can hold."""
        if self.spec.encoder == "categorical":
            return codes_of(array, self.spec)
        if self.dtype.is_floating_point:
            return numbers_of(array, self.spec)
        return within(numbers_of(array, self.spec, exact=True), self.dtype)

    def _fill(self, target: np.ndarray, values: Values) -> None:
        target[...] = values.numbers.reshape(target.shape)
        if values.nulls is not None and self.spec.fill is not None:
            target[values.nulls.reshape(target.shape)] = self._fill_value

    @property
    def _fill_value(self) -> Any:
        fill = self.spec.fill
        return self.spec.categories.index(fill) if self.spec.categories else fill

    def _note_nonfinite(self, finite: np.ndarray, batch: pa.RecordBatch, errors: RowErrors) -> None:
        edges = np.cumsum(self.widths)
        for row in np.flatnonzero(~finite.all(axis=1)).tolist():
            index = int(np.argmin(finite[row]))
            column = int(np.searchsorted(edges, index, side="right"))
            width = self.widths[column]
            name = self.columns[column]
            if row not in errors:
                self._note(
                    errors, "NotFinite", name, row, batch.column(name), index - int(edges[column]) + width, width
                )

    def _note(
        self, errors: RowErrors, kind: str, name: str, row: int, array: pa.Array, index: int | None, width: int
    ) -> None:
        """Notes an error of a row; `place` is that of the value in the row's list, None for the list as a whole."""
        if row in errors:
            return
        value = array[row].as_py()
        found = value if index is None else _leaf(value, index)
        need = str(self.dtype).removeprefix("torch.")
        if kind == "WrongLength":
            what = f"holds {_length(value)}, not a list of {_sizes(self.shape, width)} values"
        else:
            what = f"holds {_short(found)}" if found is value else f"holds a list with {_short(found)}"
        if kind == "NotFinite":
            what += f", which is not finite as {need}"
        elif kind == "NotAnInteger":
            what += ", which is no whole number"
        elif kind == "UnknownCategory":
            what += ", which is none of the categories"
        elif kind == "OutOfRange":
            size = self.spec.num_categories
            low, high = bounds(self.dtype) if size is None else (0, size - 1)
            what += f", which is not in {low} … {high}"
        errors[row] = RowError(kind, f'column "{name}" {what}; the model input "{self.spec.name}" needs {need}')


def _problems(values: Values, spec: InputSpec) -> Iterator[tuple[str, int]]:
    """The errors among `values` with their places; a null is one unless there is a fill value."""
    if values.nulls is not None and spec.fill is None:
        yield from (("NullValue", index) for index in np.flatnonzero(values.nulls).tolist())
    for kind, mask in values.errors.items():
        yield from ((kind, index) for index in np.flatnonzero(mask).tolist())


def _leaf(value: Any, index: int) -> Any:
    """The value at `place` among those of a list, inner lists counted through; what is no list is its own only value."""
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
