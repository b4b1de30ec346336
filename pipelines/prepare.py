"""`python -m pipelines.prepare`: cleans, samples, shuffles and splits rows for training.

This module holds the command: arguments, exit codes, what is shown. The job itself is in `pipelines.jobs.preparing`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from handlers.redact import redact
from pipelines.command import process
from pipelines.command.errors import FINISHED, NOT_SCORED
from pipelines.command.options import Command, ModelOptions, SinkOptions
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.options import ScoreOptions, connect
from pipelines.jobs.prepare_options import PrepareOptions

if TYPE_CHECKING:
    from handlers.train.prepared import Prepared

PROG = "torchbeam prepare"
COMMAND = Command(
    prog=PROG,
    description="Prepare rows for training: clean them as scoring does, take a sample, shuffle, and hold some out.",
    usage="--input=… --label=… --output=…",
    exit_codes="0 finished, 1 failed, 2 wrong usage or nothing to learn from, 3 above --max_failure_rate, 130 interrupted",
    interrupted="nothing was prepared",
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and gives its exit code."""
    return process.execute(COMMAND, argv, PrepareOptions.parse, _run)


def _run(options: PrepareOptions) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `score`
    if options.run.runner == dataflow.RUNNER:
        dataflow.check_credentials(options.beam)
    from handlers.model.stores import shared_s3

    with shared_s3():
        connect(ScoreOptions(options.source, ModelOptions(""), SinkOptions(""), options.run, options.beam))

        from pipelines.command.ignored import ignored_options
        from pipelines.jobs.preparing import prepare_rows

        for line in ignored_options(options.run, ModelOptions(""), options.beam):
            _tell(f"warning: {line}")
        prepared = prepare_rows(options, tell=_tell)
    with suppress(OSError, ValueError, SystemExit):  # the run is finished, even if nobody reads the summary
        show(prepared)
    rows = prepared.about["rows"]
    if rows["read"] and rows["dead"] / rows["read"] > options.run.max_failure_rate:
        _tell(
            f"{rows['dead']} of {rows['read']} rows are dead letters, above --max_failure_rate={options.run.max_failure_rate}"
        )
        return NOT_SCORED
    return FINISHED


def show(prepared: Prepared) -> None:
    """Prints the counts of prepared rows and where they are, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    names = {"read": "rows read", "dropped": "rows dropped", "dead": "rows dead"}
    for name, shown in names.items():
        table.add_row(shown, f"{prepared.about['rows'][name]:,}")
        for error, rows in list(prepared.about["dead_by_error"].items())[:8] if name == "dead" else ():
            table.add_row(f"  {error}", f"{rows:,}")
    for name, shown in {"sampled": "rows sampled", "train": "  train", "validation": "  validation"}.items():
        table.add_row(shown, f"{prepared.about['rows'][name]:,}")
    if prepared.about["files"]["dead"]:
        table.add_row("files that could not be read", f"{prepared.about['files']['dead']:,}")
    table.add_row("seconds", f"{prepared.about['seconds']:,.1f}")
    Console(highlight=False).print(table)
    print(f"\nprepared     {prepared.folder}")
    if prepared.about["rows"]["dead"]:
        print(f"dead letters {prepared.folder}/dead_letters")
    if prepared.about["files"]["dead"]:
        print(f"failed files {prepared.folder}/failed_files.jsonl")


def _tell(line: str) -> None:
    print(f"{PROG}: {redact(line)}", file=sys.stderr)


if __name__ == "__main__":
    process.run(main, PROG)
