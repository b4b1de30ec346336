"""Binding: which columns of the input feed which input of the model. Settled once, on the driver."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from handlers.encode.encoders import BoundInput
from handlers.encode.values import bounds, is_list, is_number, is_text, list_lengths, type_problem
from handlers.errors import UsageError
from handlers.model.spec import InputSpec
from handlers.tensors import TensorInfo


class UnknownLengthError(UsageError):
    """How long the lists of a column are cannot be told from the rows at hand."""


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
        UsageError: for a column that is missing or of a type that has no meaning as a tensor, and for a signature that
            the model or the columns contradict.
    """
    by_name = {info.name: info for info in infos}
    if not specs:
        if not infos:
            raise UsageError("the model does not tell its inputs; write them in model.yaml")
        specs = [InputSpec(name=info.name, columns=_own_columns(info, infos, batch.schema)) for info in infos]
    bound = []
    for spec in specs:
        info = info_of(spec, specs, infos)
        if by_name and info is None:
            raise UsageError(f'the model has no input "{spec.name}"; its inputs are {", ".join(by_name)}')
        bound.append(_bind(spec, info or TensorInfo(spec.name), batch))
    if missing := [name for name in by_name if len(specs) > 1 and name not in {spec.name for spec in specs}]:
        raise UsageError(f'the model input "{missing[0]}" is not among the inputs of model.yaml')
    return tuple(bound)


def info_of(spec: InputSpec, specs: Sequence[InputSpec], infos: Sequence[TensorInfo]) -> TensorInfo | None:
    """What the model itself tells of an input: by its name, which is free where there is only one."""
    alone = infos[0] if len(infos) == len(specs) == 1 else None
    return next((info for info in infos if info.name == spec.name), alone)


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
    kinds = [batch.schema.field(name).type for name in columns]
    for name, kind in zip(columns, kinds, strict=True):
        if (problem := type_problem(kind, spec)) is not None:
            raise UsageError(f'column "{name}" {problem}')
        if spec.categories and isinstance(spec.categories[0], bool) and is_text(kind):
            _check_flags(batch.column(name), name, spec)
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
    return BoundInput(spec, columns, widths, shape, dtype)


def dtype_of(spec: InputSpec, info: TensorInfo | None) -> torch.dtype:
    """What `model.yaml` says, else what the model says, else float32 for numbers and int64 for codes.

    Raises:
        UsageError: where `model.yaml` and the model say different dtypes, or where it cannot hold the codes or the fill value.
    """
    info = info or TensorInfo(spec.name)
    default = torch.int64 if spec.encoder == "categorical" else torch.float32
    dtype: torch.dtype = getattr(torch, spec.dtype) if spec.dtype else info.dtype or default
    if info.dtype is not None and dtype != info.dtype:
        raise UsageError(
            f'the model input "{spec.name}" has dtype {spec.dtype} in model.yaml, but the model was exported with '
            f"{str(info.dtype).removeprefix('torch.')}"
        )
    codes = len(spec.categories or ()) or spec.num_categories or 0
    if codes and not dtype.is_floating_point and max(codes - 1, spec.unknown or 0) > bounds(dtype)[1]:
        raise UsageError(
            f'the model input "{spec.name}" has more categories than {spec.dtype or str(dtype)[6:]} has numbers'
        )
    if isinstance(spec.fill, int | float) and not spec.categories and not dtype.is_floating_point:
        low, high = bounds(dtype)
        if (
            spec.fill != spec.fill
            or math.isinf(spec.fill)
            or spec.fill != int(spec.fill)
            or not low <= spec.fill <= high
        ):
            raise UsageError(f'fill {spec.fill} of the model input "{spec.name}" is no {spec.dtype or str(dtype)[6:]}')
    return dtype


def _shape(spec: InputSpec, info: TensorInfo) -> tuple[int, ...] | None:
    if spec.shape is not None and info.shape is not None and tuple(spec.shape) != tuple(info.shape):
        raise UsageError(
            f'the model input "{spec.name}" has shape {list(spec.shape)} in model.yaml, but the model was exported with '
            f"{list(info.shape)}"
        )
    return spec.shape if spec.shape is not None else info.shape


def _widths(
    spec: InputSpec, shape: tuple[int, ...] | None, columns: Sequence[str], batch: pa.RecordBatch
) -> tuple[int, ...]:
    is_lists = [is_list(batch.schema.field(name).type) for name in columns]
    if shape is not None and sum(is_lists) == 1:
        rest = math.prod(shape) - (len(columns) - 1)
        return tuple(rest if is_list else 1 for is_list in is_lists)
    return tuple(
        _list_length(batch.column(name), name, spec) if is_list else 1
        for name, is_list in zip(columns, is_lists, strict=True)
    )


def _list_length(array: pa.Array, name: str, spec: InputSpec) -> int:
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


def _check_flags(array: pa.Array, name: str, spec: InputSpec) -> None:
    """YAML reads yes, no, on and off as flags; where the column has such words, text was meant."""
    words = {str(value).strip().lower() for value in array.unique().to_pylist() if value is not None}
    if words and not words & {"true", "false"}:
        raise UsageError(
            f'column "{name}" holds text, but the categories of the model input "{spec.name}" are true and false; '
            'quote words that YAML takes for flags, as "yes"'
        )


def _own_columns(info: TensorInfo, infos: Sequence[TensorInfo], schema: pa.Schema) -> tuple[str, ...]:
    """The columns of an input that only the model tells of: the one of its name, else, for a single input, all numbers."""
    if info.name in schema.names:
        return (info.name,)
    numeric = tuple(field.name for field in schema if is_number(field.type))
    if len(infos) > 1 or not numeric:
        raise UsageError(f'no column is named "{info.name}" like the model input; write its columns in a model.yaml')
    wanted = None if info.shape is None else math.prod(info.shape)
    if wanted is not None and wanted != len(numeric):
        raise UsageError(
            f'the model input "{info.name}" takes {wanted} values a row, but the input has {len(numeric)} columns of '
            "numbers; write the columns in a model.yaml"
        )
    return numeric
