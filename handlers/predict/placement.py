"""Where a model runs: device, precision, compilation, and how many processes share a GPU."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from handlers.errors import UsageError
from handlers.predict.slots import Slot, take_slot

Precision = Literal["float32", "bfloat16", "float16"]

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_cpu_logged = False
# The slots that the models of this process share, and the process that took them: a forked child has none yet.
_held: list[tuple[int, Slot]] = []


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs in every worker process.

    Attributes:
        device: `auto` (a GPU if there is one, else the CPU), `cpu`, `cuda` (a free GPU) or `cuda:N`.
        precision: float32, or bfloat16 or float16 by autocast.
        compile: whether the model goes through torch.compile first.
        copies: how many processes may share a GPU; a process has one slot for all its models.
    """

    device: str = "auto"
    precision: Precision = "float32"
    compile: bool = False
    copies: int = 1

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f'--device "{self.device}" is not one of auto, cpu, cuda, cuda:N')
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise UsageError(f'--precision "{self.precision}" is not one of float32, bfloat16, float16')
        if self.copies < 1:
            raise UsageError(f"--model_copies must be 1 or more, not {self.copies}")

    def resolve(self) -> torch.device:
        """The device of this process, with its slot where that is a GPU.

        Raises:
            UsageError: where a GPU was asked for and is not there, or where all slots are taken.
        """
        if self._on_cpu():
            return torch.device("cpu")
        with _lock:
            for process, slot in _held:
                if process == os.getpid() and self._index in (None, slot.gpu):
                    return torch.device("cuda", slot.gpu)
            slot = self.take(self.copies, _identity)
            _held.append((os.getpid(), slot))
            return torch.device("cuda", slot.gpu)

    def resolve_alone(self, copies: int, model: str) -> tuple[torch.device, Slot | None]:
        """The device for one of several `copies` of a model, each with its own slot even where they share a process.

        Keep the slot as long as the model. Every model path has its own slots, since both models are in memory while one
        replaces the other.
        """
        if self._on_cpu():
            return torch.device("cpu"), None
        of_model = hashlib.sha256(model.encode()).hexdigest()[:12]
        slot = self.take(max(copies, self.copies), lambda gpu: f"{_identity(gpu)}-{of_model}")
        return torch.device("cuda", slot.gpu), slot

    def take(self, copies: int, identify: Callable[[int], str]) -> Slot:
        """A free slot on a suitable GPU."""
        return take_slot(visible_gpus(), copies, gpu=self._index, identify=identify)

    @property
    def _index(self) -> int | None:
        _, _, index = self.device.partition(":")
        return int(index) if index else None

    def _on_cpu(self) -> bool:
        """Whether it is the CPU; raises where a GPU was requested and is missing."""
        global _cpu_logged
        if self.device == "cpu":
            return True
        gpus = visible_gpus()
        if self.device == "auto":
            if not gpus and not _cpu_logged:
                _cpu_logged = True
                _log.info("no GPU is visible; the model runs on the CPU")
            return not gpus
        if not gpus or (self._index is not None and self._index >= gpus):
            seen = f"{gpus} GPU(s), cuda:0 to cuda:{gpus - 1}" if gpus else "no GPU"
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            why = "" if visible is None else f' (CUDA_VISIBLE_DEVICES is "{visible}")'
            raise UsageError(
                f"--device {self.device} was asked for, but this process sees {seen}{why}; use --device=cpu or auto"
            )
        return False


def visible_gpus() -> int:
    """How many GPUs this process sees; CUDA_VISIBLE_DEVICES counts."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _identity(gpu: int) -> str:
    return str(torch.cuda.get_device_properties(gpu).uuid)
