"""Which model a row goes to: by its key alone, in every process and version."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from handlers.graph.spec import ModelSplit
from handlers.graph.split import choose

SPLIT = ModelSplit("id", (("a", 0.7), ("b", 0.2), ("c", 0.1)))


def test_shares() -> None:
    chosen = choose(SPLIT, pa.array(range(100_000))).to_pylist()
    for name, share in SPLIT.shares:
        assert abs(chosen.count(name) / 100_000 - share) < 0.005


def test_depends_on_the_value_alone() -> None:
    ids = np.random.default_rng(0).integers(0, 500, 3_000)
    whole = choose(SPLIT, pa.array(ids)).to_pylist()
    known: dict[int, str] = {}
    for key, name in zip(ids.tolist(), whole, strict=True):
        assert known.setdefault(key, name) == name
    assert choose(SPLIT, pa.array(ids[::-1])).to_pylist() == whole[::-1]
    as_text = pa.array([str(key) for key in ids])
    assert choose(SPLIT, as_text).to_pylist() == whole
    assert choose(SPLIT, as_text.dictionary_encode()).to_pylist() == whole
    assert choose(SPLIT, pa.array(ids.astype(np.float64))).to_pylist() == whole
    assert choose(SPLIT, pa.array(ids).slice(100, 50)).to_pylist() == whole[100:150]


def test_never_changes() -> None:
    """Rows of a customer keep their model from one run to the next, whatever the version of a library."""
    halves = ModelSplit("name", (("a", 0.5), ("b", 0.5)))
    names = ["alice", "bob", "carol", "dave", None, "", "erin", "frank", "grace", "heidi"]
    assert "".join(choose(halves, pa.array(names)).to_pylist()) == "abbaaaaaaa"
    assert "".join(choose(halves, pa.array(range(12))).to_pylist()) == "abbbbabababb"


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\xff\x00", b"a", None]),
        pa.array([[1, 2], None, [3]]),
        pa.array([1.5, float("nan"), None]),
        pa.array([], pa.int64()),
        pa.nulls(3),
        pa.array([True, False, None]),
    ],
)
def test_any_type(column: pa.Array) -> None:
    chosen = choose(SPLIT, column)
    assert len(chosen) == len(column)
    assert chosen.null_count == 0
