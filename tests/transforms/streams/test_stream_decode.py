"""Decoding: every message becomes its own row or its own failure."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stream_messages import messages

from handlers.columnar.chunks import ROW, SOURCE, without_provenance
from handlers.errors import UsageError
from handlers.model.spec import ModelSpec
from transforms.streams.decode import decode
from transforms.streams.formats.json import JsonDecoder
from transforms.streams.formats.text import BytesDecoder, TextDecoder
from transforms.streams.settle import MessageFormat, columns_of_model, decoder_of

SCHEMA = pa.schema([("a", pa.float64()), ("s", pa.string()), ("i", pa.int64()), ("l", pa.list_(pa.float64()))])
JSON = JsonDecoder(SCHEMA)
MIB = 1 << 20

_rows = st.fixed_dictionaries(
    {},
    optional={
        "a": st.none() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False),
        "s": st.none() | st.text(st.characters(codec="utf-8"), max_size=5),
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "l": st.none() | st.lists(st.floats(-1e6, 1e6), max_size=3),
        "other": st.integers() | st.text(st.characters(codec="utf-8")) | st.lists(st.booleans()),
    },
)
_good = _rows.map(lambda row: (json.dumps(row).encode(), row))
_pretty = _rows.map(lambda row: (json.dumps(row, indent=2).encode(), row))
_bad = st.sampled_from(
    [
        *(
            None,
            b"",
            b" ",
            b"\n",
            b"null",
            b"[]",
            b"{",
            b"}",
            b'{"a":1}{"a":2}',
            b'{"a":1}\n{"a":2}',
            b'{"a":}',
            b"\xff",
        ),
        *(
            b'{"a":"1.5"}',
            b'{"a":true}',
            b'{"i":1.5}',
            b'{"i":9223372036854775808}',
            b'{"s":1}',
            b'{"l":1}',
            b'{"l":[[1]]}',
        ),
        *(
            b'{"a":9007199254740993}',
            b'{"s":"\xff"}',
            b'{"s":"\\ud800"}',
            b'{"s":"x\ny"}',
            b'{"a":1,"a":2}',
            b'{"a":{"b":1}',
        ),
        *(
            b'{"b":[',
            b'"}',
            b'{"a":1}}',
            b'{"s":"',
            b'{"s":{"s":"x"}}',
            b'{"l":["x"]}',
            b'{"a":1} x',
            b"{\x00}",
            b"x" * 200,
        ),
    ]
).map(lambda value: (value, None))


def _same(found: object, wanted: object) -> bool:
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, float | int) and isinstance(found, float):
        return found == float(wanted) or math.isclose(found, wanted, rel_tol=1e-15)
    return found == wanted


@given(st.lists(_good | _bad | _pretty, max_size=12))
@example(
    [
        (b'{"a":1}', {"a": 1}),
        (b'{"a":{"b":1}', None),
        (b'{"a":2}}', None),
        (b'{"a":3}{"a":4}', None),
        (b'{"a":5}', {"a": 5}),
    ]
)
@example([(b'{"s":"x', None), (b'{"a":2}', {"a": 2}), (b'y"}', None)])
def test_no_message_takes_another_with_it(given: list[tuple[bytes | None, dict | None]]) -> None:
    values = [value for value, _ in given]
    decoded = decode(messages(values, first=100), JSON, 150)
    wanted = {
        index: {name: row.get(name) for name in SCHEMA.names}
        for index, (value, row) in enumerate(given)
        if row is not None and value is not None and len(value) <= 150
    }
    assert decoded.indices.tolist() == sorted(wanted)
    assert set(decoded.failures) == set(range(len(values))) - set(wanted)
    for index, found in zip(decoded.indices.tolist(), without_provenance(decoded.chunk).to_pylist(), strict=True):
        assert all(_same(found[name], wanted[index][name]) for name in SCHEMA.names), (found, wanted[index])
    assert decoded.chunk.column(ROW).to_pylist() == [100 + index for index in sorted(wanted)]
    assert set(decoded.chunk.column(SOURCE).to_pylist()) <= {"orders"}
    assert all("\n" not in failure.message and failure.stage == "decode" for failure in decoded.failures.values())


def test_reasons_say_what_and_where() -> None:
    values = [None, b"", b"x" * (MIB + 1), b"nope", b'{"a":"1"}', b'{"s":"\xff"}']
    failures = decode(messages(values, first=7), JSON, MIB).failures
    assert {index: failure.type for index, failure in failures.items()} == {
        0: "Tombstone",
        1: "Empty",
        2: "TooLarge",
        3: "JSONDecodeError",
        4: "ValueError",
        5: "UnicodeDecodeError",
    }
    assert failures[2].message == "the value has 1,048,577 bytes; --max_message_bytes allows 1,048,576"
    assert failures[4].message == 'column "a" holds "1" in row 11 of orders; double was expected'


def test_deep_nesting_is_a_dead_letter() -> None:
    deep = b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"
    decoded = decode(messages([b'{"a":1}', deep, b'{"a":2}']), JSON, 8 * MIB)
    assert decoded.indices.tolist() == [0, 2]
    assert list(decoded.failures) == [1]


def test_text_and_bytes() -> None:
    values = [b"ok", b"\xff\xfe", "schön\n".encode(), None, b""]
    text = decode(messages(values), TextDecoder(pa.schema([("t", pa.string())])), MIB)
    assert text.indices.tolist() == [0, 2]
    assert text.chunk.column("t").to_pylist() == ["ok", "schön\n"]
    assert {index: each.type for index, each in text.failures.items()} == {
        1: "UnicodeDecodeError",
        3: "Tombstone",
        4: "Empty",
    }
    raw = decode(messages(values), BytesDecoder(pa.schema([("t", pa.binary())])), MIB)
    assert raw.chunk.column("t").to_pylist() == values[:3]


def test_a_thousand_bad_ones_among_good_ones_stay_alone() -> None:
    rng = np.random.default_rng(0)
    bad = set(rng.choice(8192, 1000, replace=False).tolist())
    values = [b"bad" if index in bad else json.dumps({"a": index}).encode() for index in range(8192)]
    decoded = decode(messages(values), JSON, MIB)
    assert set(decoded.failures) == bad
    assert decoded.chunk.column("a").to_pylist() == [index for index in range(8192) if index not in bad]


def _spec(*inputs: dict, **fields: object) -> ModelSpec:
    return ModelSpec.model_validate(
        {"name": "m", "format": "torch_export", "weights": "w.pt2", "inputs": list(inputs), **fields}
    )


def test_columns_of_a_model() -> None:
    spec = _spec(
        {"name": "x", "columns": ["age", "income"]},
        {"name": "c", "columns": ["country"], "encoder": "categorical", "categories": ["de", "fr"]},
        {"name": "n", "columns": ["code"], "encoder": "categorical", "num_categories": 4},
        {"name": "s", "columns": ["sales"], "encoder": "sequence"},
        {"name": "t", "columns": ["title"], "encoder": "text"},
    )
    wanted = {"age": "double", "income": "double", "country": "string", "code": "int64", "sales": "list<item: double>"}
    assert {each.name: str(each.type) for each in columns_of_model(spec)} == {**wanted, "title": "string"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"inputs": [{"name": "x", "columns": ["f_*"]}]}, 'model.yaml has "f_*" for input x'),
        ({"features": {"y": "a + 1"}}, "since model.yaml has features"),
        ({"preprocess": ["m:f"]}, "since model.yaml has preprocess"),
        ({"inputs": []}, "since model.yaml has no inputs"),
    ],
)
def test_columns_that_a_model_does_not_say(fields: dict, reason: str) -> None:
    spec = (
        _spec(**{"inputs": [{"name": "x", "columns": ["a"]}], **fields})
        if "inputs" not in fields
        else _spec(*fields["inputs"])
    )
    with pytest.raises(UsageError, match="--schema=FILE") as error:
        columns_of_model(spec)
    assert reason in str(error.value)


def test_schema_file(tmp_path) -> None:
    file = tmp_path / "schema.json"
    spec = _spec({"name": "x", "columns": ["f_*"]})
    file.write_text('{"f_1": "float64", "day": "date32", "at": "timestamp[us]", "l": "list<int64>", "id": "string"}')
    decoder = decoder_of(MessageFormat(schema=str(file)), spec, "orders")
    assert [str(each.type) for each in decoder.schema] == [
        *("double", "date32[day]", "timestamp[us]", "list<item: int64>", "string")
    ]
    value = b'{"f_1": 1, "day": "2024-02-29", "at": "2024-02-29T12:00:00", "l": [1, 2], "id": "7"}'
    row = without_provenance(decode(messages([value]), decoder, MIB).chunk).to_pylist()[0]
    assert (row["f_1"], str(row["day"]), str(row["at"]), row["l"], row["id"]) == (
        *(1.0, "2024-02-29", "2024-02-29 12:00:00"),
        *([1, 2], "7"),
    )
    for text, reason in (
        ('{"a": "float16"}', 'column "a" has type "float16"'),
        ('{"a": "money"}', 'column "a" has type "money"'),
        ("[]", "must be a JSON object of column and type"),
        ("{", "is not JSON"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=f"{file}") as error:
            decoder_of(MessageFormat(schema=str(file)), spec, "orders")
        assert reason in str(error.value)
    with pytest.raises(UsageError, match="cannot be read"):
        decoder_of(MessageFormat(schema=str(tmp_path / "none")), spec, "orders")


def test_text_is_for_models_of_one_column() -> None:
    two = _spec({"name": "x", "columns": ["a", "b"]})
    with pytest.raises(UsageError, match="models of one column, and this one has 2: a, b"):
        decoder_of(MessageFormat("text"), two, "orders")
    one = decoder_of(MessageFormat("text"), _spec({"name": "x", "columns": ["t"], "encoder": "text"}), "orders")
    assert one.schema == pa.schema([("t", pa.string())])


def test_windows_by_key_are_refused() -> None:
    spec = _spec(
        {"name": "x", "columns": ["sales"], "encoder": "sequence"},
        sequences={"by": ["shop"], "order_by": "day", "columns": ["sales"], "length": 3},
    )
    with pytest.raises(UsageError, match="windows of rows"):
        decoder_of(MessageFormat(), spec, "orders")
