"""Looks for the best settings of peers, one setting after the other: `python -m benchmarks.search --peers=ray_data,daft`.

Begins with the first value of each setting, tries the other values of the first one, keeps the fastest, and goes on with the
next. Writes what it has tried and found to benchmarks/settings.json, from which `benchmarks.run` takes the settings.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.contest import Contest, Contestant, DisqualifiedError
from benchmarks.data import Data
from benchmarks.peers import PEERS
from benchmarks.run import SETTINGS, count, names_of, tell
from benchmarks.workloads import WORKLOADS


def best(
    grid: Mapping[str, tuple[Any, ...]], seconds: Callable[[dict[str, Any]], float | None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fastest settings, found one after the other.

    Args:
        grid: the values of each setting; the search begins with the first ones.
        seconds: what a run with some settings takes; None if it fails.

    Returns:
        The settings, and all that were tried with their seconds.
    """
    tried: list[dict[str, Any]] = []

    def run(settings: dict[str, Any]) -> float:
        taken = seconds(settings)
        tried.append({**settings, "seconds": taken})
        return float("inf") if taken is None else taken

    found = {name: values[0] for name, values in grid.items()}
    fastest = run(found)
    for name, values in grid.items():
        for value in values[1:]:
            taken = run(settings := {**found, name: value})
            if taken < fastest:
                fastest, found = taken, settings
    return found, tried


def main(argv: list[str] | None = None) -> int:
    """Runs the search and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--peers", required=True, help="names, separated by commas")
    parser.add_argument("--rows", type=count, help="rows of the workload (default: those of `benchmarks.run`)")
    parser.add_argument(
        "--runs", type=count, default=2, help="runs of each try, of which the fastest counts (default: 2)"
    )
    parser.add_argument(
        "--data", type=Path, default=Data.folder, help="folder of inputs and models (default: out/benchmark)"
    )
    given = parser.parse_args(argv)
    for name in names_of(given.peers, PEERS, "peers", parser):
        peer = PEERS[name]
        if missing := peer.missing():
            parser.error(f"{name}: {missing}")
        if not peer.grid:
            parser.error(f"{name} has no settings to look for")
        label, workload = next(item for item in WORKLOADS.items() if name in item[1].peers)
        rows = given.rows or workload.rows

        def seconds(settings: dict[str, Any]) -> float | None:
            contest = Contest(workload, rows, Data(given.data), {name: settings}, expected)  # noqa: B023 - called in this turn
            try:
                taken = min(contest.run(Contestant.of(name)).seconds for _ in range(given.runs))  # noqa: B023
            except DisqualifiedError as error:
                tell(f"  {settings}: {error}")
                return None
            tell(f"  {settings}: {taken:.2f} s")
            return taken

        expected: dict[Any, Any] = {}
        tell(f"{name}, {label}, {rows:,} rows")
        found, tried = best(peer.grid, seconds)
        written = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {"settings": {}, "searches": {}}
        written["settings"][name] = found
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        written["searches"][name] = {"workload": label, "rows": rows, "date": date, "tried": tried}
        SETTINGS.write_text(json.dumps(written, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
