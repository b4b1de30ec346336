"""How far a run is, for people to look at while it lasts; never for its accounts.

Counted in the memory of one process, which is the user's own where the runner works in process, and doubled by every
retried bundle.
"""

from __future__ import annotations

import threading

from transforms.accounting import Counts

_lock = threading.Lock()
_runs: dict[str, Counts] = {}


def add(run_id: str, counts: Counts) -> None:
    """Adds what was just done."""
    with _lock:
        _runs[run_id] = _runs.get(run_id, Counts()) + counts


def so_far(run_id: str) -> Counts:
    """What this process has done of the run."""
    return _runs.get(run_id, Counts())
