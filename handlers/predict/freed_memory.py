"""What glibc does with memory that was freed: keep it for the next call, or return it to the system.

Where there is another C library, or the environment sets the limits of glibc, nothing is changed. Imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

# Of malloc.h. A block of at least the second limit is mapped on its own, and unmapped when it is freed; more than the first
# at the end of the heap is returned. By default both follow the largest block that was freed.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _RETURNED = 30 << 20, 1 << 20  # bytes of a block; glibc takes no limit above 32 MiB

_returns = False


def keep() -> None:
    """Has blocks of up to 30 MiB stay in the process when they are freed, unless `give_back` was called.

    Faulting in the pages of activations again in each call takes as long as the forward of a small model.
    """
    if not _returns:
        _limit(_KEPT)


def give_back() -> None:
    """Has blocks of a megabyte or more return to the system at once, from now on.

    glibc keeps those of up to 32 MB otherwise, in each thread, which is more than a model on the disk may take.
    """
    global _returns
    _returns = True
    _limit(_RETURNED)


def _limit(size: int) -> None:
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, size)
        mallopt(_M_TRIM_THRESHOLD, 2 * size)
