import gzip
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.columnar.chunks import ROW, SOURCE, without_provenance
from handlers.errors import BrokenFileError, UsageError
from transforms.sources import BadRows, Input, Split, plan_input, read_split
from transforms.sources.formats import delimited


def write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def types(found: Input) -> dict[str, pa.DataType]:
    return {each.name: each.type for each in found.schema}


def test_types(read: Any, tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        "i,f,b,d,t,u,s,zip,id,empty,mixed\n"
        "1,1.5,true,2024-01-31,2024-01-31T10:00:00,2024-01-31T10:00:00Z,x,01234,12345678901234567890,,1\n"
        "-2,3,FALSE,2024-02-01,2024-01-31 10:00:01.5,2024-01-31T10:00:00+02:00,y,99999,1,,a\n"
        ",,,,,,,,,,\n",
    )
    assert types(plan_input(path)) == {
        "i": pa.int64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "d": pa.date32(),
        "t": pa.timestamp("us"),
        "u": pa.timestamp("us", "UTC"),
        "s": pa.string(),
        "zip": pa.string(),
        "id": pa.string(),
        "empty": pa.string(),
        "mixed": pa.string(),
    }
    rows, dead = read(plan_input(path))
    assert dead == []
    assert rows[2] == dict.fromkeys(types(plan_input(path))) | {SOURCE: path, ROW: 2}


def test_zeros_and_ones_are_numbers_and_words_are_flags(read: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "n.csv", "visits,member\n0,true\n1,false\n")
    found = plan_input(path, numeric_columns=["visits", "member"])
    assert types(found) == {"visits": pa.float64(), "member": pa.bool_()}
    rows, dead = read(found)
    assert (rows[1]["visits"], rows[1]["member"], dead) == (1.0, False, [])


def test_numeric_columns_take_their_type_from_the_numbers(read: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "n.csv", "age,f_a,f_b,zip,word\n1,1.5,,01,a\nabc,x,,02,b\n3,2,,03,c\n")
    found = plan_input(path, numeric_columns=["age", "f_*", "zip", "word"])
    assert types(found) == {
        "age": pa.float64(),
        "f_a": pa.float64(),
        "f_b": pa.float64(),
        "zip": pa.float64(),
        "word": pa.string(),
    }
    rows, dead = read(found, model_version="v1")
    assert [row[ROW] for row in rows] == [0, 2]
    assert dead == [
        {
            "age": None,
            "f_a": None,
            "f_b": None,
            "zip": 2,
            "word": "b",
            "dead_letter": {
                "stage": "read",
                "type": "ValueError",
                "message": 'column "age" holds "abc" in row 1 of n.csv; double was expected',
                "source": path,
                "row": 1,
                "model_version": "v1",
                "raw": "abc,x,,02,b",
            },
        }
    ]


def test_a_literal_name_that_looks_like_a_pattern_is_numeric(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "SAMPLE_ROWS", 2)
    path = write(tmp_path / "n.csv", "f[1],f1,g_1\n1,1,1\n2,2,2\n0.5,3,2.5\n")
    found = plan_input(path, numeric_columns=["f[1]", "g_*"])
    assert types(found) == {"f[1]": pa.float64(), "f1": pa.int64(), "g_1": pa.float64()}
    rows, dead = read(found)
    assert ([(row["f[1]"], row["g_1"]) for row in rows], dead) == ([(1, 1), (2, 2), (0.5, 2.5)], [])


