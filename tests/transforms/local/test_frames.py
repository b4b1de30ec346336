"""Rows of every kind to Arrow and back, expected values by hand."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handlers.errors import UsageError
from transforms.local.frames import Frame, frame_of


def table(frame: Frame) -> pa.Table:
    return pa.Table.from_batches(list(frame.batches()), schema=frame.schema)


def odd_frame() -> pd.DataFrame:
    columns = {
        "a": [1.5, np.nan, 2.0],
        "b": pd.array([1, None, 2**62 + 1], dtype="Int64"),
        "c": pd.Categorical(["x", "y", "x"]),
        "t": pd.to_datetime(["2024-01-01", None, "2024-01-03"]).tz_localize("Europe/Berlin"),
        "s": ["u", "v", None],
        "l": [[1], [2, 3], None],
        "f": pd.array([True, None, False], dtype="boolean"),
        "arrow": pd.array([1, 2, 3], dtype="int8[pyarrow]"),
        "sparse": pd.arrays.SparseArray([0, 0, 1]),
        5: [1, 2, 3],
    }
    return pd.DataFrame(columns, index=pd.MultiIndex.from_tuples([("k", 7), ("k", 7), ("m", 9)], names=["p", "q"]))


def test_pandas_has_the_types_of_its_parquet_file_and_comes_back_as_it_was(tmp_path: Any) -> None:
    frame = odd_frame()
    found = frame_of(frame)
    plain = frame.drop(columns="sparse").set_axis([str(each) for each in frame.columns if each != "sparse"], axis=1)
    plain.to_parquet(tmp_path / "x.parquet", index=False)
    written = pq.read_table(tmp_path / "x.parquet")
    for name in plain.columns:
        kind = written.schema.field(name).type
        assert found.schema.field(name).type == (kind.value_type if pa.types.is_dictionary(kind) else kind), name
    assert found.rows == 3
    assert not found.refusals
    back = found.back(table(found).take([0, 2]), np.array([0, 2]), found.schema.names)
    pd.testing.assert_frame_equal(back, frame.iloc[[0, 2]])
    everything = found.back(table(found), np.arange(3), found.schema.names)
    pd.testing.assert_frame_equal(everything, frame)
    everything.loc[:, "a"] = 0.0
    assert frame["a"].iloc[0] == 1.5  # the rows of the caller are not written to


def test_new_and_changed_columns_of_pandas() -> None:
    frame = pd.DataFrame({"a": pd.array([1, 2], "Int64"), "b": ["x", "y"]}, index=[5, 5])
    found = frame_of(frame)
    results = pa.table({"answer": pa.array([0.5], pa.float32()), "b": ["y"], "a": [20]})
    back = found.back(results, np.array([1]), {"b"})
    assert list(back.columns) == ["answer", "b", "a"]
    assert back.index.tolist() == [5]
    assert back["a"].dtype == "Int64"
    assert back["a"].tolist() == [20]
    assert back["answer"].dtype == np.float32


def test_values_of_several_types_refuse_their_row() -> None:
    frame = pd.DataFrame({"a": [1, "n/a", 3], "b": [1, 2, pd.NA], "c": [np.int64(1), None, 3.5]}, dtype=object)
    found = frame_of(frame)
    assert found.schema.types == [pa.int64(), pa.int64(), pa.float64()]
    assert table(found).to_pylist()[1] == {"a": None, "b": 2, "c": None}
    (row,) = found.refusals
    assert row == 1
    failure = found.refusals[1]
    assert (failure.stage, failure.type) == ("read", "ValueError")
    assert failure.message == 'column "a" holds "n/a" in row 1 of data; int64 was expected'
    assert json.loads(failure.raw or "") == {"a": "n/a", "b": 2, "c": None}


def test_dicts() -> None:
    rows = [
        {"x": 1, "s": "u", "d": dt.date(2024, 1, 1), "n": decimal.Decimal("1.10")},
        {"x": 2.5, "flag": True, "l": [1, 2]},
        {"x": "3", "s": "v", "flag": None},
        {"x": None, "s": 4},
    ]
    found = frame_of(rows, lambda names: [name for name in names if name == "x"])
    kinds = dict(zip(found.schema.names, found.schema.types, strict=True))
    assert kinds == {
        "x": pa.float64(),
        "s": pa.string(),
        "d": pa.date32(),
        "n": pa.decimal128(3, 2),
        "flag": pa.bool_(),
        "l": pa.list_(pa.int64()),
    }
    assert sorted(found.refusals) == [2, 3]
    assert json.loads(found.refusals[3].raw or "") == {"x": None, "s": 4}
    results = table(found).append_column("answer", pa.array([1, 2, 3, 4]))
    back = found.back(results, np.arange(4), found.schema.names)
    assert back[2] == {"x": "3", "s": "v", "d": None, "n": None, "flag": None, "l": None, "answer": 3}
    assert back[0]["n"] == decimal.Decimal("1.10")
    assert frame_of([]).rows == 0


@pytest.mark.parametrize(
    ("values", "kind", "bad"),
    [
        ([1, 2, 2.5], pa.float64(), []),
        ([1, 2, True], pa.int64(), [2]),
        (["a", "b", 1], pa.string(), [2]),
        (["2024-01-01", "2024-01-02", None], pa.date32(), []),
        ([[1], [2], "x"], pa.list_(pa.int64()), [2]),
        ([2**70, 1, 2], pa.int64(), [0]),
        ([{"a": 1}, {"a": 2}, 3], pa.struct({"a": pa.int64()}), [2]),
    ],
)
def test_a_column_of_python_values(values: list[Any], kind: pa.DataType, bad: list[int]) -> None:
    found = frame_of([{"v": value} for value in values])
    assert found.schema.field("v").type == kind
    assert sorted(found.refusals) == bad
    assert [
        row for row, value in enumerate(table(found)["v"].to_pylist()) if value is None and values[row] is not None
    ] == bad


@pytest.mark.parametrize("lazy", [False, True])
def test_polars(lazy: bool) -> None:
    frame = pl.DataFrame(
        {"a": [1, 2, 3], "c": ["x", None, "y"], "s": ["u", "v", "w"]}, schema_overrides={"c": pl.Categorical}
    )
    found = frame_of(frame.lazy() if lazy else frame)
    assert found.rows == 3
    assert found.schema.field("c").type == pa.string()
    results = table(found).append_column("answer", pa.array([0.5] * 3)).take([2, 0])
    back = found.back(results, np.array([2, 0]), found.schema.names)
    assert back.equals(frame[[2, 0]].with_columns(answer=0.5))
    assert back.schema["c"] == pl.Categorical


def test_arrow() -> None:
    whole = pa.table({"a": [1, 2, 3], "c": pa.array(["x", "y", "x"]).dictionary_encode()})
    for data in (whole, whole.to_batches()[0], whole.to_reader(2), pl.DataFrame(whole).lazy().collect()):
        found = frame_of(data)
        assert table(found).to_pylist() == whole.to_pylist()
    assert isinstance(frame_of(whole.to_batches()[0]).back(whole, np.arange(3)), pa.RecordBatch)
    assert frame_of(whole.to_reader()).rows is None

    class Stream:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return whole.__arrow_c_stream__(requested_schema)

    assert table(frame_of(Stream())).schema.field("c").type == pa.string()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": 1}, "data must be a pandas or Polars frame, .* not a dict; put one row into a list"),
        (3, "data must be .* not a int"),
        (pd.Series([1, 2], name="a"), "data must be .* not a Series"),
        ([{"a": 1}, 3], r"data\[1\] is a int"),
        ([{1: 2}], "data has the key 1; the names of columns must be strings"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), 'data has more than one column "a"; rename one of them'),
        (pd.DataFrame([[1, 2]], columns=[1, "1"]), 'data has more than one column "1"'),
        (pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])), "more than one level"),
        (pd.DataFrame({"a": [object()]}), 'column "a" has values that Arrow has no type for'),
        (pl.DataFrame({"a": [object()]}), 'column "a" has Python objects that Arrow has no type for'),
        (pa.table([[1], [2]], names=["a", "a"]), 'data has more than one column "a"'),
    ],
)
def test_what_cannot_be_used_is_one_line(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        frame_of(data)
    assert "\n" not in str(caught.value)
