"""What the built-in networks share: columns become one vector a row, and a hidden vector becomes the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

MAX_DIMENSIONS = 50


class Normalize(nn.Module):
    """Numbers with mean 0 and deviation 1 in the training rows; the constants are buffers, saved with the weights."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def set_constants(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Sets the constants, both of (width,); where the deviation is 0 numbers are only shifted."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Of (…, width)."""
        return (numbers - self.mean) / self.scale

    def inverse(self, numbers: torch.Tensor) -> torch.Tensor:
        """The opposite: numbers in their own unit."""
        return numbers * self.scale + self.mean


class Embed(nn.Module):
    """Codes become vectors. The vector of `unknown` stays 0, since no training row has that code."""

    def __init__(self, codes: int, unknown: int | None = None) -> None:
        super().__init__()
        self.dimensions = min(MAX_DIMENSIONS, round(1.6 * codes**0.56))
        self.table = nn.Embedding(codes, self.dimensions, padding_idx=unknown)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """(…,) int64 to (…, dimensions)."""
        vectors: torch.Tensor = self.table(codes)
        return vectors


class Columns(nn.Module):
    """The inputs of a row as one vector: numbers normalised, codes embedded.

    A number that is missing (NaN or infinite) becomes the mean, and a flag next to it is set.

    Args:
        numeric: by input its `width`, and whether values may be `missing`.
        categorical: by input its `width`, its number of `codes`, and the `unknown` one.
    """

    def __init__(self, numeric: Mapping[str, Mapping[str, Any]], categorical: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self.numeric = {name: bool(each.get("missing")) for name, each in numeric.items()}
        self.categorical = {name: int(each["width"]) for name, each in categorical.items()}
        self.normalize = nn.ModuleList(Normalize(int(each["width"])) for each in numeric.values())
        embedded = [Embed(int(each["codes"]), each.get("unknown")) for each in categorical.values()]
        self.embed = nn.ModuleList(embedded)
        widths = [int(each["width"]) * (2 if each.get("missing") else 1) for each in numeric.values()]
        dimensions = [width * part.dimensions for width, part in zip(self.categorical.values(), embedded, strict=True)]
        self.width = int(sum(widths) + sum(dimensions))

    def constants(self) -> dict[str, Normalize]:
        """The normalisation of each numeric input."""
        return dict(zip(self.numeric, self.normalize, strict=True))  # type: ignore[arg-type]

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The parts of the vector, each of (rows, n)."""
        parts = []
        for (name, missing), normalize in zip(self.numeric.items(), self.normalize, strict=True):
            numbers = inputs[name].flatten(1) if inputs[name].dim() > 1 else inputs[name].unsqueeze(1)
            if missing:
                there = torch.isfinite(numbers)
                numbers = torch.where(there, numbers, normalize.mean)  # type: ignore[arg-type]
                parts.append((~there).to(numbers.dtype))
            parts.append(normalize(numbers))
        for (name, width), embed in zip(self.categorical.items(), self.embed, strict=True):
            parts.append(embed(inputs[name].reshape(-1, width)).flatten(1))
        return parts


class Head(nn.Module):
    """Hidden layers and the outputs, for a regression in the unit of the label.

    Args:
        width: of what it gets.
        hidden: units of each hidden layer.
        outputs: how many numbers a row gets.
        dropout: share of the units of hidden layers that training leaves out.
        denormalize: whether the outputs are scaled to the label's unit.
    """

    def __init__(self, width: int, hidden: list[int], outputs: int, dropout: float, *, denormalize: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))
        self.label = Normalize(outputs) if denormalize else None

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        """(rows, width) to (rows, outputs)."""
        found: torch.Tensor = self.layers(vector)
        return found if self.label is None else self.label.inverse(found)


def by_name(
    names: list[str], args: tuple[torch.Tensor, ...], inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Inputs by name; a single one may come by position, as the predictor calls a model of one input."""
    return dict(zip(names, args, strict=False)) | inputs
