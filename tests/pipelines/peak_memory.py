"""The peak of memory of a process that scores."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys
from pipelines import score
code = score.main(sys.argv[1:])
with open("/proc/self/status") as file:
    status = dict(line.split(":", 1) for line in file)
print("PEAK", code, status["VmHWM"].split()[0])
"""


def peak_of_score(*arguments: str) -> int:
    """Bytes of the resident memory of `score` at its peak, file-mapped pages included; the run must succeed."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT, *arguments], check=True, capture_output=True, text=True)
    _, code, size = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    return int(size) * 1024
