"""Small models whose answers can be computed by hand."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from handlers.model.directory import ModelDir

Save = Callable[..., ModelDir]  # the fixture of that name

RAISES = 13.0
GIVES_NAN = 14.0


class Linear(torch.nn.Module):
    """Two features, `classes` outputs: row i of the weights is (i, 1), the bias 0.5."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[float(i), 1.0] for i in range(classes)]))
            self.layer.bias.fill_(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Touchy(Linear):
    """Raises for a batch that holds `RAISES`, and gives NaN for a row that holds `GIVES_NAN`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x == RAISES).any():
            raise RuntimeError(f"cannot take {RAISES}")
        return self.layer(torch.where(x == GIVES_NAN, float("nan"), x))


class Sum(torch.nn.Module):
    """a + b of x of (rows, 2); raises where a is `RAISES`."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x[:, 0] == RAISES).any():
            raise RuntimeError("cannot take 13")
        return x.sum(1, keepdim=True) + self.zero


class Dropout(Linear):
    """Its answers are random unless it is in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(self.layer(x), 0.5, self.training)


class TwoInputs(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - 2 * b


class KeywordInput(torch.nn.Module):
    def forward(self, a: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return a * scale


class Pair(NamedTuple):
    double: torch.Tensor
    square: torch.Tensor


class Outputs(torch.nn.Module):
    """Gives what `kind` says: a dict, a tuple or a named tuple of 2x and x²."""

    def __init__(self, kind: str = "dict") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor):
        if self.kind == "dict":
            return {"double": 2 * x, "square": x * x}
        return Pair(2 * x, x * x) if self.kind == "named" else (2 * x, x * x)


class NeverWorks(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"no kernel for {len(x)} rows")


class TiedWeights(torch.nn.Module):
    """Two layers that share one weight; safetensors stores it once."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(2, 2, bias=False)
        self.two = torch.nn.Linear(2, 2, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


def loaded(folder):
    """A loader: a plain function that doubles, whatever is in the folder."""
    factor = float((folder / "factor.txt").read_text())
    return lambda x: x * factor


def loads_nothing(folder):
    return 3


def fails_to_load(folder):
    raise OSError("the disk is\non fire")


def not_a_module(**arguments):
    return "text"
