"""The field `sequences` of `model.yaml`: how rows become windows of a key. Imports neither torch nor Arrow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, model_validator

STEP = re.compile(r"([1-9]\d*) ?(s|min|h|d|w|mo)")

Function = Literal["mean", "sum", "min", "max"]
KeyFunction = Literal["mean", "sum", "min", "max", "count"]
Size = Annotated[StrictInt, Field(gt=0)]


def _as_list(value: object) -> object:
    """A single value as a list of it, so that `by: product` and `by: [product]` are the same."""
    return [value] if isinstance(value, str | int) else value


Name = Annotated[StrictStr, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_list)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RollingSpec(_Strict):
    """Statistics of the last steps of a key, the current one included.

    Attributes:
        columns: columns of numbers.
        steps: how many steps.
        functions: of `mean`, `sum`, `min` and `max`.
    """

    columns: Annotated[Names, Field(min_length=1)]
    steps: Size
    functions: Annotated[tuple[Function, ...], BeforeValidator(_as_list), Field(min_length=1)]


class SequencesSpec(_Strict):
    """How rows become windows of a key; docs/sequences.md describes every field.

    A step is a row of a key that is not a duplicate; a window is the last `length` steps up to its anchor row.

    Attributes:
        by: the columns of the key.
        order_by: the column of times, or of step numbers, by which the rows of a key are ordered.
        columns: names and patterns of the columns that become lists of steps; computed columns may be among them.
        length: steps of a window.
        min_length: steps of the shortest window, at the start of a key; `length` by default.
        stride: steps from one anchor to the next.
        windows: `all`, or only the `last` one of each key.
        horizon: steps of a forecast.
        target: the columns that are forecast; the first of `columns` by default.
        step: the distance of two steps: a number, or a time such as `15min`, `2h`, `1d`, `1w`, `1mo`; by default the median
            distance in the key.
        duplicates: which row of equal key and time is used: the `last` one read, the `first`, or none (`error`).
        lags: columns `COLUMN_lag_N`: the value of N steps before.
        rolling: columns `COLUMN_FUNCTION_N`: a statistic of the last N steps.
        aggregates: columns `COLUMN_key_FUNCTION`: a statistic of the key's steps so far.
        max_rows_per_key: a key of more rows becomes dead letters.
    """

    by: Annotated[Names, Field(min_length=1)]
    order_by: Name
    columns: Names = ()
    length: Size = 1
    min_length: Size | None = None
    stride: Size = 1
    windows: Literal["all", "last"] = "all"
    horizon: Size | None = None
    target: Names = ()
    step: Annotated[StrictInt | StrictFloat | StrictStr, Field(union_mode="left_to_right")] | None = None
    duplicates: Literal["last", "first", "error"] = "last"
    lags: dict[Name, Annotated[tuple[Size, ...], BeforeValidator(_as_list), Field(min_length=1)]] = {}
    rolling: tuple[RollingSpec, ...] = ()
    aggregates: dict[Name, Annotated[tuple[KeyFunction, ...], BeforeValidator(_as_list), Field(min_length=1)]] = {}
    max_rows_per_key: Size = 10_000_000

    @model_validator(mode="after")
    def _fits(self) -> SequencesSpec:
        if not (self.columns or self.computed):
            raise ValueError("columns is missing; name the columns of the windows, or give lags, rolling or aggregates")
        if self.columns and "length" not in self.model_fields_set:
            raise ValueError("length is missing; write how many steps a window has")
        if self.min_length is not None and self.min_length > self.length:
            raise ValueError(f"min_length {self.min_length} is more than length {self.length}")
        if self.order_by in self.by:
            raise ValueError(f'order_by "{self.order_by}" is in by, too')
        for name in ("by", "columns", "target"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} has a column twice")
        names = [computed.name for computed in self.computed]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f'the computed column "{twice[0]}" is given twice')
        if isinstance(self.step, str):
            if not STEP.fullmatch(self.step):
                raise ValueError(
                    f'step "{self.step}" is no time; write it as 30s, 15min, 2h, 1d, 1w or 1mo, or a number'
                )
        elif self.step is not None and not 0 < self.step < float("inf"):
            raise ValueError(f"step must be more than 0, not {self.step}")
        return self

    @property
    def shortest(self) -> int:
        """Steps of the shortest window."""
        return self.min_length or self.length

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns that are forecast."""
        return self.target or self.columns[:1]

    @property
    def computed(self) -> tuple[Computed, ...]:
        """The columns that are computed from the steps of a key."""
        return tuple(self._computed())

    def _computed(self) -> Iterator[Computed]:
        for column, lags in self.lags.items():
            for lag in lags:
                yield Computed(name=f"{column}_lag_{lag}", column=column, lag=lag)
        for each in self.rolling:
            for column in each.columns:
                for function in each.functions:
                    name = f"{column}_{function}_{each.steps}"
                    yield Computed(name=name, column=column, function=function, steps=each.steps)
        for column, functions in self.aggregates.items():
            for found in functions:
                yield Computed(name=f"{column}_key_{found}", column=column, function=found)

    def given(self) -> dict[str, Any]:
        """The fields as `model.yaml` holds them, without those that have their default."""
        found: Mapping[str, Any] = self.model_dump(exclude_defaults=True, mode="json")
        return dict(found)


class Computed(_Strict):
    """A column that is computed from the steps of a key.

    Attributes:
        name: of the column.
        column: that it is computed from.
        lag: steps back, for the value of an earlier step.
        function: for a statistic.
        steps: that the statistic is of; None for all steps so far.
    """

    name: str
    column: str
    lag: int = 0
    function: KeyFunction | None = None
    steps: int | None = None

    @property
    def lookback(self) -> int:
        """How many steps there must be before a step for which it has a value."""
        return self.lag or (self.steps or 1) - 1
