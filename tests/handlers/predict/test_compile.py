"""Answers of a model that went through `torch.compile`."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from handlers.predict.loaded import LoadedModel
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor

pytestmark = [
    pytest.mark.slow(30),
    pytest.mark.skipif(
        not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
    ),
]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * 2


def test_answers_for_micro_batches_of_any_size() -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(100, 4)
    with torch.no_grad():
        expected = net(x)
    counters.clear()
    predictor = Predictor(LoadedModel(net, ("x",)), Placement("cpu", compile=True), 32)

    for rows in (100, 64, 33, 1):  # micro-batches of 32, of what is left, and of one row
        found = predictor.predict({"x": x[:rows]})
        assert not found.failures
        assert torch.allclose(found.tensors["output"], expected[:rows], atol=1e-6)

    # One graph for any number of rows, and one more for a single row, which torch treats as a constant.
    assert 1 <= counters["stats"]["unique_graphs"] <= 2
    assert not counters["graph_break"]
