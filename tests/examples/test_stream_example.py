"""`examples/stream`, run as `make stream` does, for a short time: every image comes out, and nothing is left running."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kafka_brokers import skip_without_broker

ROOT = Path(__file__).parents[2]


@pytest.mark.slow(30)
def test_all_images_come_out(tmp_path: Path) -> None:
    skip_without_broker()
    command = [sys.executable, str(ROOT / "examples/stream/run.py"), str(tmp_path / "out"), "--seconds=2"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "COLUMNS": "120"},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # 899 images again and again, of which number 7 and number 100 are damaged
    assert done.stdout.splitlines()[-1] == "2,000 messages sent = 1,994 scored + 6 dead letters"
    (accuracy,) = re.findall(r"│ +1,994 │ +6 │ +(\d+\.\d)% │", done.stdout)
    assert float(accuracy) > 95
    left = [file for file in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(file)]
    assert not left


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it has ended
        return b""
