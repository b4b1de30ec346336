"""The column that orders the rows of a key: reading its values, the distance of steps, and the steps after the last one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from handlers.errors import UsageError
from handlers.model.sequences import STEP

_NO_TIME = np.iinfo(np.int64).min
_UNITS = {"s": "s", "min": "m", "h": "h", "d": "D", "w": "W"}
_MONTH = "mo"


@dataclass(frozen=True)
class TimeAxis:
    """The values of `order_by` as numbers that can be compared.

    Attributes:
        column: its name.
        type: of the column: integers, floats, dates, timestamps, or text of ISO 8601 (without an offset it is UTC).
        step: the distance of two steps, as in `SequencesSpec`.

    Raises:
        UsageError: for a column of another type, or a `step` that does not go with it.
    """

    column: str
    type: pa.DataType
    step: int | float | str | None = None

    def __post_init__(self) -> None:
        if pa.types.is_dictionary(self.type):
            object.__setattr__(self, "type", self.type.value_type)
        kind = self.type
        readable = pa.types.is_integer(kind) or pa.types.is_floating(kind) or self._is_time or self._is_text
        if not readable:
            raise UsageError(
                f'sequences.order_by: column "{self.column}" holds {kind}; it must hold numbers, dates, timestamps or '
                "text of them, as 2026-01-31"
            )
        if self.step is not None and isinstance(self.step, str) != (self._is_time or self._is_text):
            wanted = "a time, as 1d" if not isinstance(self.step, str) else "a number"
            raise UsageError(
                f'sequences.step: column "{self.column}" holds {kind}, so step must be {wanted}, not {self.step}'
            )
        if pa.types.is_integer(kind) and isinstance(self.step, float):
            raise UsageError(f'sequences.step: column "{self.column}" holds {kind}, so step must be a whole number')
        self._fixed_step()

    @property
    def next_type(self) -> pa.DataType:
        """The type of the steps after the last one: that of the column, int64 for integers and float64 for floats."""
        if pa.types.is_integer(self.type):
            return pa.int64()
        return pa.float64() if pa.types.is_floating(self.type) else pa.string() if self._is_text else self.type

    def read(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """The values of `array` as int64 (float64 for floats) of (rows,), and the mask of those that are values.

        Those that are not (null, NaN, text that is no time) are some number.
        """
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        if self._is_text:
            return _parsed(array)
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_floating(array.type):
            floats = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
            return floats, valid & np.isfinite(floats)
        if pa.types.is_uint64(array.type):
            fits = pc.less_equal(array, pa.scalar(np.iinfo(np.int64).max, pa.uint64()))
            valid = valid & pc.fill_null(fits, False).to_numpy(zero_copy_only=False)
            array = array.cast(pa.int64(), safe=False)
        elif pa.types.is_date32(array.type):
            array = array.view(pa.int32())
        elif self._is_time:
            array = array.view(pa.int64())
        return pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False), valid

    def after(self, times: np.ndarray, widths: np.ndarray, known: np.ndarray, rows: pa.Array) -> pa.Array:
        """The first step after each of `times`, of `next_type`; null where there is none.

        Args:
            times: as `read` gives them.
            widths: the distance of steps in the key of each, which `step` overrides.
            known: mask of the `widths` that are known.
            rows: the values of the column that were read as `times`.
        """
        months, fixed = self._months, self._fixed_step()
        if months is not None:
            found, valid = self._months_after(times, months), np.ones(len(times), bool)
        else:
            found = times + (widths if fixed is None else fixed)
            valid = known | (fixed is not None)
        if pa.types.is_floating(self.type):
            return pa.array(found, mask=~valid)
        valid &= found > times  # it may be more than int64 holds
        if self._is_text:
            return _written(found, valid, rows)
        if pa.types.is_date32(self.type):
            valid &= found <= np.iinfo(np.int32).max
            return pa.array(np.where(valid, found, 0).astype(np.int32), mask=~valid).view(self.type)
        found_array = pa.array(found, mask=~valid)
        return found_array.view(self.type) if self._is_time else found_array

    @property
    def _is_time(self) -> bool:
        return bool(pa.types.is_date(self.type) or pa.types.is_timestamp(self.type))

    @property
    def _is_text(self) -> bool:
        return bool(pa.types.is_string(self.type) or pa.types.is_large_string(self.type))

    @property
    def _unit(self) -> str:
        if pa.types.is_timestamp(self.type):
            return str(self.type.unit)
        return "D" if pa.types.is_date32(self.type) else "ms" if pa.types.is_date64(self.type) else "us"

    @property
    def _months(self) -> int | None:
        """The step in months, where that is its unit: months differ in length."""
        match = STEP.fullmatch(self.step) if isinstance(self.step, str) else None
        return int(match[1]) if match and match[2] == _MONTH else None

    def _fixed_step(self) -> int | float | None:
        """The step in units of the column; None if it is not given, or is given in months."""
        if not isinstance(self.step, str):
            return self.step
        if self._months is not None:
            return None
        match = STEP.fullmatch(self.step)
        assert match  # noqa: S101 - checked by the spec
        units = np.timedelta64(int(match[1]), _UNITS[match[2]]) / np.timedelta64(1, self._unit)  # type: ignore[call-overload]
        if not float(units).is_integer():
            raise UsageError(
                f'sequences.step: {self.step} is less than the unit of column "{self.column}", a {self.type}'
            )
        return int(units)

    def _months_after(self, times: np.ndarray, months: int) -> np.ndarray:
        """The same day and time some months later, or the last day of that month."""
        unit = f"M8[{self._unit}]"
        moments = times.view(unit)
        days = moments.astype("M8[D]")
        start = days.astype("M8[M]")
        later = start + months
        last = (later + 1).astype("M8[D]") - later.astype("M8[D]") - 1
        day = np.minimum(days - start.astype("M8[D]"), last)
        found: np.ndarray = ((later.astype("M8[D]") + day).astype(unit) + (moments - days.astype(unit))).view(np.int64)
        return found


def typical_widths(times: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median distance of the steps of each key, and the mask of the keys of more than one step.

    Args:
        times: of all keys one after the other, ascending in each.
        starts: int64 of (keys,): the index of the first step of each.
    """
    sizes = np.diff(np.append(starts, len(times)))
    known = sizes > 1
    widths = np.zeros(len(starts), times.dtype)
    if known.any():
        keys = np.repeat(np.arange(len(starts)), sizes)
        inside = keys[1:] == keys[:-1]
        distances, keys = np.diff(times)[inside], keys[1:][inside]
        ordered = distances[np.lexsort((distances, keys))]
        counts = (sizes - 1)[known]
        # The lower one of two in the middle, so that it is a distance that occurs.
        widths[known] = ordered[np.cumsum(counts) - counts + (counts - 1) // 2]
    return widths, known


def _parsed(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Text of ISO 8601 as microseconds since 1970-01-01 UTC; equal texts are parsed once."""
    encoded = array.dictionary_encode()
    texts = pd.Series(encoded.dictionary.to_pylist(), dtype=object)
    moments = pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True).dt.as_unit("us")
    numbers = moments.to_numpy(dtype="M8[us]").view(np.int64)
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    found = np.append(numbers, _NO_TIME)[codes]  # -1 is the last one
    return found, found != _NO_TIME


def _written(times: np.ndarray, valid: np.ndarray, rows: pa.Array) -> pa.Array:
    """Microseconds as text of the form that `rows` have: a date alone where they are dates, `Z` where they have an offset."""

    def text(micros: int, like: str) -> str | None:
        try:
            moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros)
        except OverflowError:
            return None
        if len(like) <= 10 and not micros % 86_400_000_000:
            return moment.date().isoformat()
        zone = "Z" if like.endswith("Z") or "+" in like[10:] or "-" in like[10:] else ""
        return moment.replace(tzinfo=None).isoformat(sep=" " if " " in like else "T") + zone

    found = zip(times.tolist(), valid.tolist(), rows.to_pylist(), strict=True)
    return pa.array([text(micros, like) if fine else None for micros, fine, like in found], pa.string())
