"""What must hold, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Entry = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A contestant is at least `least` times as fast as another one in the same result.

    Attributes:
        workload: the name of the workload.
        what: it and the conditions, for the table.
        contestant: who must be that fast.
        against: whom it is compared with.
        least: how many times as many rows a second.
        figure: `rows_per_second`, or `wall_rows_per_second` with start-up.
    """

    workload: str
    what: str
    contestant: str
    against: str
    least: float
    figure: str = "rows_per_second"


WHOLE = "wall_rows_per_second"
TARGETS = (
    Target("T", "T, in process", "torchbeam", "loop", 1.3),
    Target("T", "T, in process, with start-up", "torchbeam", "ray_data", 3.5, WHOLE),
    Target("T", "T, in process, with start-up", "torchbeam", "daft", 3.5, WHOLE),
    Target("T", "T, Spark, with start-up", "torchbeam_spark", "predict_batch_udf", 2.5, WHOLE),
    Target("T", "T, Spark, without start-up", "torchbeam_spark", "predict_batch_udf", 5.0),
    Target("T", "T, in process", "torchbeam", "stock", 50.0),
    Target("W", "W, 300 carried columns", "torchbeam", "loop", 1.1),
    Target("C-csv", "C, gzip CSV", "torchbeam", "loop", 0.9),
    Target("C-jsonl", "C, gzip JSON lines", "torchbeam", "loop", 0.9),
    Target("E", "E, elements", "elements_torchbeam", "elements_stock", 6.0),
    Target("P", "P, 1 % bad rows", "torchbeam", "torchbeam@clean", 0.9),
    Target("F", "F, files of 40 rows", "torchbeam", "loop", 1.0),
    Target("S", "S, start-up", "torchbeam_command", "imports", 1 / 1.2, WHOLE),
)


def measured(entry: Entry, name: str) -> dict[str, Any] | None:
    """The figures of a contestant; None if it was not measured."""
    found = entry["contestants"].get(name)
    return None if found is None or "reason" in found else found


def rows(entries: list[Entry]) -> list[tuple[str, str, str, str, str]]:
    """For each target that has results: what, against whom, at least, measured, with how many rows."""
    found = []
    for target in TARGETS:
        for entry in entries:
            ours, theirs = measured(entry, target.contestant), measured(entry, target.against)
            if entry["workload"] == target.workload and ours and theirs:
                times = ours[target.figure] / theirs[target.figure]
                found.append(
                    (
                        target.what,
                        target.against,
                        f"{target.least:.2g} ×",
                        _verdict(times, times >= target.least),
                        f"{ours['rows']:,}",
                    )
                )
    for entry in entries:
        found += _growth(entry)
    return found


def _verdict(value: float, holds: bool) -> str:
    return f"{value:.2f} ×" if holds else f"**{value:.2f} ×, missed**"


def _growth(entry: Entry) -> list[tuple[str, str, str, str, str]]:
    """Time a row and memory of the largest against the smallest size of each contestant of G."""
    if entry["workload"] != "G":
        return []
    figures = [each for name in entry["contestants"] if (each := measured(entry, name))]
    if len(figures) < 2:
        return []
    first, last = figures[0], figures[-1]
    sizes = f"{first['rows']:,} to {last['rows']:,}"
    time_a_row = first["rows_per_second"] / last["rows_per_second"]
    memory = last["peak_bytes"] / first["peak_bytes"]
    return [
        ("G, time a row", "the smallest", "0.9 to 1.1 ×", _verdict(time_a_row, 0.9 <= time_a_row <= 1.1), sizes),
        ("G, peak memory", "the smallest", "up to 1.2 ×", _verdict(memory, memory <= 1.2), sizes),
    ]
