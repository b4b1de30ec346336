"""Encoders: columns of a chunk become the tensors of one model input, and rows that cannot are told apart."""

from __future__ import annotations

import datetime
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch

from handlers.errors import UsageError
from handlers.formats import TensorInfo
from handlers.spec import InputSpec

SECONDS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


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
        """The tensor of this input for the rows of `batch`, of (rows, *shape).

        The second result tells which rows could not be encoded, and why; what the tensor holds there has no meaning.
        """
        errors: RowErrors = {}
        columns = [self._column(batch.column(name), name, errors) for name in self.columns]
        if len(columns) == 1 and self.widths[0] > 1:
            matrix = columns[0].reshape(batch.num_rows, -1)
        else:
            # One row of the buffer a column: each is written at once, and torch transposes faster than numpy stacks.
            buffer = np.empty((sum(self.widths), batch.num_rows), _numpy_dtype(self.dtype, columns))
            start = 0
            with np.errstate(over="ignore", invalid="ignore"):
                for column, width in zip(columns, self.widths, strict=True):
                    buffer[start : start + width] = column.T if width > 1 else column.reshape(1, -1)
                    start += width
            matrix = buffer.T
        tensor = self._cast(matrix, errors)
        return tensor.reshape(batch.num_rows, *self.shape), errors

    def _column(self, array: pa.Array, name: str, errors: RowErrors) -> np.ndarray:
        """The numbers of one column, of (rows,) or (rows, width), with 0 where a row has an error."""
        width = self.widths[self.columns.index(name)]
        if _is_list(array.type):
            values, problems = _list_values(array, (width,), self.spec)
        elif self.spec.encoder == "categorical":
            values, problems = _codes(array, self.spec)
        else:
            values, problems = _numbers(array, self.spec)
        for kind, mask in problems.items():
            for row in np.flatnonzero(mask).tolist():
                errors.setdefault(row, RowError(kind, self._explain(kind, name, array[row].as_py(), width)))
        return values

    def _cast(self, matrix: np.ndarray, errors: RowErrors) -> torch.Tensor:
        """`matrix` in the dtype of the input, with the rows noted whose values do not survive it."""
        target = _numpy_dtype(self.dtype, [matrix])
        with np.errstate(over="ignore", invalid="ignore"):
            cast = np.ascontiguousarray(matrix) if matrix.dtype == target else matrix.astype(target)
        tensor = torch.from_numpy(cast if cast.flags.writeable else cast.copy())
        if self.dtype.is_floating_point:
            tensor = tensor.to(self.dtype)
            if self.spec.allow_nonfinite or bool(torch.isfinite(tensor).all()):
                return tensor
            bad, kind = ~torch.isfinite(tensor).numpy(), "NotFinite"
        elif matrix.dtype == target or self.dtype == torch.bool:
            return tensor
        else:
            bad, kind = cast.astype(np.float64) != matrix.astype(np.float64), "NotAnInteger"
            if not bad.any():
                return tensor
        edges = np.cumsum(self.widths)
        for row in np.flatnonzero(bad.any(axis=1)).tolist():
            place = int(np.argmax(bad[row]))
            name = self.columns[int(np.searchsorted(edges, place, side="right"))]
            errors.setdefault(row, RowError(kind, self._explain(kind, name, matrix[row, place].item(), 1)))
        return tensor

    def _explain(self, kind: str, name: str, value: Any, width: int) -> str:
        need = str(self.dtype).removeprefix("torch.")
        what = {
            "NullValue": "holds null",
            "NotANumber": f"holds {_short(value)}",
            "NotFinite": f"holds {value}, which is not finite as {need}",
            "NotAnInteger": f"holds {value}, which {need} cannot hold",
            "WrongLength": f"holds a list of {len(value) if isinstance(value, list) else 0} values, not {width}",
            "UnknownCategory": f"holds {_short(value)}, which is none of the categories",
            "OutOfRange": f"holds {_short(value)}, which is not in 0 … {(self.spec.num_categories or 1) - 1}",
        }[kind]
        return f'column "{name}" {what}; the model input "{self.spec.name}" needs {need}'


