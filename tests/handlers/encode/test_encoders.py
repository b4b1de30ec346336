"""BoundInput.encode against values computed by hand or with numpy."""

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.encode.base import BoundInput
from handlers.encode.binding import bind_inputs
from handlers.encode.specs import input_spec


def bound(batch: pa.RecordBatch, **fields: Any) -> BoundInput:
    return bind_inputs([input_spec(**{"name": "x", **fields})], [], batch)[0]


def encode(batch: pa.RecordBatch | pa.Array, **fields: Any) -> tuple[torch.Tensor, dict[int, str]]:
    """The tensor, and the error types by row, of a batch, or of a batch of the single column `x`."""
    batch = batch if isinstance(batch, pa.RecordBatch) else pa.record_batch({"x": batch})
    encoded = bound(batch, **fields).encode(batch)
    tensor = encoded.tensors["x"]
    assert isinstance(tensor, torch.Tensor)
    assert tensor.is_contiguous()
    return tensor, {row: failure.type for row, failure in encoded.failures.items()}


def message(batch: pa.RecordBatch | pa.Array, row: int, **fields: Any) -> str:
    batch = batch if isinstance(batch, pa.RecordBatch) else pa.record_batch({"x": batch})
    return bound(batch, **fields).encode(batch).failures[row].message


DAY = datetime.date(1970, 1, 3)
NOON = datetime.datetime(1970, 1, 2, 12)
UTC = datetime.UTC


class TestNumericTypes:
    @pytest.mark.parametrize(
        "kind",
        [
            *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
            *(pa.float16(), pa.float32(), pa.float64(), pa.decimal128(10, 2), pa.decimal256(50, 2)),
        ],
        ids=str,
    )
    def test_numbers(self, kind: pa.DataType) -> None:
        array = pa.array([0, 1, 100], pa.int16()).cast(kind)
        tensor, errors = encode(array)
        assert tensor.dtype == torch.float32
        assert tensor.tolist() == [[0.0], [1.0], [100.0]]
        assert not errors

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
    def test_text_that_is_numbers(self, kind: pa.DataType) -> None:
        tensor, errors = encode(pa.array(["1.5", " -2 ", "1e3", "x", "", None], kind))
        assert tensor[:3].flatten().tolist() == [1.5, -2.0, 1000.0]
        assert errors == {3: "NotANumber", 4: "NotANumber", 5: "NullValue"}

    def test_bool(self) -> None:
        assert encode(pa.array([True, False, True]))[0].flatten().tolist() == [1, 0, 1]

    def test_dictionary(self) -> None:
        tensor, errors = encode(pa.array([1.5, 2.5, 1.5, None]).dictionary_encode())
        assert tensor[:3].flatten().tolist() == [1.5, 2.5, 1.5]
        assert errors == {3: "NullValue"}

    def test_a_null_inside_a_dictionary(self) -> None:
        array = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array([1.0, None]))
        assert encode(array)[1] == {1: "NullValue"}

    def test_decimal_with_a_fraction(self) -> None:
        array = pa.array([decimal.Decimal("1.25"), decimal.Decimal("-0.50")], pa.decimal128(5, 2))
        assert encode(array)[0].flatten().tolist() == [1.25, -0.5]

    def test_uint64_beyond_int64(self) -> None:
        assert encode(pa.array([2**64 - 1], pa.uint64()), dtype="float64")[0].item() == float(2**64 - 1)

    @pytest.mark.parametrize(
        ("array", "unit", "expected"),
        [
            (pa.array([DAY]), "days", 2),
            (pa.array([DAY]), "s", 2 * 86400),
            (pa.array([DAY], pa.date64()), "days", 2),
            (pa.array([NOON], pa.timestamp("us")), "s", 129600),
            (pa.array([NOON], pa.timestamp("us")), "days", 1.5),
            (pa.array([NOON], pa.timestamp("s")), "ms", 129600_000),
            (pa.array([1], pa.timestamp("ns")), "ns", 1),
            (pa.array([1500], pa.timestamp("ns")), "us", 1.5),
            (pa.array([NOON.replace(tzinfo=UTC)], pa.timestamp("ms", "Europe/Berlin")), "s", 129600),
            (pa.array([datetime.timedelta(hours=1)], pa.duration("us")), "s", 3600),
            (pa.array([datetime.timedelta(days=3)], pa.duration("s")), "days", 3),
            (pa.array([-1], pa.timestamp("s")), "ms", -1000),
        ],
        ids=str,
    )
    def test_times(self, array: pa.Array, unit: str, expected: float) -> None:
        assert encode(array, timestamp=unit, dtype="float64")[0].item() == expected

    def test_times_are_exact_in_int64(self) -> None:
        ns = 1_700_000_000_123_456_789
        assert encode(pa.array([ns], pa.timestamp("ns")), timestamp="ns", dtype="int64")[0].item() == ns
        far = pa.array([datetime.datetime(9999, 12, 31)], pa.timestamp("s"))
        assert encode(far, timestamp="us", dtype="int64")[0].item() == 253402214400 * 10**6
        assert encode(far, timestamp="ns", dtype="int64")[1] == {0: "OutOfRange"}  # 2262 is the last year of int64

    def test_null_times(self) -> None:
        array = pa.array([None, NOON], pa.timestamp("us"))
        assert encode(array, timestamp="s")[1] == {0: "NullValue"}
        assert encode(array, timestamp="s", fill=-1)[0].flatten().tolist() == [-1, 129600]


