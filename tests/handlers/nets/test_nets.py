"""The built-in networks, against numbers worked out by hand."""

from __future__ import annotations

import torch

from handlers.nets import Lstm, Mlp
from handlers.nets.columns import Columns, Embed, Normalize


def test_numbers_are_normalised_and_missing_ones_flagged() -> None:
    columns = Columns({"x": {"width": 2}, "y": {"width": 1, "missing": True}}, {})
    columns.constants()["x"].set_constants(torch.tensor([1.0, 10.0]), torch.tensor([2.0, 0.0]))
    columns.constants()["y"].set_constants(torch.tensor([5.0]), torch.tensor([2.0]))
    assert columns.width == 4
    x, y = torch.tensor([[5.0, 10.0], [1.0, 12.0]]), torch.tensor([[9.0], [float("nan")]])
    vector = torch.cat(columns({"x": x, "y": y}), dim=1)
    # (5 - 1) / 2; a deviation of 0 only shifts; the flag of y and then y itself, which is the mean where it is missing
    torch.testing.assert_close(vector, torch.tensor([[2.0, 0.0, 0.0, 2.0], [0.0, 2.0, 1.0, 0.0]]))


def test_an_infinite_number_is_missing() -> None:
    columns = Columns({"y": {"width": 1, "missing": True}}, {})
    assert torch.cat(columns({"y": torch.tensor([[float("inf")]])}), dim=1).tolist() == [[1.0, 0.0]]


def test_categories_are_embedded_and_unknown_ones_are_zero() -> None:
    columns = Columns({}, {"country": {"width": 2, "codes": 4, "unknown": 3}})
    embed = columns.embed[0]
    assert isinstance(embed, Embed)
    (vector,) = columns({"country": torch.tensor([[0, 3]])})
    assert vector.shape == (1, 2 * embed.dimensions)
    torch.testing.assert_close(vector[0, : embed.dimensions], embed.table.weight[0])
    assert not vector[0, embed.dimensions :].any()


def test_a_regression_is_in_the_unit_of_the_label() -> None:
    net = Mlp(1, {"x": {"width": 1}}, hidden=[], dropout=0, denormalize=True)
    assert isinstance(net.head.label, Normalize)
    net.head.label.set_constants(torch.tensor([100.0]), torch.tensor([10.0]))
    linear = net.head.layers[0]
    x = torch.tensor([[3.0]])
    torch.testing.assert_close(net(x), (linear.weight * 3 + linear.bias) * 10 + 100)
    torch.testing.assert_close(net(x=x), net(x))  # one input by position, as a model is called with one


def test_constants_are_saved_with_the_weights() -> None:
    state = Mlp(2, {"x": {"width": 3}}).state_dict()
    assert state["columns.normalize.0.mean"].shape == (3,)
    assert state["columns.normalize.0.scale"].shape == (3,)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    net = Lstm(2, {"name": "steps", "width": 2}, numeric={"age": {"width": 1}}).eval()
    steps, age = torch.randn(1, 3, 2), torch.randn(1, 1)
    alone = net(steps=steps, lengths=torch.tensor([3]), age=age)
    padded = torch.cat([steps, torch.full((1, 4, 2), 7.0)], dim=1)
    torch.testing.assert_close(net(steps=padded, lengths=torch.tensor([3]), age=age), alone)
    states, _ = net.lstm(steps)
    torch.testing.assert_close(net.head(torch.cat([states[:, -1], age], dim=1)), alone)


def test_steps_of_codes() -> None:
    net = Lstm(1, {"name": "words", "codes": 5}).eval()
    words = torch.tensor([[1, 2, 0], [4, 0, 0]])
    assert net(words, torch.tensor([2, 1])).shape == (2, 1)
