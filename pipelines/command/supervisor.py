"""Ends a process with the one that started it, whatever ended that one; `kill -9` leaves no other way.

As a command it runs a program under this rule; `supervised_command` gives its arguments. Only the standard library is
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
from typing import Any

# Between a SIGTERM and the SIGKILL to a program that ignores it.
GRACE_SECONDS = 10

_POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


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


def die_with_parent(parent: int) -> None:
    """Lets the system kill this process once the one that forked it is gone; nothing is cleaned up.

    On Linux by the kernel, which also ends a process that hangs in native code.

    Args:
        parent: the id of that process, from itself.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it went before the kernel was asked
            os._exit(1)
    else:
        end_with_parent(lambda: None, parent)


class EndedBySignal:
    """A child of this process that is ended where a signal tells this one to end, also while the child is started.

    Args:
        end: ends the child.
        signals: that tell to end.

    Attributes:
        told_to_end: whether one of them came.
    """

    def __init__(self, end: Callable[[subprocess.Popen[bytes]], object], *signals: signal.Signals) -> None:
        self.told_to_end = False
        self._end = end
        self._child: subprocess.Popen[bytes] | None = None
        for number in signals:
            signal.signal(number, self._tell)

    def _tell(self, *_: object) -> None:
        self.told_to_end = True
        if self._child is not None:
            self._end(self._child)

    def start(self, program: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts the child; `options` are those of `subprocess.Popen`."""
        self._child = child = subprocess.Popen(program, **options)  # noqa: S603 - the caller's own
        if self.told_to_end:
            self._end(child)
        return child


def supervised_command(program: Sequence[str], remove: str | Path = "") -> list[str]:
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

    def end(child: subprocess.Popen[bytes]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: child.kill())
        child.terminate()
        signal.alarm(GRACE_SECONDS)

    child = EndedBySignal(end, signal.SIGTERM).start(program)

    def end_and_remove() -> None:
        child.kill()
        child.wait()
        if remove:
            shutil.rmtree(remove, ignore_errors=True)

    end_with_parent(end_and_remove, parent)
    code = child.wait()
    if os.getppid() != parent:
        end_and_remove()
    return code


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