class TestNulls:
    def test_a_null_is_an_error_of_its_row(self) -> None:
        batch = pa.record_batch({"a": [1.0, None, 3.0], "b": [1, 2, None]})
        tensor, errors = encode(batch, columns=["a", "b"])
        assert tensor[0].tolist() == [1, 1]
        assert errors == {1: "NullValue", 2: "NullValue"}
        assert message(batch, 1, columns=["a", "b"]) == 'column "a" holds null; the model input "x" needs float32'

    @pytest.mark.parametrize(
        "kind", [pa.uint8(), pa.int64(), pa.float16(), pa.float64(), pa.bool_(), pa.null()], ids=str
    )
    def test_fill(self, kind: pa.DataType) -> None:
        tensor, errors = encode(pa.nulls(2, kind), fill=-1.5)
        assert tensor.tolist() == [[-1.5], [-1.5]]
        assert not errors

    def test_fill_with_nan_where_that_is_allowed(self) -> None:
        tensor, errors = encode(pa.array([None, 1.0]), fill=float("nan"), allow_nonfinite=True)
        assert torch.isnan(tensor[0]).all()
        assert not errors

    def test_a_column_of_type_null(self) -> None:
        assert encode(pa.nulls(2))[1] == {0: "NullValue", 1: "NullValue"}

    def test_fill_of_text(self) -> None:
        tensor, errors = encode(pa.array(["1", None, "x"]), fill=9)
        assert tensor[:2].flatten().tolist() == [1, 9]
        assert errors == {2: "NotANumber"}


class TestBadValues:
    def test_nulls_of_a_slice_of_numbers(self) -> None:
        array = pa.array([None, 1.5, None, 3.0, float("nan"), None]).slice(1)
        tensor, errors = encode(array)
        assert tensor[[0, 2]].tolist() == [[1.5], [3.0]]
        assert errors == {1: "NullValue", 3: "NotFinite", 4: "NullValue"}
        assert encode(array, fill=7)[0].nan_to_num(-1).tolist() == [[1.5], [7.0], [3.0], [-1.0], [7.0]]

    def test_equal_values_of_several_rows_and_columns(self) -> None:
        nan, inf = float("nan"), float("inf")
        batch = pa.record_batch({"a": [nan, 1.0, nan, None, inf], "b": [None, nan, inf, nan, 1.0]})
        failures = bound(batch, columns=["a", "b"]).encode(batch).failures
        found = {row: failure.message.partition(";")[0] for row, failure in failures.items()}
        assert found == {
            0: 'column "b" holds null',
            1: 'column "b" holds nan, which is not finite as float32',
            2: 'column "a" holds nan, which is not finite as float32',
            3: 'column "a" holds null',
            4: 'column "a" holds inf, which is not finite as float32',
        }

    def test_the_first_bad_value_of_a_list_counts(self) -> None:
        nan, inf = float("nan"), float("inf")
        batch = pa.record_batch({"x": [[1.0, inf, nan], [1.0, None, None], [nan, None, inf]]})
        failures = bound(batch).encode(batch).failures
        assert [failures[row].message.partition(";")[0] for row in range(3)] == [
            'column "x" holds a list with inf, which is not finite as float32',
            'column "x" holds a list with null',
            'column "x" holds a list with null',
        ]


