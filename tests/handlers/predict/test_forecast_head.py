"""Task forecast: outputs of a model become lists of the next steps."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from handlers.errors import BrokenModelError
from handlers.predict import heads
from handlers.predict.heads import Head


def decoded(shape: tuple[int, ...], horizon: int, *targets: str) -> dict[str, pa.Array]:
    values = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    return heads.decode(Head("forecast", horizon=horizon, targets=targets), {"output": values})[0]


def test_one_target() -> None:
    wanted = pa.array([[0, 1, 2], [3, 4, 5]], pa.list_(pa.float32(), 3))
    assert decoded((2, 3), 3, "sales") == decoded((2, 3, 1), 3, "sales") == {"forecast": wanted}
    wanted = pa.array([[0], [1]], pa.list_(pa.float32(), 1))
    assert decoded((2,), 1, "sales") == decoded((2, 1), 1, "sales") == {"forecast": wanted}


def test_several_targets() -> None:
    kind = pa.list_(pa.float32(), 2)
    wanted = {"forecast_a": pa.array([[0, 3]], kind), "forecast_b": pa.array([[1, 4]], kind)}
    assert decoded((1, 2, 3), 2, "a", "b", "c") == wanted | {"forecast_c": pa.array([[2, 5]], kind)}


@pytest.mark.parametrize("shape", [(2,), (2, 2), (2, 4), (2, 3, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BrokenModelError, match=r"task forecast needs \(rows, 3\)"):
        decoded(shape, 3, "sales")


def test_of_no_rows() -> None:
    found = heads.of_no_rows(Head("forecast", horizon=3, targets=("sales",)))
    assert found == {"forecast": pa.array([], pa.list_(pa.float32(), 3))}
