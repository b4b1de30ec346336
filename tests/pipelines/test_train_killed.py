"""A training that is killed continues to the same end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from child_processes import is_there, wait_until
from prepared_folders import customers, prepared_folder

from handlers.model.directory import ModelDir
from pipelines import train
from transforms.sinks.claims import CLAIM

pytestmark = pytest.mark.slow(10)

# It waits in the third epoch of 18 steps each, so that the training is killed in the middle of it.
NET = """
import os
import time
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.steps == 40 and "HELD_AT" in os.environ:
            Path(os.environ["HELD_AT"]).touch()
            time.sleep(600)
        return self.layers(x)
"""


def test_kill_9(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = prepared_folder(tmp_path / "rows", customers().drop_columns(["visits", "spent"]), "churned").folder
    (tmp_path / "code").mkdir()
    (tmp_path / "code/held_net.py").write_text(NET)
    (tmp_path / "net.yaml").write_text("architecture: held_net:Net\ninputs: [{name: x, columns: [age, is_new]}]\n")
    options = [
        f"--prepared={rows}",
        f"--model={tmp_path / 'net.yaml'}",
        "--epochs=5",
        "--batch_size=16",
        "--name=churn",
    ]
    output, held = tmp_path / "killed", tmp_path / "held"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", *options, f"--output={output}"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"HELD_AT": str(held)},
    )
    wait_until(lambda: held.exists() or process.poll() is not None)
    child = json.loads((output / CLAIM).read_text())["process"]["id"]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not is_there(child))
    assert not (output / "model.yaml").exists()

    assert train.main([*options, f"--output={output}"]) == 2
    assert "a training that has not ended; continue it with --resume" in capsys.readouterr().err
    assert train.main([*options, f"--output={output}", "--resume", "--seed=1"]) == 2
    assert "seed was 0, and is 1 now" in capsys.readouterr().err
    assert train.main([*options, f"--output={output}", "--resume"]) == 0
    assert train.main([*options, f"--output={tmp_path / 'whole'}"]) == 0
    killed, whole = (json.loads((folder / "training.json").read_text()) for folder in (output, tmp_path / "whole"))
    assert len(killed["history"]) == 5
    assert killed["history"] == whole["history"]
    assert ModelDir(output).version == ModelDir(tmp_path / "whole").version


@pytest.mark.parametrize(
    ("megabytes", "rows", "hidden"),
    [(1, 20_000, "[8]"), (16, 200, "[2000, 2000]")],
    ids=["preparing", "checkpoint"],
)
def test_a_full_disk_is_one_line(tmp_path: Path, megabytes: int, rows: int, hidden: str) -> None:
    """On a disk of its own, in a namespace of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no namespaces of users here")
    x = np.random.default_rng(0).normal(size=(rows, 20))
    columns = {f"x{index}": x[:, index] for index in range(20)}
    pq.write_table(pa.table({**columns, "label": np.where(x[:, 0] > 0, "a", "b")}), tmp_path / "in.parquet")
    (tmp_path / "m.yaml").write_text(f"architecture: mlp\narguments: {{hidden: {hidden}}}\n")
    (tmp_path / "disk").mkdir()
    flags = ["--input=in.parquet", "--model=m.yaml", "--label=label", "--epochs=3", "--output=disk/model"]
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs disk && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-m", "torchbeam", "train", *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("torchbeam train: error: ")
    assert f"{tmp_path / 'disk'}" in line or "disk/model" in line
    assert "no space is left on its disk" in line
    assert line.endswith("then start again")
