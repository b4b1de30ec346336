"""Slots: which processes of a host may use which GPU.

k copies on M GPUs make k·M slots; slot s is on GPU `s % M`, so that the first M processes have a GPU each. A slot is
taken by a lock on a file (flock) in a folder of the user on this host. The kernel drops the lock when the process ends,
however it ends, so a killed process leaves nothing to clean up.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from handlers.errors import UsageError
from handlers.private import private_folder


@dataclass(frozen=True)
class Slot:
    """A slot that this process holds, until it is closed or the process ends."""

    number: int
    gpu: int
    _lock: IO[str] = field(repr=False)

    def close(self) -> None:
        """Gives the slot back."""
        self._lock.close()


def take_slot(
    gpus: int,
    copies: int = 1,
    *,
    gpu: int | None = None,
    identify: Callable[[int], str] = str,
    folder: Path | None = None,
) -> Slot:
    """Takes the first free slot.

    Args:
        gpus: how many GPUs this process sees; at least one.
        copies: how many processes may share a GPU.
        gpu: the only one allowed; None for any.
        identify: the name of a GPU on this host by its number in this process, which CUDA_VISIBLE_DEVICES may change.
        folder: where the locks are; a folder of the user's in the temporary directory by default.

    Raises:
        UsageError: where all slots are taken, or the folder is not this user's alone.
    """
    import fcntl  # not available on Windows

    folder = folder or private_folder("torchbeam-slots")
    holders = []
    for number in range(copies * gpus):
        on_gpu = number % gpus
        if gpu is not None and on_gpu != gpu:
            continue
        lock = (folder / f"gpu-{identify(on_gpu)}-{number // gpus}.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holders.append(lock.read().strip())
            lock.close()
            continue
        lock.truncate(0)
        lock.write(str(os.getpid()))  # for the error of processes that find no slot
        lock.flush()
        # A forked child would share the lock and hold it after its parent is gone. Closing it in the child keeps it ours.
        os.register_at_fork(after_in_child=lock.close)
        return Slot(number, on_gpu, lock)
    what = f"{gpus} GPU(s)" if gpu is None else f"cuda:{gpu}"
    raise UsageError(
        f"all {len(holders)} slots of {what} are taken, by the processes {', '.join(holders)}; allow more with "
        f"--model_copies (now {copies}), or run fewer worker processes on this host"
    )
