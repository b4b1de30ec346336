"""Which numbers float64 holds, by decimals; and that no digit of a number in text is lost on its way in."""

import json
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.sources import digits, plan_input
from transforms.sources.digits import Literal, dumps, held, is_held, loads
from transforms.sources.formats import delimited, json_rows, jsonl
from transforms.sources.formats.json_rows import parse

HELD = ["0", "-0.0", "0.1", "1e30", "1e23", "9007199254740992", "0.30000000000000000", "1152921504606846976", "5e-324"]
HELD += [
    "5.960464477539063e-08",
    "5.9604644775390625e-08",
    "0.100000000000000006",
    "1.000000000000000056e-01",
    "+7",
    ".5",
    "5.",
    "inf",
    "nan",
    "hello",
    "1e",
    "9007199254740993e2",
]
LOST = ["9007199254740993", "-9007199254740993", "1234567890123456.78", "0.1234567890123456789", "1e999", "1e-400"]
LOST += ["4e-324", "12345678901234567890123456789012345678", "1e99999999999999999999"]


@pytest.mark.parametrize(("texts", "expected"), [(HELD, True), (LOST, False)])
def test_what_float64_holds(texts: list[str], expected: bool) -> None:
    assert {text: is_held(text) for text in texts} == dict.fromkeys(texts, expected)


NUMBERS = st.one_of(
    st.integers(-(10**38), 10**38).map(str),
    st.integers(2**53 - 9, 2**53 + 9).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map("{:.18e}".format),
    st.decimals(-(10**22), 10**22, places=4).map(str),
    st.decimals(0, 1, places=20).map("{:f}".format),
)


def same_digits(text: str) -> bool:
    """By decimals: the shortest text of the float is the number, or the float cut to as many digits is."""
    number, near = Decimal(text), float(text)
    digits = max(len(number.normalize(Context(prec=100)).as_tuple().digits), 1)
    return Decimal(repr(near)) == number or Decimal(f"{near:.{digits - 1}e}") == number


@settings(max_examples=300, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_arrays_and_single_numbers_agree(texts: list[str]) -> None:
    array = pa.array([*texts, None])
    mask = held(array, pc.cast(array, pa.float64()))
    assert mask.tolist() == [*map(same_digits, texts), True]
    assert [is_held(text) for text in texts] == mask[:-1].tolist()


DIGITS = st.text("0123456789", max_size=20)
# Near powers of ten and of two, with leading and trailing zeros, signs, exponents, and one digit too many or too few.
WRITTEN = st.one_of(
    NUMBERS,
    st.floats(-1e6, 1e6).map("{:.16f}".format),
    st.floats(-1e18, 1e18).map("{:.17g}".format),
    st.builds("{}{}.{}".format, st.sampled_from(["", "-", "+"]), DIGITS, DIGITS),
    st.builds(lambda a, n, m, b: f"{a}{'9' * n}.{'9' * m}{b}", DIGITS, st.integers(0, 17), st.integers(0, 17), DIGITS),
    st.builds(lambda a, n, m, b: f"{a}{'0' * n}.{'0' * m}{b}", DIGITS, st.integers(0, 17), st.integers(0, 17), DIGITS),
    st.builds("{}.{}e{}".format, DIGITS, DIGITS, st.sampled_from(["5", "-05", "+07", "00", "-20", "300", "16"])),
).filter(lambda text: any(digit in "0123456789" for digit in text.partition("e")[0]))


@settings(max_examples=300, deadline=None)
@given(st.lists(WRITTEN, min_size=1, max_size=30), st.integers(0, 3))
def test_the_quick_check_of_arrays_agrees_with_the_careful_one(texts: list[str], before: int) -> None:
    array = pa.array(["0.30000000000000004"] * before + texts + ["x"])[before:-1]
    assert held(array, pc.cast(array, pa.float64())).tolist() == [is_held(text) for text in texts]


@pytest.mark.parametrize("places", [0, 2, 8, 12, 15, 16, 17, 18, 20])
@pytest.mark.parametrize("scale", [0.001, 1, 1e3, 1e8])
def test_the_quick_check_of_many_floats(places: int, scale: float) -> None:
    numbers = np.random.default_rng(places).standard_normal(500) * scale
    texts = [f"{number:.{places}f}" for number in numbers]
    array = pa.array(texts)
    assert held(array, pc.cast(array, pa.float64())).tolist() == [is_held(text) for text in texts]


def test_floats_written_in_full_need_no_closer_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "is_held", lambda text: pytest.fail(text))
    texts = pa.array([repr(number) for number in np.random.default_rng(0).standard_normal(2_000).tolist()])
    assert held(texts, pc.cast(texts, pa.float64())).all()


