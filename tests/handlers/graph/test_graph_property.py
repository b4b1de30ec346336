"""What becomes of each row, in any run of three models, as a few lines of Python say it for one row."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import chunk_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.batching import ResourceHints
from handlers.graph.plan import GraphPlan, ModelSettings
from handlers.graph.planning import plan_graph
from handlers.model.directory import ModelDir

pytestmark = pytest.mark.slow(8)

NAMES = ("one", "two", "three")
WHEN = {"two": "one_prediction > 0", "three": "two_prediction is null or one_prediction > 4"}


class Adds(torch.nn.Module):
    """Gives a + number, and fails where b is number."""

    def __init__(self, number: float = 0.0) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x[:, 1] == self.number).any():
            raise ValueError("cannot")
        return x[:, 0] + self.number


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    for number, name in enumerate(NAMES):
        inputs = [{"name": "x", "columns": ["a", "b"]}]
        arguments = {"number": float(number)}
        ModelDir.save(Adds(float(number)), found / name, task="regression", inputs=inputs, arguments=arguments)
    return found


@cache
def plan(folder: Path, continues: tuple[bool, ...], stages: tuple[int, ...]) -> GraphPlan:
    nodes = [
        ModelSettings(
            name,
            ModelDir(folder / name),
            WHEN.get(name),
            continues=each,
            hints=ResourceHints(min_ram=f"{stage + 1}GB"),
        )
        for name, each, stage in zip(NAMES, continues, stages, strict=True)
    ]
    return plan_graph(nodes, chunk_of([0.0, 1.0], [9.0, 9.0]))


def becomes(a: float, b: float, continues: tuple[bool, ...]) -> tuple[str, dict[str, float]]:
    """What becomes of a row, and the answers that it has."""
    answers: dict[str, float] = {}
    failed = False
    for number, name in enumerate(NAMES):
        one, two = answers.get("one"), answers.get("two")
        wanted = {
            "one": True,
            "two": one is not None and one > 0,
            "three": two is None or (one is not None and one > 4),
        }
        if not wanted[name]:
            continue
        if b != number:
            answers[name] = a + number
        elif continues[number]:
            failed = True
        else:
            return "dead", {}
    return ("scored" if answers else "dead" if failed else "dropped"), answers


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.sampled_from([-2.0, 1.0, 5.0]), st.sampled_from([0.0, 1.0, 2.0, 9.0])), max_size=12),
    continues=st.sampled_from(list(product([True, False], repeat=3))),
    stages=st.sampled_from([(0, 0, 0), (0, 1, 2), (0, 1, 0), (0, 0, 1)]),
)
def test_every_row(
    folder: Path, rows: list[tuple[float, float]], continues: tuple[bool, ...], stages: tuple[int, ...]
) -> None:
    found = run(plan(folder, continues, stages), chunk_of([a for a, _ in rows], [b for _, b in rows]))
    expected = [becomes(a, b, continues) for a, b in rows]
    scored = [row for row, (what, _) in enumerate(expected) if what == "scored"]
    assert found.rows.column("id").to_pylist() == scored
    assert sorted(row["id"] for row in found.dead) == [row for row, (what, _) in enumerate(expected) if what == "dead"]
    assert found.dropped == sum(what == "dropped" for what, _ in expected)
    for name in NAMES:
        answers = [expected[row][1].get(name) for row in scored]
        assert found.rows.column(f"{name}_prediction").to_pylist() == answers
        assert found.models[name].scored >= sum(answer is not None for answer in answers)
    assert np.all([each.skipped >= 0 and each.dropped == 0 for each in found.models.values()])
