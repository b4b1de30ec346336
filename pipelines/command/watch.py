"""Shows the progress of a run and its summary."""

from __future__ import annotations

from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from transforms.accounting import COMPARISON_FILES, Counts
from transforms.progress_bar import ProgressBar
from transforms.sinks.publish import Publication


class Watched(Protocol):
    """A run whose progress can be queried."""

    def so_far(self) -> Counts | None:
        """The counts so far; None if this process does not know them."""

    def state(self) -> str:
        """The state in a few words; may be empty."""


def watch(run: Watched, total: int | None, what: str = "scoring") -> ProgressBar:
    """Shows the progress of `run` while it is used as a context; `total` is the number of all rows, if known."""
    return ProgressBar(lambda: (run.so_far(), run.state()), total, what)


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
