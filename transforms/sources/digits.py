"""The digits of numbers in text: which numbers float64 holds, and JSON that is read without losing any.

float64 *holds* a number if it gives the same digits back, written with as many of them: 0.1, 1e30 and 0.100000000000000006
it holds, 9007199254740993 and 1234567890123456.78 it does not. A column of such numbers is carried as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.sources.round_trip import surely_held

# So many digits float64 always holds, in a number that is neither huge nor tiny.
SAFE_DIGITS = 15
_SAFE_INTEGER = 10**SAFE_DIGITS
_TINY = 1e-290
_MAX_DIGITS = 800  # no float64 has more


def is_held(text: str) -> bool:
    """Whether float64 holds the number that `text` is. What is no number, or none that is finite, counts as held."""
    text = text.strip()
    try:
        near = float(text)
    except ValueError:
        return True
    if repr(near) == text:
        return True  # as most programs write floats: this is quickest
    mantissa, mark, _ = text.partition("e")
    if mark and f"{near:.{max(len(mantissa.lstrip('-')) - 2, 0)}e}" == text:
        return True  # as "%.18e" writes all numbers: this is quicker
    try:
        number = Decimal(text)
    except InvalidOperation:
        return False  # of an exponent beyond those of Decimal
    if not number.is_finite() or not number:
        return True
    digits = "".join(map(str, number.as_tuple().digits)).strip("0")
    if len(digits) > _MAX_DIGITS:
        return False
    # Python's own text of a float may be rounded up where a tie is rounded to even otherwise, as of 2**-24.
    return number in (Decimal(repr(near)), Decimal(f"{near:.{len(digits) - 1}e}"))


def held(texts: pa.Array, numbers: pa.Array) -> np.ndarray:
    """Mask of the values of `texts` that float64 holds, `numbers` being what they are as float64; null counts as held."""
    floats = numbers.to_numpy(zero_copy_only=False)
    mask = np.ones(len(texts), dtype=bool)
    if not len(texts):
        return mask
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    starts, ends = offsets[:-1], offsets[1:]
    long = ends - starts > SAFE_DIGITS
    # Floats written in full are long, and nearly all of them pass this check.
    if long.any():
        data = np.frombuffer(texts.buffers()[2], np.uint8)
        long[long] = ~surely_held(data, starts[long], ends[long], floats[long])
    unsure = np.flatnonzero(long | np.isinf(floats) | (np.abs(floats) < _TINY))
    if not len(unsure):
        return mask
    # Most of those that are left, such as 1.5e-07 in full, are the same when they are written again.
    rest, again = texts.take(pa.array(unsure)), numbers.take(pa.array(unsure)).cast(texts.type)
    differs = pc.fill_null(pc.not_equal(rest, again), False).to_numpy(zero_copy_only=False)
    unsure = unsure[differs]
    left = rest.filter(pa.array(differs)).to_pylist()
    verdicts = {text: is_held(text) for text in set(left)}
    mask[unsure] = [verdicts[text] for text in left]
    return mask


class Literal(float):
    """A number with a fraction or an exponent, as JSON has it; `text` is how it is written."""

    __slots__ = ("text",)

    text: str

    def __new__(cls, text: str) -> Literal:
        """The number that `text` is."""
        number = super().__new__(cls, text)
        number.text = text
        return number


def loads(line: str | bytes) -> Any:
    """The value that a JSON text is, its fractions as `Literal`. Raises as `json.loads` does."""
    return json.loads(line, parse_float=Literal)


def dumps(value: object) -> str:
    """The JSON text of a value, its numbers as they were written; what JSON has no type for becomes text."""
    if isinstance(value, Literal):
        return value.text
    if isinstance(value, dict):
        members = (f"{json.dumps(str(key), ensure_ascii=False)}: {dumps(each)}" for key, each in value.items())
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value, default=str, ensure_ascii=False)


def is_number(value: object) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def keeps_digits(value: object, kind: pa.DataType) -> bool:
    """Whether float64 holds those numbers in a value that are floats in a column of type `kind`."""
    if pa.types.is_floating(kind):
        if isinstance(value, int):
            return -_SAFE_INTEGER < value < _SAFE_INTEGER or is_held(_integer_text(value))
        if isinstance(value, Literal):
            return is_held(value.text)
        return not isinstance(value, str | Decimal) or is_held(str(value))
    if pa.types.is_list(kind) and isinstance(value, list):
        return all(keeps_digits(item, kind.value_type) for item in value)
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return all(keeps_digits(value.get(each.name), each.type) for each in kind)
    return True


def has_floats(kind: pa.DataType) -> bool:
    """Whether values of type `kind` are floats or have some within."""
    if pa.types.is_list(kind):
        return has_floats(kind.value_type)
    if pa.types.is_struct(kind):
        return any(has_floats(each.type) for each in kind)
    return bool(pa.types.is_floating(kind))


def number_texts(values: Iterable[object], kind: pa.DataType) -> pa.Array:
    """JSON values as a column of type `kind`, string or lists of it; numbers become text as they are written.

    Raises `TypeError` for a value that is neither null, a number nor text, or has another depth.
    """

    def text(value: object, kind: pa.DataType) -> object:
        if value is None:
            return None
        if pa.types.is_list(kind):
            if isinstance(value, list):
                return [text(item, kind.value_type) for item in value]
        elif isinstance(value, str):
            return value
        elif is_number(value):
            return dumps(value)
        raise TypeError(f"{dumps(value)} is no number")

    return pa.array([text(value, kind) for value in values], kind)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _integer_text(value: int) -> str:
    # Python refuses to write integers of more than 4,300 digits.
    return "1e999" if abs(value) >= 1 << 1024 else str(value)
