"""Convolutions with channels last: only where the model gives the same answers, and no row is lost by it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from handlers.predict.loaded import LoadedModel
from handlers.predict.placement import Placement
from handlers.predict.predictor import Prediction, Predictor

ROWS = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Net(torch.nn.Module):
    """Two convolutions and `end`, which takes their output and the input."""

    def __init__(self, end: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3))
        for weight in self.parameters():
            weight.data = torch.rand(weight.shape, generator=generator) - 0.5
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.layers(x), x)


def mean(features: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return features.mean((2, 3))


def view(features: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return features.view(len(features), -1)


def view_if_bright(features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return features.view(len(features), -1) if (x > 1).any() else features.flatten(1)


def memory_order(features: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return features.as_strided((len(features), 80), (80, 1))


def is_channels_last(net: Net) -> bool:
    return all(
        weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        for weight in net.parameters()
        if weight.dim() == 4
    )


def predictor(net: Net, **options: object) -> Predictor:
    return Predictor(LoadedModel(net, ("x",)), Placement("cpu", **options), batch_size=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(("end", "changes"), [(mean, True), (view, False), (memory_order, False)])
def test_changes_where_the_answers_stay(end, changes):
    net = Net(end)
    expected = net(ROWS)
    found = predictor(net).predict({"x": ROWS})
    assert not found.failures
    torch.testing.assert_close(found.outputs["output"], expected, rtol=0, atol=1e-5)
    assert is_channels_last(net) == changes


def test_a_model_that_raises_later_is_changed_back():
    net = Net(view_if_bright)
    rows = ROWS.clone()
    rows[[9, 17]] += 1
    expected = net(rows)
    shared = predictor(net)
    shared.predict({"x": rows[:4]})
    assert is_channels_last(net)
    found = shared.predict({"x": rows})
    assert not found.failures
    torch.testing.assert_close(found.outputs["output"], expected, rtol=0, atol=1e-5)
    assert not is_channels_last(net)


def test_errors_of_rows_decide_nothing():
    def poisoned(features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if (x > 1).any():
            raise RuntimeError("too bright")
        return features.mean((2, 3))

    net = Net(poisoned)
    rows = ROWS.clone()
    rows[[0, 13]] += 1
    found = predictor(net).predict({"x": rows})
    assert [row for row, _ in found.failures] == [0, 13]
    assert is_channels_last(net)


def test_a_model_that_refuses_strides_itself():
    def contiguous_only(features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if (x > 1).any():
            raise RuntimeError("input must be contiguous")
        return features.mean((2, 3))

    rows = ROWS.clone()
    rows[13] += 1
    found = predictor(Net(contiguous_only)).predict({"x": rows})
    assert [(row, str(error)) for row, error in found.failures] == [(13, "input must be contiguous")]


@pytest.mark.parametrize("end", [mean, view, view_if_bright])
def test_threads_share_a_model(end):
    net = Net(end)
    rows = ROWS.clone()
    rows[3] += 1
    expected = net(rows)
    shared = predictor(net)
    found: list[Prediction] = []

    def work() -> None:
        found.extend(shared.predict({"x": rows}) for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    for each in found:
        assert not each.failures
        torch.testing.assert_close(each.outputs["output"], expected, rtol=0, atol=1e-5)


def test_reduced_precision():
    net = Net(mean)
    expected = net(ROWS)
    found = predictor(net, precision="bfloat16").predict({"x": ROWS})
    torch.testing.assert_close(found.outputs["output"], expected, rtol=0, atol=0.05)
    assert is_channels_last(net)
