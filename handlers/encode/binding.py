"""Binding: which columns of the input feed which input of the model. Settled once, on the driver."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence

import pyarrow as pa

from handlers.encode.base import BoundInput
from handlers.encode.specs import FrameInput, InputSpec, NumericInput
from handlers.encode.values import is_number
from handlers.errors import UsageError
from handlers.tensors import TensorInfo


def bind_inputs(
    specs: Sequence[InputSpec],
    infos: Sequence[TensorInfo],
    batch: pa.RecordBatch,
    parameters: Sequence[str] = (),
) -> tuple[BoundInput, ...]:
    """Settles which columns feed which input, with what shape and dtype.

    Args:
        specs: the inputs of `model.yaml`; where there are none, those that the model itself declares.
        infos: what the model itself declares about its inputs.
        batch: some rows as they will be encoded; the lengths of variable lists are taken from them where neither
            `model.yaml` nor the model gives them.
        parameters: names of the inputs that `forward` takes; empty where it takes any.

    Raises:
        UsageError: for a column that is missing or of a type that has no meaning as a tensor, and for a signature that
            the model or the columns contradict.
    """
    by_name = {info.name: info for info in infos}
    if not specs:
        if not infos:
            raise UsageError("the model does not declare its inputs; write them in model.yaml")
        specs = [_own_spec(info, infos, batch.schema) for info in infos]
    bound = []
    for spec in specs:
        info = info_of(spec, specs, infos)
        if by_name and info is None:
            raise UsageError(f'the model has no input "{spec.name}"; its inputs are {", ".join(by_name)}')
        bound.append(importlib.import_module(spec.MODULE).bind(spec, info or TensorInfo(spec.name), batch, parameters))
    if missing := [name for name in by_name if len(specs) > 1 and name not in {spec.name for spec in specs}]:
        raise UsageError(f'the model input "{missing[0]}" is not among the inputs of model.yaml')
    return tuple(bound)


def info_of(spec: InputSpec, specs: Sequence[InputSpec], infos: Sequence[TensorInfo]) -> TensorInfo | None:
    """What the model itself declares about an input: by name; a single input may have any name."""
    alone = infos[0] if len(infos) == len(specs) == 1 else None
    return next((info for info in infos if info.name == spec.name), alone)


def _own_spec(info: TensorInfo, infos: Sequence[TensorInfo], schema: pa.Schema) -> InputSpec:
    """The spec of an input that only the model declares."""
    if info.frame:
        return FrameInput(name=info.name, columns=info.columns)
    columns = info.columns or _own_columns(info, infos, schema)
    if info.allows_missing:
        return NumericInput(name=info.name, columns=columns, fill=math.nan, allow_nonfinite=True)
    return NumericInput(name=info.name, columns=columns)


def _own_columns(info: TensorInfo, infos: Sequence[TensorInfo], schema: pa.Schema) -> tuple[str, ...]:
    """The columns of an input that only the model declares: the one of its name, else, for a single input, all numbers."""
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
