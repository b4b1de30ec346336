"""Chains of users' functions: what comes back, what is left out, and who failed."""

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.columnar.chains import Rows, function_step
from handlers.errors import UsageError

POISON = 666


def rows_of(batch: pa.RecordBatch, first: int = 0) -> Rows:
    return Rows(batch, np.arange(first, first + batch.num_rows))


def run(name: str, batch: pa.RecordBatch) -> tuple[Rows, dict[int, str]]:
    """The rows that a function of `row_functions` leaves, and its failures by row."""
    rows, failures = function_step(f"row_functions:{name}", "preprocess").run(rows_of(batch))
    assert len(rows.ids) == rows.batch.num_rows
    return rows, {row: failure.type for row, failure in failures.items()}


def numbers(*values: int | None) -> pa.RecordBatch:
    return pa.record_batch({"a": pa.array(values, pa.int64())})


KINDS = ["batch", "frame", "row"]


NANOS = 2**40 + 7
KEPT: list[tuple[pa.DataType, list[Any]]] = [
    (pa.time64("ns"), [NANOS, 0, None]),
    (pa.timestamp("ns"), [NANOS, 0, None]),
    (pa.duration("ns"), [NANOS, 0, None]),
    (pa.int64(), [9007199254740993, 0, None]),
    (pa.uint64(), [2**64 - 1, 0, None]),
    (pa.float64(), [float("nan"), 0.0, None]),
    (pa.decimal128(38, 9), [decimal.Decimal("12345678901234567890123456789.123456789"), decimal.Decimal(0), None]),
    (pa.list_(pa.int64()), [[9007199254740993, None], [0], None]),
]


class TestDigits:
    @pytest.mark.parametrize(
        ("function", "kind", "values"),
        # Pandas has no nanoseconds of a day: such a row fails in a frame, with a message that says so.
        [("row_second_emptied", *kept) for kept in KEPT] + [("frame_second_emptied", *kept) for kept in KEPT[1:]],
    )
    def test_values_beside_a_changed_one_keep_every_digit(
        self, function: str, kind: pa.DataType, values: list[Any]
    ) -> None:
        batch = pa.record_batch({"a": pa.array(values, kind), "b": pa.array([1, 2, 3])})
        rows, failures = run(function, batch)
        assert not failures
        expected = pa.array([values[0], None, None], kind)
        assert rows.batch.schema.field("a").type == kind
        assert str(rows.batch.column("a")) == str(expected)  # where NaN is NaN


