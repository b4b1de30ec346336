"""The same metrics on Spark as in process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from short_jvms import SHORT_JOB_SERVER

from pipelines import evaluate

pytestmark = pytest.mark.slow(30)


def test_local(job_server: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    yes = random.random(20_000).astype(np.float32)
    table = pa.table(
        {
            "id": np.arange(20_000),
            "age": random.integers(18, 90, 20_000),
            "label": np.where(random.random(20_000) < yes, "yes", "no"),
            "predicted_class": np.where(yes > 0.5, "yes", "no"),
            "probability_no": 1 - yes,
            "probability_yes": yes,
        }
    )
    for part in range(4):
        pq.write_table(table.slice(part * 5000, 5000), tmp_path / f"{part}.parquet")
    flags = [f"--input={tmp_path}", "--label=label", "--slice_by=age", f"--compare={tmp_path}", "--key=id"]
    assert evaluate.main([*flags, f"--output={tmp_path / '_here'}"]) == 0
    spark = ["--runner=SparkRunner", "--spark_master_url=local[2]", SHORT_JOB_SERVER, f"--output={tmp_path / '_spark'}"]
    command = [sys.executable, "-m", "pipelines.evaluate", *flags, *spark]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    here, there = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("_here", "_spark"))
    for name, value in here.items():
        if isinstance(value, float) and name != "seconds":
            assert there[name] == pytest.approx(value, rel=1e-12), name
    for name in ("rows", "confusion_matrix", "bounds", "warnings"):
        assert there[name] == here[name]
    assert {age: each["rows"] for age, each in there["slices"]["age"].items()} == {
        age: each["rows"] for age, each in here["slices"]["age"].items()
    }
    assert there["compare"]["rows"] == 20_000
