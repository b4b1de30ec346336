"""`python -m pipelines.score`: scores a table with a PyTorch model and accounts for every row.

This module has the command: arguments, exit codes, output. The job is in `pipelines.jobs.scoring`, which is imported only
after the arguments are checked, since Beam and torch take seconds to import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from handlers.model.stores import shared_s3
from handlers.redact import redact
from pipelines.command import process
from pipelines.command.errors import FINISHED, NOT_SCORED
from pipelines.command.options import Command
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.options import ScoreOptions, connect, open_model
from pipelines.spark.early import started_early

PROG = "torchbeam score"
COMMAND = Command(
    prog=PROG,
    description="Score Parquet, CSV, JSON lines, Avro or text files, or BigQuery, with a PyTorch model, here or on a cluster.",
    usage="--input=… (--model=… | --models=…) --output=…",
    exit_codes="0 finished, 1 failed, 2 wrong usage, 3 above --max_failure_rate or nothing could be scored, "
    "130 interrupted",
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.execute(COMMAND, argv, ScoreOptions.parse, _run)


def _run(options: ScoreOptions) -> int:
    """Runs the job; returns FINISHED also if it continues elsewhere."""
    options = options.resolved().settled()
    # Before torch is imported, which reads this variable. By default its threads wait for each other in a busy loop,
    # which costs two thirds of the throughput on a machine with other load; passive waiting costs nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.run.runner == dataflow.RUNNER:
        dataflow.check_credentials(options.beam)
    # These import Beam and torch, which is slow, so usage is checked before.
    run = options.run
    with (
        started_early(run.runner, options.beam, run.spark_version, verbose=run.verbose),
        process.imports_without_collection() as imported,
        shared_s3(),
    ):
        return _score(options, imported)


def _score(options: ScoreOptions, imported: Callable[[], None]) -> int:
    connect(options)
    several = None
    if options.has_several:
        from pipelines.jobs.models import open_models, with_models

        options, spec = with_models(options)
        several = open_models(options, spec) if spec is not None else None
    if several:
        options = several.options
    else:
        model = open_model(options.model)

    from pipelines.command.ignored import ignored_options
    from pipelines.command.watch import show_summary
    from pipelines.jobs import scoring as score_job
    from pipelines.jobs.outputs import claimed_output

    imported()
    with claimed_output(options, _tell) as output:
        job = score_job.prepare_models(several, output) if several else score_job.prepare(options, model, output)
        for line in ignored_options(options.run, options.model, options.beam):
            _tell(f"warning: {line}")
        report = score_job.run(job, wait=options.run.wait)
    if report is None:
        return FINISHED
    with suppress(OSError, ValueError, SystemExit):  # the run is finished, even if nobody reads the summary
        show_summary(report, job.publication)
    return _exit_code(report, options.run.max_failure_rate)


def _tell(line: str) -> None:
    print(f"{PROG}: {redact(line)}", file=sys.stderr)


def _exit_code(report: dict[str, Any], max_failure_rate: float) -> int:
    read, scored, dead = (report[f"rows_{what}"] for what in ("read", "scored", "dead"))
    if dead and not scored and not report["rows_dropped"]:
        worst = next(iter(report["dead_by_error"]))
        print(f"{PROG}: none of the {read} rows could be scored; the first reason is {worst}", file=sys.stderr)
        return NOT_SCORED
    if not read and report["files_dead"]:
        print(
            f"{PROG}: none of the {report['files_dead']} files could be read; see failed_files.jsonl", file=sys.stderr
        )
        return NOT_SCORED
    if read and dead / read > max_failure_rate:
        print(
            f"{PROG}: {dead} of {read} rows are dead letters, above --max_failure_rate={max_failure_rate}",
            file=sys.stderr,
        )
        return NOT_SCORED
    return FINISHED


if __name__ == "__main__":
    process.run(main, PROG)
