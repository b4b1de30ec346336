"""`python -m pipelines.evaluate`: labels against predictions; writes `metrics.json` and `report.html`.

This module has the command: arguments, exit codes, output. The job is in `pipelines.jobs.evaluation`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from handlers.model.stores import shared_s3
from pipelines.command import process
from pipelines.command.errors import FINISHED, NOT_SCORED
from pipelines.command.options import Command
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.evaluate_options import EvaluateOptions
from pipelines.jobs.options import connect, open_model

if TYPE_CHECKING:
    from rich.table import Table

PROG = "torchbeam evaluate"
COMMAND = Command(
    prog=PROG,
    description="Compare labels with predictions: a scored output, or rows that --model scores on the way.",
    usage="--input=… --label=… --output=…",
    exit_codes="0 finished, 1 failed, 2 wrong usage, 3 below --fail_below, above --fail_above or --max_failure_rate, or "
    "nothing could be scored, 130 interrupted",
    interrupted="nothing was written",
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.execute(COMMAND, argv, EvaluateOptions.parse, shared_s3()(_run))


def _run(options: EvaluateOptions) -> int:
    """Runs the job; returns FINISHED also if it continues elsewhere."""
    options = replace(options, score=options.score.resolved()).settled()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `score`
    if options.score.run.runner == dataflow.RUNNER:
        dataflow.check_credentials(options.score.beam)
    wanted = options.evaluation
    others = {"compare": wanted.compare, "fingerprint": wanted.fingerprint, "actuals": wanted.actuals}
    connect(options.score, **{name: path for name, path in others.items() if path})
    model = None
    if options.score.model.model:
        model = open_model(options.score.model)

    from pipelines.command.ignored import ignored_options
    from pipelines.jobs import evaluation

    job = evaluation.prepare(options, model)
    for line in ignored_options(options.score.run, options.score.model, options.score.beam):
        print(f"{PROG}: warning: {line}", file=sys.stderr)
    metrics = evaluation.run(job, wait=options.score.run.wait)
    if metrics is None:
        return FINISHED
    with suppress(OSError, ValueError, SystemExit):  # the run is finished, even if nobody reads the summary
        _show(metrics, options.evaluation.output.rstrip("/"))
    return _exit_code(metrics, options)


def _show(metrics: dict[str, Any], output: str) -> None:
    """Prints the headline numbers and the paths of the results on stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    for name, each in _models(metrics):
        if name:
            console.print(name, style="bold")
        console.print(_table(each))
        for warning in each["warnings"]:
            print(f"{PROG}: warning: {f'{name}: ' if name else ''}{warning}", file=sys.stderr)
    for warning in metrics["warnings"] if "models" in metrics else ():
        print(f"{PROG}: warning: {warning}", file=sys.stderr)
    print(f"\nmetrics  {output}/metrics.json\nreport   {output}/report.html")


def _table(metrics: dict[str, Any]) -> Table:
    from rich.table import Table

    from transforms.evaluation.names import HEADLINE

    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    table.add_row("rows", f"{metrics['rows']:,}", "")
    for name in HEADLINE[metrics["task"]]:
        value = metrics.get(name)
        if value is not None:
            limits = metrics["intervals"].get(name)
            table.add_row(name, f"{value:.4g}", f"{limits[0]:.4g} – {limits[1]:.4g}" if limits else "")
    return table


def _models(metrics: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The metrics of each model; of a run of one with an empty name."""
    return list(metrics["models"].items()) if "models" in metrics else [("", metrics)]


def _exit_code(metrics: dict[str, Any], options: EvaluateOptions) -> int:
    code = FINISHED
    for limits, sign, word in (
        (options.evaluation.fail_below, 1, "below"),
        (options.evaluation.fail_above, -1, "above"),
    ):
        for (name, limit), (model, each) in product(limits, _models(metrics)):
            value = each[name]
            if value is None or sign * value < sign * limit:
                shown = "undefined" if value is None else f"{value:.6g}"
                of_model = f" of {model}" if model else ""
                print(f"{PROG}: {name}{of_model} is {shown}, {word} --fail_{word}={name}={limit:g}", file=sys.stderr)
                code = NOT_SCORED
    read, dead, rate = metrics["rows_read"], metrics["rows_dead"], options.score.run.max_failure_rate
    if read and dead / read > rate:
        print(f"{PROG}: {dead} of {read} rows are dead letters, above --max_failure_rate={rate}", file=sys.stderr)
        code = NOT_SCORED
    return code


if __name__ == "__main__":
    process.run(main, PROG)
