"""Hashes of values: stable, equal for equal values, whatever the chunk that they are in."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from handlers.columnar.hashes import as_texts, row_hashes, value_hashes


def of_text(*texts: str) -> list[int]:
    found: list[int] = pd.util.hash_array(np.array(texts, dtype=object)).tolist()
    return found


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array(["a", None, "b", "a"]), ["a", "", "b", "a"]),
        (pa.array(["a", None, "b"]).dictionary_encode(), ["a", "", "b"]),
        (pa.array([2**60 + 1, None]), ["1152921504606846977", ""]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([1.0, -0.0, 1.5, 1e17, float("nan"), None]), ["1", "0", "1.5", "100000000000000000", "nan", ""]),
        (pa.array([0.1, 2.0], pa.float32()), ["0.1", "2"]),
        (pa.array([dt.date(2026, 1, 2)]), ["2026-01-02"]),
        (pa.array([b"ab", b"\xff"]), ["ab", "b'\\xff'"]),
        (pa.array([[1, 2], None, [1, 2]]), ["[1, 2]", "", "[1, 2]"]),
        (pa.array([], pa.string()), []),
    ],
)
def test_values_are_hashed_as_text(column: pa.Array, texts: list[str]) -> None:
    assert value_hashes(column).tolist() == of_text(*texts)
    for row in range(len(column)):  # the other values of a chunk do not matter
        assert value_hashes(column.slice(row, 1)).tolist() == of_text(texts[row])


@pytest.mark.parametrize(
    "column", [pa.array([3, 4, 3]), pa.array([0.0, -0.0, 1.5]), pa.array([True, False]), pa.array(["x", "y"])]
)
def test_numbers_without_text(column: pa.Array) -> None:
    plain: Any = column.to_numpy(zero_copy_only=False)
    expected = pd.util.hash_array(plain + 0.0 if plain.dtype.kind == "f" else plain)
    assert value_hashes(column, as_text=False).tolist() == expected.tolist()


def test_rows() -> None:
    columns = [pa.array([1, 1, 2, 1]), pa.array(["1", "2", "1", "1"])]
    found = row_hashes(columns)
    assert found.dtype == np.uint64
    assert found[0] == found[3]
    assert len(set(found.tolist())) == 3
    assert row_hashes(columns[::-1])[1] != found[1]
    # These values must not change: they split rows and match them in every version.
    assert hashlib.sha256(found.astype("<u8").tobytes()).hexdigest()[:16] == "8bc781f7674f15ba"


def test_texts_of_whole_floats() -> None:
    assert as_texts(pa.array([1.0, 2.0**53, None])).to_pylist() == ["1", "9007199254740992", None]
    assert as_texts(pa.array([1.0, 0.5, None])).to_pylist() == ["1", "0.5", None]
