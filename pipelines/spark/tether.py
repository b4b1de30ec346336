"""Ends a process with the one that started it, whatever ended that one; `kill -9` leaves no other way.

As a command it runs a program under this rule; `tether_command` gives its arguments. Only the standard library is
imported: one of these runs for every worker.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Between a SIGTERM and the SIGKILL to a program that does not heed it.
GRACE_SECONDS = 10

_POLL_SECONDS = 0.5


def end_with_parent(end: Callable[[], object], parent: int) -> None:
    """Calls `end`, and leaves, once the process that started this one is gone.

    Args:
        end: what is done before.
        parent: the id of that process, from itself: it may be gone by now, and then another is the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        end()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def tether_command(program: Sequence[str], remove: str | Path = "") -> list[str]:
    """The command that runs a program which ends with this process; then the folder `remove` goes, too."""
    # This file, not a module by its name: another may be found where the program runs.
    return [sys.executable, "-P", __file__, str(os.getpid()), str(remove), *program]


def run(parent: int, remove: str, program: Sequence[str]) -> int:
    """Runs a program to its end and gives its exit code.

    A SIGTERM is handed on to it, and followed by a SIGKILL where it goes on.

    Args:
        parent: the process that the program ends with.
        remove: a folder that is removed where that process is gone; nobody else would. May be empty.
        program: the program and its arguments.
    """
    child: subprocess.Popen[bytes] | None = None
    told_to_end = False

    def end(*_: object) -> None:
        nonlocal told_to_end
        told_to_end = True
        if child is not None:
            child.terminate()
            signal.alarm(GRACE_SECONDS)

    def kill(*_: object) -> None:
        if child is not None:
            child.kill()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, kill)
    child = started = subprocess.Popen(program)  # noqa: S603 - the caller's own
    if told_to_end:  # while it was started
        end()

    def end_and_remove() -> None:
        started.kill()
        started.wait()
        if remove:
            shutil.rmtree(remove, ignore_errors=True)

    end_with_parent(end_and_remove, parent)
    code = started.wait()
    if os.getppid() != parent:
        end_and_remove()
    return code


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
