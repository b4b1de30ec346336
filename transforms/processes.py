"""Whether a process that is recorded in a file is still running."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, identified so that another process can check later whether it is alive.

    Attributes:
        id: the process id.
        started: its start time, in clock ticks since boot; empty if unknown.
        space: the scope of the process id: the host name, boot id and PID namespace.
    """

    id: int
    started: str
    space: str

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls(os.getpid(), _started(os.getpid()), _space())

    @property
    def is_here(self) -> bool:
        """Whether its process id belongs to the host and PID namespace of this process."""
        return self.space == _space()

    def is_alive(self) -> bool:
        """Whether it is running; only valid if `is_here`."""
        try:
            os.kill(self.id, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        started = _started(self.id)
        return started != _ENDED and ("" in (started, self.started) or started == self.started)


_ENDED = "ended"


def _space() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):  # containers may share a host name but not process ids
        parts.append(Path("/proc/self/ns/pid").readlink().name)
    return " ".join(parts)


def _started(number: int) -> str:
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return _ENDED if fields[0] in "ZX" else fields[19]  # a zombie has ended
