"""The signature over examples that are tensors already: dtypes, shapes, and which values may go into the model."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import torch

from handlers.elements.failures import FailedPrediction, Failures
from handlers.encode.binding import info_of
from handlers.encode.categorical import known_codes
from handlers.encode.matrix import dtype_of
from handlers.encode.specs import InputSpec, MatrixInput
from handlers.encode.values import Values, bounds, rounded, within
from handlers.predict.loaded import LoadedModel
from handlers.tensors import Ragged


class Signature:
    """What `model.yaml` and the model itself say of the inputs.

    Attributes:
        names: of the inputs, in order; `input` where neither gives names.

    Raises:
        UsageError: where the two contradict each other.
    """

    def __init__(self, specs: tuple[InputSpec, ...], model: LoadedModel) -> None:
        self._specs = {spec.name: spec for spec in specs if isinstance(spec, MatrixInput)}
        self._infos = {info.name: info for info in model.inputs}
        if specs:
            self._infos = {spec.name: info for spec in specs if (info := info_of(spec, specs, model.inputs))}
        self._dtypes = {name: info.dtype for name, info in self._infos.items()}
        self._dtypes |= {spec.name: dtype_of(spec, self._infos.get(spec.name)) for spec in self._specs.values()}
        self.names = tuple(spec.name for spec in specs) or tuple(self._infos) or model.parameters or ("input",)
        # A single input may have any name, `forward`'s name for it included.
        self._free = dict.fromkeys(model.parameters[:1], self.names[0]) if len(self.names) == 1 else {}
        parameters = getattr(model.module, "parameters", lambda: ())()
        self._float = next((tensor.dtype for tensor in parameters if tensor.is_floating_point()), torch.float32)

    def fit(self, name: str, value: torch.Tensor | Ragged) -> tuple[torch.Tensor | Ragged, Failures]:
        """`value`, of one dtype, in the dtype of the input `name`, and the rows that may not go into the model.

        Where neither `model.yaml` nor the model gives a dtype, floats get that of the weights, and whole numbers stay as they are.
        Values of an input unknown to both are not checked. What the result holds in rows that fail has no meaning.
        """
        declared = self._free.get(name, name)
        spec, info = self._specs.get(declared), self._infos.get(declared)
        tensor = value.values if isinstance(value, Ragged) else value
        dtype = self._dtypes.get(declared) or (self._float if tensor.is_floating_point() else tensor.dtype)
        if spec is None and info is None:
            return _with(value, tensor.to(dtype)), {}
        shape = spec.shape if spec is not None and spec.shape is not None else info.shape if info else None
        if isinstance(value, torch.Tensor) and shape is not None and tuple(value.shape[1:]) != tuple(shape):
            message = f'the example has shape {tuple(value.shape[1:])}; the model input "{name}" takes {tuple(shape)}'
            return value, dict.fromkeys(range(len(value)), FailedPrediction("encode", "WrongShape", message))
        cast, errors = _cast(tensor, spec, dtype)
        nonfinite = spec.allows_nonfinite if spec is not None else info is not None and info.allows_missing
        if not nonfinite and not _all_finite(cast):
            errors["NotFinite"] = ~np.isfinite(_numbers(cast)).reshape(-1)
        failures: Failures = {}
        for kind, mask in errors.items():
            rows = np.flatnonzero(mask) // max(1, math.prod(tensor.shape[1:]))
            if isinstance(value, Ragged):
                rows = np.searchsorted(value.offsets, rows, side="right") - 1
            failure = FailedPrediction("encode", kind, _message(kind, name, spec, dtype))
            failures = dict.fromkeys(rows.tolist(), failure) | failures
        return _with(value, cast), failures


def _with(value: torch.Tensor | Ragged, tensor: torch.Tensor) -> torch.Tensor | Ragged:
    return Ragged(tensor, value.offsets) if isinstance(value, Ragged) else tensor


def _cast(
    tensor: torch.Tensor, spec: MatrixInput | None, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """`tensor` in `dtype`, rounded as columns are, and masks of (values,) of what `dtype` cannot hold, by type of error."""
    codes = None if spec is None else spec.codes
    if dtype.is_complex or (tensor.dtype == dtype and codes is None):
        return tensor.to(dtype), {}
    if tensor.is_complex():
        return tensor.real.to(dtype), {"WrongType": np.ones(tensor.numel(), bool)}
    values = Values(_numbers(tensor).reshape(-1), None, {})
    if spec is not None and codes is not None:
        values = known_codes(pa.array(values.numbers), codes, spec.unknown_code)
    if codes is None and not dtype.is_floating_point:
        values = within(values, dtype)
    else:
        values = Values(rounded(values.numbers, dtype), None, values.errors)
    errors = {kind: mask for kind, mask in values.errors.items() if mask.any()}
    return torch.from_numpy(values.numbers).to(dtype).reshape(tensor.shape), errors


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    numbers: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return numbers


def _all_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(np.isfinite(_numbers(tensor)).all())  # torch takes ten times as long


def _message(kind: str, name: str, spec: MatrixInput | None, dtype: torch.dtype) -> str:
    need = str(dtype).removeprefix("torch.")
    if kind == "NotFinite":
        return f'the example holds a value that is not finite as {need}; the model input "{name}" needs finite ones'
    if kind == "OutOfRange":
        low, high = (0, spec.codes - 1) if spec and spec.codes else bounds(dtype)
        what = f"a value that is not in {low} … {high}"
    else:
        what = "a value that is not a whole number" if kind == "NotAnInteger" else "complex numbers"
    return f'the example holds {what}; the model input "{name}" needs {need}'
