"""The fingerprint of the rows that a model was trained on: which later data is compared with.

It is small and contains no rows: the share of nulls of each column, the deciles of numbers, and the share of each category. It is
in `training.json` of a model directory, next to what else training writes there:

    {"fingerprint": {
        "rows": 100000,
        "columns": {
            "age": {"kind": "numeric", "nulls": 0.01, "edges": [23.0, 31.5], "shares": [0.3, 0.4, 0.3]},
            "country": {"kind": "categorical", "nulls": 0.0, "shares": {"NL": 0.7, "BE": 0.29}, "other": 0.01}}}}

`shares` are those of the values that are not null. A number x is in bin i where `edges[i-1] < x <= edges[i]`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handlers.errors import UsageError
from handlers.train.inputs import is_id

FILE = "training.json"
KEY = "fingerprint"
BINS = 10
MAX_CATEGORIES = 1000


@dataclass(frozen=True)
class Numeric:
    """A column of numbers, flags excluded: inner edges of its bins, ascending, and the share of values in each."""

    nulls: float
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    kind: str = "numeric"


@dataclass(frozen=True)
class Categorical:
    """A column of texts or flags: the share of each value, of the most frequent `MAX_CATEGORIES`, and of all `other` values."""

    nulls: float
    shares: dict[str, float]
    other: float = 0.0
    kind: str = "categorical"


@dataclass(frozen=True)
class Fingerprint:
    """Statistics of the training rows, by column."""

    rows: int
    columns: dict[str, Numeric | Categorical] = field(default_factory=dict)

    @staticmethod
    def of(table: pa.Table) -> Fingerprint:
        """The fingerprint of `table`, or of a sample of the training rows.

        Lists and other nested columns are left out, and so are ids: new rows have new ones, which is not drift.
        """
        columns = {name: _column(table.column(name)) for name in table.column_names if not _is_id(table, name)}
        return Fingerprint(table.num_rows, {name: column for name, column in columns.items() if column is not None})

    def as_json(self) -> dict[str, Any]:
        """What goes into `training.json` under `KEY`."""
        return {"rows": self.rows, "columns": {name: asdict(column) for name, column in self.columns.items()}}

    @staticmethod
    def parse(text: str, path: str) -> Fingerprint | None:
        """The fingerprint in a `training.json`; None where it has none. Raises `UsageError` where it cannot be read."""
        try:
            content = json.loads(text).get(KEY)
            if content is None:
                return None
            columns = {name: _parsed(dict(column)) for name, column in content["columns"].items()}
            return Fingerprint(int(content["rows"]), columns)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} has no valid fingerprint: {type(error).__name__}: {error}") from None


def _parsed(column: dict[str, Any]) -> Numeric | Categorical:
    if column["kind"] == "numeric":
        found = Numeric(float(column["nulls"]), tuple(map(float, column["edges"])), tuple(map(float, column["shares"])))
        if len(found.shares) != len(found.edges) + 1 or list(found.edges) != sorted(found.edges):
            raise ValueError("a numeric column needs ascending edges and one share more")
        return found
    if column["kind"] != "categorical":
        raise ValueError(f'unknown kind "{column["kind"]}"')
    shares = {str(value): float(share) for value, share in column["shares"].items()}
    return Categorical(float(column["nulls"]), shares, float(column.get("other", 0.0)))


def as_numbers(array: pa.Array) -> np.ndarray | None:
    """A column of numbers or dates as float64, NaN for null; None for a column of another kind."""
    kind = array.type
    if pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
        array = array.cast(pa.int64() if pa.types.is_timestamp(kind) or kind.bit_width == 64 else pa.int32())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return None
    return np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def as_categories(array: pa.Array) -> pa.Array | None:
    """A column of texts or flags as strings; None for a column of another kind."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_boolean(array.type) or pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return array.cast(pa.string())
    return None


def _is_id(table: pa.Table, name: str) -> bool:
    column = table.column(name)
    if not len(column) or not pa.types.is_integer(column.type):
        return False
    return is_id(name, column.type, pc.count_distinct(column).as_py(), len(column))


def _column(column: pa.ChunkedArray) -> Numeric | Categorical | None:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    rows = max(len(array), 1)
    if (categories := as_categories(array)) is not None:
        known = categories.drop_null()
        counts = sorted(
            ((value["values"], value["counts"]) for value in pc.value_counts(known).to_pylist()),
            key=lambda pair: (-pair[1], pair[0]),
        )
        kept = {value: count / len(known) for value, count in counts[:MAX_CATEGORIES]}
        other = sum(count for _, count in counts[MAX_CATEGORIES:]) / max(len(known), 1)
        return Categorical(1 - len(known) / rows if len(array) else 0.0, kept, other)
    if (numbers := as_numbers(array)) is None:
        return None
    values = numbers[np.isfinite(numbers)]
    nulls = 1 - len(values) / rows if len(array) else 0.0
    if not len(values):
        return Numeric(nulls, (), (1.0,))
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    shares = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) / len(values)
    return Numeric(nulls, tuple(edges.tolist()), tuple(shares.tolist()))