def test_cells(read: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", '\ufeffa,b\r\n 1 ,"x\ny"\r\n\r\n2,"say ""hi"", Bob"\r\n"",""\r\n')
    rows, dead = read(plan_input(path))
    assert dead == []
    assert [(row["a"], row["b"], row[ROW]) for row in rows] == [
        (1, "x\ny", 0),
        (2, 'say "hi", Bob', 1),
        (None, None, 2),
    ]


def test_rows_that_are_refused(read: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", b'a,b\n1,x\n2\n3,y,"z, w"\n\xff\n4,\xff\xfe\n5,\xf4\x8f\xbf\xbe\n6,\xc3\xa4\n')
    rows, dead = read(plan_input(path, numeric_columns=["a"]))
    assert [(row["a"], row["b"], row[ROW]) for row in rows] == [(1, "x", 0), (5, "\U0010fffe", 5), (6, "ä", 6)]
    letters = {each["dead_letter"]["row"]: each for each in dead}
    assert sorted(letters) == [1, 2, 3, 4]
    assert letters[1]["dead_letter"]["message"] == "row 1 of r.csv has 1 field; 2 were expected"
    assert letters[2]["dead_letter"]["message"] == "row 2 of r.csv has 3 fields; 2 were expected"
    assert letters[2]["dead_letter"]["raw"] == '3,y,"z, w"'
    assert letters[3]["dead_letter"]["raw"] == "\ufffd"
    assert letters[4]["a"] == 4
    assert letters[4]["b"] is None
    assert letters[4]["dead_letter"]["message"] == 'column "b" holds "��" in row 4 of r.csv; valid UTF-8 was expected'


@pytest.mark.parametrize("data", [b"", b"\n\n", b"a,b", b"a,b\n", b"a,b\r\n\r\n"])
def test_files_without_rows(read: Any, tmp_path: Path, data: bytes) -> None:
    assert read(plan_input(write(tmp_path / "e.csv", data))) == ([], [])


def test_all_rows_refused(read: Any, tmp_path: Path) -> None:
    rows, dead = read(plan_input(write(tmp_path / "e.csv", "a,b\n1\n2\n")))
    assert rows == []
    assert [each["dead_letter"]["row"] for each in dead] == [0, 1]


def test_tsv_and_compression(read: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv.gz", gzip.compress(b"a\tb\n1\tx, y\n2\n"))
    rows, dead = read(plan_input(path))
    assert [(row["a"], row["b"]) for row in rows] == [(1, "x, y")]
    assert dead[0]["dead_letter"]["raw"] == "2"


def test_truncated_gzip(read_until_break: Any, tmp_path: Path) -> None:
    text = "a,b\n" + "".join(f"{i},{i * 7}\n" for i in range(5_000))
    path = write(tmp_path / "x.csv.gz", gzip.compress(text.encode())[:-500])
    found = plan_input(path, numeric_columns=["*"])
    rows, error = read_until_break(found.splits[0], found.schema)
    assert re.search(r"x\.csv\.gz cannot be read to its end: Truncated", str(error))
    assert error.rows == len(rows) > 3_000
    assert [(row["a"], row["b"], row[ROW]) for row in rows] == [(i, i * 7, i) for i in range(len(rows))]


def test_garbage_behind_the_end(read_until_break: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv.gz", gzip.compress(b"a,b\n1,x\n2,y\n") + b"garbage" * 20)
    found = plan_input(path)
    rows, error = read_until_break(found.splits[0], found.schema)
    assert [(row["a"], row["b"]) for row in rows] == [(1, "x"), (2, "y")]
    assert error.rows == 2


@pytest.mark.parametrize("opens", ['1,"x', '"', '1,"', '1,x,"y', '1,"say ""hi""', '1,"x""'])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 3), (300, 300), (900, 0)])
def test_a_quote_that_is_never_closed(
    read_until_break: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: str, before: int, after: int
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 4096)
    for end in ("\n", "\r\n"):
        text = end.join(["a,b", *["1,x"] * before, opens, *["2,y"] * after])
        for path in (write(tmp_path / "q.csv", text), write(tmp_path / "end.csv", text + end)):
            schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
            rows, error = read_until_break(Split(path, "csv"), schema)
            assert [(row["a"], row["b"], row[ROW]) for row in rows] == [(1, "x", row) for row in range(before)]
            assert str(error).endswith(f".csv has a quote that row {before} opens and nothing closes")
            assert error.rows == before


def test_a_quote_that_is_never_closed_in_a_file_of_many_blocks(
    read_until_break: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 4096)
    path = write(tmp_path / "q.csv", "a,b\n" + "1,x\n" * 3000 + '1,"x\n' + "2,y\n" * 5000)
    rows, error = read_until_break(Split(path, "csv"), pa.schema([("a", pa.int64()), ("b", pa.string())]))
    assert "a quote that is never closed" in str(error)
    assert error.rows == len(rows) == 3000


def test_a_quote_in_the_header_that_is_never_closed(tmp_path: Path) -> None:
    found = plan_input(write(tmp_path / "q.csv", 'a,"b\n1,x\n2,y\n'))
    with pytest.raises(BrokenFileError, match=r"the header of q\.csv has a quote that is never closed"):
        list(read_split(found.splits[0], found.schema))


def test_a_header_longer_than_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "SAMPLE_BYTES", 100)
    found = plan_input(write(tmp_path / "h.csv", ",".join(f"c{i}" for i in range(100)) + "\n"))
    with pytest.raises(BrokenFileError, match=r"the header of h\.csv .* is longer than 100 bytes"):
        list(read_split(found.splits[0], found.schema))


