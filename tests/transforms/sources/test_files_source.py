import gzip
import zlib
from pathlib import Path

import pytest

from handlers.errors import UsageError
from transforms.sources.files import InputFile, find_files, open_stream


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [
        "a.csv",
        "[x].csv",
        "x.csv",
        "s/b.csv",
        "s/t/c.csv",
        "s/_tmp/d.csv",
        "s/.e/f.csv",
        "s/_SUCCESS",
        "y=1/z=a%20b/g.csv",
        "y=2/z=__HIVE_DEFAULT_PARTITION__/h.csv",
        "[d]/i.csv",
        "d/j.csv",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("v\n1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.csv", ["a.csv"]),
        ("[x].csv", ["[x].csv"]),
        ("?.csv", ["a.csv", "x.csv"]),
        ("*.csv", ["[x].csv", "a.csv", "x.csv"]),
        ("s", ["s/b.csv", "s/t/c.csv"]),
        ("s/", ["s/b.csv", "s/t/c.csv"]),
        ("s/*", ["s/b.csv"]),
        ("s/**", ["s/b.csv", "s/t/c.csv"]),
        ("s/**/*.csv", ["s/b.csv", "s/t/c.csv"]),
        ("**/s/**/*.csv", ["s/b.csv", "s/t/c.csv"]),
        ("s/_tmp", ["s/_tmp/d.csv"]),
        ("s/_tmp/*.csv", ["s/_tmp/d.csv"]),
        ("[d]", ["[d]/i.csv"]),
        ("y=*", ["y=1/z=a%20b/g.csv", "y=2/z=__HIVE_DEFAULT_PARTITION__/h.csv"]),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_patterns(tree: Path, pattern: str, found: list[str], absolute: bool) -> None:
    prefix = f"{tree}/" if absolute else ""
    assert [file.path for file in find_files(prefix + pattern)] == [prefix + name for name in found]


def test_the_working_directory(tree: Path) -> None:
    found = [file.path for file in find_files(".")]
    assert found == [file.path for file in find_files("**/*.csv")]
    assert "a.csv" in found
    assert "s/t/c.csv" in found


def test_size_and_partitions(tree: Path) -> None:
    assert find_files("y=1") == [InputFile("y=1/z=a%20b/g.csv", 4, (("y", "1"), ("z", "a b")))]
    assert find_files("y=2/z=*/*.csv")[0].partitions == (("y", "2"), ("z", None))
    assert find_files("y=1/z=a%20b/g.csv")[0].partitions == (("y", "1"), ("z", "a b"))


@pytest.mark.parametrize(("pattern", "says"), [("nope/*.csv", "nope"), ("s/_*", "1 skipped")])
def test_nothing_found(tree: Path, pattern: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        find_files(pattern)
    assert pattern in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_stream_ends_at_a_break(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress(b"a line of text\n" * 10_000)[:-9])
    with open_stream(str(path)) as stream:
        assert len(stream.read(1 << 20)) > 140_000
        assert stream.error is not None
        assert stream.read(10) == b""


@pytest.mark.parametrize("rows", [1, 1_000, 30_000])
def test_a_stream_has_all_that_comes_before_a_break(tmp_path: Path, rows: int) -> None:
    data = b"".join(b"row %d\n" % row for row in range(rows))
    (tmp_path / "garbage.txt.gz").write_bytes(gzip.compress(data) + b"garbage" * 20)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(data)[:-12])
    left = zlib.decompressobj(31).decompress((tmp_path / "cut.txt.gz").read_bytes())
    for name, expected in [("garbage", data), ("cut", left)]:
        with open_stream(str(tmp_path / f"{name}.txt.gz")) as stream:
            assert stream.read(1 << 20) == expected
            assert stream.error is not None
