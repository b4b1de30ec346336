"""Sequences of unequal length, against LSTMs and embeddings called by hand, one row at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sequence_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers import ModelDir, Predictor
from handlers.columnar.chunks import with_provenance
from handlers.columnar.plan import Chain
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scored, Scorer
from handlers.encode.binding import bind_inputs
from handlers.encode.specs import input_spec
from handlers.errors import UsageError
from handlers.tensors import Ragged

SALES = [[1.0, 2.0, 3.0], [4.0], [5.0, 6.0, 7.0, 8.0, 9.0], [0.5, 0.25]]
PRICE = [[0.1, 0.2, 0.3], [0.4], [0.5, 0.6, 0.7, 0.8, 0.9], [0.0, 1.0]]


def encode(columns: dict[str, Any], **fields: Any) -> tuple[list[Any], dict[int, str]]:
    """The steps of every row, and the types of the failures."""
    batch = pa.record_batch(columns)
    spec = input_spec(**{"name": "x", "columns": list(columns), "encoder": "sequence", **fields})
    encoded = bind_inputs([spec], (), batch)[0].encode(batch)
    tensor = encoded.tensors["x"]
    assert isinstance(tensor, Ragged)
    return [row.tolist() for row in tensor.rows()], {row: failure.type for row, failure in encoded.failures.items()}


def test_one_column_a_feature() -> None:
    rows, failures = encode({"s": SALES, "p": PRICE})
    assert not failures
    assert np.allclose(rows[0], [[1.0, 0.1], [2.0, 0.2], [3.0, 0.3]])
    assert [len(row) for row in rows] == [3, 1, 5, 2]


def test_the_last_steps_are_kept() -> None:
    assert encode({"s": SALES}, max_length=2)[0] == [[[2.0], [3.0]], [[4.0]], [[8.0], [9.0]], [[0.5], [0.25]]]


def test_codes() -> None:
    rows, failures = encode({"w": [["a", "b"], ["b"], ["c", "a"], []]}, categories=["a", "b"])
    assert rows[:2] == [[0, 1], [1]]
    assert failures == {2: "UnknownCategory", 3: "WrongLength"}
    assert encode({"w": [["a", "c"]]}, categories=["a", "b"], unknown=2)[0] == [[0, 2]]
    assert encode({"w": [[0, 4], [5]]}, num_categories=5)[1] == {1: "OutOfRange"}


def test_failures_cost_their_own_row() -> None:
    sales: list[Any] = [[1.0], None, [2.0, None], [float("nan")], [], [3.0, 4.0], [5.0]]
    price = [[1.0], [1.0], [1.0, 2.0], [1.0], [], [1.0], [2.0]]
    rows, failures = encode({"s": sales, "p": price})
    assert failures == {1: "NullValue", 2: "NullValue", 3: "NotFinite", 4: "WrongLength", 5: "WrongLength"}
    assert rows == [[[1.0, 1.0]], [], [], [], [], [], [[5.0, 2.0]]]
    assert encode({"s": sales}, fill=0, min_length=0, allow_nonfinite=True)[1] == {1: "NullValue"}


def test_the_step_at_fault_is_named() -> None:
    batch = pa.record_batch({"s": [[1.0], [2.0, float("inf"), 3.0]]})
    (bound,) = bind_inputs([input_spec(name="x", columns=["s"], encoder="sequence")], (), batch)
    assert bound.encode(batch).failures[1].message.startswith('column "s" holds inf')
    assert bound.encode(batch).failures[1].message.endswith("(step 1)")


@pytest.mark.parametrize(
    ("columns", "fields", "message"),
    [
        ({"s": [1.0]}, {}, "needs a list of steps"),
        ({"s": [[[1.0]]]}, {}, "needs a list of steps"),
        ({"s": [[{"a": 1}]]}, {}, "has no meaning"),
        ({"s": [["a"]], "p": [["b"]]}, {"categories": ["a", "b"]}, "of codes takes one column"),
    ],
)
def test_refusals(columns: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        encode(columns, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 2, "min_length": 3}, "max_length 2 is less than min_length 3"),
        ({"unknown": 1}, "unknown needs categories"),
        ({"categories": ["a", "a"]}, "categories contains a value twice"),
        ({"num_categories": 3, "pad_value": float("inf")}, "must be a whole number"),
        ({"pad": "both"}, "left"),
        ({"shape": [3]}, "Extra inputs"),
    ],
)
def test_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        input_spec(name="x", encoder="sequence", **fields)


def score(model: ModelDir, batch: pa.RecordBatch) -> Scored:
    chunk = with_provenance(batch, "f", 0)
    predictor = Predictor(model.load())
    return Scorer(model, make_plan(model, predictor, chunk, Chain.of(model.spec)), predictor).score(chunk)


def save(folder: Path, module: torch.nn.Module, **fields: Any) -> ModelDir:
    given = {"name": "x", "columns": ["s", "p"], "encoder": "sequence", **fields}
    return ModelDir.save(module, folder / "m", task="regression", inputs=[given])


LISTS = st.lists(st.integers(1, 12), min_size=1, max_size=40)


@pytest.mark.parametrize("kind", ["Packed", "Masked", "LeftPadded"])
def test_an_lstm_as_by_hand(tmp_path: Path, kind: str) -> None:
    module = getattr(sequence_models, kind)()
    fields = {"Packed": {"mask": "lengths"}, "Masked": {"mask": "mask"}, "LeftPadded": {"mask": "mask", "pad": "left"}}[
        kind
    ]
    model = save(tmp_path, module, **fields)
    random = np.random.default_rng(5)
    lengths = random.integers(1, 30, 200)
    sales = [random.normal(size=length).tolist() for length in lengths]
    price = [random.normal(size=length).tolist() for length in lengths]
    scored = score(model, pa.record_batch({"s": sales, "p": price}))
    expected = [
        sequence_models.last_state(module, torch.tensor([one, two]).T) for one, two in zip(sales, price, strict=True)
    ]
    assert np.allclose(scored.predictions.column("prediction").to_numpy(), expected, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(LISTS)
def test_an_answer_does_not_depend_on_the_neighbours(lengths: list[int]) -> None:
    module = sequence_models.Packed()
    steps = pa.array([[float(step) for step in range(length)] for length in lengths])
    batch = pa.record_batch({"s": steps, "p": steps})
    spec = input_spec(name="x", columns=["s", "p"], encoder="sequence", mask="lengths")
    (bound,) = bind_inputs([spec], (), batch)
    found = Predictor(sequence_models.loaded(module)).predict(bound.encode(batch).tensors, padding=bound.padding)
    rows = [torch.tensor([[float(step)] * 2 for step in range(length)]) for length in lengths]
    expected = [sequence_models.last_state(module, row) for row in rows]
    assert np.allclose(found.tensors["output"].flatten().numpy(), expected, atol=1e-6)


def test_embedded_codes(tmp_path: Path) -> None:
    module = sequence_models.Bag()
    given = {"name": "x", "columns": ["w"], "encoder": "sequence", "categories": ["a", "b", "c"], "pad_value": 3}
    model = ModelDir.save(module, tmp_path / "m", task="regression", inputs=[given])
    words = [["a"], ["b", "c", "c"], ["a", "b"]]
    found = score(model, pa.record_batch({"w": words})).predictions.column("prediction").to_numpy()
    table = module.embedding.weight[:, 0].detach().numpy()
    assert np.allclose(found, [sum(table["abc".index(word)] for word in row) for row in words], atol=1e-6)
