"""The same sample on Spark as in process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handlers.train.prepared import Prepared
from pipelines import prepare

pytestmark = pytest.mark.slow(30)


def test_local(job_server: Path, tmp_path: Path) -> None:
    numbers = np.arange(20_000)
    table = pa.table({"id": numbers, "customer": numbers % 700, "x": numbers / 7, "y": numbers % 2})
    for part in range(4):
        pq.write_table(table.slice(part * 5000, 5000), tmp_path / f"{part}.parquet", row_group_size=2000)
    (tmp_path / "_model.yaml").write_text("features: {twice: 2 * x}\n")
    flags = [f"--input={tmp_path}", f"--model={tmp_path / '_model.yaml'}", "--label=y", "--sample_rows=3000"]
    flags.append("--split_by=customer")
    assert prepare.main([*flags, f"--output={tmp_path / '_here'}"]) == 0
    spark = ["--runner=SparkRunner", "--spark_master_url=local[2]", f"--output={tmp_path / '_spark'}"]
    command = [sys.executable, "-m", "pipelines.prepare", *flags, *spark]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    here, there = (Prepared.open(tmp_path / name) for name in ("_here", "_spark"))
    assert len(here.train) + len(here.validation) == 3000
    for part in ("train", "validation"):
        one, other = (pa.Table.from_batches(getattr(each, part).batches(1000)) for each in (here, there))
        assert one.equals(other)
    assert here.about["rows"] == there.about["rows"]
    assert here.about["fingerprint"] == there.about["fingerprint"]
    assert sorted(path.name for path in (tmp_path / "_spark").iterdir()) == [
        "dead_letters", "prepared.json", "train", "validation",
    ]  # fmt: skip
