from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handlers.columnar.chunks import NUMBERS
from transforms.sources.inference import json_field, json_type, text_field, text_type


@pytest.mark.parametrize(("numeric", "expected"), [(False, pa.int64()), (True, pa.float64())])
@pytest.mark.parametrize("cells", [["0", "1"], ["1"], ["0", None, " 1 "], ["7", "-3"]])
def test_whole_numbers(cells: list[str | None], numeric: bool, expected: pa.DataType) -> None:
    assert text_type(pa.array(cells, pa.string()), numeric=numeric) == expected


MOMENTS = st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9999, 1, 1))
VALUES: list[tuple[st.SearchStrategy[object], pa.DataType]] = [
    (st.integers(-(10**15) + 1, 10**15 - 1), pa.int64()),
    (st.floats(allow_nan=False, allow_infinity=False), pa.float64()),
    (st.booleans(), pa.bool_()),
    (st.dates(min_value=datetime(1000, 1, 1).date()), pa.date32()),
    (MOMENTS, pa.timestamp("us")),
    (MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC)), pa.timestamp("us", "UTC")),
    (st.text(st.characters(categories=["L"]), min_size=1).map(lambda text: f"x{text}"), pa.string()),
    (st.integers(0, 99_999).map("0{:05d}".format), pa.string()),
    (st.integers(10**19, 10**25).map(str), pa.string()),
]


LARGE = 9007199254740993


@pytest.mark.parametrize(
    ("values", "numeric", "whole", "expected"),
    [
        ([LARGE], False, False, pa.int64()),
        ([LARGE], True, True, pa.int64()),
        ([LARGE], True, False, pa.string()),
        ([1, 2], True, True, pa.float64()),
        ([LARGE, 0.5], True, True, pa.string()),
        ([10**30 + 1], True, True, pa.string()),
        ([10**30], True, True, pa.float64()),
        ([LARGE, 0.5], False, False, None),
        ([[LARGE], [1]], True, True, pa.list_(pa.int64())),
        ([[LARGE], [1]], True, False, pa.list_(pa.string())),
        ([[LARGE], [0.5]], False, False, None),
        ([{"x": LARGE}, {"x": 0.5}], False, True, None),
    ],
)
def test_no_type_loses_digits(values: list[object], numeric: bool, whole: bool, expected: pa.DataType | None) -> None:
    assert json_type(values, numeric=numeric, whole=whole) == expected
    field = json_field("a", values, numeric=numeric, whole=whole)
    texts = numeric and expected in (pa.string(), pa.list_(pa.string()))
    assert (field is None) == (expected is None)
    assert (field is not None and field.metadata == NUMBERS) == texts
    if expected is not None and not pa.types.is_list(expected):
        cells = pa.array(list(map(str, values)))
        assert text_type(cells, numeric=numeric, whole=whole) == expected
        assert (text_field("a", cells, numeric=numeric, whole=whole).metadata == NUMBERS) == texts


def test_hexadecimal_codes_stay_text() -> None:
    assert text_type(pa.array(["0x1F", "7"]), numeric=False) == pa.string()


def written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_text_has_the_type_of_the_values_it_was_written_from(data: st.DataObject) -> None:
    values, kind = data.draw(st.sampled_from(VALUES))
    drawn = data.draw(st.lists(values, min_size=1, max_size=20))
    cells = pa.array([written(value) for value in drawn], pa.string())
    found = text_type(cells, numeric=False)
    assert pc.cast(cells, found).to_pylist() == drawn
    assert found == kind


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_numbers_among_other_text_settle_a_numeric_column(data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.one_of(VALUES[0][0], VALUES[1][0]), min_size=1, max_size=10))
    others = data.draw(st.lists(VALUES[6][0], max_size=10))
    cells = data.draw(st.permutations([str(value) for value in [*numbers, *others]]))
    assert text_type(pa.array(cells, pa.string()), numeric=True) == pa.float64()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xy"), inner, max_size=2)),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@example([9007199254740993], True)
@example([9007199254740993, 0.5], False)
@example([[9007199254740993], [0.5, None]], True)
@example([{"x": 9007199254740993}, {"x": 0.5}], False)
@given(st.lists(JSON, max_size=6), st.booleans())
def test_any_json_has_a_type_that_fits_a_value_or_none(values: list[object], numeric: bool) -> None:
    kind = json_type(values, numeric=numeric)
    if kind is None or all(value is None for value in values):
        return
    if pa.types.is_temporal(kind):
        assert any(isinstance(value, str) for value in values)
        return
    if numeric and json_field("a", values, numeric=True).metadata == NUMBERS:  # type: ignore[union-attr]
        assert any(_loses_digits(value) for value in values)
        return
    assert any(value is not None and _fits(value, kind) for value in values)


def _loses_digits(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_loses_digits, value))
    return isinstance(value, int) and Decimal(repr(float(value))) != value


def _fits(value: object, kind: pa.DataType) -> bool:
    if pa.types.is_floating(kind) and isinstance(value, int):
        return not _loses_digits(value)
    if pa.types.is_list(kind) and isinstance(value, list):
        return all(item is None or _fits(item, kind.value_type) for item in value)
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return all(value.get(each.name) is None or _fits(value[each.name], each.type) for each in kind)
    try:
        pa.array([value], kind)
    except (pa.ArrowException, OverflowError):
        return False
    return True
