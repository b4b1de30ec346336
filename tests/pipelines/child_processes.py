"""What the tests of processes share: whether one is there, and what it has written."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from deadlines import WAIT_SECONDS


def wait_until(
    condition: Callable[[], bool], seconds: float = WAIT_SECONDS, process: subprocess.Popen[str] | None = None
) -> None:
    """Waits until `condition` holds; fails after so many seconds, or once `process` has ended before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.05)


def is_there(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def written(file: Path) -> int:
    """The number in a file, once it is there."""
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())
