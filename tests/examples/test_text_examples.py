"""The examples of text models, run as they are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), str(folder)], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow(20)
def test_docstrings_are_classified(tmp_path: Path) -> None:
    out = run("docstrings/classify.py", tmp_path)
    rows = pq.read_table(tmp_path / "scored" / "predictions").to_pylist()
    assert len(rows) == pq.read_metadata(tmp_path / "table.parquet").num_rows
    parts = [row["part"] for row in rows]
    accuracy = sum(row["predicted_class"] == row["part"] for row in rows) / len(rows)
    majority = max(map(parts.count, set(parts))) / len(rows)
    assert accuracy > majority + 0.2
    assert f"accuracy {accuracy:.1%};" in out
    assert f"most frequent part: {majority:.1%}" in out


@pytest.mark.slow(20)
def test_neighbours_of_questions(tmp_path: Path) -> None:
    out = run("embeddings/neighbours.py", tmp_path)
    report = json.loads((tmp_path / "scored" / "report.json").read_text())
    assert report["rows_read"] == report["rows_scored"] == pq.read_metadata(tmp_path / "table.parquet").num_rows
    similarities = [float(value) for value in re.findall(r"^  (-?\d\.\d{3})  ", out, re.MULTILINE)]
    assert len(similarities) == 5 * 3
    for start in range(0, 15, 3):
        assert similarities[start : start + 3] == sorted(similarities[start : start + 3], reverse=True)
    for name in ("shutil.rmtree", "statistics.median", "textwrap."):
        assert name in out