FIELDS = st.sampled_from(["", "x", '"', '""', ",", "\n", "\r\n", 'y"', '"z', ' "q" ', '",', '"\n', "ä"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=6), st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_quotes_that_are_closed(tmp_path_factory: Any, fields: Any, ends: bool, end: str, quoted: bool) -> None:
    """A file that csv wrote is read whole with any fields; an unquoted field may hold quotes but begin with none."""

    def written(text: str) -> str:
        plain = not quoted and not text.startswith('"') and not set(text) & set(",\r\n")
        return text if plain else '"' + text.replace('"', '""') + '"'

    lines = ["a,b,c", *(f"{row},{written(first)},{written(second)}" for row, (first, second) in enumerate(fields))]
    path = write(tmp_path_factory.mktemp("csv") / "q.csv", end.join(lines) + (end if ends else ""))
    schema = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.string())])
    rows = [row for piece in read_split(Split(path, "csv"), schema) for row in piece.to_pylist()]  # type: ignore[union-attr]
    assert [(row["a"], row["b"], row["c"]) for row in rows] == [
        (row, first or None, second or None) for row, (first, second) in enumerate(fields)
    ]


@pytest.mark.parametrize("rows", ["", "1,ok\n"])
def test_a_header_that_is_not_utf8(read: Any, tmp_path: Path, rows: str) -> None:
    bad = write(tmp_path / "latin.csv", f"a,M\u00fcll\n{rows}".encode("latin-1"))
    found = plan_input(bad)
    assert found.schema.names == []
    says = r'the header of latin\.csv is not UTF-8: column "M\ufffdll"; save the file as UTF-8'
    with pytest.raises(BrokenFileError, match=says):
        list(read_split(found.splits[0], found.schema))
    write(tmp_path / "good.csv", "a,b\n1,x\n")
    assert plan_input(str(tmp_path)).schema.names == ["a", "b"]


