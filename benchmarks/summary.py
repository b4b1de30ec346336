"""The figures of a contestant, from its runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        seconds: those of the work, without imports; those of the whole process if it does not measure them.
        wall_seconds: those of the whole process.
        cpu_seconds: user and system, of all processes.
        peak_bytes: the most memory of all processes.
    """

    seconds: float
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: float


def median(runs: Sequence[Run], name: str) -> float:
    """The median of one figure."""
    return float(statistics.median(getattr(run, name) for run in runs))


def summarize(runs: Sequence[Run], starts: Sequence[Run], rows: int, cores: int) -> dict[str, Any] | None:
    """The figures of a contestant.

    Args:
        runs: its runs on `rows` rows.
        starts: its runs on few rows: what they take is the start-up. Empty if the whole process is what is measured.
        rows: the rows.
        cores: the cores of the machine.

    Returns:
        Medians: `seconds` without start-up, `wall_seconds` with it, `start_seconds`, `rows_per_second` and
        `wall_rows_per_second`, `cpu_seconds` without start-up, `core_share` (of all cores, while it works), `peak_bytes`;
        and `spread`: (longest - shortest) / median of the seconds of the work. None if a run on few rows takes as long.
    """
    wall = median(runs, "wall_seconds")
    start = median(starts, "seconds") if starts else 0.0
    work = "seconds" if starts else "wall_seconds"
    seconds = median(runs, work) - start
    cpu = median(runs, "cpu_seconds") - (median(starts, "cpu_seconds") if starts else 0.0)
    each = [getattr(run, work) for run in runs]
    if seconds <= 0:
        return None
    return {
        "rows": rows,
        "seconds": seconds,
        "wall_seconds": wall,
        "start_seconds": wall - seconds if starts else wall,
        "spread": (max(each) - min(each)) / seconds,
        "rows_per_second": rows / seconds,
        "wall_rows_per_second": rows / wall,
        "cpu_seconds": cpu,
        "core_share": cpu / seconds / cores,
        "peak_bytes": median(runs, "peak_bytes"),
        "runs": [asdict(run) for run in runs],
        "starts": [asdict(run) for run in starts],
    }
