"""Contestants as processes, on a few rows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import meter, report
from benchmarks.contest import Contest, hold
from benchmarks.data import Data, DiskFullError
from benchmarks.peers import PEERS, Peer
from benchmarks.run import count, main
from benchmarks.tables import bad, plain, wide
from benchmarks.workloads import WORKLOADS

pytestmark = pytest.mark.slow(25)
WRONG = "tests.benchmarks.wrong_peers"


def test_only_the_output_of_the_loop_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "guesses", Peer("a guess", f"{WRONG}:guesses"))
    monkeypatch.setitem(PEERS, "fails", Peer("a failure", f"{WRONG}:fails"))
    monkeypatch.setitem(PEERS, "absent", Peer("a package that is not there", f"{WRONG}:absent", ("no_such_package",)))
    workload = replace(WORKLOADS["T"], start_rows=0)
    contest = Contest(workload, 500, Data(tmp_path), {"loop": {"batch_rows": 64, "read_rows": 100}})
    said: list[str] = []
    kept: list[tuple[int, object]] = []
    names = ["guesses", "loop", "fails", "absent"]
    found = hold(contest, names, 1, said.append, lambda number, figures: kept.append((number, figures)))
    assert kept == [(1, found)]
    assert list(found) == names
    assert "not that of the loop: 500 rows are more than 1e-06 away" in found["guesses"]["reason"]
    assert found["fails"]["reason"].endswith("RuntimeError: cannot score 500 rows")
    assert found["absent"]["reason"] == "no_such_package cannot be imported"
    loop = found["loop"]
    assert loop["rows"] == 500
    assert 0 < loop["runs"][0]["seconds"] < loop["wall_seconds"] == loop["seconds"]
    assert loop["cpu_seconds"] > 0
    assert loop["peak_bytes"] > 100e6  # PyTorch alone takes more
    assert [line.split(":")[0] for line in said] == ["  guesses", "  round 1, loop", "  fails"]


def test_elements_from_the_command_line_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--workload=E", "--peers=elements_loop", "--rows=3000", "--rounds=1", f"--data={tmp_path}"]
    assert main(arguments) == 0
    entry = json.loads((tmp_path / "results.json").read_text())["results"][0]
    assert (entry["name"], entry["rounds"]) == ("E, 3,000 rows", 1)
    assert entry["command"] == " ".join(["python -m benchmarks.run", *arguments])
    assert entry["machine"]["packages"]["torch"]
    shown = capsys.readouterr().out
    assert report.table(entry) in shown
    assert "| `elements_loop` | 3,000 |" in shown or "take more rows" in shown


def test_processes_are_measured_together(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(3_000_000))'])"
    path = tmp_path / "measured.json"
    command = [sys.executable, "-m", "benchmarks.meter", str(path), "60", sys.executable, "-c", script]
    subprocess.run(command, check=True)
    found = json.loads(path.read_text())
    assert found["exit_code"] == 0
    assert found["cpu_seconds"] > 0
    assert found["peak_bytes"] > 1e6


@pytest.mark.parametrize(("shown", "expected"), [("/autogroup-12 nice -5\n", "-5"), ("", ""), (None, "")])
def test_priority_of_a_session(
    shown: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "autogroup"
    if shown is not None:
        path.write_text(shown)
    monkeypatch.setattr(meter, "_AUTOGROUP", path)
    assert meter.priority() == expected


def test_inputs(tmp_path: Path) -> None:
    data = Data(tmp_path)
    clean = pq.read_table(plain(data, 400))
    assert plain(data, 400) == tmp_path / "plain-400"
    table = pq.read_table(bad(data, 400))
    values = np.stack([table[name].to_numpy().astype(np.float32) for name in table.column_names])
    changed = ~np.isfinite(values).all(axis=0)
    assert 0 < changed.sum() < 20
    assert table.filter(~changed).equals(clean.filter(~changed))
    kinds = {str(field.type) for field in pq.read_schema(next(iter(wide(data, 20).iterdir())))}
    assert {"int64", "int16", "double", "float", "bool", "timestamp[us]", "date32[day]", "string"} <= kinds


def test_a_disk_that_is_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DiskFullError, match="Take fewer rows"):
        Data(tmp_path).check_space(10**15)
    assert main(["--workload=T", "--rows=9999999M", f"--data={tmp_path}"]) == 1
    assert "Take fewer rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workload=Q"], "there is no Q"),
        (["--peers=nobody"], "there is no nobody"),
        (["--workload="], "--workload is empty"),
        (["--rows=0"], "--rows"),
        (["--workload=E", "--peers=daft"], "none of --peers can do E"),
    ],
)
def test_wrong_use(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*arguments, f"--data={tmp_path}"])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_counts() -> None:
    assert [count(text) for text in ("4M", "20k", "1_000", "7")] == [4_000_000, 20_000, 1_000, 7]
