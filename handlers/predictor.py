"""The predictor: micro-batches through a model, with bad rows set apart one by one. It knows torch and nothing of Beam."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from handlers.errors import BrokenModelError, DeviceLostError, TorchbeamError, one_line
from handlers.formats import LoadedModel
from handlers.isolation import Isolated, isolate
from handlers.placement import Placement

Tensors = dict[str, torch.Tensor]

MAX_ROWS = 8192
CPU_BYTES = 16 << 20
GPU_BYTES = 64 << 20

# A model that has never given an answer in this process, and has failed on so many rows alone with the same error, is
# taken to be broken: its micro-batches are no longer halved, only sampled.
SUSPECT_AFTER = 1000
SAMPLES = 8


@dataclass(frozen=True)
class Prediction:
    """What became of n rows.

    Attributes:
        rows: int64 of (scored,), ascending: the rows that the model answered.
        outputs: the model's outputs for them by name, on the CPU, each of (scored, …); half precisions come as float32.
        failures: the other rows, ascending, each with the error that the model raised on it.
    """

    rows: np.ndarray
    outputs: Tensors
    failures: list[tuple[int, Exception]]


class Predictor:
    """Runs a model over rows of any number.

    Several threads may share one predictor.

    Args:
        model: a loaded model; it is moved to the device.
        placement: device, precision and compilation.
        batch_size: rows of a micro-batch; None chooses by the bytes of a row.

    Raises:
        UsageError: where the device is not there.
    """

    def __init__(self, model: LoadedModel, placement: Placement | None = None, batch_size: int | None = None) -> None:
        placement = placement or Placement()
        self.model = model
        self.device = placement.resolve()
        self._precision = getattr(torch, placement.precision)
        self._batch_size = model.rows or batch_size
        self._lock = threading.Lock()
        self._limit: int | None = None  # rows that fitted into memory, once it has run out
        self._health = _Health()
        module = model.module
        if isinstance(module, torch.nn.Module):
            module = module.to(self.device)
            module.requires_grad_(False)
        if placement.compile:
            module = torch.compile(module, dynamic=model.rows is None)
        self._model = LoadedModel(module, model.parameters, model.inputs, model.rows, model.keywords)

    def predict(self, inputs: Mapping[str, torch.Tensor]) -> Prediction:
        """Runs the model on the rows of `inputs`.

        Args:
            inputs: tensors by input name, each of (rows, …) with the same number of rows, on the CPU.

        Returns:
            The outputs of all rows that the model could answer, in order, and the others with their errors.

        Raises:
            BrokenModelError: where the model gives another number of rows than it was given.
            DeviceLostError: where the accelerator is gone and the process must be left.
        """
        count = len(next(iter(inputs.values()))) if inputs else 0

        def call(low: int, high: int) -> Tensors:
            try:
                outputs = self._forward({name: tensor[low:high] for name, tensor in inputs.items()}, high - low)
            except Exception as error:
                if high - low == 1 and not isinstance(error, TorchbeamError):
                    self._health.failed(error)
                raise
            self._health.succeeded()
            return outputs

        def give_up(low: int, high: int) -> Exception | None:
            return _sample(call, low, high) if self._health.suspect else None

        found: Isolated[Tensors] = Isolated()
        start = 0
        while start < count:
            stop = min(count, start + self.micro_batch(inputs))
            part = isolate(call, start, stop, give_up)
            found.results += part.results
            found.failures += part.failures
            start = stop
        spans = [np.arange(low, high) for low, high, _ in found.results]
        return Prediction(
            np.concatenate(spans) if spans else np.empty(0, np.int64),
            _concatenate([outputs for _, _, outputs in found.results]),
            found.failures,
        )

    def micro_batch(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Rows of the next micro-batch."""
        if self.model.rows is not None:
            return self.model.rows
        rows = self._batch_size
        if rows is None:
            row_bytes = sum(tensor.nbytes // max(1, len(tensor)) for tensor in inputs.values())
            budget = CPU_BYTES if self.device.type == "cpu" else GPU_BYTES
            rows = max(1, min(MAX_ROWS, budget // max(1, row_bytes)))
        return rows if self._limit is None else min(rows, self._limit)

    def _forward(self, inputs: Tensors, rows: int) -> Tensors:
        """One call of the model; where memory runs out, two of half the size."""
        try:
            return self._run(inputs, rows)
        except (RuntimeError, MemoryError) as error:
            if _device_lost(error):
                raise DeviceLostError(f"{self.device} is lost to this process: {one_line(error)}") from error
            if not _out_of_memory(error) or rows == 1 or self.model.rows is not None:
                raise
        # Outside the handler, where the traceback no longer holds the tensors of the failed call.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = rows // 2
        with self._lock:
            self._limit = min(self._limit or rows, max(1, half))
        parts = [
            self._forward({name: tensor[low:high] for name, tensor in inputs.items()}, high - low)
            for low, high in ((0, half), (half, rows))
        ]
        return _concatenate(parts)

    def _run(self, inputs: Tensors, rows: int) -> Tensors:
        fixed = self.model.rows
        if fixed is not None and rows < fixed:
            inputs = {name: _pad(tensor, fixed) for name, tensor in inputs.items()}
        with torch.inference_mode(), self._autocast():
            outputs = self._model({name: tensor.contiguous().to(self.device) for name, tensor in inputs.items()})
            named = _named(outputs)
            for name, tensor in named.items():
                got = len(tensor) if tensor.dim() else 0
                if got != (fixed or rows):
                    raise BrokenModelError(
                        f'the model gave {got} rows of "{name}" for {fixed or rows}; it must give one a row, '
                        "with the rows along the first axis"
                    )
            return {name: _to_cpu(tensor[:rows]) for name, tensor in named.items()}

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._precision)


def _sample(call: Callable[[int, int], Tensors], start: int, stop: int) -> Exception | None:
    """The error of a few rows spread over the range, if every one of them fails; else None."""
    error: Exception | None = None
    for row in np.unique(np.linspace(start, stop - 1, SAMPLES).astype(int)).tolist():
        try:
            call(row, row + 1)
        except TorchbeamError:
            raise
        except Exception as raised:
            error = raised
        else:
            return None
    return error


class _Health:
    """Whether the model has answered at all, and how many rows in a run it failed on with one and the same error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered = False
        self._error = ""
        self._failed = 0

    @property
    def suspect(self) -> bool:
        return not self._answered and self._failed >= SUSPECT_AFTER

    def succeeded(self) -> None:
        self._answered = True

    def failed(self, error: Exception) -> None:
        if self._answered:
            return
        same = f"{type(error).__name__}: {re.sub(r'[0-9.]+', '#', one_line(error))}"
        with self._lock:
            self._failed = self._failed + 1 if same == self._error else 1
            self._error = same


def _named(outputs: object) -> Tensors:
    """The tensors among a model's outputs by name: `output`, `output_0` and on for a tuple, the keys of a mapping."""
    if isinstance(outputs, torch.Tensor):
        return {"output": outputs}
    if isinstance(outputs, Mapping):
        named = {str(name): value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    elif isinstance(outputs, list | tuple):
        names = getattr(outputs, "_fields", None) or [f"output_{index}" for index in range(len(outputs))]
        named = {name: value for name, value in zip(names, outputs, strict=True) if isinstance(value, torch.Tensor)}
    else:
        named = {}
    if not named:
        raise BrokenModelError(
            f"the model gave a {type(outputs).__name__}; it must give a tensor, or tensors in a tuple or dict"
        )
    return named


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.to("cpu")


def _pad(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([tensor, tensor[-1:].expand(rows - len(tensor), *tensor.shape[1:])])


def _concatenate(parts: list[Tensors]) -> Tensors:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _device_lost(error: BaseException) -> bool:
    """Whether the CUDA context of this process is beyond repair (a sticky error, as CUDA's documentation calls it)."""
    return isinstance(error, torch.AcceleratorError) or (
        "CUDA error" in str(error) and "out of memory" not in str(error)
    )
