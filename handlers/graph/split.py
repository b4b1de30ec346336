"""Splits rows among models by a hash of a column that is the same in every process, run and version."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from handlers.columnar.hashes import value_hashes
from handlers.graph.spec import ModelSplit


def choose(split: ModelSplit, column: pa.Array) -> pa.DictionaryArray:
    """The name of the model of each row: equal values of `column` have the same, null included.

    The hash is of the value as text, so that an id has one model whether it is read as a number or as text.
    """
    names = [name for name, _ in split.shares]
    bounds = np.cumsum([share for _, share in split.shares])[:-1]
    codes = np.searchsorted(bounds, _uniform(column), side="right").astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string()))


def _uniform(column: pa.Array) -> np.ndarray:
    """A number of [0, 1) for each value; float64 of (rows,)."""
    uniform: np.ndarray = (value_hashes(column) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform
