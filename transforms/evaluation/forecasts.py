"""Adds to forecasts the actual values of each horizon, and the baselines that a forecast has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import PCollection

from handlers.columnar.chunks import single_batch
from transforms.evaluation.compare import keys_of
from transforms.evaluation.plan import ACTUAL, FORECAST, FORECAST_FROM, LAST_VALUE, SEASONAL_NAIVE

_FORECASTS, _ACTUALS = "forecasts", "actuals"


@dataclass(frozen=True)
class Series:
    """Which rows are a time series.

    Attributes:
        value: the column that is forecast.
        order_by: the column of the time: integers, dates, timestamps, or text of ISO 8601.
        by: the columns whose values identify a series; none if all rows are one series.
        season: steps of a season, for the seasonal-naive baseline; None leaves it out.
    """

    value: str
    order_by: str
    by: tuple[str, ...] = ()
    season: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the actual values are read from."""
        return tuple(dict.fromkeys((*self.by, self.order_by, self.value)))

    @property
    def baselines(self) -> tuple[str, ...]:
        """The baselines, each the name of a column that `with_actuals` adds."""
        return (LAST_VALUE, SEASONAL_NAIVE) if self.season else (LAST_VALUE,)


def with_actuals(forecasts: pa.RecordBatch, actuals: pa.RecordBatch | None, series: Series) -> pa.RecordBatch:
    """Adds to forecasts the values that they are compared with.

    The time of step h (from 0) is `forecast_from` + h × (`forecast_from` − the time of the row). Values are looked up by
    series and time; a time without a row gives NaN, and of several rows with one time any one counts.

    Args:
        forecasts: rows with the columns of the series but its value, `forecast` (lists of numbers) and `forecast_from`.
        actuals: rows with all columns of the series; None if there are no rows.
        series: which rows are a series.

    Returns:
        `forecasts` with columns of lists of float64, one value for each step of the forecast: `actual`, and each of
        `series.baselines`. Last value: the value at the time of the row. Seasonal naive: the value at the latest time
        up to that of the row that is a whole number of seasons before the step (Hyndman and Athanasopoulos,
        Forecasting: Principles and Practice, 3rd edition, 5.2).
    """
    known = pl.DataFrame(schema={"key": pl.UInt64, "time": pl.Int64, "value": pl.Float64})
    if actuals is not None:
        value = pl.Series(actuals.column(series.value).cast(pa.float64(), safe=False))
        found = {"key": keys_of(actuals, series.by), "time": _times(actuals.column(series.order_by)), "value": value}
        known = pl.DataFrame(found).drop_nulls("time").unique(["key", "time"])
    keys = keys_of(forecasts, series.by)
    now, first = (_times(forecasts.column(name)) for name in (series.order_by, FORECAST_FROM))
    step = first - now
    lengths = pc.fill_null(pc.list_value_length(forecasts.column(FORECAST)), 0).to_numpy(zero_copy_only=False)
    steps = int(lengths.max(initial=0))

    def values(times: pl.Series) -> np.ndarray:
        wanted = pl.DataFrame({"key": keys, "time": pl.select(pl.when(step > 0).then(times)).to_series()})
        joined = wanted.join(known, on=["key", "time"], how="left", maintain_order="left")
        return joined["value"].fill_null(float("nan")).to_numpy()

    def lists(columns: Sequence[np.ndarray]) -> pa.Array:
        flat = pa.array(np.column_stack(columns).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, steps).cast(pa.list_(pa.float64()))

    if not steps:
        empty = pa.nulls(forecasts.num_rows, pa.list_(pa.float64()))
        found = dict.fromkeys((ACTUAL, *series.baselines), empty)
    else:
        found = {
            ACTUAL: lists([values(first + step * ahead) for ahead in range(steps)]),
            LAST_VALUE: lists([values(now)] * steps),
        }
        if series.season:
            season = series.season
            back = [ahead - season * (ahead // season + 1) for ahead in range(steps)]
            found[SEASONAL_NAIVE] = lists([values(first + step * ahead) for ahead in back])
    for name, array in found.items():
        forecasts = forecasts.append_column(name, array)
    return forecasts


def _times(array: pa.Array) -> pl.Series:
    """Times as int64: integers as they are, dates, timestamps and ISO 8601 texts as microseconds; null if there is none."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if not pa.types.is_integer(kind):
        array = array.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False)
    return pl.Series(array.cast(pa.int64()))


def can_be_time(kind: pa.DataType) -> bool:
    """Whether `order_by` may be of that type."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    kinds = ("integer", "date", "timestamp", "string", "large_string")
    return any(getattr(pa.types, f"is_{name}")(value) for name in kinds)


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
@dataclass
class _ByBucket(beam.DoFn):
    """Cuts chunks by series, so that all rows of a series meet."""

    by: tuple[str, ...]
    columns: tuple[str, ...]
    buckets: int

    def process(self, chunk: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        bucket = (keys_of(chunk, self.by) % np.uint64(self.buckets)).astype(np.int64)
        chunk = chunk.select([name for name in self.columns if name in chunk.schema.names])
        for number in np.unique(bucket).tolist():
            yield number, chunk.take(pa.array(np.flatnonzero(bucket == number)))


@dataclass
class _Join(beam.DoFn):
    series: Series

    def process(self, bucket: tuple[int, Mapping[str, Any]]) -> Iterator[pa.RecordBatch]:
        sides = bucket[1]
        if not (forecasts := list(sides[_FORECASTS])):
            return
        rows = single_batch(pa.Table.from_batches(forecasts))
        actuals: pa.RecordBatch | None = rows
        if _ACTUALS in sides:
            others = list(sides[_ACTUALS])
            actuals = single_batch(pa.Table.from_batches(others)) if others else None
        yield with_actuals(rows, actuals, self.series)


@dataclass(eq=False)
class JoinActuals(beam.PTransform[Any, Any]):
    """Chunks with forecasts, or `(forecasts, actuals)`, to chunks with the columns that `with_actuals` adds.

    Attributes:
        series: which rows are a series. Without `actuals` the forecasts carry its value.
        kept: columns of the forecasts that are needed later; the others are not shuffled.
        buckets: parts in which rows are joined, each in the memory of one worker. A series is in one of them.
    """

    series: Series
    kept: tuple[str, ...]
    buckets: int

    def expand(self, rows: PCollection[Any] | tuple[PCollection[Any], PCollection[Any]]) -> PCollection[Any]:
        """Groups by series and joins."""
        forecasts, *actuals = rows if isinstance(rows, tuple) else (rows,)
        columns = tuple(dict.fromkeys((*self.series.columns, FORECAST, FORECAST_FROM, *self.kept)))
        by = self.series.by
        sides = {_FORECASTS: forecasts | "Forecasts" >> beam.ParDo(_ByBucket(by, columns, self.buckets))}
        for each in actuals:
            sides[_ACTUALS] = each | "Actuals" >> beam.ParDo(_ByBucket(by, self.series.columns, self.buckets))
        joined: PCollection[Any] = (
            sides | beam.CoGroupByKey() | beam.ParDo(_Join(self.series)).with_output_types(pa.RecordBatch)
        )
        return joined
