"""Splits rows among models by a hash of a column that is the same in every process, run and version."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

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
    encoded = as_texts(column).dictionary_encode()
    values = np.array([str(value) for value in encoded.dictionary.to_pylist()], dtype=object)
    hashed = pd.util.hash_array(values, categorize=False) if len(values) else np.zeros(0, np.uint64)
    of_null = pd.util.hash_array(np.array([""], dtype=object), categorize=False)
    hashed = np.concatenate([hashed, of_null])
    indices = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False).astype(np.int64)
    uniform: np.ndarray = (hashed[indices] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform


def as_texts(column: pa.Array) -> pa.Array:
    """`column` as text; whole floats without a fraction, as integers are written."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        return column
    try:
        if pa.types.is_floating(column.type):
            return column.cast(pa.int64()).cast(pa.string())
    except pa.ArrowInvalid:  # with fractions
        pass
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # bytes that are no text, lists
        return pa.array([None if value is None else repr(value) for value in column.to_pylist()], pa.string())
