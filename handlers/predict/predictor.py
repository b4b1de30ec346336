"""The predictor: micro-batches through a model, with bad rows isolated one by one. It uses torch and not Beam."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from handlers.errors import BrokenModelError, DeviceLostError, TorchbeamError, UsageError, one_line
from handlers.isolation import Isolated, contained, isolate
from handlers.predict import freed_memory
from handlers.predict.backend import Backend, placement_of
from handlers.predict.calling import caller
from handlers.predict.faults import Health, device_lost, out_of_memory
from handlers.predict.loaded import LoadedModel
from handlers.predict.memory_format import ChannelsLast
from handlers.predict.micro_batches import MicroBatches
from handlers.predict.outputs import Form, Outputs, TokenOutputs, fill_up, named_outputs, to_cpu
from handlers.predict.placement import Placement
from handlers.stats import Load, Stats
from handlers.tensors import Frame, Padding, Ragged, Value, zeros_like

Inputs = Mapping[str, Value]
R = TypeVar("R")

MAX_ROWS = 8192
CPU_BYTES = 16 << 20
GPU_BYTES = 64 << 20
CPU_TOKENS = 2048
GPU_TOKENS = 16_384
TRIED_ROWS = 2  # on which another memory format is tried
SAMPLES = 8  # rows of a micro-batch on which a suspect model is tried


@dataclass(frozen=True)
class Prediction:
    """What became of n rows.

    Attributes:
        rows: int64 of (scored,), ascending: the rows that the model answered.
        outputs: the model's outputs for them by name, on the CPU, each of (scored, …); half precisions become float32.
            Outputs with a token axis, and those whose length differs by row, are `Ragged`.
        failures: the other rows, ascending, each with the error that the model raised on it.
        form: whether the model gives a tensor, a tuple or list, or a mapping.
        stats: what was done.
    """

    rows: np.ndarray
    outputs: Outputs
    failures: list[tuple[int, Exception]]
    form: Form = "tensor"
    stats: Stats = field(default_factory=Stats)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The outputs where all are of one shape a row; raises `BrokenModelError` where one is not."""
        for name, output in self.outputs.items():
            if isinstance(output, Ragged):
                raise BrokenModelError(
                    f'the model gave "{name}" with rows of unequal length, which has no column type yet'
                )
        return self.outputs  # type: ignore[return-value]


@dataclass(frozen=True)
class Applied:
    """The results of a user function for n examples by index, and the failures, both ascending."""

    results: list[tuple[int, Any]]
    failures: list[tuple[int, Exception]]
    stats: Stats


