"""Several threads that share a predictor or a scorer, as the threads of a worker do: each gets the answers of its rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import small_models
import torch
from deadlines import WAIT_SECONDS
from small_models import Save

from handlers.columnar.chunks import with_provenance
from handlers.columnar.plan import Chain
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scored, Scorer
from handlers.predict.loaded import LoadedModel
from handlers.predict.predictor import Predictor
from handlers.stats import Load

THREADS = 8
R = TypeVar("R")


def at_once(call: Callable[[int], R], count: int) -> list[R]:
    """The results of `call` for 0 … count-1, from threads that begin together."""
    barrier = threading.Barrier(THREADS)

    def begin(index: int) -> R:
        if index < THREADS:
            barrier.wait(WAIT_SECONDS)
        return call(index)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(count)))


class Tight(torch.nn.Module):
    """Twice its input; has memory for ten rows at most, and raises on a negative number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 10:
            raise torch.OutOfMemoryError("out of memory")
        if (x < 0).any():
            raise ValueError("negative")
        return x * 2


def test_a_predictor_that_runs_out_of_memory_and_meets_bad_rows() -> None:
    predictor = Predictor(LoadedModel(Tight(), ("x",)), batch_size=64)

    def predict(index: int) -> None:
        x = torch.arange(100.0).unsqueeze(1) + 1000 * index
        bad = (7 * index) % 100
        x[bad] = -1
        found = predictor.predict({"x": x})
        assert [row for row, _ in found.failures] == [bad]
        good = [row for row in range(100) if row != bad]
        assert found.rows.tolist() == good
        assert torch.equal(found.tensors["output"], x[good] * 2)

    at_once(predict, 40)

    after = predictor.predict({"x": torch.ones(100, 1)})
    assert after.stats.out_of_memory == 0  # the size that worked is known to all
    assert max(after.stats.micro_batches) <= 10


def test_a_scorer(save: Save) -> None:
    model = save(small_models.Touchy(), task="classification", labels=["no", "yes"])
    predictor = Predictor(model.load())
    plan = make_plan(model, predictor, chunk(0), Chain.of(model.spec), ("*",))
    scorer = Scorer(model, plan, predictor, Load(1.0, 10))

    def score(index: int) -> tuple[Scored, Load | None]:
        return scorer.score(chunk(index)), scorer.take_load()

    found = at_once(score, 40)

    for index, (scored, _) in enumerate(found):
        assert scored.dead_by_error == {"forward/RuntimeError": 1}
        assert scored.dead_letters.column("a").to_pylist() == [small_models.RAISES]
        a = scored.predictions.column("a").to_numpy()
        assert a.tolist() == [value(index, row) for row in range(50) if row != 7]
        # The logits are b + 0.5 and a + b + 0.5: class 1 has the probability sigmoid(a).
        expected = 1 / (1 + np.exp(-a.astype(np.float64)))
        assert np.abs(scored.predictions.column("confidence").to_numpy() - expected).max() <= 1e-6
    assert [load for _, load in found if load is not None] == [Load(1.0, 10)]


def value(index: int, row: int) -> float:
    return index + 0.5 + row / 1000


def chunk(index: int) -> pa.RecordBatch:
    """50 rows, on the eighth of which the model raises."""
    a = [small_models.RAISES if row == 7 else value(index, row) for row in range(50)]
    return with_provenance(pa.record_batch({"a": a, "b": [index + 0.25] * 50}), f"{index}.csv", 0)
