"""A model given as a `state_dict` and a class, as Beam's own PyTorch handlers take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from handlers.errors import UsageError, one_line

if TYPE_CHECKING:
    import torch

    from handlers.predict.loaded import LoadedModel


@dataclass(frozen=True)
class StateDict:
    """A state_dict in a file, local or remote, and the class that it fits. A model directory says more, and is verified.

    Attributes:
        path: of the file; loaded with `weights_only=True`.
        model_class: makes the module.
        model_params: its arguments.
    """

    path: str
    model_class: Callable[..., torch.nn.Module]
    model_params: Mapping[str, Any] = field(default_factory=dict)

    def at(self, path: str) -> StateDict:
        """The same with the weights in another file."""
        return replace(self, path=path)

    def load(self) -> LoadedModel:
        """The module with its weights, on the CPU, in evaluation mode; raises `UsageError` where they do not fit."""
        import torch
        from apache_beam.io.filesystems import FileSystems

        from handlers.model.formats.modules import of_module

        name = getattr(self.model_class, "__qualname__", repr(self.model_class))
        try:
            with FileSystems.open(self.path, compression_type="uncompressed") as file:
                weights = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UsageError(f"{self.path} cannot be loaded as a state_dict: {one_line(error)}") from None
        try:
            module = self.model_class(**self.model_params)
            module.load_state_dict(weights)
        except Exception as error:
            raise UsageError(f"{self.path} does not fit {name}: {one_line(error)}") from None
        return of_module(module)
