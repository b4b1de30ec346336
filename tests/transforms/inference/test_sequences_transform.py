"""The transform `Sequences` in a pipeline of one's own."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that

from handlers.errors import UsageError
from transforms import Sequences
from transforms.accounting import total

ROWS = pa.table({"key": ["a", "b", "a", "a", None], "t": [3, 1, 1, 2, 1], "v": [3.0, 9.0, 1.0, 2.0, 0.0]})


def test_windows_dead_letters_and_counts() -> None:
    def windows(found: list[pa.RecordBatch]) -> None:
        rows = sorted((row for chunk in found for row in chunk.to_pylist()), key=lambda row: row["t"])
        assert rows == [
            {"key": "a", "t": 2, "v": [1.0, 2.0], "forecast_from": 3},
            {"key": "a", "t": 3, "v": [2.0, 3.0], "forecast_from": 4},
        ]

    def dead(found: list[pa.RecordBatch]) -> None:
        rows = [row for chunk in found for row in chunk.to_pylist()]
        assert sorted((row["dead_letter"]["type"], row["v"]) for row in rows) == [("NullKey", 0.0), ("TooShort", 9.0)]

    def counts(found: list[object]) -> None:
        all_rows = total(found)  # type: ignore[arg-type]
        assert (all_rows.rows_scored, all_rows.rows_dropped, all_rows.rows_dead) == (2, 1, 2)

    with beam.Pipeline("FnApiRunner") as pipeline:
        spec = {"by": "key", "order_by": "t", "columns": "v", "length": 2, "horizon": 1}
        found = pipeline | beam.Create([ROWS.slice(0, 2), ROWS.slice(2)]) | Sequences(spec, ROWS.schema)
        assert_that(found.windows, windows, label="windows")
        assert_that(found.dead_letters, dead, label="dead")
        assert_that(found.counts, counts, label="counts")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, 'sequences: field "length"'),
        ({"lenght": 2}, 'sequences: unknown field "lenght"'),
        ({"by": "shop"}, 'sequences.by names column "shop"'),
    ],
)
def test_wrong_fields(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sequences({"by": "key", "order_by": "t", "columns": "v", "length": 2, **fields}, ROWS.schema)
