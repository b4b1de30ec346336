"""What is left of a run that is ended from outside: nothing that looks finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deadlines import WAIT_SECONDS, said
from poisoned_table import Table, save_model

from pipelines import runners
from pipelines.command.options import RunOptions
from pipelines.jobs.execution import Execution, execute

pytestmark = pytest.mark.slow(10)


def _wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the run did not get as far as it should have"
        time.sleep(0.02)


@pytest.fixture
def slow_model(tmp_path: Path) -> Path:
    """A model that takes its time, so that a run can be ended in its middle."""
    save_model(tmp_path / "slow", architecture="poison_rows:Slow", preprocess=[], postprocess=[])
    return tmp_path / "slow"


@pytest.fixture
def table(tmp_path: Path, poisoned: Table) -> Path:
    good = [row for row in range(20_000) if row not in poisoned.poison][:10_000]
    pq.write_table(poisoned.table.take(pa.array(good)), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_ended_in_its_middle(table: Path, slow_model: Path, tmp_path: Path, end: signal.Signals) -> None:
    output = tmp_path / "new" / "out"
    arguments = [f"--input={table}", f"--model={slow_model}", f"--output={output}", "--batch_size=10"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.score", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"SLOW_MODEL_SIGNS_OF_LIFE": str(tmp_path / "alive")},
    )
    _wait_for(lambda: (tmp_path / "alive").exists() and (tmp_path / "alive").stat().st_size > 120, process)
    process.send_signal(end)
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, err
    assert said(err) == ["torchbeam score: interrupted; nothing was published"]
    assert out == ""
    assert not output.parent.exists()


def test_beams_temporary_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a run is interrupted before its pipeline starts."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def build(pipeline: beam.Pipeline) -> None:
        assert Path(pipeline.local_tempdir).parent == tmp_path
        raise KeyboardInterrupt

    runner = "FnApiRunner"
    launch = runners.settle(RunOptions(runner=runner), ())
    with pytest.raises(KeyboardInterrupt):
        execute(build, Execution(launch, runner, "0" * 12, None, str(tmp_path / "report.json")), wait=True)
    assert not list(tmp_path.iterdir())
