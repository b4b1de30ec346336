"""A quick look at which decimal numbers float64 surely holds, for whole arrays and without writing any of them again.

A number of `f` digits behind its point is the integer M of all its digits, times 10**-f. Its float64 `x` gives the same
digits back if x * 10**f is nearer to M than to any other integer. The product is computed without an error, as the sum of
two floats (Dekker 1971). Since x is the nearest float64, M is at most 32 away from the product, so that its last two
digits say which integer it is.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 1 << 14  # values whose intermediate results stay in the cache
_POWERS = np.array([float(10**power) for power in range(23)])  # all those that float64 holds
_DIGITS = np.array([1, *(len(str(2**power)) for power in range(64))])  # of 0, and of the powers of two
_MOST = 2.0**58  # ulp(_MOST) / 2 is 32
_SPLITTER = 2.0**27 + 1
_POINT, _MINUS, _ZERO, _E = b".-0e"


def surely_held(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, floats: np.ndarray) -> np.ndarray:
    """Mask of the numbers that float64 surely holds: false also for those that take a closer look.

    Args:
        data: text in bytes, uint8.
        starts: where the numbers begin in it, int64; each is text that can be read as a number.
        ends: where they end, at least 2 behind.
        floats: the nearest float64 of each.
    """
    mask = np.empty(len(floats), bool)
    with np.errstate(all="ignore"):
        for start in range(0, len(floats), _BLOCK):
            part = slice(start, start + _BLOCK)
            mask[part] = _held(data, starts[part], ends[part], np.abs(floats[part]))
    if len(floats):
        # A number with an exponent has other digits at its end, and its point elsewhere.
        first = int(starts[0])
        marks = first + np.flatnonzero((data[first : ends[-1]] | 0x20) == _E)
        rows = np.searchsorted(ends, marks, side="right")
        mask[rows[rows < len(mask)]] = False
    return mask


def _held(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, floats: np.ndarray) -> np.ndarray:
    """As `surely_held`, for numbers of which `floats` are the absolute values, and without a look for exponents."""
    exponents = (floats.view(np.int64) >> 52) - 1022
    digits = _DIGITS.take(exponents, mode="clip")  # before the point
    digits += floats >= _POWERS.take(digits, mode="clip")
    points = starts + digits + (data.take(starts) == _MINUS)
    places = ends - points - 1
    whole = places == -1
    places[whole] = 0
    # With one digit behind the point, the last two are not next to each other.
    mask: np.ndarray = (whole | ((data.take(points, mode="clip") == _POINT) & (places > 1))) & (places < len(_POWERS))
    factors = _POWERS.take(places, mode="clip")
    products = floats * factors
    mask &= products < _MOST
    products[~mask] = 0
    errors = _product_error(floats, factors, products)
    rounded = np.rint(products)
    errors += products - rounded
    correction = np.rint(errors)
    mask &= np.abs(errors - correction) < 0.499  # no tie
    integers = rounded.astype(np.int64) + correction.astype(np.int64)
    integers -= data.take(ends - 1)
    integers -= data.take(ends - 2) * np.int64(10)
    integers += 11 * _ZERO
    mask &= integers // 100 * 100 == integers
    return mask


def _product_error(first: np.ndarray, second: np.ndarray, products: np.ndarray) -> np.ndarray:
    """What `products`, rounded, lack of first * second."""
    first_high, first_low = _split(first)
    second_high, second_low = _split(second)
    error: np.ndarray = first_high * second_high
    error -= products
    error += first_high * second_low
    error += first_low * second_high
    error += first_low * second_low
    return error


def _split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper 26 bits of floats, and what is left."""
    scaled = values * _SPLITTER
    high = scaled - (scaled - values)
    return high, values - high
