"""Provenance, dead letters, merging, and casts that change no value."""

import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from handlers.columnar.chunks import (
    DEAD_LETTER_TYPE,
    ROW,
    SOURCE,
    chunk_schema,
    dead_letter_schema,
    dead_letters,
    exact_cast,
    merge,
    rows_of,
    with_provenance,
    without_provenance,
)
from handlers.failures import RowFailure

BATCH = pa.record_batch({"a": [1, 2, 3]})


class TestRowsOf:
    @pytest.mark.parametrize(
        "ids", [[], [0], [0, 1, 2, 3, 4, 5], [0, 2, 4], [1, 3, 5], [1, 4], [4, 1]], ids=lambda ids: str(ids)
    )
    def test_any_rows_of_a_slice_with_nulls(self, ids: list[int]) -> None:
        columns: dict[str, list[Any]] = {
            "number": [9.0, None, 1.0, None, 2.0, float("inf"), 3.0],
            "flag": [None, True, None, False, True, None, True],
            "text": ["x", "a", None, "b", "", "c", None],
            "list": [[0], [1], None, [2, 3], [], [None], [4]],
        }
        batch = pa.record_batch(columns).slice(1)
        found = rows_of(batch, np.array(ids, np.int64))
        found.validate(full=True)
        assert found.to_pydict() == {name: [values[row + 1] for row in ids] for name, values in columns.items()}

    def test_columns_whose_nulls_are_left_out_have_no_validity(self) -> None:
        batch = pa.record_batch({"a": [1.0, None, 3.0, 4.0], "b": [None, None, 7, 8]})
        found = rows_of(batch, np.array([0, 2, 3]))
        assert found.to_pydict() == {"a": [1.0, 3.0, 4.0], "b": [None, 7, 8]}
        assert [column.buffers()[0] is None for column in found.columns] == [True, False]

    def test_no_columns(self) -> None:
        assert rows_of(BATCH.select([]), np.array([0, 2])).num_columns == 0


class TestProvenance:
    def test_rows_in_a_run(self) -> None:
        chunk = with_provenance(BATCH, "f.csv", 10)
        assert chunk.schema == chunk_schema(BATCH.schema)
        assert chunk.column(SOURCE).to_pylist() == ["f.csv"] * 3
        assert chunk.column(ROW).to_pylist() == [10, 11, 12]
        assert without_provenance(chunk) == BATCH

    @pytest.mark.parametrize("rows", [np.array([5, 1, 7]), pa.array([5, 1, 7])], ids=["numpy", "arrow"])
    def test_rows_by_number(self, rows: np.ndarray | pa.Array) -> None:
        assert with_provenance(BATCH, "f", rows).column(ROW).to_pylist() == [5, 1, 7]

    def test_no_rows(self) -> None:
        assert with_provenance(BATCH.slice(0, 0), "f", 0).schema == chunk_schema(BATCH.schema)


class TestDeadLetters:
    def test_one_reason_for_all(self) -> None:
        chunk = with_provenance(BATCH, "f", 7).slice(1)
        letters = dead_letters(chunk, [RowFailure("read", "T", "m")] * 2, None)
        assert letters.schema == dead_letter_schema(BATCH.schema)
        reason = {"stage": "read", "type": "T", "message": "m", "source": "f", "model_version": None, "raw": None}
        assert letters.to_pylist() == [
            {"a": 2, "dead_letter": {**reason, "row": 8}},
            {"a": 3, "dead_letter": {**reason, "row": 9}},
        ]

    def test_a_reason_each(self) -> None:
        chunk = with_provenance(BATCH, "f", 0)
        failures = [RowFailure("s", "A", "1", "x"), RowFailure("t", "B", "2"), RowFailure("u", "C", "3", "z")]
        letters = dead_letters(chunk, failures, "v")
        found = letters.column("dead_letter").to_pylist()
        assert [(each["stage"], each["type"], each["message"], each["raw"]) for each in found] == [
            ("s", "A", "1", "x"),
            ("t", "B", "2", None),
            ("u", "C", "3", "z"),
        ]
        assert {each["model_version"] for each in found} == {"v"}

    def test_none(self) -> None:
        chunk = with_provenance(BATCH, "f", 0).slice(0, 0)
        letters = dead_letters(chunk, [], "v")
        assert letters.num_rows == 0
        assert letters.schema.field("dead_letter").type == DEAD_LETTER_TYPE


