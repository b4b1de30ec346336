"""`python -m pipelines.score`: scores a table with a PyTorch model and accounts for every row.

This module holds the command: arguments, exit codes, what is shown. The job itself is in `pipelines.score_job`, which
is imported only once the arguments are known to be right, since Beam and torch take seconds to import.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

from handlers.errors import BrokenModelError, TorchbeamError, UsageError, one_line
from pipelines.options import ModelOptions, RunOptions, SinkOptions, SourceOptions, parser, pick

PROG = "torchbeam score"

FINISHED, FAILED, WRONG_USAGE, NOT_SCORED, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(frozen=True)
class ScoreOptions:
    """All options of the command; `beam` are those that go to the runner as they are."""

    source: SourceOptions
    model: ModelOptions
    sink: SinkOptions
    run: RunOptions
    beam: tuple[str, ...] = ()

    @staticmethod
    def parse(argv: list[str]) -> ScoreOptions:
        """Builds the options from arguments; raises `UsageError`, or SystemExit(0) for `--help`."""
        groups = (SourceOptions, ModelOptions, SinkOptions, RunOptions)
        described = (
            "Score Parquet, CSV, JSON lines or text files with a PyTorch model, on this machine or on a cluster."
        )
        values, others = parser(PROG, described, groups).parse_known_args(argv)
        if others and not others[0].startswith("-"):
            raise UsageError(f"unexpected argument \"{others[0]}\"; quote patterns, as --input='data/*.parquet'")
        source, model, sink, run = (pick(group, values) for group in groups)
        return ScoreOptions(source, model, sink, run, tuple(others))  # type: ignore[arg-type]


def main(argv: list[str] | None = None) -> int:
    """Runs the command and gives its exit code."""
    verbose = False
    try:
        options = ScoreOptions.parse(sys.argv[1:] if argv is None else argv)
        verbose = options.run.verbose
        _set_up_logging(verbose)
        report = _run(options)
    except UsageError as error:
        return _fail(error, WRONG_USAGE, verbose)
    except BrokenModelError as error:
        return _fail(error, NOT_SCORED, verbose)
    except TorchbeamError as error:
        return _fail(error, FAILED, verbose)
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted; nothing was published", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        return _fail(error, FAILED, verbose)
    return _exit_code(report, options.run.max_failure_rate)


def _run(options: ScoreOptions) -> dict[str, Any]:
    from handlers.model_dir import ModelDir

    model = ModelDir(options.model.model)
    # Before torch is imported, which reads these then. By default its threads wait for one another in a busy loop, and
    # on a machine that has other work, too, that costs two thirds of the throughput; asleep they wait for free.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    model.set_environment()

    from pipelines import score_job
    from pipelines.watch import show_summary

    job = score_job.prepare(options, model)
    report = score_job.run(job)
    show_summary(report, job.publication)
    return report


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


def _fail(error: Exception, code: int, verbose: bool) -> int:
    if verbose:
        logging.getLogger(PROG).error("", exc_info=error)
    print(f"{PROG}: error: {one_line(error, 1000)}", file=sys.stderr)
    return code


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    if not verbose:
        # A failed bundle logs its traceback on every level of the runner; the command says the same in one line.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


def _main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler that ends the job cleans up as Ctrl-C does
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of a runner that was interrupted or failed would keep the process alive.
    os._exit(code)


if __name__ == "__main__":
    try:
        _main()
    except SystemExit as end:  # --help
        sys.exit(end.code)
