"""Arrow arrays of any type as numbers, and which values are null or not numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch

# Nanoseconds in a unit.
UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "days": 86_400 * 10**9}


@dataclass(frozen=True)
class Values:
    """The values of an array as numbers.

    Attributes:
        numbers: (values,); 0 where a value has no number.
        nulls: mask of the values that are null; None without nulls.
        errors: masks of the values that are not a number or code, by the type of error.
    """

    numbers: np.ndarray
    nulls: np.ndarray | None
    errors: dict[str, np.ndarray]


def is_number(kind: pa.DataType) -> bool:
    """Whether `kind` is an integer, floating or decimal type."""
    return is_machine_number(kind) or bool(pa.types.is_decimal(kind))


def is_time(kind: pa.DataType) -> bool:
    """Whether `kind` counts time: a date, timestamp or duration."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_duration(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether `kind` is a type of strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary(kind: pa.DataType) -> bool:
    """Whether `kind` is a type of bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether `kind` is a type of lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def list_lengths(array: pa.Array) -> np.ndarray:
    """How many values each list of `array` holds, those of inner lists together; 0 for null."""
    return flatten(array)[1]


def is_machine_number(kind: pa.DataType) -> bool:
    """Whether numpy has the type too: an integer or a float, not a decimal."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The dtype that values are gathered in: `dtype` itself, and float32 for bfloat16, which numpy lacks."""
    return np.dtype(np.float32 if dtype == torch.bfloat16 else str(dtype).removeprefix("torch."))


def mask_of(array: pa.Array) -> np.ndarray:
    """A boolean array without nulls as a mask."""
    mask: np.ndarray = array.to_numpy(zero_copy_only=False)
    return mask


def without_validity(array: pa.Array) -> pa.Array:
    """An array of machine numbers, flags or times with whatever its buffer has where values are null; a view."""
    if not array.null_count:
        return array
    return pa.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], 0, array.offset)