def test_json_keeps_how_numbers_are_written() -> None:
    text = '{"a": [1.10, {"b": 12345678901234567890.10}], "c": 1E400, "d": "x", "é": null, "f": true}'
    value = loads(text)
    assert dumps(value) == text
    assert isinstance(value["c"], Literal)
    assert float(value["a"][0]) == 1.1


def exact(value: object, text: str) -> bool:
    """Whether a value that was read is the number that was written as `text`."""
    number = Decimal(text)
    if isinstance(value, float):
        return same_digits(text) and value == float(text)
    return isinstance(value, int | str | Decimal) and Decimal(value) == number


def read_all(found: Any, read: Any) -> dict[int, object]:
    """What became of each row: its value as it was read, or the text of its dead letter."""
    rows, dead = read(found)
    letters = {each["dead_letter"]["row"]: each["dead_letter"]["raw"] for each in dead}
    return {row["__row__"]: row["a"] for row in rows} | letters


@pytest.mark.parametrize("numeric", [False, True])
@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=12), st.integers(1, 12))
def test_csv_keeps_every_digit(read: Any, tmp_path_factory: Any, numeric: bool, texts: list[str], sampled: int) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text("a\n" + "".join(f"{text}\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "SAMPLE_ROWS", sampled)
        found = plan_input(str(path), numeric_columns=["a"] if numeric else [])
    became = read_all(found, read)
    assert all(exact(became[row], text) for row, text in enumerate(texts)), (found.schema, became)
    if sampled >= len(texts) or (numeric and pa.types.is_string(found.schema.field("a").type)):
        rows, dead = read(found)
        assert (len(rows), dead) == (len(texts), [])


@pytest.mark.parametrize("numeric", [False, True])
@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=12), st.integers(1, 12))
def test_json_keeps_every_digit(
    read: Any, tmp_path_factory: Any, numeric: bool, texts: list[str], sampled: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "t.jsonl"
    path.write_text("".join(f'{{"a":{text}}}\n' for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "SAMPLE_ROWS", sampled)
        found = plan_input(str(path), numeric_columns=["a"] if numeric else [])
    for row, value in read_all(found, read).items():
        written = json.loads(value, parse_float=str, parse_int=str)["a"] if str(value).startswith("{") else value  # type: ignore[arg-type]
        assert exact(written, texts[row]), (found.schema, value)


JSON_NUMBERS = NUMBERS.filter(lambda text: Decimal(text) == Decimal(text) and not text.startswith("+"))
TEXTS = st.sampled_from(
    ["", "e5", "1e400", "9007199254740993", "2024-01-31-10-00-00-123", "a.b.c", "0.30000000000000004"]
)


@settings(max_examples=200, deadline=None)
@given(st.tuples(JSON_NUMBERS, TEXTS, JSON_NUMBERS), st.booleans())
def test_the_check_of_json_lines_agrees_with_that_of_single_numbers(row: Any, spaces: bool) -> None:
    first, text, second = row
    line = f'{{"a":{first},"e":"{text}","l":[{second},0.5]}}'.replace(",", " , " if spaces else ",")
    columns = pa.schema([("a", pa.float64()), ("e", pa.string()), ("l", pa.list_(pa.float64()))])
    if is_held(first) and is_held(second):
        values = parse([line.encode()], columns).to_pylist()
        assert values == [{"a": float(first), "e": text, "l": [float(second), 0.5]}]
    else:
        with pytest.raises(ValueError, match="float64 does not hold all digits"):
            parse([line.encode()], columns)


def test_json_floats_written_in_full_need_no_closer_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_number_pattern", lambda _: pytest.fail("a closer look"))
    floats = np.random.default_rng(0).standard_normal(2_000).tolist()
    lines = [json.dumps({"a": number, "e": "e5 me+"}).encode() for number in floats]
    schema = pa.schema([("a", pa.float64()), ("e", pa.string())])
    assert parse(lines, schema).column("a").to_pylist() == floats


@pytest.mark.parametrize("form", ["a\n{}\n{}\n", '{{"a":{}}}\n{{"a":{}}}\n'])
@pytest.mark.parametrize("sampled", [1, 10])
def test_a_fraction_after_an_integer_that_float64_does_not_hold(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, sampled: int
) -> None:
    for module in (delimited, jsonl):
        monkeypatch.setattr(module, "SAMPLE_ROWS", sampled)
    path = tmp_path / ("t.csv" if form.startswith("a") else "t.jsonl")
    path.write_text(form.format("9007199254740993", "0.25"))
    found = plan_input(str(path), numeric_columns=["a"])
    rows, dead = read(found)
    assert ([row["a"] for row in rows], dead) == (["9007199254740993", "0.25"], [])
    path.write_text(form.format("9007199254740993", "9007199254740995"))
    found = plan_input(str(path), numeric_columns=["a"])
    rows, dead = read(found)
    values = [9007199254740993, 9007199254740995]
    assert ([row["a"] for row in rows], dead) == (values if sampled == 10 else list(map(str, values)), [])


def test_decimals_beside_floats(read: Any, tmp_path: Path) -> None:
    """The column of both files is float64; a decimal that it does not hold costs its row, and none is rounded."""
    decimals = [Decimal("0.10"), Decimal("12345678901234567890.12"), None]
    pq.write_table(pa.table({"a": pa.array([0.5, 1.5])}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": pa.array(decimals, pa.decimal128(38, 2))}), tmp_path / "2.parquet")
    rows, dead = read(plan_input(str(tmp_path)))
    assert [row["a"] for row in rows] == [0.5, 1.5, 0.1, None]
    (letter,) = dead
    assert letter["dead_letter"]["raw"] == '{"a": "12345678901234567890.12"}'
    assert "a number that float64 holds without losing digits was expected" in letter["dead_letter"]["message"]


@pytest.mark.parametrize("name", ["a", "a b", "ä", 'a"b'])
def test_a_number_that_does_not_fit_after_the_sample(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(jsonl, "SAMPLE_ROWS", 2)
    good = [{name: 1, "o": {"x": [0.5]}, "s": "123.456.789.012.345"}, {name: 0.5, "s": "1.2.3.4.5.6.7.8.9.0.1.2"}]
    lines = [json.dumps(each) for each in good]
    lines += [json.dumps({name: 9007199254740993}), '{"o":{"x":[1,9007199254740993]}}', json.dumps({name: 2.0})]
    lines += [json.dumps({name: 9007199254740993}, ensure_ascii=False).replace("a", "\\u0061")]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines))
    found = plan_input(str(path), numeric_columns=[name])
    rows, dead = read(found)
    assert [row[name] for row in rows] == [1, 0.5, 2]
    assert [row["s"] for row in rows] == [each["s"] for each in good] + [None]
    letters = {each["dead_letter"]["row"]: each["dead_letter"] for each in dead}
    assert sorted(letters) == ([2, 3, 5] if "a" in name else [2, 3, 5] if name == "ä" else [2, 3])
    assert (
        "holds 9007199254740993 in row 2 of t.jsonl; a number that float64 holds without losing digits was expected"
        in (letters[2]["message"])
    )
    assert '"o" holds {"x": [1, 9007199254740993]} in row 3' in letters[3]["message"]
