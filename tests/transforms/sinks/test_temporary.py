from __future__ import annotations

import os
from pathlib import Path

from transforms.sinks.temporary import ABANDONED, missing_folders, remove_abandoned, remove_empty, temporary_folder

NOW = 1_800_000_000.0


def make(output: Path, run_id: str, age: float) -> Path:
    """The temporary folder of a run that last wrote `age` seconds ago."""
    folder = Path(temporary_folder(str(output), run_id))
    file = folder / "predictions" / "part-1.parquet"
    file.parent.mkdir(parents=True)
    file.write_text("rows")
    for path in (file, file.parent, folder):
        os.utime(path, (NOW - age, NOW - age))
    return folder


def test_what_runs_that_were_killed_have_left_goes(tmp_path: Path) -> None:
    output = tmp_path / "out [1]"
    dead = make(output, "aaaaaaaaaaaa", 1)
    old = make(output, "bbbbbbbbbbbb", ABANDONED + 1)
    unclaimed = make(output, "cccccccccccc", ABANDONED - 1)
    own = make(output, "dddddddddddd", ABANDONED + 1)
    foreign = make(output, "mine", ABANDONED + 1)
    (output / "_tmp-eeeeeeeeeeee").write_text("a file")

    assert remove_abandoned(str(output), "dddddddddddd", "aaaaaaaaaaaa", NOW) == [dead.name, old.name]

    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["_tmp-eeeeeeeeeeee", *(path.name for path in (unclaimed, own, foreign))]
    )
    assert (unclaimed / "predictions" / "part-1.parquet").exists()


def test_a_file_that_was_just_written_keeps_a_folder(tmp_path: Path) -> None:
    folder = make(tmp_path, "bbbbbbbbbbbb", ABANDONED + 1)
    os.utime(folder / "predictions" / "part-1.parquet", (NOW, NOW))
    assert remove_abandoned(str(tmp_path), "dddddddddddd", None, NOW) == []
    assert folder.exists()


def test_an_output_that_is_not_there(tmp_path: Path) -> None:
    assert remove_abandoned(str(tmp_path / "nowhere"), "dddddddddddd", None, NOW) == []


def test_only_folders_that_were_not_there_and_are_empty_go(tmp_path: Path) -> None:
    there, new = tmp_path / "there", tmp_path / "new"
    there.mkdir()
    paths = [there / "out", there / "out" / "predictions", new / "a", new / "b", there]
    made = missing_folders(*map(str, paths), "gs://bucket/out")
    assert set(made) == {there / "out", there / "out" / "predictions", new, new / "a", new / "b"}
    for folder in reversed(made):
        folder.mkdir()
    (new / "b" / "report.json").write_text("{}")

    remove_empty(made)

    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "new",
        "new/b",
        "new/b/report.json",
        "there",
    ]
