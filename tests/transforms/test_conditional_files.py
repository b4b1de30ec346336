"""Compare and swap on a disk; that of the stores is tested with their stand-ins, in `tests/cloud`."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import pytest

from transforms.conditional_files import ChangedError, Seen, conditional_file

WRITERS = 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder [1]" / "_file.json"


def test_a_file_is_made_read_changed_and_removed(path: Path) -> None:
    file = conditional_file(str(path))
    assert file.atomic
    assert file.read() is None
    file.write("one", None)
    seen = file.read()
    assert seen == Seen("one")
    file.write("two", seen)
    assert path.read_text() == "two"
    file.remove(Seen("two"))
    assert file.read() is None
    assert list(path.parent.iterdir()) == []


def test_a_file_that_has_changed_is_left_alone(path: Path) -> None:
    file = conditional_file(str(path))
    with pytest.raises(ChangedError):
        file.write("two", Seen("one"))  # which is not there
    with pytest.raises(ChangedError):
        file.remove(Seen("one"))
    file.write("one", None)
    with pytest.raises(ChangedError):
        file.write("two", None)
    with pytest.raises(ChangedError):
        file.write("two", Seen("another"))
    with pytest.raises(ChangedError):
        file.remove(Seen("another"))
    assert path.read_text() == "one"
    assert [each.name for each in path.parent.iterdir()] == ["_file.json"]


@pytest.mark.parametrize("there", [None, "old"])
@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_writers_wins(path: Path, there: str | None, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def link(*paths: object) -> None:
            raise PermissionError("this file system has no hard links")

        monkeypatch.setattr(os, "link", link)
    if there is not None:
        conditional_file(str(path)).write(there, None)
    seen = conditional_file(str(path)).read()
    barrier = Barrier(WRITERS)

    def write(number: int) -> int | None:
        file = conditional_file(str(path))
        barrier.wait()
        with suppress(ChangedError):
            file.write(str(number), seen)
            return number
        return None

    with ThreadPoolExecutor(WRITERS) as threads:
        won = [number for number in threads.map(write, range(WRITERS)) if number is not None]
    assert len(won) == 1
    assert path.read_text() == str(won[0])
    assert [each.name for each in path.parent.iterdir()] == ["_file.json"]


def test_a_folder_that_another_removes_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was refused removes the folder that it had made, in the moment before it is written to."""
    write_text = Path.write_text
    removed = []

    def write(file: Path, text: str) -> int:
        if not removed:
            file.parent.rmdir()
            removed.append(file.parent)
        return write_text(file, text)

    monkeypatch.setattr(Path, "write_text", write)
    conditional_file(str(path)).write("one", None)
    assert removed == [path.parent]
    assert path.read_text() == "one"
