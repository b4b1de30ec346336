import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.columnar.chunks import DEAD_LETTER_TYPE, ROW, dead_letter_schema
from handlers.errors import BrokenFileError
from transforms.sources import BadRows, Input, plan_input, read_split
from transforms.sources.formats import jsonl, lines


def write(path: Path, data: bytes | str | list[Any]) -> str:
    if isinstance(data, list):
        data = "".join(json.dumps(row) + "\n" for row in data)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def types(found: Input) -> dict[str, pa.DataType]:
    return {each.name: each.type for each in found.schema}


def test_types(read: Any, tmp_path: Path) -> None:
    first = {"i": 1, "f": 3, "b": True, "s": "x", "d": "2024-01-31", "t": "2024-01-31T10:00:00", "l": [1, 2], "e": None}
    second = {"i": 2, "f": 3.5, "d": "2024-02-01", "l": [0.5], "o": {"a": [1], "b": None}, "texts": ["a"]}
    found = plan_input(write(tmp_path / "t.jsonl", [first, second]), numeric_columns=["none*"])
    assert types(found) == {
        "i": pa.int64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "s": pa.string(),
        "d": pa.date32(),
        "t": pa.timestamp("us"),
        "l": pa.list_(pa.float64()),
        "e": pa.string(),
        "o": pa.struct([("a", pa.list_(pa.int64())), ("b", pa.string())]),
        "texts": pa.list_(pa.string()),
    }
    rows, dead = read(found)
    assert dead == []
    assert rows[0]["f"] == 3.0
    assert rows[1]["o"] == {"a": [1], "b": None}
    assert str(rows[0]["d"]) == "2024-01-31"