def bind_inputs(
    specs: Sequence[InputSpec], infos: Sequence[TensorInfo], batch: pa.RecordBatch
) -> tuple[BoundInput, ...]:
    """Settles which columns feed which input, with what shape and dtype.

    Args:
        specs: the inputs of `model.yaml`; where there are none, those that the model itself tells of are taken.
        infos: what the model itself tells of its inputs.
        batch: some rows as they will be encoded; the lengths of variable lists are taken from them where neither
            `model.yaml` nor the model gives them.

    Raises:
        UsageError: for a column that is missing or of a type that has no meaning as a tensor.
    """
    by_name = {info.name: info for info in infos}
    if not specs:
        if not infos:
            raise UsageError("the model does not tell its inputs; write them in model.yaml")
        specs = [InputSpec(name=info.name, columns=_own_columns(info, infos, batch.schema)) for info in infos]
    bound = []
    for spec in specs:
        info = by_name.get(spec.name) or (infos[0] if len(infos) == len(specs) == 1 else None)
        if by_name and info is None:
            raise UsageError(f'the model has no input "{spec.name}"; its inputs are {", ".join(by_name)}')
        bound.append(_bind(spec, info or TensorInfo(spec.name), batch))
    return tuple(bound)


def resolve_columns(spec: InputSpec, names: Sequence[str]) -> tuple[str, ...]:
    """The columns of `names` that the patterns of `spec` stand for, in order; raises `UsageError` where one has none."""
    found: list[str] = []
    for pattern in spec.patterns:
        matches = match_columns(pattern, names)
        if not matches:
            known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise UsageError(
                f'column "{pattern}" is missing; the model input "{spec.name}" needs it. There are: {known}'
            )
        found += [name for name in matches if name not in found]
    return tuple(found)


def match_columns(pattern: str, names: Sequence[str]) -> list[str]:
    """The `names` that `pattern` stands for: the name that it is, else all that it matches."""
    return [pattern] if pattern in names else [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _bind(spec: InputSpec, info: TensorInfo, batch: pa.RecordBatch) -> BoundInput:
    columns = resolve_columns(spec, batch.schema.names)
    shape = spec.shape if spec.shape is not None else info.shape
    for name in columns:
        _check_type(batch.schema.field(name).type, name, spec)
    is_lists = [_is_list(batch.schema.field(name).type) for name in columns]
    if shape is not None and sum(is_lists) == 1:
        widths = [math.prod(shape) - sum(not is_list for is_list in is_lists) if is_list else 1 for is_list in is_lists]
    else:
        widths = [
            _list_length(batch.column(name), name, spec) if is_list else 1
            for name, is_list in zip(columns, is_lists, strict=True)
        ]
    values = sum(widths)
    if shape is None:
        shape = (values,)
    if math.prod(shape) != values or min(widths) < 1:
        raise UsageError(
            f'the model input "{spec.name}" takes {math.prod(shape)} values a row, but its columns give {values} '
            f"({', '.join(columns[:8])}{', …' if len(columns) > 8 else ''})"
        )
    default = torch.int64 if spec.encoder == "categorical" else torch.float32
    dtype = getattr(torch, spec.dtype) if spec.dtype else info.dtype or default
    return BoundInput(spec, columns, tuple(widths), tuple(shape), dtype)


def _own_columns(info: TensorInfo, infos: Sequence[TensorInfo], schema: pa.Schema) -> tuple[str, ...]:
    """The columns of an input that only the model tells of: the one of its name, else, for a single input, all numbers."""
    if info.name in schema.names:
        return (info.name,)
    numeric = tuple(field.name for field in schema if _is_number(field.type))
    if len(infos) > 1 or not numeric:
        raise UsageError(f'no column is named "{info.name}" like the model input; write its columns in a model.yaml')
    wanted = None if info.shape is None else math.prod(info.shape)
    if wanted is not None and wanted != len(numeric):
        raise UsageError(
            f'the model input "{info.name}" takes {wanted} values a row, but the input has {len(numeric)} columns of '
            "numbers; write the columns in a model.yaml"
        )
    return numeric


def _check_type(kind: pa.DataType, name: str, spec: InputSpec) -> None:
    if pa.types.is_dictionary(kind) or _is_list(kind):
        return _check_type(kind.value_type, name, spec)
    is_time = pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_duration(kind)
    if is_time and spec.encoder == "numeric" and spec.timestamp is None:
        raise UsageError(
            f'column "{name}" holds {kind}; say in which unit the model input "{spec.name}" counts it, for example '
            "timestamp: s"
        )
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (_is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind) or is_time or text):
        raise UsageError(f'column "{name}" holds {kind}, which has no meaning in the model input "{spec.name}"')
    return None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _list_length(array: pa.Array, name: str, spec: InputSpec) -> int:
    """Values in a row of a list column: its fixed size, or the length that most rows of the sample have."""
    if pa.types.is_fixed_size_list(array.type) and not _is_list(array.type.value_type):
        return int(array.type.list_size)
    lengths = [_flat_length(value) for value in array.to_pylist() if value]
    if not lengths:
        raise UsageError(
            f'how long the lists of column "{name}" are is not known; give the shape of input "{spec.name}"'
        )
    return max(set(lengths), key=lengths.count)


