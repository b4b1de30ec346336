"""Ends a process with the one that started it, whatever ended that one; `kill -9` leaves no other way.

As a command (`python -P -m pipelines.spark.tether PROGRAM …`) it runs a program under this rule. Only the standard
library is imported: one of these runs for every worker.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

_POLL_SECONDS = 0.5


def end_with_parent(end: Callable[[], object]) -> None:
    """Calls `end`, and leaves, once the process that started this one is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        end()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def run(command: list[str]) -> int:
    """Runs a program to its end and gives its exit code; a SIGTERM is handed on to it."""
    child = subprocess.Popen(command)  # noqa: S603 - the caller's own
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    end_with_parent(child.kill)
    return child.wait()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
