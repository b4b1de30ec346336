"""Whether a process that left its mark in a file is still there."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, so that another one can say later whether it lives.

    Attributes:
        id: its number.
        started: when it began, as the kernel counts; empty where that cannot be known.
        space: where the number holds: the host, since its last start, and the namespace of its processes.
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
        """Whether it is, or was, a process that this one could see."""
        return self.space == _space()

    def is_alive(self) -> bool:
        """Whether it lives; asks for a process that `is_here`."""
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
    with suppress(OSError):  # of Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):  # containers may share a name, and not the numbers of their processes
        parts.append(Path("/proc/self/ns/pid").readlink().name)
    return " ".join(parts)


def _started(number: int) -> str:
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return _ENDED if fields[0] in "ZX" else fields[19]  # one that its parent has not asked about yet