def _flat_length(value: Any) -> int:
    return sum(map(_flat_length, value)) if isinstance(value, list) else 1


def _numpy_dtype(dtype: torch.dtype, columns: Sequence[np.ndarray]) -> np.dtype[Any]:
    """The dtype that numbers are gathered in: the tensor's own, or one that still shows what would not survive it."""
    if dtype in (torch.bfloat16, torch.float16):
        return np.dtype(np.float32)
    own = np.dtype(str(dtype).removeprefix("torch."))
    if dtype.is_floating_point or dtype == torch.bool or all(column.dtype == own for column in columns):
        return own
    return own if len(columns) == 1 else np.result_type(*columns)


Values = tuple[np.ndarray, dict[str, np.ndarray]]


def _numbers(array: pa.Array, spec: InputSpec) -> Values:
    """The numbers in a column without lists, 0 where there are none; and masks of the rows that have none, by error."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _numbers(array.dictionary_decode(), spec)
    problems: dict[str, np.ndarray] = {}
    nulls = _mask(array.is_null()) if array.null_count else None
    if pa.types.is_null(kind):
        array = pa.array(np.zeros(len(array)))
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_duration(kind):
        array = _time(array, spec)
    elif pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif not _is_number(kind):
        # Arrow's cast fails for the whole column; Polars gives null for the values that are no numbers.
        parsed = pl.Series(array.cast(pa.large_string())).str.strip_chars().cast(pl.Float64, strict=False).to_arrow()
        if parsed.null_count > array.null_count:
            unparsed = _mask(parsed.is_null())
            problems["NotANumber"] = unparsed if nulls is None else unparsed & ~nulls
        array = parsed
    if nulls is not None and spec.fill is None:
        problems = {"NullValue": nulls} | problems
    if array.null_count:
        filler: Any = 0 if spec.fill is None else spec.fill
        if isinstance(filler, float) and pa.types.is_integer(array.type):
            array = array.cast(pa.float64())
        array = pc.fill_null(array, pa.scalar(filler, array.type))
    return array.to_numpy(zero_copy_only=False), problems


def _time(array: pa.Array, spec: InputSpec) -> pa.Array:
    unit = str(spec.timestamp)
    is_duration = pa.types.is_duration(array.type)
    if not is_duration:
        array = array.cast(pa.timestamp("ns" if unit == "ns" else "us"))
    counted = array.type.unit
    per_unit = SECONDS[counted] * 86_400 if unit == "days" else SECONDS[counted] / SECONDS[unit]
    ticks = array.cast(pa.int64())
    return ticks if per_unit == 1 else pc.divide(ticks.cast(pa.float64(), safe=False), float(per_unit))


def _codes(array: pa.Array, spec: InputSpec) -> Values:
    """Category codes, int64; and masks of the rows that have none, by error."""
    if pa.types.is_dictionary(array.type):
        return _codes(array.dictionary_decode(), spec)
    if spec.categories is None:
        values, problems = _numbers(array, spec)
        size = int(spec.num_categories or 0)
        valid = (values >= 0) & (values < size) & (values == np.floor(values))
        if not valid.all():
            known = np.any(list(problems.values()), axis=0) if problems else np.zeros(len(values), bool)
            problems["OutOfRange"] = ~valid & ~known
            if spec.unknown is not None:
                del problems["OutOfRange"]
            values = np.where(valid, values, spec.unknown or 0)
        return values.astype(np.int64), problems
    problems = {}
    if array.null_count:
        if spec.fill is None:
            problems["NullValue"] = _mask(array.is_null())
        else:
            array = pc.if_else(array.is_null(), pa.scalar(_as_text(spec.fill)), _text(array))
    known_values = pa.array([_as_text(value) for value in spec.categories], pa.string())
    codes = pc.index_in(_text(array), known_values)
    if codes.null_count:
        unknown = _mask(codes.is_null())
        if "NullValue" in problems:
            unknown &= ~problems["NullValue"]
        if spec.unknown is None and unknown.any():
            problems["UnknownCategory"] = unknown
        codes = pc.fill_null(codes, pa.scalar(spec.unknown or 0, codes.type))
    return codes.to_numpy(zero_copy_only=False).astype(np.int64), problems


def _as_text(value: Any) -> str:
    """How Arrow writes a category as text, so that 1 and "1" are the same category, and true and "true"."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(array: pa.Array) -> pa.Array:
    if pa.types.is_floating(array.type):  # 3.0 is the category 3
        whole = pc.equal(pc.floor(array), array)
        return pc.if_else(whole, pc.cast(array, pa.int64(), safe=False).cast(pa.string()), array.cast(pa.string()))
    return array.cast(pa.string())