def test_the_majority_settles_a_mixed_column(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": "x", "c": "q"}, {"a": "x", "b": "y", "c": "r"}, {"a": 2.5, "b": 3, "c": 1}]
    found = plan_input(write(tmp_path / "m.jsonl", rows), numeric_columns=["c"])
    assert types(found) == {"a": pa.float64(), "b": pa.string(), "c": pa.float64()}


@pytest.mark.parametrize("value", [[1, "a"], 10**30, {"x": [1, "a"]}, [{"x": 1}, 2]])
@pytest.mark.parametrize("numeric", [False, True])
def test_values_without_a_type_are_read_as_json(read: Any, tmp_path: Path, value: object, numeric: bool) -> None:
    rows = [{"a": 1, "k": value}, {"a": 2}, {"a": 3, "k": value}, {"a": 4, "k": "text"}, {"a": 5, "k": {"ä": 1}}]
    path = write(tmp_path / "k.jsonl", rows)
    found = plan_input(path, numeric_columns=["k"] if numeric and isinstance(value, list) else [])
    assert types(found) == {"a": pa.int64(), "k": pa.string()}
    read_rows, dead = read(found)
    assert dead == []
    text = json.dumps(value)
    assert [(row["a"], row["k"]) for row in read_rows] == [
        (1, text),
        (2, None),
        (3, text),
        (4, "text"),
        (5, '{"ä": 1}'),
    ]


def test_values_without_a_type_beside_rows_that_are_refused(read: Any, tmp_path: Path) -> None:
    data = '{"a":1,"k":[1,"a"]}\n{"a":"x","k":[2,"b"]}\n{"a":3,"k":4}\n{"a":4,"k":[1,"a"]}trailing\n'
    rows, dead = read(plan_input(write(tmp_path / "k.jsonl", data), numeric_columns=["a"]))
    assert [(row["a"], row["k"], row[ROW]) for row in rows] == [(1, '[1, "a"]', 0), (3, "4", 2)]
    assert [(each["a"], each["k"], each["dead_letter"]["row"]) for each in dead] == [
        (None, '[2, "b"]', 1),
        (None, None, 3),
    ]
    assert "double was expected" in dead[0]["dead_letter"]["message"]


def test_only_values_without_a_type(read: Any, tmp_path: Path) -> None:
    rows, dead = read(plan_input(write(tmp_path / "k.jsonl", [{"k": [1, "a"]}, {"k": None}])))
    assert ([row["k"] for row in rows], dead) == (['[1, "a"]', None], [])


def test_few_values_without_a_type_settle_nothing(read: Any, tmp_path: Path) -> None:
    found = plan_input(write(tmp_path / "k.jsonl", [{"k": 1}, {"k": 10**30}, {"k": 2}]))
    assert types(found) == {"k": pa.int64()}
    rows, dead = read(found)
    assert ([row["k"] for row in rows], [each["dead_letter"]["row"] for each in dead]) == ([1, 2], [1])


def test_large_integers_in_a_numeric_column(read: Any, tmp_path: Path) -> None:
    found = plan_input(write(tmp_path / "k.jsonl", [{"k": 10**30}, {"k": 10**20}]), numeric_columns=["k"])
    assert types(found) == {"k": pa.float64()}
    rows, dead = read(found)
    assert ([row["k"] for row in rows], dead) == ([1e30, 1e20], [])


SURROGATES = {
    '"s":"\\udfff"': 'column "s" holds "\\udfff" in row {} of s.jsonl; valid UTF-8 was expected',
    '"s":"x","l":["\\uD800"]': 'column "l" holds ["\\ud800"] in row {} of s.jsonl; valid UTF-8 was expected',
    '"o":{"t":"\\udfff"}': 'column "o" holds {{"t": "\\udfff"}} in row {} of s.jsonl; valid UTF-8 was expected',
    '"o":{"\\udfff":"t"}': 'column "o" holds {{"\\udfff": "t"}} in row {} of s.jsonl; valid UTF-8 was expected',
    '"\\ud800":1': 'row {} of s.jsonl has a field "\\ud800", whose name is not valid UTF-8',
    '"k":[1,"\\udfff"]': 'column "k" holds [1, "\\udfff"] in row {} of s.jsonl; valid UTF-8 was expected',
}


@pytest.mark.parametrize("bad", SURROGATES)
@pytest.mark.parametrize(("before", "sampled"), [(0, True), (1, True), (20, True), (1, False), (20, False)])
def test_a_lone_surrogate(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str, before: int, sampled: bool
) -> None:
    if not sampled:
        monkeypatch.setattr(jsonl, "SAMPLE_ROWS", before)
    good = '{"a":1,"s":"\\ud83d\\ude00","l":["y"],"o":{"t":"z"},"k":[1,"a"]}\n'
    path = write(tmp_path / "s.jsonl", good * before + f'{{"a":2,{bad}}}\n' + good)
    rows, dead = read(plan_input(path))
    assert [(row["a"], row["s"], row[ROW]) for row in rows] == [
        (1, "\U0001f600", row) for row in [*range(before), before + 1]
    ]
    (letter,) = dead
    assert letter["dead_letter"]["row"] == before
    assert letter["dead_letter"]["message"] == SURROGATES[bad].format(before)
    assert letter["dead_letter"]["raw"] == f'{{"a":2,{bad}}}'
    assert letter["a"] == 2


def test_nothing_but_lone_surrogates(read: Any, tmp_path: Path) -> None:
    for name, bad in [("v", '{"a":1,"s":"\\udfff"}'), ("n", '{"a":1,"\\udfff":1}'), ("o", '{"\\udfff":1}')]:
        rows, dead = read(plan_input(write(tmp_path / f"{name}.jsonl", f"{bad}\n" * 3)))
        assert (rows, [each["dead_letter"]["row"] for each in dead]) == ([], [0, 1, 2])


def test_a_first_line_longer_than_the_sample(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", 100)
    long = {"a": 1, "s": "x" * 1000}
    for name, end in [("1", '{"a": 2}\n'), ("2", ""), ("3", '{"a": 2}')]:
        path = write(tmp_path / f"{name}.jsonl", "\n\n" + json.dumps(long) + "\n" + end)
        found = plan_input(path, numeric_columns=["a"])
        assert types(found) == {"a": pa.float64(), "s": pa.string()}
        rows, dead = read(found)
        assert ([row["a"] for row in rows], dead) == ([1, 2] if end else [1], [])


def test_lines_without_a_column(read: Any, tmp_path: Path) -> None:
    rows, dead = read(plan_input(write(tmp_path / "e.jsonl", "{}\n{}\n")))
    assert ([row[ROW] for row in rows], dead) == ([0, 1], [])
    rows, dead = read(plan_input(write(tmp_path / "b.jsonl", "{bad\nx\n{}\n[]\n")))
    assert [row[ROW] for row in rows] == [2]
    assert [each["dead_letter"]["row"] for each in dead] == [0, 1, 3]
    assert [each["dead_letter"]["raw"] for each in dead] == ["{bad", "x", "[]"]
    assert all(set(each) == {"dead_letter"} for each in dead)


def test_lines_that_are_refused(read: Any, tmp_path: Path) -> None:
    bad = [b"null", b"[1]", b"7", b'{"a":1', b'{"a":1}{"a":2}', b'{"a":"\xff"}', b'{"a":1,"a":2}', b"}{", b"{}}"]
    data = b'{"a":1,"s":"x"}\r\n\n  \n' + b"\n".join(bad) + b'\n{"a":"y","s":"kept"}\n{"a":3,"other":[{}]}'
    path = write(tmp_path / "r.jsonl", data)
    rows, dead = read(plan_input(path, numeric_columns=["a"]), model_version="v")
    assert [(row["a"], row["s"], row[ROW]) for row in rows] == [(1, "x", 0), (3, None, len(bad) + 2)]
    letters = [each["dead_letter"] for each in dead]
    assert [each["row"] for each in letters] == list(range(1, len(bad) + 2))
    assert [each["raw"] for each in letters[:-1]] == [line.decode(errors="replace") for line in bad]
    assert letters[0]["message"] == "row 1 of r.jsonl cannot be read: it is no JSON object"
    assert dead[-1]["s"] == "kept"
    assert letters[-1]["message"] == 'column "a" holds "y" in row 10 of r.jsonl; double was expected'
    assert {each["model_version"] for each in letters} == {"v"}


def test_files_without_rows(read: Any, tmp_path: Path) -> None:
    assert read(plan_input(write(tmp_path / "e.jsonl", b""))) == ([], [])
    assert read(plan_input(write(tmp_path / "f.jsonl", b"\n \n"))) == ([], [])


def test_a_json_array_is_told(tmp_path: Path) -> None:
    found = plan_input(write(tmp_path / "a.json", '[\n{"a": 1},\n{"a": 2}\n]\n'))
    with pytest.raises(BrokenFileError, match=r"a\.json is a JSON array; write one JSON object a line"):
        list(read_split(found.splits[0], found.schema))


def test_truncated_gzip(read_until_break: Any, tmp_path: Path) -> None:
    text = "".join(json.dumps({"a": i}) + "\n" for i in range(5_000))
    found = plan_input(write(tmp_path / "x.jsonl.gz", gzip.compress(text.encode())[:-300]))
    rows, error = read_until_break(found.splits[0], pa.schema([("a", pa.int64())]))
    assert re.search("Truncated", str(error))
    assert error.rows == len(rows) > 3_000
    assert [(row["a"], row[ROW]) for row in rows] == [(i, i) for i in range(len(rows))]


def test_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 100)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    found = plan_input(write(tmp_path / "l.jsonl", [{"a": 1}, {"a": 2}, {"s": "x" * 5000}, {"a": 3}]))
    with pytest.raises(BrokenFileError, match="longer than 1000 bytes") as raised:
        list(read_split(found.splits[0], found.schema))
    assert raised.value.rows == 2


def letter(**fields: object) -> dict[str, Any]:
    return {"stage": "encode", "type": "ValueError", "message": "m", "source": "old.csv", "row": 7, **fields}


def test_replay(tmp_path: Path) -> None:
    path = write(
        tmp_path / "dead.jsonl",
        [
            {"a": 1, "dead_letter": letter()},
            {"a": 2, "dead_letter": letter(source=None, row=None, raw=None)},
            {"a": None, "dead_letter": letter(stage="read", row=9, raw="x,y")},
            {"a": 4},
        ],
    )
    found = plan_input(path)
    assert found.replay
    assert found.schema == pa.schema([("a", pa.int64())])
    pieces = list(read_split(found.splits[0], found.schema, model_version="v2"))
    rows = [row for piece in pieces if not isinstance(piece, BadRows) for row in piece.to_pylist()]
    assert [tuple(row.values()) for row in rows] == [(1, "old.csv", 7), (2, path, 1), (4, path, 3)]
    (dead,) = [piece.dead_letters for piece in pieces if isinstance(piece, BadRows)]
    assert dead.schema == dead_letter_schema(found.schema)
    assert dead.schema.field("dead_letter").type == DEAD_LETTER_TYPE
    assert dead.to_pylist() == [{"a": None, "dead_letter": letter(stage="read", row=9, raw="x,y", model_version="v2")}]


def test_a_field_that_only_unsampled_files_have(read: Any, tmp_path: Path) -> None:
    for number in range(20):
        row: dict[str, Any] = {"a": number, "o": {"x": 1}, "k": [1, "a"]}
        write(tmp_path / f"{number:02}.jsonl", [row | {"rare": 0.5, "o": {"y": [2]}} if number == 7 else row])
    found = plan_input(str(tmp_path), numeric_columns=["a"])
    assert types(found) == {
        "a": pa.float64(),
        "o": pa.struct([("x", pa.int64()), ("y", pa.list_(pa.int64()))]),
        "k": pa.string(),
        "rare": pa.float64(),
    }
    rows, dead = read(found)
    assert dead == []
    assert [row["rare"] for row in rows] == [0.5 if number == 7 else None for number in range(20)]
    assert rows[7]["o"] == {"x": None, "y": [2]}


def test_heads_of_other_files_settle_no_types_of_sampled_columns(tmp_path: Path) -> None:
    for number in range(20):
        rows = [{"a": 1}] if number in (0, 4, 9, 14, 19) else [{"a": "x"}] * 9
        write(tmp_path / f"{number:02}.jsonl", rows)
    assert types(plan_input(str(tmp_path))) == {"a": pa.int64()}


FIELDS_WITHOUT_COLUMN = {
    '"rare":7': 'a field "rare"',
    '"o":{"x":1,"y":2}': 'a field in "o"',
    '"l":[{"x":1},{"y":[0]}]': 'a field in "l"',
}


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("bad", FIELDS_WITHOUT_COLUMN)
def test_a_field_without_a_column_costs_its_row(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str, text: bool
) -> None:
    monkeypatch.setattr(jsonl, "SAMPLE_ROWS", 1)
    untyped = '"k":[1,"a"],' if text else ""
    good = f'{{{untyped}"a":1,"o":{{"x":1}},"l":[{{"x":1}}]}}\n'
    null = f'{{{untyped}"a":2,"rare":null,"o":{{"y":null}}}}\n'
    path = write(tmp_path / "f.jsonl", good + null + f'{{{untyped}"a":3,{bad}}}\n' + good)
    rows, dead = read(plan_input(path))
    assert [(row["a"], row[ROW]) for row in rows] == [(1, 0), (2, 1), (1, 3)]
    (letter,) = dead
    assert letter["a"] == 3
    assert letter["dead_letter"]["raw"] == f'{{{untyped}"a":3,{bad}}}'
    assert letter["dead_letter"]["message"] == (
        f"row 2 of f.jsonl has {FIELDS_WITHOUT_COLUMN[bad]} that no sampled row has, so there is no column for it; "
        "move a row with this field to the start of its file"
    )


def test_text(read: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", b"one\r\n\n  two \n\xff\nfour")
    rows, dead = read(plan_input(path))
    assert [(row["text"], row[ROW]) for row in rows] == [("one", 0), ("  two ", 1), ("four", 3)]
    assert [(each["dead_letter"]["row"], each["dead_letter"]["raw"]) for each in dead] == [(2, "\ufffd")]


POISON = [
    '{"n":"x","s":"a"}',
    "null",
    '{"n":1',
    '{"n":1}{"n":2}',
    '{"n":',
    '{"s":1}}',
    "[]",
    '{"n":1.5}',
    '{"s":"\udcff"}',
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.none(), st.sampled_from(POISON)), max_size=60), st.integers(1, 20))
def test_exactly_the_poisoned_lines_are_dead(tmp_path_factory: Any, poison: list[str | None], chunk_rows: int) -> None:
    text = "".join((bad or f'{{"n":{row},"s":"ä"}}') + "\n" for row, bad in enumerate(poison))
    path = write(tmp_path_factory.mktemp("json") / "p.jsonl", text.encode(errors="surrogateescape"))
    found = plan_input(path)
    rows, dead = [], []
    for piece in read_split(found.splits[0], pa.schema([("n", pa.int64()), ("s", pa.string())]), chunk_rows=chunk_rows):
        assert 0 < piece.num_rows <= chunk_rows
        if isinstance(piece, BadRows):
            dead += piece.dead_letters.to_pylist()
        else:
            rows += piece.to_pylist()
    good = [row for row, bad in enumerate(poison) if bad is None]
    assert [(each["n"], each["s"], each[ROW]) for each in rows] == [(row, "ä", row) for row in good]
    assert [each["dead_letter"]["row"] for each in dead] == [row for row, bad in enumerate(poison) if bad is not None]


def test_row_numbers_across_blocks(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 500)
    text = "".join("null\n" if i % 31 == 0 else f'\n{{"n": {i}}}\n' for i in range(1_000))
    rows, dead = read(plan_input(write(tmp_path / "b.jsonl", text)))
    assert [row["n"] for row in rows] == [row[ROW] for row in rows] == [i for i in range(1_000) if i % 31]
    assert [each["dead_letter"]["row"] for each in dead] == list(range(0, 1_000, 31))
