"""What the tests of streams share: a small model, its messages, and what plain torch answers for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handlers import ModelDir


def save_linear(folder: Path, seed: int = 0) -> nn.Linear:
    """A classifier of the columns `a` and `b` into three classes, and beside it the schema of its messages."""
    torch.manual_seed(seed)
    net = nn.Linear(2, 3)
    ModelDir.save(
        net,
        folder,
        task="classification",
        inputs=[{"name": "x", "columns": ["a", "b"]}],
        format="torch_export",
        example=(torch.zeros(4, 2),),
    )
    (folder / "schema.json").write_text(json.dumps({"id": "int64", "a": "double", "b": "double"}))
    return net


def value(row: int) -> bytes:
    """The message of a row."""
    return json.dumps({"id": row, "a": row / 7, "b": row % 5}).encode()


def expected(net: nn.Linear, rows: int) -> dict[int, tuple[int, float]]:
    """Class and confidence of each row."""
    x = torch.tensor([[row / 7, row % 5] for row in range(rows)], dtype=torch.float32)
    with torch.inference_mode():
        confidence, chosen = torch.softmax(net(x), 1).max(1)
    return {row: (int(chosen[row]), float(confidence[row])) for row in range(rows)}


def check(found: list[dict[str, Any]], net: nn.Linear, rows: int) -> None:
    """Every row came out once, with the answer of plain torch."""
    wanted = expected(net, rows)
    assert sorted(each["id"] for each in found) == sorted(wanted)
    for each in found:
        chosen, confidence = wanted[each["id"]]
        assert each["predicted_class"] == chosen
        assert abs(each["confidence"] - confidence) < 1e-6
