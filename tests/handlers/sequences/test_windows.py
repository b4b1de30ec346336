"""Cutting windows: each row once, the same from memory and from files; times, and the steps after them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from handlers.columnar.chunks import NEXT_STEP, ROW, WINDOW, refusals, with_provenance
from handlers.model.sequences import SequencesSpec
from handlers.sequences.cutter import WindowCutter
from handlers.sequences.keyed_rows import KeyedRows
from handlers.sequences.times import TimeAxis, typical_widths
from handlers.sequences.windows import Steps, sample_windows

SPEC: dict[str, Any] = {"by": "key", "order_by": "time", "columns": "value", "length": 3, "horizon": 1}


def cut(rows: pa.RecordBatch, spill_bytes: int = 1 << 30, **fields: Any) -> tuple[Steps, list[pa.RecordBatch], int]:
    """The steps of rows, the chunks of windows and of refused rows, and how many times rows were spilled."""
    cutter = WindowCutter(SequencesSpec(**{**SPEC, **fields}), rows.schema)
    with KeyedRows(cutter.order_of, spill_bytes) as keyed:
        for start in range(0, rows.num_rows, 7):
            keyed.add(with_provenance(rows.slice(start, 7), "rows", np.arange(start, min(start + 7, rows.num_rows))))
        keyed.complete()
        steps = Steps(cutter, keyed)
        chunks = [*steps.chunks(steps.anchors(), 5, 1 << 20), *steps.refused_chunks(5, 1 << 20)]
    return steps, chunks, keyed.spilled


def merged(chunks: list[pa.RecordBatch]) -> list[dict[str, Any]]:
    return [row for chunk in chunks for row in chunk.to_pylist()]


def batch(keys: list[int], times: list[int]) -> pa.RecordBatch:
    return pa.record_batch({"key": keys, "time": times, "value": np.arange(len(keys), dtype=np.float64)})


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=60),
    length=st.integers(1, 4),
    stride=st.integers(1, 3),
    windows=st.sampled_from(["all", "last"]),
    duplicates=st.sampled_from(["last", "first", "error"]),
)
@pytest.mark.hypothesis
def test_each_row_once(rows: list[tuple[int, int]], length: int, stride: int, windows: str, duplicates: str) -> None:
    table = batch([key for key, _ in rows], [time for _, time in rows])
    fields = {"length": length, "stride": stride, "windows": windows, "duplicates": duplicates}
    steps, chunks, _ = cut(table, **fields)
    scored, refused = [], []
    for chunk in chunks:
        marks = refusals(chunk)
        for index, row in enumerate(chunk.column(ROW).to_pylist()):
            (refused if index in marks else scored).append(row)
    assert len(set(scored + refused)) == len(scored) + len(refused)
    context = steps.steps_of_windows - len(scored)
    assert context >= 0
    assert len(rows) == len(scored) + len(refused) + context + steps.duplicates
    spilled_steps, spilled, files = cut(table, spill_bytes=1, **fields)
    assert files > 0
    assert spilled_steps.duplicates == steps.duplicates
    in_order = [sorted(merged(each), key=lambda row: row[ROW]) for each in (spilled, chunks)]
    assert in_order[0] == in_order[1]
    for chunk in chunks:  # the window of an anchor is the last values of its key in order of time
        for row in chunk.to_pylist():
            if row[WINDOW] is None:
                continue
            used: dict[int, float] = {}
            for index, (key, time) in enumerate(rows):
                if key == row["key"] and not (duplicates == "first" and time in used):
                    used[time] = float(index)
            if duplicates != "error":
                values = [used[time] for time in sorted(used) if time <= row["time"]]
                assert row[WINDOW]["value"] == values[-length:]


def test_spilled_rows_leave_no_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    _, _, files = cut(batch([1] * 50, list(range(50))), spill_bytes=100)
    assert files > 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_too_long() -> None:
    _, chunks, _ = cut(batch([1] * 5 + [2] * 3, [*range(5), *range(3)]), max_rows_per_key=4)
    dead = [failure.type for chunk in chunks for failure in refusals(chunk).values()]
    assert dead == ["TooLong"] * 5


def test_sample_of_short_keys_makes_a_window() -> None:
    rows = with_provenance(batch([1, 2], [1, 1]), "rows", 0)
    cutter = WindowCutter(SequencesSpec(**SPEC), batch([1], [1]).schema)
    found = sample_windows(rows, cutter, 10)
    assert found.column(WINDOW).to_pylist() == [{"value": [0.0, 1.0, 0.0]}]
    assert sample_windows(rows.slice(0, 0), cutter, 10).num_rows == 0


@pytest.mark.parametrize(
    ("kind", "step", "times", "expected"),
    [
        (pa.int32(), None, [1, 3, 5], [7]),
        (pa.float64(), None, [0.5, 1.0, 1.5], [2.0]),
        (pa.date32(), None, [dt.date(2026, 1, day) for day in (1, 2, 4)], [dt.date(2026, 1, 5)]),
        (
            pa.date32(),
            "1mo",
            [dt.date(2026, 1, 29), dt.date(2026, 1, 30), dt.date(2026, 1, 31)],
            [dt.date(2026, 2, 28)],
        ),
        (
            pa.timestamp("ms"),
            "15min",
            [dt.datetime(2026, 1, 1, hour) for hour in (1, 2, 3)],
            [dt.datetime(2026, 1, 1, 3, 15)],
        ),
        (pa.string(), None, ["2026-02-26", "2026-02-27", "2026-02-28"], ["2026-03-01"]),
        (
            pa.string(),
            "1h",
            ["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z", "2026-01-01T23:00:00Z"],
            ["2026-01-02T00:00:00Z"],
        ),
    ],
)
def test_the_step_after_the_last_one(kind: pa.DataType, step: Any, times: list[Any], expected: list[Any]) -> None:
    rows = pa.record_batch({"key": [1, 1, 1], "time": pa.array(times, kind), "value": [1.0, 2.0, 3.0]})
    _, chunks, _ = cut(rows, step=step)
    assert chunks[0].column(NEXT_STEP).to_pylist() == expected


def test_the_median_distance() -> None:
    widths, known = typical_widths(np.array([0, 1, 2, 9, 5]), np.array([0, 4]))
    assert (widths.tolist(), known.tolist()) == ([1, 0], [True, False])


def test_text_that_is_no_time() -> None:
    axis = TimeAxis("time", pa.string())
    assert axis.read(pa.array(["2026-01-01", "soon", None]))[1].tolist() == [True, False, False]


def test_a_whole_number_that_int64_does_not_hold_is_no_time() -> None:
    axis = TimeAxis("time", pa.uint64())
    assert axis.read(pa.array([1, 2**64 - 1, None], pa.uint64()))[1].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "length"),
        ({"min_length": 9}, "min_length 9 is more than length 3"),
        ({"by": []}, "by"),
        ({"order_by": "key"}, "is in by, too"),
        ({"columns": []}, "columns is missing"),
        ({"columns": ["value", "value"]}, "columns has a column twice"),
        ({"duplicates": "mean"}, "duplicates"),
        ({"windows": "some"}, "windows"),
        ({"step": "1 fortnight"}, "step"),
        ({"step": -1}, "step must be more than 0"),
        ({"lag": {"value": 1}}, "lag"),
        ({"lags": {"value": 0}}, "lags"),
        ({"rolling": [{"columns": "value", "steps": 2, "functions": "median"}]}, "functions"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SequencesSpec(**{**SPEC, **fields})
