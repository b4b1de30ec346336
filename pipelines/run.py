"""`python -m pipelines.run`: prepare → train → score → evaluate from one file; what has not changed is skipped.

Each stage is its command, in a process of its own: so it does what it does when it is called by hand, environment variables of
the model included.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from handlers.errors import UsageError
from handlers.redact import redact
from pipelines.command import process
from pipelines.command.errors import FINISHED, WRONG_USAGE
from pipelines.command.options import Command, flag, option, parse_one
from pipelines.command.supervisor import die_with_parent
from pipelines.command.values import path
from pipelines.jobs.stages import (
    KINDS,
    PipelineConfig,
    Stage,
    digest_of_result,
    figures,
    is_done,
    read_stamp,
    restore_stamp,
    stages,
    write_stamp,
)

PROG = "torchbeam run"
COMMAND = Command(
    prog=PROG,
    description="Prepare, train, score and evaluate from one file. A stage whose options and inputs have not changed is "
    "skipped. See docs/pipeline.md.",
    usage="--config=FILE",
    exit_codes="0 finished, 2 wrong usage, 130 interrupted; else that of the stage that failed",
    interrupted="run again to go on with the stage that was interrupted",
    runs_beam=False,
)


@dataclass(frozen=True)
class PipelineOptions:
    """What is run."""

    TITLE = "run"

    config: str = option("YAML file with the options of each stage", parse=path, metavar="FILE")
    only: str | None = option("run this stage only", None, choices=tuple(KINDS), metavar="STAGE")
    from_: str | None = option(
        "run this stage and those after it", None, choices=tuple(KINDS), metavar="STAGE", flag="from"
    )
    force: bool = flag("run stages also if nothing has changed")
    verbose: bool = flag("show the logs of Beam and the tracebacks of errors, of the stages, too")


@dataclass(frozen=True)
class Outcome:
    """What became of a stage; `code` is its exit code, None where it was skipped."""

    stage: Stage
    code: int | None
    seconds: float


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.execute(COMMAND, argv, _parse, _run)


def _parse(argv: list[str], command: Command) -> PipelineOptions:
    options = parse_one(PipelineOptions, argv, command)
    if options.only and options.from_:
        raise UsageError("--only and --from exclude each other; give one of them")
    return options


def _run(options: PipelineOptions) -> int:
    config = PipelineConfig.open(options.config)
    chosen = _chosen(stages(config), options)
    for stage in chosen:
        stage.check(options.config)
    from pipelines.jobs.outputs import check_writable  # imports Beam

    check_writable(f"{options.config}: output", config.output)
    outcomes: list[Outcome] = []
    for stage in chosen:
        outcomes.append(_outcome(stage, options))
        if outcomes[-1].code:
            break
    _show(outcomes)
    failed = outcomes[-1].code or FINISHED
    if failed:
        print(f"{PROG}: stage {outcomes[-1].stage.name} ended with exit code {failed}", file=sys.stderr)
    return failed


def _chosen(found: Sequence[Stage], options: PipelineOptions) -> list[Stage]:
    names = [stage.name for stage in found]
    for wanted, name in (("only", options.only), ("from", options.from_)):
        if name and name not in names:
            raise UsageError(f"--{wanted}={name}: {options.config} has no such stage; it has: {', '.join(names)}")
    if options.only:
        return [stage for stage in found if stage.name == options.only]
    return list(found[names.index(options.from_) :]) if options.from_ else list(found)


def _outcome(stage: Stage, options: PipelineOptions) -> Outcome:
    """Runs a stage, unless that would give what there is."""
    stamp, key = read_stamp(stage), stage.key()
    if not options.force and is_done(stage, key, stamp):
        _tell(f"{stage.name}: nothing has changed, skipped")
        return Outcome(stage, None, float(stamp.get("seconds", 0.0)))
    more: dict[str, bool] = {"verbose": True} if options.verbose else {}
    if stage.name == "train" and key and stamp.get("key") == key and "result" not in stamp and not options.force:
        more["resume"] = True
    elif stamp:  # what is there is of an earlier run of this stage
        more["overwrite"] = True
    write_stamp(stage, {"key": key})
    started = time.time()
    _tell(f"{stage.name} …")
    code = _call(stage, more)
    seconds = round(time.time() - started, 1)
    if code == FINISHED:
        # With the key from before the stage: what was changed meanwhile is noticed by the next run.
        write_stamp(stage, {"key": key, "result": digest_of_result(stage), "seconds": seconds})
    elif code == WRONG_USAGE:
        # The stage was refused and wrote nothing. A stamp would let the next run replace what this one was refused.
        restore_stamp(stage, stamp)
    return Outcome(stage, code, seconds)


def _call(stage: Stage, more: dict[str, bool]) -> int:
    """Runs the command of a stage in a process of its own; an interruption is passed on to it."""
    command = [sys.executable, "-m", "torchbeam", stage.name, *stage.arguments(**more)]
    with subprocess.Popen(command, preexec_fn=partial(die_with_parent, os.getpid())) as child:  # noqa: S603
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            child.wait()
            raise
    return code if code >= 0 else 128 - code


def _show(outcomes: Sequence[Outcome]) -> None:
    """Prints what became of the stages, and where the report is, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "right", "left"):
        table.add_column(justify=justify)
    table.add_row("stage", "", "seconds", "rows", "")
    for outcome in outcomes:
        what = "skipped" if outcome.code is None else "ran" if outcome.code == FINISHED else f"exit code {outcome.code}"
        rows, headline = figures(outcome.stage)
        shown = "" if rows is None else f"{rows:,}"
        table.add_row(outcome.stage.name, what, f"{outcome.seconds:,.1f}", shown, headline)
    print()
    Console(highlight=False).print(table)
    for outcome in outcomes:
        if outcome.stage.name == "evaluate":
            print(f"\nreport  {outcome.stage.output.rstrip('/')}/report.html")


def _tell(line: str) -> None:
    print(f"{PROG}: {redact(line)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    process.run(main, PROG)
