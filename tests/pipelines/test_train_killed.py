"""A training that is killed continues to the same end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from child_processes import is_there, wait_until
from prepared_folders import customers, prepared_folder

from handlers.model.directory import ModelDir
from handlers.train.fit import LAST
from pipelines import train
from transforms.sinks.claims import CLAIM

pytestmark = pytest.mark.slow(15)


def test_kill_9(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = prepared_folder(tmp_path / "rows", customers().drop_columns(["visits", "spent"]), "churned").folder
    options = [f"--prepared={rows}", "--architecture=mlp", "--epochs=40", "--patience=none", "--batch_size=16"]
    output = tmp_path / "killed/churn"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", *options, f"--output={output}"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    last = output / "checkpoints" / LAST
    wait_until(lambda: last.exists() or process.poll() is not None, 60)
    child = json.loads((output / CLAIM).read_text())["process"]["id"]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not is_there(child), 20)
    assert last.exists()
    assert not (output / "model.yaml").exists()  # it was in the middle

    assert train.main([*options, f"--output={output}"]) == 2
    assert "a training that has not ended; continue it with --resume" in capsys.readouterr().err
    assert train.main([*options, f"--output={output}", "--resume", "--seed=1"]) == 2
    assert "seed was 0, and is 1 now" in capsys.readouterr().err
    assert train.main([*options, f"--output={output}", "--resume"]) == 0
    assert train.main([*options, f"--output={tmp_path / 'whole/churn'}"]) == 0
    killed, whole = (
        json.loads((folder / "training.json").read_text()) for folder in (output, tmp_path / "whole/churn")
    )
    assert killed["history"] == whole["history"]
    assert ModelDir(output).version == ModelDir(tmp_path / "whole/churn").version
