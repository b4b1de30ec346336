"""Cutting the rows of some keys into windows: ordered by time, without duplicates, each row accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.columnar.chunks import ROW, SOURCE, other_rows, with_refusals
from handlers.failures import RowFailure
from handlers.sequences.computed import rolling, so_far
from handlers.sequences.cutter import STAGE, WindowCutter
from handlers.sequences.keyed_rows import KeyedRows
from handlers.sequences.times import typical_widths


@dataclass(frozen=True)
class Refused:
    """Rows that are in no window, for one reason each.

    Attributes:
        rows: int64: their indices.
        failures: one for each.
    """

    rows: np.ndarray
    failures: list[RowFailure]


class Steps:
    """The steps of some keys, in order of key and time: rows of equal key and time are one step.

    Args:
        cutter: what is cut.
        rows: all rows of the keys, complete, each with a key, a time and provenance.

    Attributes:
        keys: how many keys there are.
        duplicates: how many rows were left out for another one of the same key and time.
        refused: rows that cannot be in a window.
    """

    def __init__(self, cutter: WindowCutter, rows: KeyedRows) -> None:
        self.cutter = cutter
        self._rows = rows
        codes, times = cutter.keys.codes(rows), self._times()
        order = np.lexsort((*self._as_read(), times, codes))
        codes, times = codes[order], times[order]
        same_key = codes[1:] == codes[:-1]
        same = np.append(same_key & (times[1:] == times[:-1]), False)
        same_before = np.roll(same, 1)
        rule = cutter.spec.duplicates
        kept = ~{"last": same, "first": same_before, "error": same | same_before}[rule]
        clashing = np.zeros(0, np.int64) if rule != "error" else order[~kept]
        self.keys = int((~same_key).sum()) + bool(len(order))
        self.duplicates = 0 if rule == "error" else int((~kept).sum())
        self._order, self._times_of = order[kept], times[kept]
        codes = codes[kept]
        count = len(codes)
        self._starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])[:count])
        sizes = np.diff(np.append(self._starts, count))
        self._key_of = np.repeat(np.arange(len(sizes)), sizes)
        self._at = np.arange(count) - self._starts[self._key_of]
        self._sizes = sizes
        self.refused = self._refuse(clashing)

    def _times(self) -> np.ndarray:
        axis = self.cutter.axis
        return np.concatenate([axis.read(chunk)[0] for chunk in self._rows.column(axis.column).chunks])

    def _as_read(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers and sources: the order in which rows of equal key and time were read."""
        source = self._rows.column(SOURCE).unify_dictionaries()
        names = np.array(source.chunk(0).dictionary.to_pylist(), dtype=object)
        ranks = np.empty(len(names), np.int64)
        ranks[np.argsort(names)] = np.arange(len(names))
        codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in source.chunks])
        return self._rows.column(ROW).to_numpy(), ranks[codes]

    def _refuse(self, clashing: np.ndarray) -> list[Refused]:
        spec, needed = self.cutter.spec, self.cutter.steps_needed
        found = []
        if len(clashing):
            failure = RowFailure(STAGE, "DuplicateTime", f"the key has another row of the same {spec.order_by}")
            found.append(Refused(clashing, [failure] * len(clashing)))
        short, long = self._sizes < needed, self._sizes > spec.max_rows_per_key
        for chosen, kind, why in (
            (short, "TooShort", f"a window needs {needed}"),
            (long & ~short, "TooLong", f"max_rows_per_key is {spec.max_rows_per_key:,}"),
        ):
            steps = np.flatnonzero(chosen[self._key_of])
            sizes = self._sizes[self._key_of[steps]].tolist()
            failures = {
                size: RowFailure(STAGE, kind, f"the key has {size:,} step{'s' * (size != 1)}; {why}")
                for size in set(sizes)
            }
            if len(steps):
                found.append(Refused(self._order[steps], [failures[size] for size in sizes]))
        self._whole = ~(short | long)
        return found

    def anchors(self, *, ahead: int = 0) -> np.ndarray:
        """The steps that are the last one of a window: int64, ascending.

        Args:
            ahead: how many steps there must be behind the window; with some, all windows are taken, not only the last ones.
        """
        spec, needed = self.cutter.spec, self.cutter.steps_needed
        last = self._sizes[self._key_of] - 1 - ahead
        if spec.windows == "last" and not ahead:
            chosen = self._at == last
        else:
            chosen = (self._at >= needed - 1) & ((self._at - (needed - 1)) % spec.stride == 0) & (self._at <= last)
        return np.flatnonzero(chosen & self._whole[self._key_of])

    @property
    def steps_of_windows(self) -> int:
        """How many steps the keys have that are long enough: anchors, and rows that are only context."""
        return int(self._sizes[self._whole].sum())

    def chunks(self, anchors: np.ndarray, max_rows: int, max_bytes: int) -> Iterator[pa.RecordBatch]:
        """The windows of `anchors`, in chunks of at most `max_rows` rows and about `max_bytes` bytes."""
        row_bytes = self._rows.bytes // max(1, len(self._rows)) + 8 * self.cutter.spec.length * len(self.cutter.columns)
        count = max(1, min(max_rows, max_bytes // max(1, row_bytes)))
        for low in range(0, len(anchors), count):
            some = anchors[low : low + count]
            yield self.windows(some)

    def refused_chunks(self, max_rows: int, max_bytes: int) -> Iterator[pa.RecordBatch]:
        """The rows of `refused`, marked."""
        row_bytes = self._rows.bytes // max(1, len(self._rows))
        count = max(1, min(max_rows, max_bytes // max(1, row_bytes)))
        for each in self.refused:
            for low in range(0, len(each.rows), count):
                rows = self.cutter.hidden(self._rows.take(each.rows[low : low + count]))
                yield with_refusals(rows, dict(enumerate(each.failures[low : low + count])))

    def lists(self, name: str, anchors: np.ndarray, lengths: np.ndarray, kind: pa.DataType) -> pa.Array:
        """For each anchor a list of the `lengths` steps up to it, of type `kind`."""
        ends = np.cumsum(lengths)
        steps = np.arange(ends[-1] if len(ends) else 0) + np.repeat(anchors + 1 - ends, lengths)
        values = self._values(name, steps)
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(values, type=kind)
        return pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), values, type=kind)

    def windows(self, anchors: np.ndarray) -> pa.RecordBatch:
        """The rows of `anchors` with their windows, and with the steps after them if the spec has a horizon."""
        cutter = self.cutter
        rows = self._rows.take(self._order[anchors])
        lengths = np.minimum(self._at[anchors] + 1 - cutter.lookback, cutter.spec.length)
        arrays = []
        for column in cutter.window_type:
            if column.name in cutter.columns:
                arrays.append(self.lists(column.name, anchors, lengths, column.type))
            else:
                arrays.append(self._values(column.name, anchors))
        window = pa.StructArray.from_arrays(arrays, fields=list(cutter.window_type))
        after = None
        if cutter.spec.horizon is not None:
            widths, known = self._widths
            keys = self._key_of[anchors]
            after = cutter.axis.after(
                self._times_of[anchors], widths[keys], known[keys], rows.column(cutter.spec.order_by)
            )
        return cutter.hidden(rows, window, after)

    @cached_property
    def _widths(self) -> tuple[np.ndarray, np.ndarray]:
        return typical_widths(self._times_of, self._starts)

    @cached_property
    def _statistics(self) -> dict[str, np.ndarray]:
        """The computed statistics of all steps."""
        found: dict[str, np.ndarray] = {}
        sources: dict[str, np.ndarray] = {}
        for name, computed in self.cutter.computed.items():
            if not computed.function:
                continue
            if computed.column not in sources:
                parts = [_floats(chunk) for chunk in self._rows.column(computed.column).chunks]
                sources[computed.column] = np.concatenate(parts)[self._order]
            values = sources[computed.column]
            if computed.steps:
                found[name] = rolling(values, computed.steps, computed.function)
            else:
                found[name] = so_far(values, self._key_of, computed.function)
        return found

    def _values(self, name: str, steps: np.ndarray) -> pa.Array:
        """The values of a column at `steps`, of the type that the cutter says."""
        kind = self.cutter.type_of(name)
        computed = self.cutter.computed.get(name)
        if computed is not None and computed.function:
            return pa.array(self._statistics[name][steps], kind, from_pandas=True)
        column = computed.column if computed else name
        steps = steps - computed.lag if computed else steps
        low, high = (int(steps.min()), int(steps.max()) + 1) if len(steps) else (0, 0)
        if high - low <= 2 * len(steps):
            rows, inside = self._order[low:high], steps - low
        else:
            used, inside = np.unique(steps, return_inverse=True)
            rows = self._order[used]
        array = self._rows.take(rows, [column]).column(0)
        return _as_kind(array, kind).take(pa.array(inside))


def sample_windows(rows: pa.RecordBatch, cutter: WindowCutter, max_windows: int) -> pa.RecordBatch:
    """Windows of a few rows with provenance, from which a run is planned: `max_windows` at most.

    If no key of the sample is long enough, one window is made of its rows whatever their keys, repeated if need be: a plan
    needs a window of the right length, and only rarely its values. Without any valid row the result is empty.
    """
    refused = cutter.refusals(rows)
    valid = rows.take(pa.array(other_rows(rows.num_rows, refused), pa.int64()))
    if not valid.num_rows:
        return cutter.hidden(valid)
    with KeyedRows() as keyed:
        keyed.add(valid)
        keyed.complete()
        steps = Steps(cutter, keyed)
        anchors = steps.anchors()[:max_windows]
        return steps.windows(anchors) if len(anchors) else _any_window(valid, cutter)


def _any_window(rows: pa.RecordBatch, cutter: WindowCutter) -> pa.RecordBatch:
    arrays = []
    for column in cutter.window_type:
        computed = cutter.computed.get(column.name)
        is_list = column.name in cutter.columns
        count = cutter.spec.length if is_list else 1
        values = rows.column(computed.column if computed else column.name)
        values = _as_kind(values.take(pa.array(np.arange(count) % rows.num_rows)), cutter.type_of(column.name))
        arrays.append(pa.array([values.to_pylist()], column.type) if is_list else values)
    return cutter.hidden(rows.slice(0, 1), pa.StructArray.from_arrays(arrays, fields=list(cutter.window_type)))


def _as_kind(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """`array` as the type of a window's values: without a dictionary, and numbers in text as numbers."""
    if array.type == kind:
        return array
    if pa.types.is_floating(kind):
        return pa.array(_floats(array), kind, from_pandas=True)
    return array.cast(kind, safe=False)


def _floats(array: pa.Array) -> np.ndarray:
    """float64 of (rows,); null is NaN."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    values = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float64)
