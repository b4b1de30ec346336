"""Hashes of values that are equal in every process, run and version: for buckets, splits and matching rows.

Each value that occurs in a column is hashed once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_OF_NULL = pd.util.hash_array(np.array([""], dtype=object), categorize=False)


def row_hashes(columns: Iterable[pa.Array], *, as_text: bool = True) -> np.ndarray:
    """uint64 of (rows,): equal for rows whose values in `columns`, one at least, are equal; see `value_hashes`."""
    first, *others = [value_hashes(column, as_text=as_text) for column in columns]
    return reduce(lambda found, more: found * _GOLDEN + more, others, first)


def value_hashes(column: pa.Array, *, as_text: bool = True) -> np.ndarray:
    """uint64 of (rows,): equal for equal values; null is like the empty text.

    With `as_text` values of different types are equal if they are alike as text; without it numbers are hashed as numbers,
    which is quicker.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = pc.add(column, pa.scalar(0.0, column.type))  # one zero
    if pa.types.is_nested(column.type):  # which Arrow has no dictionaries of
        values, codes = column, np.arange(len(column))
        codes[column.is_null().to_numpy(zero_copy_only=False)] = len(column)
    else:
        encoded = column.dictionary_encode()
        values = encoded.dictionary
        codes = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False).astype(np.int64)
    kind = values.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if is_number and not as_text:
        unique = values.to_numpy(zero_copy_only=False)
    else:
        unique = np.array(as_texts(values).to_pylist(), dtype=object)
        unique[unique == None] = ""  # noqa: E711 - of nested values; they are not used
    hashed = pd.util.hash_array(unique, categorize=False) if len(unique) else np.zeros(0, np.uint64)
    found: np.ndarray = np.concatenate([hashed, _OF_NULL])[codes]
    return found


def as_texts(column: pa.Array) -> pa.Array:
    """`column` as text, each value by itself; whole floats without a fraction, as integers are written."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_floating(column.type):
        return _of_floats(column)
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # bytes that are no text, lists
        return pa.array([None if value is None else _text(value) for value in column.to_pylist()], pa.string())


def _of_floats(column: pa.Array) -> pa.Array:
    is_whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**63))
    if pc.all(is_whole).as_py() is not False:
        return column.cast(pa.int64()).cast(pa.string())
    whole = pc.if_else(is_whole, column, pa.scalar(None, column.type)).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(whole, column.cast(pa.string()))


def _text(value: object) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return repr(value)