def numbers_of(array: pa.Array, timestamp: str | None = None, *, exact: bool = False) -> Values:
    """The numbers of an array without lists.

    Times are counted in the unit `timestamp`. With `exact`, whole numbers in text and decimals keep every digit, as
    integers; else they become float64.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return numbers_of(array.dictionary_decode(), timestamp, exact=exact)
    nulls = mask_of(array.is_null()) if array.null_count else None
    if pa.types.is_null(kind):
        return Values(np.zeros(len(array)), nulls, {})
    if is_text(kind):
        return _parsed(array, nulls, exact)
    if is_time(kind):
        return Values(_ticks(array, str(timestamp)), nulls, {})
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(kind):
        array = _whole_decimals(array) if exact else array.cast(pa.float64())
    if nulls is not None:
        if pa.types.is_float16(kind):  # for which Arrow has no fill_null
            array = array.cast(pa.float32())
        array = pc.fill_null(array, pa.scalar(0, array.type))
    return Values(array.to_numpy(zero_copy_only=False), nulls, {})


def _whole_decimals(array: pa.Array) -> pa.Array:
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid:  # a fraction, or more digits than int64 has
        return array.cast(pa.float64())


def _parsed(array: pa.Array, nulls: np.ndarray | None, exact: bool) -> Values:
    """The numbers in an array of text. Arrow's cast fails for the whole column; Polars' fails per value."""
    text = pl.Series(array.cast(pa.large_string())).str.strip_chars()
    floats = text.cast(pl.Float64, strict=False)
    errors = {}
    if floats.null_count() > array.null_count:
        errors["NotANumber"] = floats.is_null().to_numpy() & (True if nulls is None else ~nulls)
    values = Values(floats.fill_null(0.0).to_numpy(), nulls, errors)
    if not exact:
        return values
    # Whole numbers keep the digits that float64 cannot hold; "2.0" and "1e3" are whole too.
    integers = text.cast(pl.Int64, strict=False)
    rest = integers.is_null().to_numpy()
    values = within(values, torch.int64)
    return Values(
        np.where(rest, values.numbers, integers.fill_null(0).to_numpy()),
        nulls,
        {kind: mask & rest for kind, mask in values.errors.items()},
    )


def _ticks(array: pa.Array, unit: str) -> np.ndarray:
    """Times counted in `unit`; since 1970-01-01 UTC, except durations."""
    kind = array.type
    if pa.types.is_date(kind):
        counted = "days" if pa.types.is_date32(kind) else "ms"
        ticks = array.cast(pa.int32()).cast(pa.int64()) if counted == "days" else array.cast(pa.int64())
    else:
        counted, ticks = kind.unit, array.cast(pa.int64())
    numbers: np.ndarray = pc.fill_null(ticks, 0).to_numpy()
    if counted == unit:
        return numbers
    ratio = UNITS[counted] / UNITS[unit]
    if ratio > 1 and np.abs(numbers).max(initial=0) < 2**62 / ratio:
        return numbers * int(ratio)
    return numbers * ratio if ratio > 1 else numbers / (UNITS[unit] // UNITS[counted])


def within(values: Values, dtype: torch.dtype) -> Values:
    """`values` as integers or flags of `dtype`, with errors for those that it cannot hold."""
    numbers, target = values.numbers, numpy_dtype(dtype)
    if numbers.dtype == target:
        return values
    low, high = bounds(dtype)
    if numbers.dtype.kind == "f":
        numbers = numbers.astype(np.float64)
        finite = np.isfinite(numbers)
        whole = finite & (np.floor(numbers) == numbers)
        errors = {"NotFinite": ~finite, "NotAnInteger": finite & ~whole}
        inside = whole & (numbers >= low) & (numbers < high + 1.0)
        errors["OutOfRange"] = whole & ~inside
    else:
        inside = (numbers >= low) & (numbers <= high)
        errors = {"OutOfRange": ~inside}
    if inside.all():
        return Values(numbers.astype(target), values.nulls, values.errors)
    return Values(np.where(inside, numbers, 0).astype(target), values.nulls, values.errors | errors)


def bounds(dtype: torch.dtype) -> tuple[int, int]:
    """The least and the greatest value of an integer dtype, or of flags."""
    if dtype == torch.bool:
        return 0, 1
    info = torch.iinfo(dtype)
    return info.min, info.max


def rounded(numbers: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """A copy of `numbers` in `numpy_dtype(dtype)`, with rows one after the other; what overflows becomes infinite."""
    with np.errstate(over="ignore"):
        return numbers.astype(numpy_dtype(dtype), order="C")


def any_of(masks: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Where any of `masks`, each of (count,), is set."""
    mask: np.ndarray = np.logical_or.reduce([np.zeros(count, dtype=bool), *masks.values()])
    return mask


def flatten(array: pa.Array, sizes: tuple[int, ...] | None = None) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """The values of lists, of lists inside them too: all one after the other, how many each row has, and a mask.

    With `sizes`, one for every level, the mask tells which rows have lists of just these lengths at every level.
    """
    # flatten() skips the values behind a null list, so they must not count.
    lengths: np.ndarray = pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64)
    if array.null_count:
        lengths = np.where(mask_of(array.is_null()), 0, lengths)
    right = np.ones(len(lengths), dtype=bool) if sizes is None else lengths == sizes[0]
    inner = array.flatten()
    if not is_list(inner.type):
        return inner, lengths, right
    flat, inner_lengths, inner_right = flatten(inner, None if sizes is None else sizes[1:])
    ends = np.cumsum(lengths)
    return flat, _sums(inner_lengths, lengths, ends), right & (_sums(~inner_right, lengths, ends) == 0)


def _sums(values: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sums of runs of `values` that have these lengths and end there."""
    total = np.concatenate([[0], np.cumsum(values)])
    sums: np.ndarray = total[ends] - total[ends - lengths]
    return sums


def depth(kind: pa.DataType) -> int:
    """How many lists are around a value of type `kind`."""
    return 1 + depth(kind.value_type) if is_list(kind) else 0


def has_numbers(kind: pa.DataType) -> bool:
    """Whether values of type `kind`, inside of lists and dictionaries, can be numbers: numbers, flags, text, times, null."""
    kind = innermost(kind)
    plain = is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind) or is_text(kind)
    return bool(plain or is_time(kind))


def innermost(kind: pa.DataType) -> pa.DataType:
    """The type of the values inside of lists and dictionaries."""
    while pa.types.is_dictionary(kind) or is_list(kind):
        kind = kind.value_type
    return kind
