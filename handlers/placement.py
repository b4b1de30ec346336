"""Where a model runs: device, precision, compilation, and how many copies share a GPU."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Literal

import torch

from handlers.errors import UsageError

Precision = Literal["float32", "bfloat16", "float16"]

_log = logging.getLogger(__name__)
_told_of_cpu = False


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs in every worker process.

    Attributes:
        device: `auto` (a GPU where there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.
        precision: float32, or bfloat16 or float16 by autocast.
        compile: whether the model goes through torch.compile first.
    """

    device: str = "auto"
    precision: Precision = "float32"
    compile: bool = False

    def resolve(self) -> torch.device:
        """The device of this process.

        Raises:
            UsageError: where `device` is malformed, or a GPU was asked for and is not there.
        """
        global _told_of_cpu
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f'--device "{self.device}" is none of auto, cpu, cuda, cuda:N')
        if self.device == "cpu":
            return torch.device("cpu")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device == "auto":
            if gpus:
                return torch.device("cuda", 0)
            if not _told_of_cpu:
                _told_of_cpu = True
                _log.info("no GPU is visible; the model runs on the CPU")
            return torch.device("cpu")
        wanted = torch.device(self.device)
        if not gpus:
            raise UsageError(
                f"--device {self.device} was asked for, but this process sees no GPU; use --device=cpu or auto"
            )
        if wanted.index is not None and wanted.index >= gpus:
            raise UsageError(
                f"--device {self.device} was asked for, but this process sees {gpus} GPU(s), cuda:0 to cuda:{gpus - 1}"
            )
        return torch.device("cuda", wanted.index or 0)