class TestFunctions:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_column_is_added(self, kind: str) -> None:
        rows, failures = run(f"{kind}_doubled", numbers(1, 2, 3))
        assert rows.batch.to_pydict() == {"a": [1, 2, 3], "double": [2, 4, 6]}
        assert rows.batch.schema.field("double").type == pa.int64()
        assert not failures

    @pytest.mark.parametrize("kind", KINDS)
    def test_rows_are_left_out(self, kind: str) -> None:
        rows, failures = run(f"{kind}_filtered", numbers(1, -1, 0, 2))
        assert rows.batch.to_pydict() == {"a": [1, 2]}
        assert rows.ids.tolist() == [0, 3]
        assert not failures

    @pytest.mark.parametrize("kind", KINDS)
    def test_all_rows_are_left_out(self, kind: str) -> None:
        rows, failures = run(f"{kind}_filtered", numbers(-1, -2))
        assert rows.batch.num_rows == 0
        assert rows.batch.schema.names == ["a"]
        assert not failures

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_rows(self, kind: str) -> None:
        rows, failures = run(f"{kind}_doubled", numbers())
        assert rows.batch.num_rows == 0
        if kind != "row":
            assert rows.batch.schema.names == ["a", "double"]
        assert not failures

    @pytest.mark.parametrize("kind", ["batch", "frame"])
    def test_rows_change_places(self, kind: str) -> None:
        rows, failures = run(f"{kind}_sorted", numbers(1, 3, 2))
        assert rows.batch.to_pydict() == {"a": [3, 2, 1]}
        assert rows.ids.tolist() == [1, 2, 0]
        assert not failures

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_row_that_fails(self, kind: str) -> None:
        step = function_step(f"row_functions:{kind}_poisoned", "postprocess")
        rows, failures = step.run(rows_of(numbers(1, POISON, 3, POISON), first=10))
        assert rows.batch.to_pydict() == {"a": [1, 3], "double": [2, 6]}
        assert rows.ids.tolist() == [10, 12]
        assert list(failures) == [11, 13]
        assert {failure.stage for failure in failures.values()} == {"postprocess"}
        assert failures[11].type == ("KeyError" if kind == "row" else "ValueError")
        assert failures[11].message.startswith(f"row_functions:{kind}_poisoned: ")
        assert "poison" in failures[11].message
        assert "\n" not in failures[11].message

    def test_a_table_will_do_for_a_batch(self) -> None:
        assert run("batch_as_table", numbers(1, 2, 3))[0].batch.to_pydict() == {"a": [1, 2, 3]}

    @pytest.mark.parametrize(
        "name",
        [
            "batch_twice",
            "batch_garbage",
            "frame_twice",
            "frame_garbage",
            "frame_reset",
            "frame_without_columns",
            "row_emptied",
        ],
    )
    def test_a_broken_contract_costs_the_rows(self, name: str) -> None:
        rows, failures = run(name, numbers(1, 2, 3))
        assert rows.batch.num_rows == 0
        assert failures == dict.fromkeys(range(3), "ContractError")

    def test_a_filter_that_loses_the_ids_is_told_how(self) -> None:
        step = function_step("row_functions:batch_filtered_without_ids", "preprocess")
        rows, failures = step.run(rows_of(numbers(1, -1)))
        assert rows.ids.tolist() == [0]
        assert "keep that column" in failures[min(failures)].message

    def test_a_row_that_is_given_back_as_garbage(self) -> None:
        rows, failures = run("row_sometimes_garbage", numbers(1, POISON, 3))
        assert rows.ids.tolist() == [0, 2]
        assert failures == {1: "TypeError"}

    def test_rows_that_come_back_only_when_they_are_few_are_not_dropped(self) -> None:
        rows, failures = run("frame_with_an_index_of_its_own", numbers(1, 2, 3))
        assert rows.batch.num_rows == 0
        assert failures == dict.fromkeys(range(3), "ContractError")

    def test_a_column_twice(self) -> None:
        _, failures = run("batch_with_a_column_twice", numbers(1, 2))
        assert failures == dict.fromkeys(range(2), "ContractError")

    def test_a_function_that_ends_the_process(self) -> None:
        rows, failures = run("row_that_ends_the_process", numbers(1, POISON, 3))
        assert rows.ids.tolist() == [0, 2]
        assert failures == {1: "RuntimeError"}

    def test_rows_whose_columns_have_other_types(self) -> None:
        rows, failures = run("row_mixed_types", numbers(1, 2, POISON, 4, POISON))
        assert rows.batch.to_pydict() == {"a": [1, 2, 4], "new": [1, 1, 1]}
        assert failures == dict.fromkeys([2, 4], "ArrowTypeError")

    def test_rows_whose_columns_have_a_common_type_that_does_not_hold_their_values(self) -> None:
        rows, failures = run("row_sometimes_fraction", numbers(1, 2, POISON, -4, POISON, 5))
        assert rows.batch.to_pydict() == {"a": [1, 2, 5], "new": [2**60 + 1] * 3}
        assert failures == {2: "ValueError", 3: "ArrowTypeError", 4: "ValueError"}


class TestNames:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("row_functions:missing", 'row_functions has no "missing"'),
            ("no_such_module:f", 'no module named "no_such_module"'),
            ("row_functions:not_a_function", "is not a function"),
            ("row_functions:without_annotation", "annotation of its first argument"),
            ("row_functions:of_a_list", "annotation of its first argument"),
            ("row_functions:without_arguments", "takes no argument"),
        ],
    )
    def test_what_cannot_be_used(self, name: str, reason: str) -> None:
        with pytest.raises(UsageError) as error:
            function_step(name, "preprocess")
        assert reason in str(error.value)
        assert name in str(error.value)
        assert str(error.value).startswith("preprocess ")

    def test_annotations_that_only_type_checkers_import(self) -> None:
        assert run("batch_sorted", numbers(1, 2))[0].ids.tolist() == [1, 0]
        assert run("frame_poisoned", numbers(1))[0].batch.to_pydict() == {"a": [1], "double": [2]}


