"""Folders as source and sinks: positions that last, files that are whole, names that repeat."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from stream_messages import TIME, put, records

from handlers.errors import StreamError, UsageError
from transforms.streams.encode import ERROR_HEADER, ID_HEADER
from transforms.streams.endpoints import Settings, sink_of, source_of
from transforms.streams.folder import FolderSource
from transforms.streams.folder_sink import FolderSink
from transforms.streams.messages import Messages, OutMessage, Sink, Source


def _read(source: FolderSource, offset: int, most: int = 100) -> Messages | None:
    reader = source.reader("0", offset)
    try:
        return reader.read(most, 0)
    finally:
        reader.close()


def _values(found: Messages | None) -> list[bytes | None]:
    return [] if found is None else list(found.values)


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    put(tmp_path / "in", "b.jsonl", [b"one", b"", b"two\r", b"  "])
    made = source_of(f"folder:{tmp_path / 'in'}", Settings())
    assert isinstance(made, FolderSource)
    assert isinstance(made, Source)
    made.check()
    return made


def test_lines_are_messages_and_files_come_in_the_order_in_which_they_appeared(
    source: FolderSource, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    os.utime(folder / "b.jsonl", (100, 100))
    (folder / "_hidden").write_text("no\n")
    (folder / ".part").write_text("no\n")
    (folder / "sub").mkdir()
    reader = source.reader("0", 0)
    first = reader.read(100, 0)
    assert _values(first) == [b"one", b"two"]  # blank lines are no messages
    assert first is not None
    assert list(first.offsets) == [0, 5]
    assert list(first.times) == [100_000_000] * 2
    assert first.headers[0] == (("file", b"b.jsonl"),)
    assert first.id(1) == f"{folder}/0/5"
    assert reader.read(100, 0) is None
    put(folder, "a.jsonl", [b"three"])
    with (folder / ".c").open("w") as file:
        file.write("four\nfive")
    (folder / ".c").rename(folder / "c.jsonl")
    for name, when in (("a.jsonl", 300), ("c.jsonl", 200)):
        os.utime(folder / name, (when, when))
    assert _values(reader.read(2, 0)) == [b"four", b"five"]
    assert _values(reader.read(2, 0)) == [b"three"]
    reader.close()


@pytest.mark.parametrize("delivered", range(5))
def test_a_restart_goes_on_behind_what_was_delivered(tmp_path: Path, delivered: int) -> None:
    folder = tmp_path / "in"
    lines = [b"1", b"22", b"", b"333", b"4444"]
    put(folder, "a.jsonl", lines[:3])
    put(folder, "b.jsonl", lines[3:])
    source = FolderSource(str(folder))
    source.check()
    assert source.start("0") == 0
    if delivered:
        found = _read(source, 0, delivered)
        assert found is not None
        source.commit(found)
    put(folder, "0.jsonl", [b"55555"])  # sorts before the others, and comes after them
    rest = [b"1", b"22", b"333", b"4444", b"55555"][delivered:]
    again = FolderSource(str(folder))
    assert _values(_read(again, again.start("0"))) == rest
    other = FolderSource(str(folder), "other")
    other.check()
    assert len(_values(_read(other, other.start("0")))) == 5


def test_offsets_of_a_message_are_the_same_after_a_restart(source: FolderSource, tmp_path: Path) -> None:
    put(tmp_path / "in", "z.jsonl", [b"three"])
    before = _read(source, 0)
    assert before is not None
    (tmp_path / "in" / "b.jsonl").touch()  # now the newer one
    after = _read(source, 0)
    assert after is not None
    assert (list(after.offsets), after.values) == (list(before.offsets), before.values)


def test_a_journal_that_a_crash_has_cut(source: FolderSource, tmp_path: Path) -> None:
    assert len(_values(_read(source, 0))) == 2
    journal = tmp_path / "in" / ".torchbeam" / "torchbeam" / "files.jsonl"
    with journal.open("a") as file:
        file.write('{"name": "z.js')
    put(tmp_path / "in", "z.jsonl", [b"three"])
    assert _values(_read(source, 0)) == [b"one", b"two", b"three"]
    assert [json.loads(line)["name"] for line in journal.read_text().splitlines()] == ["b.jsonl", "z.jsonl"]


def test_files_that_are_not_as_they_were_found(source: FolderSource, tmp_path: Path) -> None:
    file = tmp_path / "in" / "b.jsonl"
    reader = source.reader("0", 0)
    assert _values(reader.read(1, 0)) == [b"one"]
    with file.open("a") as opened:
        opened.write("late\n")
    with pytest.raises(StreamError, match=r"has 18 bytes, and had 13 when it appeared; write a file under a name"):
        reader.read(5, 0)
    reader.close()
    file.unlink()
    with pytest.raises(StreamError, match="cannot be read: No such file or directory; put it back"):
        _read(source, 0)


def test_one_reader_of_a_group(source: FolderSource, tmp_path: Path) -> None:
    reader = source.reader("0", 0)
    with pytest.raises(UsageError, match=r"another run reads .* as group torchbeam; end it, or give another --group"):
        source.check()
    FolderSource(source.path, "other").check()
    reader.close()
    source.check()


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there; make it"):
        source_of(f"folder:{tmp_path / 'none'}", Settings()).check()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made"):
        sink_of(f"folder:{tmp_path / 'file'}", Settings(), "--output").check()
    for address in ("folder:", "folder:gs://bucket/x"):
        with pytest.raises(UsageError, match="must be a local folder"):
            source_of(address, Settings())
    for address in (str(tmp_path), "sqs:x", "folder"):
        with pytest.raises(UsageError, match=r'--output ".*" is no stream; write it as one of .*folder:DIR'):
            sink_of(address, Settings(), "--output")


def _out(offset: int, value: bytes | None, *headers: tuple[str, bytes | None], key: bytes | None = None) -> OutMessage:
    return OutMessage(key, value, (*headers, (ID_HEADER, f"/data/in/0/{offset}".encode())), TIME)


def test_a_sink_writes_whole_files_that_a_second_delivery_replaces(tmp_path: Path) -> None:
    sink = FolderSink(str(tmp_path / "new" / "out"))
    sink.check()
    assert isinstance(sink, Sink)
    writer = sink.writer()
    writer.flush()
    for messages in ([_out(5, b'{"a":1}'), _out(9, b'{"a":2}')], [_out(12, b'{"a":3}')], [_out(5, b'{"a":1}')]):
        writer.write(messages)
        assert not any(tmp_path.glob("new/out/.*"))
        writer.flush()
    assert [each.name[-9:] for each in sorted(tmp_path.glob("new/out/*"))] == ["005.jsonl", "012.jsonl"]
    assert records(tmp_path / "new" / "out") == [{"a": 1}, {"a": 3}]


def test_dead_letters_are_whole(tmp_path: Path) -> None:
    sink = FolderSink(str(tmp_path / "dead"), whole=True)
    sink.check()
    writer = sink.writer()
    error = (ERROR_HEADER, json.dumps({"stage": "decode"}).encode())
    writer.write(
        [
            _out(1, b"n\xc3\xb6pe\n", ("trace", b"t1"), error, key=b"k"),
            _out(2, b"\xff\x00", ("trace", b"\xfe"), ("empty", None), error, key=b"\xff"),
            _out(3, None, error),
        ]
    )
    writer.flush()
    time = "2023-11-14T22:13:20Z"
    assert records(tmp_path / "dead") == [
        {
            "message_id": "/data/in/0/1",
            "error": {"stage": "decode"},
            "key": "k",
            "value": "nöpe\n",
            "time": time,
            "headers": [{"name": "trace", "value": "t1"}],
        },
        {
            "message_id": "/data/in/0/2",
            "error": {"stage": "decode"},
            "key_base64": "/w==",
            "value_base64": "/wA=",
            "time": time,
            "headers": [{"name": "trace", "value_base64": "/g=="}, {"name": "empty", "value": None}],
        },
        {
            "message_id": "/data/in/0/3",
            "error": {"stage": "decode"},
            "key": None,
            "value": None,
            "time": time,
            "headers": [],
        },
    ]
