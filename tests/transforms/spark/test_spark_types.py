"""Columns in types that Spark takes hold the same values."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from handlers.columnar.chunks import exact_cast
from handlers.errors import UsageError
from transforms.spark.types import spark_ready


@pytest.mark.parametrize(
    ("array", "kind", "values"),
    [
        (pa.array([1, 2**64 - 1], pa.uint64()), pa.decimal128(20, 0), [decimal.Decimal(1), decimal.Decimal(2**64 - 1)]),
        (pa.array([2**32 - 1, None], pa.uint32()), pa.int64(), [2**32 - 1, None]),
        (pa.array([255], pa.uint8()), pa.int16(), [255]),
        (pa.array(np.array([0.5, np.nan], np.float16)), pa.float32(), [0.5, pytest.approx(np.nan, nan_ok=True)]),
        (pa.array(["x", None, "y"]).dictionary_encode(), pa.string(), ["x", None, "y"]),
        (pa.array(["x"], pa.large_string()), pa.string(), ["x"]),
        (pa.array(["x"], pa.string_view()), pa.string(), ["x"]),
        (pa.array([b"xy"], pa.binary(2)), pa.binary(), [b"xy"]),
        (pa.array([[1, 2]], pa.list_(pa.uint8(), 2)), pa.list_(pa.int16()), [[1, 2]]),
        (pa.array([[1], None], pa.large_list(pa.float32())), pa.list_(pa.float32()), [[1.0], None]),
        (pa.array([{"a": 1}], pa.struct({"a": pa.uint16()})), pa.struct({"a": pa.int32()}), [{"a": 1}]),
        (pa.array([0], pa.timestamp("ms")), pa.timestamp("us"), [dt.datetime(1970, 1, 1)]),
        (pa.array([dt.date(2024, 1, 1)], pa.date64()), pa.date32(), [dt.date(2024, 1, 1)]),
        (pa.array([None, None]), pa.string(), [None, None]),
    ],
)
def test_values_stay(array: pa.Array, kind: pa.DataType, values: list[Any]) -> None:
    schema = spark_ready(pa.schema([("c", array.type)]))
    assert schema.field("c").type == kind
    assert exact_cast(array, kind).to_pylist() == values


def test_what_spark_cannot_hold_is_refused() -> None:
    assert spark_ready(pa.schema([("t", pa.timestamp("ns", "UTC"))])).field("t").type == pa.timestamp("us", "UTC")
    with pytest.raises(pa.ArrowInvalid):
        exact_cast(pa.array([1], pa.timestamp("ns")), pa.timestamp("us"))  # which makes the row a dead letter
    with pytest.raises(UsageError, match='column "t" of the predictions is time64'):
        spark_ready(pa.schema([("t", pa.time64("us"))]))
