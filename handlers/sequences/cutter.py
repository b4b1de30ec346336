"""What `sequences` of a `model.yaml` means for rows of a schema: columns and types, settled before any row is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from handlers.columnar.chunks import NEXT_STEP, NUMBERS, WINDOW
from handlers.encode.columns import match_columns
from handlers.encode.values import is_number
from handlers.errors import UsageError
from handlers.failures import RowFailure, RowFailures
from handlers.model.sequences import Computed, SequencesSpec
from handlers.sequences.keyed_rows import Keys
from handlers.sequences.times import TimeAxis

STAGE = "sequences"


@dataclass(frozen=True)
class WindowCutter:
    """Cuts windows out of rows of a schema, as `sequences` of a `model.yaml` says. Picklable.

    Attributes:
        spec: the field `sequences`.
        schema: of the rows, without provenance.
        computed: the columns that are computed from steps, by name.

    Raises:
        UsageError: for a column that is missing, or of a type that it cannot have.
    """

    spec: SequencesSpec
    schema: pa.Schema
    computed: Mapping[str, Computed] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "computed", {each.name: each for each in self.spec.computed})
        for what, names in (("by", self.spec.by), ("order_by", (self.spec.order_by,))):
            for name in names:
                self._check_known(what, name)
                kind = self.schema.field(name).type
                if pa.types.is_nested(kind):
                    raise UsageError(f'sequences.{what}: column "{name}" holds {kind}, which cannot be compared')
        for computed in self.spec.computed:
            what = "lags" if computed.lag else "rolling" if computed.steps else "aggregates"
            self._check_known(what, computed.column)
            source = self.schema.field(computed.column)
            if computed.function and not (is_number(source.type) or source.metadata == NUMBERS):
                raise UsageError(f'sequences.{what}: column "{computed.column}" holds {source.type}, not numbers')
            if computed.name in self.schema.names:
                raise UsageError(
                    f'sequences.{what} makes a column "{computed.name}", which the input has, too; rename it'
                )
        for name in self.spec.target:
            self._check_known("target", name)
        _ = self.axis, self.columns

    def _check_known(self, what: str, name: str) -> None:
        if name not in self.schema.names:
            known = ", ".join(self.schema.names[:20]) + (", …" if len(self.schema.names) > 20 else "")
            raise UsageError(
                f'sequences.{what} names column "{name}", which the input does not have. There are: {known}'
            )

    @cached_property
    def axis(self) -> TimeAxis:
        """The times of the steps."""
        return TimeAxis(self.spec.order_by, self.schema.field(self.spec.order_by).type, self.spec.step)

    @cached_property
    def keys(self) -> Keys:
        """The columns of the key."""
        return Keys(self.spec.by)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns of a window, each a list of steps."""
        known = dict.fromkeys([*self.schema.names, *self.computed])
        found: dict[str, None] = {}
        for pattern in self.spec.columns:
            matches = match_columns(pattern, known)
            if not matches:
                self._check_known("columns", pattern)
            found |= dict.fromkeys(matches)
        return tuple(found)

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The columns that are forecast."""
        return self.spec.target or self.columns[:1]

    @cached_property
    def needed(self) -> frozenset[str]:
        """The columns without which a row has no window."""
        used = {each.column for each in self.spec.computed} | (set(self.columns) - self.computed.keys())
        return frozenset({*self.spec.by, self.spec.order_by, *used})

    @cached_property
    def window_type(self) -> pa.DataType:
        """The struct of a window: lists for `columns`, and values for the other computed columns."""
        fields = [pa.field(name, self.list_type(self.type_of(name))) for name in self.columns]
        fields += [pa.field(name, self.type_of(name)) for name in self.computed if name not in self.columns]
        return pa.struct(fields)

    @cached_property
    def steps_needed(self) -> int:
        """How many steps there must be up to an anchor: of the shortest window and of what its values look back on."""
        others = [each.lookback for name, each in self.computed.items() if name not in self.columns]
        return max(self.spec.shortest + self.lookback, *(each + 1 for each in others), 1)

    @cached_property
    def lookback(self) -> int:
        """How many steps before a window its computed columns look back on."""
        return max((self.computed[name].lookback for name in self.columns if name in self.computed), default=0)

    def type_of(self, name: str) -> pa.DataType:
        """The type of a value of a column."""
        computed = self.computed.get(name)
        if computed is not None and computed.function:
            return pa.int64() if computed.function == "count" else pa.float64()
        source = self.schema.field(computed.column if computed else name)
        if source.metadata == NUMBERS:
            return pa.float64()
        return source.type.value_type if pa.types.is_dictionary(source.type) else source.type

    def list_type(self, kind: pa.DataType) -> pa.DataType:
        """The type of a window of values: a fixed-size list, unless there are shorter windows."""
        return pa.list_(kind, self.spec.length if self.spec.shortest == self.spec.length else -1)

    def refusals(self, rows: pa.RecordBatch) -> RowFailures:
        """The rows without a key or a time, by their index."""
        failures: RowFailures = {}
        for name, valid in self.keys.valid(rows).items():
            failure = RowFailure(STAGE, "NullKey", f'column "{name}" of the key holds null')
            failures |= dict.fromkeys(np.flatnonzero(~valid).tolist(), failure)
        column = rows.column(self.spec.order_by)
        for row in np.flatnonzero(~self.axis.read(column)[1]).tolist():
            value = column[row].as_py()
            what = "null" if value is None else f'"{str(value)[:40]}", which is no time or number'
            failure = RowFailure(
                STAGE, "NullTime" if value is None else "NotATime", f'column "{self.spec.order_by}" holds {what}'
            )
            failures.setdefault(row, failure)
        return failures

    def order_of(self, rows: pa.RecordBatch) -> np.ndarray:
        """The order of rows by key and time."""
        return np.lexsort((self.axis.read(rows.column(self.spec.order_by))[0], self.keys.hashes(rows)))

    def hidden(
        self, rows: pa.RecordBatch, window: pa.Array | None = None, next_steps: pa.Array | None = None
    ) -> pa.RecordBatch:
        """`rows` with the columns that hold their windows and the steps after these; null where they are not given."""
        count = rows.num_rows
        rows = rows.append_column(WINDOW, pa.nulls(count, self.window_type) if window is None else window)
        if self.spec.horizon is None:
            return rows
        return rows.append_column(NEXT_STEP, pa.nulls(count, self.axis.next_type) if next_steps is None else next_steps)
