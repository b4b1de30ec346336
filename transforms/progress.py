"""Progress of a run for display; never used for the report.

Counted in the memory of one process, the user's process for an in-process runner; a retried bundle counts twice.
"""

from __future__ import annotations

import threading

from transforms.accounting import Counts

_lock = threading.Lock()
_runs: dict[str, Counts] = {}


def add(run_id: str, counts: Counts) -> None:
    """Adds to the counts of a run."""
    with _lock:
        _runs[run_id] = _runs.get(run_id, Counts()) + counts


def so_far(run_id: str) -> Counts:
    """The counts of the run in this process so far."""
    return _runs.get(run_id, Counts())