class TestMerge:
    def test_one_chunk_is_itself(self) -> None:
        assert merge([BATCH]) is BATCH

    def test_schemas_that_differ(self) -> None:
        one = with_provenance(pa.record_batch({"a": [1], "b": ["x"]}), "f", 0)
        two = with_provenance(pa.record_batch({"a": [1.5]}), "g", 5)
        merged = merge([one, two])
        assert isinstance(merged, pa.RecordBatch)
        assert merged.to_pylist() == [
            {"a": 1.0, "b": "x", SOURCE: "f", ROW: 0},
            {"a": 1.5, "b": None, SOURCE: "g", ROW: 5},
        ]

    def test_types_without_a_common_one(self) -> None:
        with pytest.raises((pa.ArrowTypeError, pa.ArrowInvalid)):
            merge([BATCH, pa.record_batch({"a": ["x"]})])

    def test_no_rows(self) -> None:
        assert merge([BATCH.slice(0, 0), BATCH.slice(0, 0)]).schema == BATCH.schema

    def test_slices(self) -> None:
        assert merge([BATCH.slice(1, 1), BATCH.slice(2)]).column("a").to_pylist() == [2, 3]


NAN = float("nan")


class TestExactCast:
    @pytest.mark.parametrize(
        ("array", "kind"),
        [
            (pa.array([1, None]), pa.float64()),
            (pa.array([1.0, None]), pa.int64()),
            (pa.array([0.5, NAN, None, float("inf")]), pa.float32()),
            (pa.array([0.5, NAN], pa.float32()), pa.float64()),
            (pa.array([[0.5, NAN], None]), pa.list_(pa.float32())),
            (pa.nulls(2), pa.int64()),
            (pa.array([0], pa.timestamp("us")), pa.timestamp("s")),
            (pa.array([1]), pa.string()),
            (pa.array(["a", "b", "a"]), pa.dictionary(pa.int32(), pa.string())),
            (pa.array(["a", "b"]).dictionary_encode(), pa.string()),
            (pa.array([decimal.Decimal("1.20")]), pa.decimal128(10, 1)),
            (pa.array([], pa.float64()), pa.float32()),
        ],
        ids=str,
    )
    def test_what_can_be_told_back(self, array: pa.Array, kind: pa.DataType) -> None:
        cast = exact_cast(array, kind)
        assert cast.type == kind
        assert len(cast) == len(array)

    @pytest.mark.parametrize(
        ("array", "kind"),
        [
            (pa.array([1.5]), pa.int64()),
            (pa.array([1e39]), pa.float32()),
            (pa.array([0.1]), pa.float32()),
            (pa.array([2**53 + 1]), pa.float64()),
            (pa.array([300]), pa.int8()),
            (pa.array([-1]), pa.uint8()),
            (pa.array(["007"]), pa.int64()),
            (pa.array(["x"]), pa.int64()),
            (pa.array([1], pa.timestamp("us")), pa.timestamp("s")),
            (pa.array([2]), pa.bool_()),
            (pa.array([decimal.Decimal("1.25")]), pa.decimal128(10, 1)),
            (pa.array([[1e39]]), pa.list_(pa.float32())),
        ],
        ids=str,
    )
    def test_what_would_change(self, array: pa.Array, kind: pa.DataType) -> None:
        with pytest.raises(pa.ArrowInvalid):
            exact_cast(array, kind)