TYPES = pa.schema(
    {
        "i": pa.int64(),
        "i8": pa.int8(),
        "u": pa.uint64(),
        "f": pa.float32(),
        "b": pa.bool_(),
        "s": pa.string(),
        "bin": pa.binary(),
        "day": pa.date32(),
        "t": pa.timestamp("us", "Europe/Berlin"),
        "ns": pa.timestamp("ns"),
        "time": pa.time64("us"),
        "d": pa.duration("ms"),
        "dec": pa.decimal128(10, 2),
        "l": pa.list_(pa.float32()),
        "fl": pa.list_(pa.int16(), 2),
        "st": pa.struct({"x": pa.int32(), "y": pa.string()}),
        "cat": pa.dictionary(pa.int32(), pa.string()),
        "none": pa.null(),
        "text": pa.large_string(),
    }
)
FULL: dict[str, Any] = {
    "i": 2**53 + 1,
    "i8": 1,
    "u": 2**64 - 1,
    "f": 0.1,
    "b": True,
    "s": "é",
    "bin": b"\x00",
    "day": datetime.date(2024, 2, 29),
    "t": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    "ns": datetime.datetime(2024, 1, 1),
    "time": datetime.time(1, 2, 3),
    "d": datetime.timedelta(seconds=1),
    "dec": decimal.Decimal("1.10"),
    "l": [1.0, None],
    "fl": [1, 2],
    "st": {"x": 1, "y": "z"},
    "cat": "a",
    "none": None,
    "text": "x",
}


class TestTypes:
    batch = pa.RecordBatch.from_pylist([FULL, dict.fromkeys(FULL), FULL], schema=TYPES)

    @pytest.mark.parametrize("name", ["frame_as_it_is", "frame_copied", "row_as_it_is"])
    def test_all_are_kept_with_nulls_among_them(self, name: str) -> None:
        rows, failures = run(name, self.batch)
        assert not failures
        assert rows.batch.schema == TYPES
        assert rows.batch.to_pylist() == self.batch.to_pylist()

    def test_all_are_kept_by_a_filter(self) -> None:
        batch = self.batch.append_column("a", pa.array([1, 1, -1]))
        for name in ("frame_filtered", "row_filtered", "batch_filtered"):
            rows, _ = run(name, batch)
            assert rows.batch.schema == batch.schema
            assert rows.batch.to_pylist() == batch.slice(0, 2).to_pylist()

    def test_nan_and_null_are_told_apart_where_nothing_was_changed(self) -> None:
        batch = pa.record_batch({"a": [float("nan"), None, 1.0]})
        column = run("frame_as_it_is", batch)[0].batch.column("a")
        assert column.null_count == 1
        assert np.isnan(column[0].as_py())

    def test_structs_that_were_changed_in_place(self) -> None:
        batch = pa.record_batch({"st": pa.array([{"x": 1, "y": "z"}] * 2, TYPES.field("st").type)})
        rows, _ = run("frame_lists_changed_in_place", batch)
        assert rows.batch.column("st").to_pylist() == [{"x": 7, "y": "z"}] * 2
        assert rows.batch.schema == batch.schema

    def test_new_text_is_string(self) -> None:
        rows, _ = run("frame_text", numbers(1, 2))
        assert rows.batch.to_pydict() == {"a": [1, 2], "text": ["n1", "n2"]}
        assert rows.batch.schema.field("text").type == pa.string()

    @pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float32(), pa.float64()], ids=str)
    def test_changed_values_keep_the_type_that_holds_them(self, kind: pa.DataType) -> None:
        rows, _ = run("frame_clipped", pa.record_batch({"a": pa.array([0, 5], kind)}))
        assert rows.batch.column("a") == pa.array([0, 1], kind)

    def test_changed_values_that_do_not_fit_get_a_type_of_their_own(self) -> None:
        assert run("frame_halved", numbers(1, 2))[0].batch.column("a").to_pylist() == [0.5, 1.0]

    def test_new_columns_of_rows(self) -> None:
        schema = run("odd_types", numbers(1))[0].batch.schema
        assert schema.field("day").type == pa.date32()
        assert schema.field("price").type == pa.decimal128(3, 2)
        assert schema.field("tags").type == pa.list_(pa.string())

    def test_a_float_of_rows_is_not_cut_to_infinity(self) -> None:
        batch = pa.record_batch({"a": [1, POISON], "f": pa.array([0.5, 0.5], pa.float32())})
        assert run("row_large", batch)[0].batch.column("f").to_pylist() == [0.5, 1e39]
        assert run("row_large", batch.slice(0, 1))[0].batch.schema.field("f").type == pa.float32()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([POISON, -1, 1, 2, 3]), max_size=40), st.sampled_from(KINDS))
def test_exactly_the_poisoned_rows_fail(values: list[int], kind: str) -> None:
    rows, failures = run(f"{kind}_poisoned", numbers(*values))
    assert sorted(failures) == [index for index, value in enumerate(values) if value == POISON]
    good = [value for value in values if value != POISON]
    assert rows.batch.column("a").to_pylist() == good
    assert rows.ids.tolist() == [index for index, value in enumerate(values) if value != POISON]
    if good:
        assert rows.batch.column("double").to_pylist() == [2 * value for value in good]