def test_a_row_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1 << 20)
    path = write(tmp_path / "l.csv", "a,b\n1,x\n" + "2," + "y" * (3 << 20) + "\n3,z\n")
    found = plan_input(path)
    with pytest.raises(BrokenFileError, match=r"l\.csv has a row longer than 1 MiB"):
        list(read_split(found.splits[0], found.schema))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_long_rows_are_read_in_larger_blocks(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The file is read again from its start, and no row comes twice: neither those that fit nor those that do not."""
    monkeypatch.setattr(delimited, "_USUAL_BLOCK_BYTES", 2048)
    monkeypatch.setattr(delimited, "_BATCH_BYTES", 4096)
    lengths = {500: 5_000, 501: 30_000, 1_200: 100_000}
    lines = [
        "x" if row % 97 == 1 else f"{'y' if row % 101 == 2 else row},{'z' * lengths.get(row, row % 13)}"
        for row in range(1_500)
    ]
    rows, dead = read(plan_input(write(tmp_path / "l.csv", end.join(["n,s", *lines])), numeric_columns=["n"]))
    bad = [row for row in range(1_500) if row % 97 == 1 or row % 101 == 2]
    assert sorted(each["dead_letter"]["row"] for each in dead) == bad
    good = [row for row in range(1_500) if row not in bad]
    assert [(row["n"], len(row["s"] or ""), row[ROW]) for row in rows] == [
        (row, lengths.get(row, row % 13), row) for row in good
    ]


def test_a_field_of_9_mib(read: Any, tmp_path: Path) -> None:
    rows, dead = read(plan_input(write(tmp_path / "l.csv", "a,b\n1,x\n2," + "y" * (9 << 20) + "\n3,z\n")))
    assert ([(row["a"], len(row["b"])) for row in rows], dead) == ([(1, 1), (2, 9 << 20), (3, 1)], [])


def test_names(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "a,a\n1,2\n")
    with pytest.raises(UsageError, match='more than one column "a"'):
        plan_input(path)
    found = plan_input(write(tmp_path / "ok.csv", "a,c\n1,2\n"))
    with pytest.raises(BrokenFileError, match=r'd\.csv has more than one column "a"'):
        list(read_split(found.splits[0].__class__(path, "csv"), found.schema))
    with pytest.raises(BrokenFileError, match='has no column "x", "y", which the model needs'):
        list(read_split(found.splits[0], found.schema, frozenset({"y", "x", "a"})))


def test_columns_are_matched_by_name(read: Any, tmp_path: Path) -> None:
    write(tmp_path / "1.csv", "a,b\n1,x\n")
    write(tmp_path / "2.csv", "c,a\n2.5,2\n")
    rows, _ = read(plan_input(str(tmp_path)))
    assert [(row["a"], row["b"], row["c"], row[ROW]) for row in rows] == [(1, "x", None, 0), (2, None, 2.5, 0)]


def test_limit(read: Any, tmp_path: Path) -> None:
    for name in "123":
        write(tmp_path / f"{name}.csv", "a\n" + "".join(f"{name}{i}\n" for i in range(5)))
    found = plan_input(str(tmp_path), limit=7)
    rows, _ = read(found)
    assert [row["a"] for row in rows] == [10, 11, 12, 13, 14, 20, 21]
    assert found.rows == 7


POISON = {"number": "x", "short": None, "long": None, "utf8": None}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["ok", "ok", "ok", *POISON]), max_size=60), st.integers(1, 20))
def test_exactly_the_poisoned_rows_are_dead(tmp_path_factory: Any, kinds: list[str], chunk_rows: int) -> None:
    lines = {
        "ok": '%d,"a\n\u00e4"',
        "number": "x%d,b",
        "short": "%d",
        "long": "%d,b,c",
        "utf8": "%d,\udcff",
    }
    text = "n,s\n" + "".join(lines[kind] % row + "\n" for row, kind in enumerate(kinds))
    path = write(tmp_path_factory.mktemp("csv") / "p.csv", text.encode(errors="surrogateescape"))
    found = plan_input(path)
    schema = pa.schema([("n", pa.int64()), ("s", pa.string())])
    rows, dead = [], []
    for piece in read_split(found.splits[0], schema, chunk_rows=chunk_rows):
        assert 0 < piece.num_rows <= chunk_rows
        if isinstance(piece, BadRows):
            dead += piece.dead_letters.to_pylist()
        else:
            assert without_provenance(piece).schema == schema
            rows += piece.to_pylist()
    good = [row for row, kind in enumerate(kinds) if kind == "ok"]
    assert [(each["n"], each["s"], each[ROW]) for each in rows] == [(row, "a\nä", row) for row in good]
    assert sorted(each["dead_letter"]["row"] for each in dead) == [r for r, kind in enumerate(kinds) if kind != "ok"]


def test_row_numbers_across_blocks(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(delimited, "SAMPLE_BYTES", 1000)
    lines = [f"{i}" if i % 97 in (0, 1, 5) else f"{i},{'ä' * (i % 13)}" for i in range(3_000)]
    rows, dead = read(plan_input(write(tmp_path / "b.csv", "n,s\n" + "\n".join(lines))))
    assert (
        [row["n"] for row in rows] == [row[ROW] for row in rows] == [i for i in range(3_000) if i % 97 not in (0, 1, 5)]
    )
    assert [each["dead_letter"]["row"] for each in dead] == [i for i in range(3_000) if i % 97 in (0, 1, 5)]


def test_a_column_that_only_one_unsampled_file_has(read: Any, tmp_path: Path) -> None:
    for number in range(200):
        rare = number == 130
        write(tmp_path / f"{number:03}.csv", f"a,rare{'' if rare else 'x'}\n{number},{'7' if rare else 'z'}\n")
    wide = ",".join(f"{number:0>300}" for number in range(300))  # longer than a head
    write(tmp_path / "131-wide.csv", f"a,{wide},last\n")
    found = plan_input(str(tmp_path))
    assert list(types(found).items())[:2] == [("a", pa.int64()), ("rarex", pa.string())]
    assert types(found)["rare"] == pa.int64()
    assert len(found.schema) == 304
    assert types(found)["last"] == pa.string()
    assert [row["rare"] for row in read(Input(**{**vars(found), "splits": found.splits[130:131]}))[0]] == [7]
