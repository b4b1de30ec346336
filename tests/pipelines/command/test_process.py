"""Commands as processes: streams that are gone, and what ends them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from poisoned_table import Table, save_model

from pipelines import score


@pytest.mark.parametrize("stdout", ["closed", "full"])
def test_a_summary_that_nobody_reads(poisoned: Table, model: Path, tmp_path: Path, stdout: str) -> None:
    pq.write_table(poisoned.table.slice(0, 100), tmp_path / "in.parquet")
    flags = f"--input={tmp_path / 'in.parquet'} --model={model} --output={tmp_path / 'out'}"
    to = {"closed": "| true", "full": ">/dev/full"}[stdout]
    command = f"set -o pipefail; {sys.executable} -m pipelines.score {flags} {to}"
    found = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows_read"] == 100


def test_a_doctor_whom_nobody_hears() -> None:
    command = f"{sys.executable} -m pipelines.doctor >/dev/full"
    found = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr == "the output of this command cannot be written: No space left on device\n"


def test_a_model_that_ends_the_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "model", preprocess=[], postprocess=[])
    code = tmp_path / "model" / "code"
    code.mkdir(exist_ok=True)
    (code / "ends_it_all.py").write_text("import sys\n\n\ndef f(row: dict) -> dict:\n    sys.exit(0)\n")
    pq.write_table(pa.table({f"f_{n}": [1.0] for n in range(8)} | {"amount": [1.0]}), tmp_path / "in.parquet")
    flags = [f"--input={tmp_path / 'in.parquet'}", f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'out'}"]
    assert score.main([*flags, "--preprocess=ends_it_all:f"]) != 0
    assert len(capsys.readouterr().err.splitlines()) == 1