class TestNotFinite:
    def test_nan_and_infinity(self) -> None:
        array = pa.array([1.0, float("nan"), float("inf"), -float("inf")])
        assert encode(array)[1] == dict.fromkeys([1, 2, 3], "NotFinite")
        tensor, errors = encode(array, allow_nonfinite=True)
        assert not errors
        assert np.array_equal(tensor.numpy().ravel(), [1, np.nan, np.inf, -np.inf], equal_nan=True)

    def test_what_overflows_the_dtype(self) -> None:
        array = pa.array([1e39, 1.0])
        assert encode(array)[1] == {0: "NotFinite"}
        assert "1e+39" in message(array, 0)
        assert not encode(array, dtype="float64")[1]
        assert encode(pa.array([70000.0, 65504.0]), dtype="float16")[1] == {0: "NotFinite"}
        assert not encode(pa.array([70000.0, 3e38]), dtype="bfloat16")[1]

    def test_the_column_is_named(self) -> None:
        batch = pa.record_batch({"a": [1.0], "l": [[1.0, 2.0]], "b": [float("inf")]})
        errors = bound(batch, columns=["a", "l", "b"]).encode(batch).failures
        assert errors[0].message.startswith('column "b" holds inf')
        batch = pa.record_batch({"a": [1.0], "l": [[1.0, float("nan")]], "b": [1.0]})
        errors = bound(batch, columns=["a", "l", "b"]).encode(batch).failures
        assert errors[0].message.startswith('column "l" holds a list with nan')

    def test_text(self) -> None:
        assert encode(pa.array(["inf", "nan", "1e39", "1"]))[1] == dict.fromkeys([0, 1, 2], "NotFinite")


class TestDtypes:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8"])
    def test_small_numbers(self, dtype: str) -> None:
        batch = pa.record_batch({"a": pa.array([1, -2]), "b": pa.array([3.0, 4.0])})
        tensor, errors = encode(batch, columns=["a", "b"], dtype=dtype)
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.tolist() == [[1, 3], [-2, 4]]
        assert not errors

    def test_integers_that_do_not_fit(self) -> None:
        assert encode(pa.array([127, 128, -128, -129]), dtype="int8")[1] == {1: "OutOfRange", 3: "OutOfRange"}
        assert encode(pa.array([2**63 - 1, 2**63], pa.uint64()), dtype="int64")[1] == {1: "OutOfRange"}
        assert encode(pa.array([-1, 255, 256]), dtype="uint8")[1] == {0: "OutOfRange", 2: "OutOfRange"}
        assert "not in -128 … 127" in message(pa.array([128]), 0, dtype="int8")

    def test_floats_that_do_not_fit(self) -> None:
        array = pa.array([1.0, 1.5, 2.0**63, float("nan"), float("inf"), -(2.0**63)])
        tensor, errors = encode(array, dtype="int64")
        assert errors == {1: "NotAnInteger", 2: "OutOfRange", 3: "NotFinite", 4: "NotFinite"}
        assert tensor.flatten().tolist()[::5] == [1, -(2**63)]

    def test_large_integers_are_kept_to_the_last_digit(self) -> None:
        large = 2**53 + 1
        batch = pa.record_batch(
            {
                "a": pa.array([large]),
                "b": pa.array([str(large)]),
                "c": pa.array([decimal.Decimal(large)], pa.decimal128(30, 0)),
                "d": pa.array([1.0]),
            }
        )
        assert encode(batch, columns=["a", "b", "c", "d"], dtype="int64")[0].tolist() == [[large, large, large, 1]]

    def test_a_bad_text_does_not_cost_its_neighbours_digits(self) -> None:
        large = str(2**53 + 1)
        tensor, errors = encode(pa.array([large, "x", None, "2.0", "2.5"]), dtype="int64")
        assert tensor.flatten().tolist()[0::3] == [2**53 + 1, 2]
        assert errors == {1: "NotANumber", 2: "NullValue", 4: "NotAnInteger"}

    def test_bool(self) -> None:
        tensor, errors = encode(pa.array([1.0, 0.0, 2.0, 0.5]), dtype="bool")
        assert tensor.flatten().tolist()[:2] == [True, False]
        assert errors == {2: "OutOfRange", 3: "NotAnInteger"}
        assert encode(pa.array([True, None, False]), dtype="bool", fill=1)[0].flatten().tolist() == [True, True, False]


