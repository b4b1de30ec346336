"""`python -m pipelines.stream`: scores the messages of a stream until it is ended.

This module has the command: arguments, exit codes, output. The job is in `pipelines.jobs.streaming`, which is imported only
after the arguments are checked, since Beam and torch take seconds to import.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace

from handlers.model.stores import shared_s3
from handlers.redact import redact
from handlers.refresh.watch import Refresh
from pipelines.command import process
from pipelines.command.errors import FINISHED, NOT_SCORED
from pipelines.command.options import Command
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.options import open_model
from pipelines.jobs.stream_options import StreamOptions, watch_of

PROG = "torchbeam stream"
COMMAND = Command(
    prog=PROG,
    description="Score the messages of a stream with a PyTorch model, in micro-batches, until it is ended.",
    usage="--input=… --model=… --output=… --dead_letters=…",
    exit_codes="0 finished (--stop_after), 1 failed, 2 wrong usage, 3 nothing could be scored, 130 interrupted, with all "
    "that was read delivered",
    interrupted="what was delivered is committed",
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.execute(COMMAND, argv, StreamOptions.parse, _run)


def _run(options: StreamOptions) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported; see pipelines.score
    if options.how.runner == dataflow.RUNNER:
        dataflow.check_credentials(options.beam)
    with shared_s3():
        options.connect()
        return _stream(options)


def _stream(options: StreamOptions) -> int:
    watch = watch_of(options.model)
    model = open_model(replace(options.model, model=watch.find().path))
    refresh = Refresh(watch, options.model.refresh_every) if options.model.refresh_every else None

    from pipelines.command.ignored import ignored_options
    from pipelines.jobs import streaming

    job = streaming.prepare(options, model, refresh)
    for line in ignored_options(options.run, options.model, options.beam):
        _tell(f"warning: {line}")
    for name in ("torchbeam.stream", "torchbeam.refresh"):
        logging.getLogger(name).setLevel(logging.INFO)
    ended = streaming.run(job, wait=options.how.wait)
    if ended is None:
        return FINISHED
    counts = ended.counts
    print(
        f"{counts.rows_read:,} messages read, {counts.rows_scored:,} scored, {counts.rows_dropped:,} dropped, "
        f"{counts.rows_dead:,} dead letters"
    )
    for error, rows in sorted(counts.dead_by_error.items(), key=lambda item: -item[1])[:8]:
        print(f"  {error}  {rows:,}")
    if ended.interrupted:
        raise KeyboardInterrupt
    if counts.rows_dead and not counts.rows_scored and not counts.rows_dropped:
        worst = max(counts.dead_by_error, key=lambda error: counts.dead_by_error[error])
        _tell(f"none of the {counts.rows_read} messages could be scored; the first reason is {worst}")
        return NOT_SCORED
    return FINISHED


def _tell(line: str) -> None:
    print(f"{PROG}: {redact(line)}", file=sys.stderr)


if __name__ == "__main__":
    process.run(main, PROG)