def _list_values(array: pa.Array, shape: tuple[int, ...], spec: InputSpec) -> Values:
    """The values of a list column, of (rows, width); lists inside lists are flattened."""
    width = shape[0]
    rows = len(array)
    problems: dict[str, np.ndarray] = {}
    depth_one = not _is_list(array.type.value_type)
    if array.null_count:
        problems["NullValue"] = _mask(array.is_null())
    if depth_one:
        lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
        right = lengths == width
        flat = array.flatten() if right.all() else array.filter(pa.array(right)).flatten()
    else:
        flattened = [_flatten(value) for value in array.to_pylist()]
        right = np.array([len(value) == width for value in flattened], dtype=bool)
        flat = pa.array([item for value, keep in zip(flattened, right, strict=True) if keep for item in value])
    if not right.all():
        wrong = ~right
        problems["WrongLength"] = wrong & ~problems["NullValue"] if "NullValue" in problems else wrong
    inner, inner_problems = (_codes if spec.encoder == "categorical" else _numbers)(flat, spec)
    good = np.flatnonzero(right)
    for kind, mask in inner_problems.items():
        found = problems.setdefault(kind, np.zeros(rows, dtype=bool))
        found[good[mask.reshape(-1, width).any(axis=1)]] = True
    inner = inner.reshape(-1, width)
    if len(good) == rows:
        return inner, problems
    values = np.zeros((rows, width), inner.dtype)
    values[good] = inner
    return values, problems


def _flatten(value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [] if value is None else [value]
    if value and not isinstance(value[0], list):
        return value
    return [item for inner in value for item in _flatten(inner)]


def _mask(array: pa.Array) -> np.ndarray:
    mask: np.ndarray = array.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = next((item for item in value if not isinstance(item, int | float)), value[:3])
    if isinstance(value, datetime.date):
        return str(value)
    text = repr(value) if not isinstance(value, str) else f'"{value}"'
    return text if len(text) <= 60 else text[:59] + "…"
