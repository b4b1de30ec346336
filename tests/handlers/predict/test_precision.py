"""Answers under autocast: those of plain torch in the same precision, on every thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from handlers.predict.loaded import LoadedModel
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_answers_are_those_of_torch_in_that_precision(precision: str) -> None:
    net, x = network(), torch.randn(50, 16)
    with torch.no_grad():
        exact = net(x)
        with torch.autocast("cpu", dtype=getattr(torch, precision)):
            expected = net(x)
    assert expected.dtype == getattr(torch, precision)

    found = Predictor(LoadedModel(net, ("input",)), Placement("cpu", precision)).predict({"input": x})  # type: ignore[arg-type]

    output = found.tensors["output"]
    assert output.dtype == torch.float32  # half precisions come back as float32
    assert torch.allclose(output, expected.float(), atol=1e-6)
    assert not torch.allclose(output, exact, atol=1e-6)  # autocast was really on
    assert torch.allclose(output, exact, atol=0.05)


def test_every_thread_computes_in_it() -> None:
    """torch keeps autocast and inference mode by thread, and a runner calls from threads of its own."""
    net, x = network(), torch.randn(50, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = net(x).float()
    predictor = Predictor(LoadedModel(net, ("input",)), Placement("cpu", "bfloat16"))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: predictor.predict({"input": x}).tensors["output"], range(16)))

    for output in found:
        assert torch.allclose(output, expected, atol=1e-6)
        assert not output.requires_grad
