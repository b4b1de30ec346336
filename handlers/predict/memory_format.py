"""Convolutions with channels last, which the CPU computes faster, where a model gives the same answers so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

_TOLERANCE = {torch.float32: 1e-4}  # of the largest output; others: _HALF_TOLERANCE
_HALF_TOLERANCE = 0.05


class ChannelsLast:
    """The memory format of a model's convolutions: channels last, as soon as it is known that the model can take it.

    oneDNN computes convolutions in this format 1.3 to 2 times as fast (ResNet-18 and MobileNetV3: docs/performance.md), and
    convolutions hand it on from one to the next. A model whose code depends on the order of the axes in memory, as
    `Tensor.view` does, raises or gives other answers. So the first rows are computed both ways, and a model that raises
    later is changed back. Several threads may share one.

    Args:
        module: the model.
        precision: in which it computes.
        device: where it is.
    """

    def __init__(self, module: Any, precision: torch.dtype, device: torch.device) -> None:
        self._weights: list[torch.nn.Parameter] = []
        if device.type == "cpu" and isinstance(module, torch.nn.Module):
            self._weights = [weight for weight in module.parameters() if weight.dim() == 4]
        self._tolerance = _TOLERANCE.get(precision, _HALF_TOLERANCE)
        self._lock = threading.Lock()
        self._changed = False
        self.untried = bool(self._weights)
        self._in_use = False

    def try_on(self, forward: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Changes the format if `forward`, which is called twice, gives the same then; rows on which it raises decide nothing."""
        with self._lock:
            if not self.untried:
                return
            try:
                expected = forward()
            except Exception:
                return
            self.untried, self._changed = False, True
            with suppress(Exception):
                self._change(torch.channels_last)
                self._in_use = self._same(forward(), expected)
            if not self._in_use:
                self._change(torch.contiguous_format)

    def give_up(self, error: Exception) -> bool:
        """Changes the format back if an error may be due to it; whether the call is to be repeated for that."""
        if "stride" not in str(error) and "contiguous" not in str(error):
            return False
        with self._lock:  # after a trial by another thread, which may have been the cause
            if self._in_use:
                self._in_use = False
                self._change(torch.contiguous_format)
            return self._changed

    def _change(self, memory_format: torch.memory_format) -> None:
        for weight in self._weights:
            weight.data = weight.data.contiguous(memory_format=memory_format)

    def _same(self, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
        for name, tensor in expected.items():
            if not tensor.is_floating_point():
                continue
            limit = self._tolerance * max(1.0, float(tensor.abs().max())) if tensor.numel() else 0.0
            if not torch.allclose(found[name], tensor, rtol=0.0, atol=limit, equal_nan=True):
                return False
        return True
