"""Shows the progress of a run and its summary."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from transforms.accounting import COMPARISON_FILES, Counts
from transforms.sinks.publish import Publication

LOG_SECONDS = 15.0


class Watched(Protocol):
    """A run whose progress can be queried."""

    def so_far(self) -> Counts | None:
        """The counts so far; None if this process does not know them."""

    def state(self) -> str:
        """The state in a few words; may be empty."""


class Watch:
    """Shows the progress of a run on stderr: a bar in a terminal, otherwise a line every 15 seconds.

    Args:
        run: the run.
        total: the total number of rows, if known.
        what: the name of the activity, for the display.
    """

    def __init__(self, run: Watched, total: int | None, what: str = "scoring") -> None:
        self._run = run
        self._total = total
        self._what = what
        self._console = Console(stderr=True)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _show(self) -> None:
        if self._console.is_terminal:
            self._show_bar()
        else:
            self._show_lines()

    def _show_bar(self) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(self._what, total=self._total, what="")
            begin = time.monotonic()
            while not self._done.wait(0.2):
                rows, what = self._state(time.monotonic() - begin)
                progress.update(task, completed=rows, what=what)

    def _show_lines(self) -> None:
        begin = time.monotonic()
        while not self._done.wait(LOG_SECONDS):
            rows, what = self._state(time.monotonic() - begin)
            share = f" ({rows / self._total:.0%})" if self._total else ""
            print(f"{self._what}: {what}{share}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)

    def _state(self, seconds: float) -> tuple[int, str]:
        counts, state = self._run.so_far(), self._run.state()
        if counts is None:
            return 0, state or "running"
        rows = counts.rows_scored + counts.rows_dropped + counts.rows_dead
        dead = f", {counts.rows_dead:,} dead letters" if counts.rows_dead else ""
        return rows, f"{rows:,} rows, {rows / max(seconds, 1e-9):,.0f} rows/s{dead}{state and f' ({state})'}"


def show_summary(report: dict[str, Any], publication: Publication) -> None:
    """Prints the counts of a finished run and the paths of its outputs on stdout."""
    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for what in ("read", "scored", "dropped", "dead"):
        table.add_row(f"rows {what}", f"{report[f'rows_{what}']:,}")
    for error, rows in list(report["dead_by_error"].items())[:8]:
        table.add_row(f"  {error}", f"{rows:,}")
    table.add_row("files read", f"{report['files_read']:,}")
    if report["files_dead"]:
        table.add_row("files that could not be read", f"{report['files_dead']:,}")
    table.add_row("seconds", f"{report['seconds']:,.1f}")
    table.add_row("rows a second", f"{report['rows_per_second']:,.0f}")
    console.print(table)
    model = report["model"]
    registered = f"{model['registry']}, " if "registry" in model else ""
    if several := report.get("models"):
        console.print("\n", _of_models(several), sep="")
        print()
    else:
        print(f"\nmodel        {registered}{model['name']}, version {model['version']}")
    print(f"predictions  {publication.predictions_at}")
    if publication.compares:
        print(f"comparison   {publication.page_at(COMPARISON_FILES[1])}")
    if report["rows_dead"]:
        print(f"dead letters {publication.dead_letters_at} (fix them, then score them with --input)")
    if report["files_dead"]:
        print(f"failed files {publication.failed_files_at}")


def _of_models(models: dict[str, dict[str, Any]]) -> Table:
    """The counts of each of several models."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    for _ in range(5):
        table.add_column(justify="right")
    table.add_row("model", "scored", "dropped", "dead", "skipped", "seconds")
    for name, each in models.items():
        counts = [f"{each[f'rows_{what}']:,}" for what in ("scored", "dropped", "dead", "skipped")]
        table.add_row(name, *counts, f"{each['seconds']:,.1f}")
    return table
