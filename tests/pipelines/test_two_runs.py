"""Two runs into one output, at once or one after the other was killed: real processes, held up by their model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import poison_rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deadlines import WAIT_SECONDS, said
from poisoned_table import HERE

from handlers import ModelDir
from pipelines import doctor, score
from transforms.sinks.claims import Claim
from transforms.sinks.formats.parquet import GROUP_ROWS
from transforms.sinks.write import Writer

pytestmark = pytest.mark.slow(40)

ROWS = 3 * GROUP_ROWS  # so many that a file is begun before the last are scored

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "gated"
    inputs = [{"name": "x", "columns": ["x"]}]
    ModelDir.save(poison_rows.Gated(), folder, task="regression", inputs=inputs, code=[HERE / "poison_rows.py"])
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tables") / "in.parquet"
    pq.write_table(pa.table({"x": pa.array(range(ROWS), pa.float32())}), file)
    return file


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file; while it is there, models wait."""
    (tmp_path / "gate").touch()
    return tmp_path / "gate"


@pytest.fixture
def start(table: Path, model: Path, gate: Path) -> Iterator[Start]:
    """Starts a run whose model waits once it was given more than `rows` rows, of the sample or of the input."""
    processes = []

    def call(output: Path, *arguments: str, rows: int) -> subprocess.Popen[str]:
        paths = [f"--input={table}", f"--model={model}", f"--output={output}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.score", *paths, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"MODEL_GATE": str(gate), "MODEL_GATE_ROWS": str(rows)},
        )
        processes.append(process)
        return process

    yield call
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "the runs did not get as far as they should have"
        time.sleep(0.02)


def is_waiting(gate: Path, process: subprocess.Popen[str]) -> bool:
    return Path(f"{gate}-{process.pid}").exists()


def run_id(output: Path) -> str:
    """The run that is published, whole, and with nothing else beside it."""
    report = json.loads((output / "report.json").read_text())
    assert (report["rows_read"], report["rows_scored"]) == (ROWS, ROWS)
    assert sorted(pq.read_table(output / "predictions")["x"].to_pylist()) == list(range(ROWS))
    assert sorted(path.name for path in output.iterdir()) == ["dead_letters", "predictions", "report.json"]
    (empty,) = (output / "dead_letters").iterdir()
    owners = {path.name.split("-")[1] for path in [empty, *(output / "predictions").iterdir()]}
    assert owners == {report["run_id"]}
    return str(report["run_id"])


@pytest.mark.parametrize("overwrite", [False, True])
def test_at_once_one_runs_and_the_other_is_refused(
    tmp_path: Path, start: Start, gate: Path, overwrite: bool, table: Path, model: Path
) -> None:
    output = tmp_path / "out"
    old = None
    flags = ["--overwrite"] * overwrite
    if overwrite:
        assert score.main([f"--input={table}", f"--model={model}", f"--output={output}"]) == 0
        old = run_id(output)
    runs = [start(output, *flags, rows=0) for _ in range(2)]
    wait_for(lambda: any(run.poll() is not None for run in runs) or all(is_waiting(gate, run) for run in runs))
    assert not all(is_waiting(gate, run) for run in runs), "both runs go on"
    (refused,) = [run for run in runs if run.poll() is not None]
    (other,) = [run for run in runs if run is not refused]
    out, err = refused.communicate()
    holder = claim(output)
    assert holder.process is not None
    assert (refused.returncode, out) == (2, "")
    assert re.fullmatch(
        rf"torchbeam score: error: --output {re.escape(str(output))} is being written by run {holder.run_id} "
        rf"\(process {holder.process.id} on .+\) since [-0-9]+ [:0-9]+ UTC; write elsewhere, or wait until it has ended\n",
        err,
    )
    assert not is_waiting(gate, refused), "it has loaded a model"
    gate.unlink()
    _, err = other.communicate(timeout=WAIT_SECONDS)
    assert (other.returncode, said(err)) == (0, [])
    assert run_id(output) != old


def test_what_a_run_that_was_killed_has_left_is_removed_by_the_next(
    tmp_path: Path, start: Start, gate: Path, table: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    killed = start(output, rows=2 * GROUP_ROWS)
    wait_for(lambda: is_waiting(gate, killed) and any(output.glob("_tmp-*/predictions/part-*")))
    arguments = [f"--input={table}", f"--model={model}", f"--output={output}"]
    holder = claim(output)
    process, left = holder.process, f"_tmp-{holder.run_id}"
    assert process is not None
    assert doctor.main(arguments) == 2
    assert f"is being written by run {holder.run_id} (process {process.id} on " in capsys.readouterr().out
    killed.kill()
    killed.communicate()
    wait_for(lambda: not process.is_alive())  # the child of the command, which goes with it
    assert sorted(path.name for path in output.iterdir()) == ["_claim.json", left]

    assert doctor.main(arguments) == 0
    assert "ended without cleaning up; the next run does it" in capsys.readouterr().out
    assert (output / left).exists()
    assert score.main(arguments) == 0

    assert capsys.readouterr().err == (
        f"torchbeam score: removed {left} in {output}, which a run that was killed had left\n"
    )
    assert run_id(output) != holder.run_id


def test_ctrl_c_leaves_no_folder(tmp_path: Path, start: Start, gate: Path) -> None:
    output = tmp_path / "new" / "out"
    run = start(output, rows=2 * GROUP_ROWS)
    wait_for(lambda: is_waiting(gate, run) and any(output.glob("_tmp-*/predictions/part-*")))
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=WAIT_SECONDS)
    assert (run.returncode, out, said(err)) == (130, "", ["torchbeam score: interrupted; nothing was published"])
    assert not output.parent.exists()


def claim(output: Path) -> Claim:
    return Claim.from_json((output / "_claim.json").read_text())


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("code", [1, 2])
def test_a_run_that_fails_leaves_only_the_folders_that_were_there(
    tmp_path: Path,
    table: Path,
    model: Path,
    there: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, report = tmp_path / "new" / "out", tmp_path / "reports" / "today.json"
    if there:
        output.mkdir(parents=True)
        report.parent.mkdir()
    before = sorted(tmp_path.rglob("*"))

    def finish(writer: Writer) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Writer, "finish", finish)
    arguments = [f"--input={table}", f"--model={model}", f"--output={output}", f"--report={report}"]
    assert score.main(arguments + ["--columns=no_such_column"] * (code == 2)) == code
    assert ("no_such_column" if code == 2 else "the disk is full") in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
