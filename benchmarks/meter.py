"""Runs one command and measures its whole process tree: `python -m benchmarks.meter RESULT SECONDS COMMAND…`.

A process of its own, so that the resources of its children are those of the command and of nothing else. It adopts
processes whose parents have ended (Spark's and Ray's helpers), counts them, and ends what the command has left.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

_SUBREAPER, _DEATH_SIGNAL = 36, 1  # PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG
_AUTOGROUP = Path("/proc/self/autogroup")
_EVERY_SECONDS = 0.25
_GROWN = 1.02  # proportional memory is read again when the resident memory has grown by 2 %


def tree(pid: int) -> list[int]:
    """`pid`'s descendants, without itself."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):  # it may end meanwhile
            # The name of a program, in parentheses, may have spaces and parentheses itself.
            parent = int(status.read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())  # grows while it is walked: the children of children, too
    return found


def resident_bytes(pid: int) -> int:
    """The resident memory of one process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def proportional_bytes(pid: int) -> int:
    """The memory of one process, in which a page that n processes share counts 1/n; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def priority() -> str:
    """The priority of the group of this process in the schedule of Linux; empty where there are no such groups."""
    with suppress(OSError):
        # The file is empty for a process that has never been in a session of its own, as in some containers.
        return _AUTOGROUP.read_text().rpartition(" ")[2].strip()
    return ""


class Memory(threading.Thread):
    """Samples the memory of the descendants of this process; `peak_bytes` is the most that was seen.

    It also gives descendants that have begun a session of their own, as Ray's, the priority of this process: Linux schedules
    sessions as groups, and on a machine with other work they would be measured with less of it than the other contestants.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._resident = 0
        self._priority = priority()
        self._known: set[int] = set()
        self._ended = threading.Event()

    def run(self) -> None:
        """Samples until `end`."""
        while not self._ended.wait(_EVERY_SECONDS):
            pids = tree(os.getpid())
            self._prioritize(set(pids) - self._known)
            resident = sum(map(resident_bytes, pids))
            if resident > self._resident * _GROWN:
                self._resident = resident
                self.peak_bytes = max(self.peak_bytes, sum(map(proportional_bytes, pids)))

    def _prioritize(self, pids: set[int]) -> None:
        self._known |= pids
        if self._priority not in ("", "0"):
            for pid in pids:
                with suppress(OSError):
                    Path(f"/proc/{pid}/autogroup").write_text(self._priority)

    def end(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self.join()


def measure(command: list[str], timeout: float) -> dict[str, float]:
    """Runs a command.

    Args:
        command: the command.
        timeout: seconds after which it is killed, which is exit code -9.

    Returns:
        `exit_code`, `wall_seconds` until the command itself ended, `cpu_seconds` (user and system, of all its processes),
        and `peak_bytes`: the most memory of all its processes together, or of the largest one.
    """
    import resource  # not on Windows

    if sys.platform == "linux":
        system = ctypes.CDLL(None)
        system.prctl(_SUBREAPER, 1, 0, 0, 0)
        system.prctl(_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    memory = Memory()
    memory.start()
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    ending = threading.Timer(timeout, process.kill)
    ending.start()
    try:
        code = process.wait()  # without a timeout: with one, Python asks every 50 ms
    finally:
        seconds = time.perf_counter() - begin
        ending.cancel()
        memory.end()
        for pid in tree(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    largest = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "exit_code": code,
        "wall_seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": max(memory.peak_bytes, largest),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(measure(sys.argv[3:], float(sys.argv[2]))))
