"""Ends a process when its parent ends, even if the parent was killed by `kill -9`.

As a command it runs a program under this rule; `supervised_command` returns its arguments. It imports only the standard
library, since one of these runs for every worker.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Between SIGTERM and SIGKILL for a program that ignores SIGTERM.
GRACE_SECONDS = 10
# For a supervisor, which waits that long for its program.
STOP_SECONDS = GRACE_SECONDS + 5.0

_POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent(end: Callable[[], object], parent: int) -> None:
    """Calls `end` and exits once the parent process has ended.

    Args:
        end: called before the exit.
        parent: the process id of the parent, as the parent passed it: by now another process may be the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        end()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def die_with_parent(parent: int) -> None:
    """Has the system kill this process, without cleanup, once its parent has ended.

    On Linux the kernel does it, which also ends a process that hangs in native code.

    Args:
        parent: the process id of the parent, as the parent passed it.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)
    else:
        end_with_parent(lambda: None, parent)


class EndedBySignal:
    """Ends a child process when this process gets a signal, also while the child starts.

    Args:
        end: ends the child.
        signals: the signals to handle.

    Attributes:
        signalled: whether one of them arrived.
    """

    def __init__(self, end: Callable[[subprocess.Popen[bytes]], object], *signals: signal.Signals) -> None:
        self.signalled = False
        self._end = end
        self._child: subprocess.Popen[bytes] | None = None
        for number in signals:
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.signalled = True
        if self._child is not None:
            self._end(self._child)

    def start(self, program: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts the child; `options` are those of `subprocess.Popen`."""
        self._child = child = subprocess.Popen(program, **options)  # noqa: S603 - from the caller
        if self.signalled:
            self._end(child)
        return child


def supervised_command(program: Sequence[str], remove: str | Path = "", grace: int = GRACE_SECONDS) -> list[str]:
    """The command that runs `program` until this process ends, and then removes the folder `remove`.

    On SIGTERM the program has `grace` seconds for its end.
    """
    # A file, not a module name: another module may have that name where the program runs.
    return [sys.executable, "-P", __file__, str(os.getpid()), str(remove), str(grace), *program]


def start_supervised(
    program: Sequence[str],
    remove: str | Path = "",
    environment: Mapping[str, str] | None = None,
    grace: int = GRACE_SECONDS,
) -> subprocess.Popen[str]:
    """Starts `program` under a supervisor, in a session of its own: Ctrl-C is for this process, which stops it.

    Args:
        program: the program and its arguments. What it writes comes through `stdout`.
        remove: a folder to remove if this process is killed.
        environment: variables to add to those of this process.
        grace: seconds between SIGTERM and SIGKILL.
    """
    return subprocess.Popen(  # noqa: S603 - from the caller
        supervised_command(program, remove, grace),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | dict(environment or {}),
        start_new_session=True,
    )


def stop_supervised(process: subprocess.Popen[str], grace: int = GRACE_SECONDS) -> None:
    """Ends what `start_supervised` has started with this `grace`, and waits until it has ended."""
    process.terminate()
    try:
        process.wait(grace + STOP_SECONDS - GRACE_SECONDS)
    except subprocess.TimeoutExpired:  # the supervisor hangs; the program is in its process group
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_supervised(process: subprocess.Popen[str]) -> None:
    """Kills what `start_supervised` has started, and its supervisor, and waits for the latter."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # not yet waited for, so the group is still that of the supervisor
    process.wait()


def run(parent: int, remove: str, grace: int, program: Sequence[str]) -> int:
    """Runs a program to its end and returns its exit code.

    Forwards SIGTERM to it, followed by SIGKILL if it does not end.

    Args:
        parent: the process whose end also ends the program.
        remove: a folder to remove if that process has ended; may be empty.
        grace: seconds between SIGTERM and SIGKILL.
        program: the program and its arguments.
    """

    def end(child: subprocess.Popen[bytes]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: child.kill())
        child.terminate()
        signal.alarm(grace)

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
    sys.exit(run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