class TestLists:
    @pytest.mark.parametrize(
        "kind",
        [pa.list_(pa.float64()), pa.large_list(pa.int32()), pa.list_(pa.float32(), 3), pa.list_(pa.string())],
        ids=str,
    )
    def test_lists(self, kind: pa.DataType) -> None:
        inner = str if pa.types.is_string(kind.value_type) else int
        array = pa.array([[inner(i + j) for j in range(3)] for i in range(4)], kind)
        assert encode(array)[0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
        assert encode(array.slice(1, 2))[0].tolist() == [[1, 2, 3], [2, 3, 4]]

    def test_rows_of_other_lengths(self) -> None:
        array = pa.array([[1.0, 2.0], [1.0], None, [], [1.0, None], [3.0, 4.0], [5.0, float("inf")]])
        tensor, errors = encode(array)
        assert tensor[[0, 5]].tolist() == [[1, 2], [3, 4]]
        assert errors == {1: "WrongLength", 2: "NullValue", 3: "WrongLength", 4: "NullValue", 6: "NotFinite"}
        assert "a list of 1 values, not a list of 2" in message(array, 1)
        assert "holds a list with null" in message(array, 4)

    def test_fill_stands_for_a_null_list_and_a_null_in_a_list(self) -> None:
        tensor, errors = encode(pa.array([None, [1.0, None], [2.0, 3.0], [1.0]]), fill=-1, shape=[2])
        assert tensor[:3].tolist() == [[-1, -1], [1, -1], [2, 3]]
        assert errors == {3: "WrongLength"}

    def test_null_among_fixed_size_lists(self) -> None:
        array = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
        for rows in (array, array.slice(1)):
            tensor, errors = encode(rows)
            assert tensor[-1].tolist() == [3, 4]
            assert list(errors.values()) == ["NullValue"]

    def test_several_lists_and_single_values(self) -> None:
        batch = pa.record_batch({"a": [1, 2], "l": [[3, 4], [5, 6]], "m": [[7.0], [8.0]]})
        tensor, errors = encode(batch, columns=["l", "a", "m"])
        assert tensor.tolist() == [[3, 4, 1, 7], [5, 6, 2, 8]]
        assert not errors

    def test_nested_lists_in_the_shape_of_the_input(self) -> None:
        value = np.arange(24).reshape(2, 3, 4)
        batch = pa.record_batch({"x": pa.array(value.tolist())})
        tensor, errors = encode(batch, shape=[3, 4])
        assert tensor.tolist() == value.tolist()
        assert not errors
        assert encode(batch.slice(1), shape=[3, 4])[0].tolist() == value[1:].tolist()
        fixed = pa.array(value.tolist(), pa.list_(pa.list_(pa.int64(), 4), 3))
        assert encode(fixed, shape=[3, 4])[0].tolist() == value.tolist()

    def test_nested_lists_of_another_shape(self) -> None:
        good = [[1, 2, 3], [4, 5, 6]]
        array = pa.array([good, [[1, 2], [3, 4], [5, 6]], [[1, 2, 3], None], None, [[1, 2], [3, 4, 5, 6]], good])
        tensor, errors = encode(array, shape=[2, 3])
        assert tensor[[0, 5]].tolist() == [good, good]
        assert errors == {1: "WrongLength", 2: "WrongLength", 3: "NullValue", 4: "WrongLength"}

    def test_flat_lists_take_the_shape_of_the_input(self) -> None:
        assert encode(pa.array([[1, 2, 3, 4]]), shape=[2, 2])[0].tolist() == [[[1, 2], [3, 4]]]

    def test_an_empty_shape_has_no_axis(self) -> None:
        tensor, _ = encode(pa.array([1.0, 2.0]), shape=[])
        assert tensor.shape == (2,)

    def test_lists_of_integers(self) -> None:
        tensor, errors = encode(pa.array([[1.0, 2.0], [1.5, 2.0], [3.0, 300.0]]), dtype="int8")
        assert tensor[0].tolist() == [1, 2]
        assert errors == {1: "NotAnInteger", 2: "OutOfRange"}
        assert "holds a list with 300.0" in message(pa.array([[3.0, 300.0]]), 0, dtype="int8")


class TestCategories:
    @pytest.mark.parametrize(
        ("values", "categories", "codes"),
        [
            (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
            ([30, 10, 30], [10, 20, 30], [2, 0, 2]),
            ([30.0, 10.0], [10, 20, 30], [2, 0]),
            (["30", "10"], [10, 20, 30], [2, 0]),
            ([1, 2], ["1", "2"], [0, 1]),
            ([1.0, 2.0], ["1", "2"], [0, 1]),
            ([True, False], [False, True], [1, 0]),
            ([1, 0], [False, True], [1, 0]),
            (["True", "false"], [False, True], [1, 0]),
            ([True, False], ["false", "true"], [1, 0]),
        ],
        ids=str,
    )
    def test_codes_are_places(self, values: list[Any], categories: list[Any], codes: list[int]) -> None:
        for array in (pa.array(values), pa.array(values).dictionary_encode()):
            tensor, errors = encode(array, encoder="categorical", categories=categories)
            assert tensor.dtype == torch.int64
            assert tensor.flatten().tolist() == codes
            assert not errors

    def test_unknown_and_null(self) -> None:
        array = pa.array(["a", "z", None])
        fields = {"encoder": "categorical", "categories": ["a", "b"]}
        assert encode(array, **fields)[1] == {1: "UnknownCategory", 2: "NullValue"}
        assert encode(array, **fields, unknown=7)[0].flatten().tolist()[:2] == [0, 7]
        assert encode(array, **fields, unknown=7)[1] == {2: "NullValue"}
        assert encode(array, **fields, fill="b", unknown=7)[0].flatten().tolist() == [0, 7, 1]
        assert 'holds "z", which is not one of the categories' in message(array, 1, **fields)

    def test_values_that_are_no_category_of_that_kind(self) -> None:
        array = pa.array(["1", "x", "1.5", None])
        assert encode(array, encoder="categorical", categories=[1, 2])[1] == {
            1: "UnknownCategory",
            2: "UnknownCategory",
            3: "NullValue",
        }
        array = pa.array([float("nan"), 1e300, 1.0])
        assert encode(array, encoder="categorical", categories=["1"])[1] == {0: "UnknownCategory", 1: "UnknownCategory"}
        assert encode(pa.array([2**64 - 1], pa.uint64()), encoder="categorical", categories=[1, 2])[1] == {
            0: "UnknownCategory"
        }

    def test_codes_as_they_are(self) -> None:
        array = pa.array([0.0, 4.0, 5.0, -1.0, 1.5, None])
        fields = {"encoder": "categorical", "num_categories": 5}
        tensor, errors = encode(array, **fields)
        assert tensor[:2].flatten().tolist() == [0, 4]
        assert errors == {2: "OutOfRange", 3: "OutOfRange", 4: "OutOfRange", 5: "NullValue"}
        assert encode(array, **fields, unknown=0, fill=3)[0].flatten().tolist() == [0, 4, 0, 0, 0, 3]
        assert "not in 0 … 4" in message(array, 2, **fields)

    def test_lists_of_categories(self) -> None:
        array = pa.array([["a", "b"], ["b", "z"], ["b", None], ["b"]])
        tensor, errors = encode(array, encoder="categorical", categories=["a", "b"], shape=[2])
        assert tensor[0].tolist() == [0, 1]
        assert errors == {1: "UnknownCategory", 2: "NullValue", 3: "WrongLength"}

    def test_dates_are_categories_by_their_text(self) -> None:
        tensor, _ = encode(pa.array([DAY]), encoder="categorical", categories=["1970-01-02", "1970-01-03"])
        assert tensor.item() == 1

    def test_all_null(self) -> None:
        assert encode(pa.nulls(1), encoder="categorical", categories=["a"])[1] == {0: "NullValue"}
        assert encode(pa.nulls(1, pa.string()), encoder="categorical", num_categories=2, fill=1)[0].item() == 1


def test_rows_with_a_value_that_is_not_finite_and_no_others() -> None:
    # Sums of float32 overflow in row 0, and are not numbers in row 3.
    batch = pa.record_batch(
        {"a": [3e38, 1.0, 1.0, np.inf], "b": [3e38, -np.inf, 1.0, -np.inf], "c": [1.0, 1.0, 1e39, np.nan]}
    )

    encoded = bound(batch, columns=["a", "b", "c"]).encode(batch)

    assert {row: (error.type, error.message.partition(" holds ")[0]) for row, error in encoded.failures.items()} == {
        1: ("NotFinite", 'column "b"'),
        2: ("NotFinite", 'column "c"'),
        3: ("NotFinite", 'column "a"'),
    }


class TestChunksOfOtherSchemas:
    """A chunk may differ from the sample that was bound; that costs its rows, not the run."""

    bound = bound(pa.record_batch({"a": [1.0], "l": [[1.0, 2.0]]}), columns=["a", "l"])

    def errors(self, **columns: Any) -> dict[int, str]:
        return {row: error.type for row, error in self.bound.encode(pa.record_batch(columns)).failures.items()}

    def test_a_column_that_is_not_there(self) -> None:
        assert self.errors(a=[1.0, 2.0]) == {0: "MissingColumn", 1: "MissingColumn"}
        assert self.errors(a=[1.0, float("inf")]) == {0: "MissingColumn", 1: "MissingColumn"}

    def test_single_values_for_lists_and_lists_for_single_values(self) -> None:
        assert self.errors(a=[1.0], l=[3.0]) == {0: "WrongLength"}
        assert self.errors(a=[[1.0], [1.0, 2.0]], l=[[1.0, 2.0]] * 2) == {1: "WrongLength"}

    def test_types_without_a_meaning(self) -> None:
        assert self.errors(a=[{"b": 1}], l=[[1.0, 2.0]]) == {0: "WrongType"}
        assert self.errors(a=[DAY], l=[[1.0, 2.0]]) == {0: "WrongType"}

    def test_integers_where_there_were_floats(self) -> None:
        assert self.errors(a=[1], l=[[1, 2]]) == {}


def test_no_rows() -> None:
    batch = pa.record_batch({"a": pa.array([], pa.float64()), "l": pa.array([], pa.list_(pa.float32(), 3))})
    for columns, shape in ((["a"], (0, 1)), (["l"], (0, 3)), (["a", "l"], (0, 4))):
        tensor, errors = encode(batch, columns=columns)
        assert tensor.shape == shape
        assert not errors
    assert encode(batch.slice(0, 0), columns=["a"], dtype="int8")[0].shape == (0, 1)
    assert encode(pa.array([], pa.string()), encoder="categorical", categories=["a"])[0].shape == (0, 1)
    assert encode(pa.array([], pa.list_(pa.list_(pa.int8()))), shape=[2, 2])[0].shape == (0, 2, 2)


def test_the_tensor_is_not_the_memory_of_the_chunk() -> None:
    batch = pa.record_batch({"x": pa.array([1.0, 2.0], pa.float32())})
    encode(batch)[0].add_(1)
    assert batch.column("x").to_pylist() == [1, 2]
    fixed = pa.record_batch({"x": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))})
    encode(fixed)[0].add_(1)
    assert fixed.column("x").to_pylist() == [[1, 2]]