class Predictor:
    """Runs a model over rows of any number.

    Several threads may share one predictor.

    Args:
        model: a loaded model; it is moved to the device.
        placement: device, precision and compilation.
        batch_size: rows of a micro-batch; None chooses by the bytes of a row.
        device: if chosen already; else `placement` chooses it.

    Raises:
        UsageError: where the device is not there, or all its slots are taken, or `placement` has no meaning for the model.
    """

    def __init__(
        self,
        model: LoadedModel,
        placement: Placement | None = None,
        batch_size: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        placement = placement_of(model, placement or Placement())
        self.model = model
        self.device = model.device or device or placement.resolve()
        if self.device.type == "cpu" and model.device is None:
            freed_memory.keep()
        self._precision = getattr(torch, placement.precision)
        self._batch_size = model.rows or batch_size
        self._lock = threading.Lock()
        self._limit: int | None = None  # tokens (rows × length) that fitted into memory, once it has run out
        self._purge = False
        self._tokens = TokenOutputs()
        self._health = Health()
        module = model.module
        if isinstance(module, Backend):
            module.to(self.device)
        elif isinstance(module, torch.nn.Module):
            module = module if model.device is not None else module.to(self.device)
            for parameter in module.parameters():  # ScriptModules have no requires_grad_
                parameter.requires_grad_(False)
        self.module: Any = module
        fits = model.device is None and not placement.compile
        self._channels_last = ChannelsLast(module if fits else None, self._precision, self.device)
        called = torch.compile(module, dynamic=model.rows is None) if placement.compile else module
        self._by_name = caller(model, called)

    def load_since(self, started: float) -> Load:
        """What loading the model cost, from `started` (of time.perf_counter) until now."""
        module = self.module
        tensors = [*module.parameters(), *module.buffers()] if isinstance(module, torch.nn.Module) else []
        size = module.nbytes if isinstance(module, Backend) else sum(tensor.nbytes for tensor in tensors)
        return Load(time.perf_counter() - started, size)

    def predict(
        self, inputs: Inputs, arguments: Mapping[str, Any] | None = None, padding: Padding | None = None
    ) -> Prediction:
        """Runs the model on the rows of `inputs`.

        Rows of unequal length are sorted by length, cut into micro-batches by a budget of tokens, padded with a mask,
        scored and put back in order.

        Args:
            inputs: by input name, each of the same number of rows: tensors of (rows, …) on the CPU, or `Ragged`.
            arguments: further keyword arguments of `forward`, the same for all rows.
            padding: how ragged inputs are padded; `Padding()` where there are any and it is not given.

        Returns:
            The outputs of all rows that the model could answer, in order, and the others with their errors.

        Raises:
            BrokenModelError: where the model gives another number of rows than it was given, or gives no tensors.
            DeviceLostError: where the accelerator is lost and the process must end.
        """
        work = MicroBatches(inputs, padding or Padding())
        stats = Stats()
        form: Form = "tensor"

        def run(low: int, high: int) -> Outputs:
            nonlocal form
            tensors = work.tensors(low, high)
            form, outputs = self._forward(tensors, high - low, arguments or {})
            if work.longest is None:
                return outputs
            stats.tokens += int(work.longest[low:high].sum())
            stats.padded_tokens += (high - low) * int(work.longest[low])

            def again(row: int, padding: int) -> Outputs:
                return self._forward(work.tensors(low + row, low + row + 1, padding), 1, arguments or {})[1]

            return self._tokens.cut(
                outputs, work.primary_lengths[low:high], work.padding.cut, again, left=work.padding.left
            )

        def zeros() -> Exception | None:
            blank = {name: zeros_like(value) for name, value in work.tensors(0, 1).items()}
            return _error_of(lambda: self._forward(blank, 1, arguments or {}))

        found = self._isolate(len(work), lambda start: self._rows(work, start), run, work.cost, zeros, stats)
        rows, outputs = work.in_order(found.results)
        return Prediction(rows, outputs, sorted(work.failures(found.failures), key=lambda item: item[0]), form, stats)

    def apply(
        self,
        function: Callable[..., Iterable[Any]],
        examples: Sequence[Any],
        arguments: Mapping[str, Any] | None = None,
        model_id: str | None = None,
    ) -> Applied:
        """Runs a function like the `inference_fn` of Beam's own handlers, with the guarantees of `predict`.

        Args:
            function: takes a list of examples, the module, the device, the arguments and the id of the model; gives one
                result an example.
            examples: what it is given, cut into micro-batches of the batch size; all at once where there is none.
            arguments: as Beam's `inference_args`.
            model_id: as Beam's.

        Raises:
            BrokenModelError: where the function gives another number of results than it was given examples.
            DeviceLostError: where the accelerator is lost and the process must end.
        """
        stats = Stats()

        def run(low: int, high: int) -> list[Any]:
            with torch.no_grad(), self._autocast():
                # Materialised here: what a generator raises must be caught where it can still be isolated.
                results = list(function(examples[low:high], self.module, self.device, dict(arguments or {}), model_id))
            if len(results) != high - low:
                raise BrokenModelError(
                    f"inference_fn gave {len(results)} results for {high - low} examples; it must give one each, in order"
                )
            return results

        def rows(_start: int) -> int:
            return min(self._batch_size or len(examples), self._limit or len(examples))

        found = self._isolate(len(examples), rows, run, lambda low, high: high - low, lambda: None, stats)
        results = [(low + index, result) for low, _, part in found.results for index, result in enumerate(part)]
        return Applied(results, found.failures, stats)

    def _isolate(
        self,
        count: int,
        rows: Callable[[int], int],
        run: Callable[[int, int], R],
        cost: Callable[[int, int], int],
        zeros: Callable[[], Exception | None],
        stats: Stats,
    ) -> Isolated[R]:
        """Runs rows 0 … count-1 in micro-batches; one that fails, for a bad row or for memory, is halved.

        `rows(start)` is the size of the micro-batch from `start`, `cost` the memory that a range needs, in rows or tokens.
        """
        fitted: list[int] = []
        ran_out = False

        def attempt(low: int, high: int) -> R:
            nonlocal ran_out
            if self._purge and self.device.type == "cuda":  # here no traceback holds the tensors of the failed call
                torch.cuda.empty_cache()
            self._purge = False
            started = time.perf_counter()
            try:
                result = contained(run, low, high)
            except TorchbeamError:
                raise
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # its frames hold tensors
                if device_lost(error, self.device):
                    raise DeviceLostError(f"{self.device} is lost to this process: {one_line(error)}") from error
                if out_of_memory(error):
                    if self.model.rows is not None:
                        raise BrokenModelError(
                            f"the program is exported for {self.model.rows} rows, which do not fit into memory; export "
                            "it for a smaller or a dynamic batch"
                        ) from error
                    ran_out = self._purge = True
                    stats.out_of_memory += 1
                elif high - low == 1:
                    self._health.failed(error)
                raise
            finally:
                stats.forward_seconds += time.perf_counter() - started
            self._health.answered = True
            stats.micro_batches.append(high - low)
            fitted.append(cost(low, high))
            return result

        def give_up(low: int, high: int) -> Exception | None:
            if not self._health.suspect:
                return None
            if self._health.zeros_needed:
                self._health.tried_zeros(zeros())
            return _sample(attempt, low, high) if self._health.suspect else None

        found: Isolated[R] = Isolated()
        start = 0
        while start < count:
            stop = min(count, start + rows(start))
            ran_out = False
            fitted.clear()
            part = isolate(attempt, start, stop, give_up)
            found.results += part.results
            found.failures += part.failures
            if (
                ran_out and fitted
            ):  # the size that worked, not the smallest that was tried: one row may be too big alone
                with self._lock:
                    self._limit = min(self._limit or max(fitted), max(fitted))
            start = stop
        return found

    def _rows(self, work: MicroBatches, start: int) -> int:
        """Rows of the micro-batch that begins at `start`."""
        if self.model.rows is not None:
            return self.model.rows
        rows = self._batch_size
        if rows is None:
            budget = CPU_BYTES if self.device.type == "cpu" else GPU_BYTES
            rows = min(MAX_ROWS, budget // max(1, work.row_bytes))
        tokens = 1 if work.longest is None else max(1, int(work.longest[start]))
        if work.longest is not None:
            budget = work.padding.max_tokens or (CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS)
            rows = min(rows, budget // tokens)
        if self._limit is not None:
            rows = min(rows, self._limit // tokens)
        return max(1, rows)

    def _forward(
        self, inputs: Mapping[str, torch.Tensor | Frame], rows: int, arguments: Mapping[str, Any]
    ) -> tuple[Form, Outputs]:
        """One call of the model."""
        fixed = self.model.rows
        if fixed is not None and rows < fixed:
            inputs = {name: fill_up(value, fixed) for name, value in inputs.items()}
        with torch.inference_mode(), self._autocast():
            form, named = named_outputs(self._call(inputs, arguments))
            outputs = {name: to_cpu(name, tensor) for name, tensor in named.items()}
            for name, tensor in outputs.items():
                got = len(tensor) if tensor.dim() else 0
                if got != (fixed or rows):
                    raise BrokenModelError(
                        f'the model gave {got} rows of "{name}" for {fixed or rows}; it must give one a row, '
                        "with the rows along the first axis"
                    )
            return form, {name: tensor[:rows] for name, tensor in outputs.items()}

    def _own(self, value: torch.Tensor | Frame) -> torch.Tensor | Frame:
        """A copy for the model: it may write into what it is given, and rows are run again when others fail."""
        if isinstance(value, Frame):
            return value
        device = "cpu" if isinstance(self.module, Backend) else self.device
        return value.to(device, copy=True, memory_format=torch.contiguous_format)

    def _call(self, inputs: Mapping[str, torch.Tensor | Frame], arguments: Mapping[str, Any]) -> Any:
        """What the model gives for a micro-batch."""
        if self._channels_last.untried:
            few = self.model.rows or TRIED_ROWS
            self._channels_last.try_on(
                lambda: named_outputs(self._answer({name: value[:few] for name, value in inputs.items()}, arguments))[1]
            )
        try:
            return self._answer(inputs, arguments)
        except RuntimeError as error:
            if not self._channels_last.give_up(error):
                raise
        return self._answer(inputs, arguments)

    def _answer(self, inputs: Mapping[str, torch.Tensor | Frame], arguments: Mapping[str, Any]) -> Any:
        """Calls the model with its inputs by name; a single input goes in first, under any name."""
        tensors = {name: self._own(value) for name, value in inputs.items()}
        if isinstance(self.module, Backend):
            if arguments:
                raise UsageError(f"inference_args have no meaning for a model of format {self.module.FORMAT}")
            return self.module(tensors)
        return self._by_name(tensors, arguments)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._precision)


def _error_of(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except TorchbeamError:
        raise
    except Exception as error:
        return error
    return None


def _sample(attempt: Callable[[int, int], Any], start: int, stop: int) -> Exception | None:
    """The error of a few rows spread over the range, if every one of them fails; else None."""
    error: Exception | None = None
    for row in np.unique(np.linspace(start, stop - 1, SAMPLES).astype(int)).tolist():
        error = _error_of(lambda row=row: attempt(row, row + 1))  # type: ignore[misc]
        if error is None:
            return None
    return error
