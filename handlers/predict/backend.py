"""Models of other frameworks, as the predictor calls them. PyTorch's own need none of this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from handlers.errors import UsageError
from handlers.predict.loaded import LoadedModel
from handlers.predict.placement import Placement
from handlers.tensors import Frame


class Backend(ABC):
    """A model of another framework. It is the `module` of a `LoadedModel`; several threads may call it.

    Attributes:
        FORMAT: the format of its model directories.
        nbytes: about how much memory the model takes.
        summary: what the model is, on one line.
    """

    FORMAT: ClassVar[str]
    nbytes: int = 0
    summary: str = ""

    @abstractmethod
    def __call__(self, inputs: Mapping[str, torch.Tensor | Frame]) -> dict[str, torch.Tensor]:
        """The outputs by name, each of (rows, …), for inputs by name, each of as many rows, on the CPU.

        It neither keeps the inputs nor writes into them after it returns. An error is the fault of a row among them.
        """

    @abstractmethod
    def cuda_problem(self) -> str | None:
        """Why it cannot run on a GPU, as a clause that ends a sentence; None where it can."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Moves the model to `device`, once, before the first call; raises `UsageError` where that fails."""


def placement_of(model: LoadedModel, placement: Placement) -> Placement:
    """`placement` as far as it has a meaning for `model`: `auto` is the CPU for what cannot run on a GPU.

    Raises:
        UsageError: for an option that has no meaning for a model of another framework.
    """
    backend = model.module
    if not isinstance(backend, Backend):
        return placement
    for option, given in (
        (f"--precision={placement.precision}", placement.precision != "float32"),
        ("--compile", placement.compile),
    ):
        if given:
            raise UsageError(
                f"{option} has no meaning for a model of format {backend.FORMAT}, which runs as it was saved; omit it"
            )
    problem = backend.cuda_problem() if placement.device != "cpu" else None
    if problem and placement.device != "auto":
        raise UsageError(f"--device={placement.device} cannot be used: {problem}; use --device=cpu or auto")
    return replace(placement, device="cpu") if problem else placement


def tensor_of(values: Any) -> torch.Tensor:
    """An array of a framework as a tensor, without a copy where torch can take its memory."""
    array = np.asarray(values)
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy()
    return torch.from_numpy(array)


def import_extra(load: Callable[[], Any], format: str, package: str, extra: str) -> Any:
    """What `load` imports; raises `UsageError` that says what to install where it is missing."""
    try:
        return load()
    except ImportError:
        raise UsageError(f"format {format} needs {package}; pip install 'torchbeam[{extra}]'") from None