CELLS = st.one_of(
    st.floats(width=64),
    st.integers(-(2**63), 2**63 - 1).map(float),
    st.none(),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=20), st.integers(0, 5), st.booleans())
def test_exactly_the_rows_that_cannot_be_encoded_are_errors(rows: list[tuple], cut: int, as_list: bool) -> None:
    """The same rows as three columns or as one list: nulls, and what float32 cannot hold, cost their rows alone."""
    if as_list:
        batch = pa.record_batch({"x": pa.array([list(row) for row in rows], pa.list_(pa.float64(), 3))})
    else:
        batch = pa.record_batch({f"x{i}": pa.array([row[i] for row in rows], pa.float64()) for i in range(3)})
    batch, rows = batch.slice(cut), rows[cut:]
    tensor, errors = encode(batch, columns=["x*"], shape=[3])
    with np.errstate(over="ignore"):
        expected = np.array([[np.nan if cell is None else cell for cell in row] for row in rows], np.float64)
        expected = expected.reshape(-1, 3).astype(np.float32)
    good = np.isfinite(expected).all(axis=1)
    assert sorted(errors) == np.flatnonzero(~good).tolist()
    assert np.array_equal(tensor.numpy()[good], expected[good])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-300, 300), st.floats(-300, 300), st.integers(-9, 9).map(float))))
def test_exactly_the_values_that_an_integer_can_hold_are_encoded(values: list[float | None]) -> None:
    tensor, errors = encode(pa.array(values, pa.float64()), dtype="int8")
    good = [value is not None and value == int(value) and -128 <= value <= 127 for value in values]
    assert sorted(errors) == [row for row, fits in enumerate(good) if not fits]
    assert [tensor[row].item() for row, fits in enumerate(good) if fits] == [
        value for value, fits in zip(values, good, strict=True) if fits
    ]
