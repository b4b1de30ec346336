"""`python -m pipelines.train`: trains a model on a table and writes its model directory.

This module has the command: arguments, exit codes, output. The job is in `pipelines.jobs.training`, which is imported only
after the arguments are checked.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from handlers.model.directory import ModelDir
from handlers.redact import redact
from pipelines.command import process
from pipelines.command.errors import FINISHED
from pipelines.command.options import Command
from pipelines.jobs.train_options import TrainOptions

if TYPE_CHECKING:
    from pipelines.jobs.training import Trained

PROG = "torchbeam train"
COMMAND = Command(
    prog=PROG,
    description="Train a model on the rows of a table: prepares them with Beam, trains on this machine, and writes a model "
    "directory with its metrics and a model card.",
    usage="--input=… --label=… --architecture=… --output=…",
    exit_codes="0 finished, 1 failed, 2 wrong usage, 3 the loss is not finite or above --max_failure_rate, 130 interrupted",
    interrupted="continue with --resume",
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.execute(COMMAND, argv, TrainOptions.parse, _run)


def _run(options: TrainOptions) -> int:
    trained = _trained(options)
    with suppress(OSError, ValueError, SystemExit):  # the training is finished, even if nobody reads the summary
        _show(trained)
    return FINISHED


def _trained(options: TrainOptions) -> Trained:
    options = options.settled()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `score`
    os.environ.update(options.config.spec.env_vars)
    from handlers.train.fit import check_logger  # a missing extra is noticed before rows are read
    from pipelines.command.training_watch import TrainingWatch
    from pipelines.jobs import training

    check_logger(options.training.logger)
    with TrainingWatch(options.training.epochs or training.default_epochs(options.architecture)) as watch:
        return training.train(options, _tell, watch)


def train(
    output: str | os.PathLike[str],
    *,
    input: str | None = None,
    label: str | None = None,
    architecture: str | None = None,
    model: str | os.PathLike[str] | None = None,
    prepared: str | os.PathLike[str] | None = None,
    **options: object,
) -> ModelDir:
    """Trains a model and writes its directory, as the command `torchbeam train` does.

    Args:
        output: local folder of the model directory to write.
        input: rows with a label, as of the command.
        label: the column of the true answers.
        architecture: `mlp`, `lstm`, `huggingface` or `module:Class`.
        model: a YAML config.
        prepared: a folder of prepared rows, instead of `input`.
        options: further options of the command by their names, such as `epochs=10` or `overwrite=True`.

    Returns:
        The model directory.

    Raises:
        UsageError: where an option is wrong, or nothing can be learned from the rows.
        TrainingError: where the loss is not finite, or too many rows are dead letters.
    """
    own = {"output": output, "input": input, "label": label, "architecture": architecture, "model": model}
    given: dict[str, object] = {**own, "prepared": prepared, **options}
    arguments = [f"--{name}={_text(value)}" for name, value in given.items() if value is not None]
    return ModelDir(_trained(TrainOptions.parse(arguments, COMMAND)).output)


def _show(trained: Trained) -> None:
    """Prints what was trained, how good it is, and what to do next, on stdout."""
    from rich.console import Console
    from rich.table import Table

    from transforms.evaluation.names import HEADLINE

    about = trained.about
    metrics, rows = about["metrics"], about["rows"]
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("task", about["task"])
    table.add_row("rows trained on", f"{rows['trained']:,}")
    table.add_row("rows validated with", f"{rows['validated']:,}")
    for name, what in (("dropped", "rows dropped"), ("dead", "rows dead"), ("unusable", "rows not encoded")):
        if rows.get(name):
            table.add_row(what, f"{rows[name]:,}")
    table.add_row("epochs", f"{len(about['history'])}, the best is {about['best_epoch']}")
    table.add_row("validation loss", f"{metrics['validation_loss']:.4g}")
    for name in HEADLINE[about["task"]]:
        if metrics.get(name) is not None:
            table.add_row(name, f"{metrics[name]:.4g}")
    if trained.seconds:
        table.add_row("seconds", f"{trained.seconds:,.1f}")
    Console(highlight=False).print(table)
    for name, reason in list(about["left_out"].items())[:8]:
        print(f"not used: {name} ({reason})")
    if rows.get("dead"):
        print(f"dead letters: {trained.output}/checkpoints/dead_letters")
    print(f"\nmodel  {trained.output}, version {trained.version}\ncard   {trained.output}/README.md")
    print(f"score with it: torchbeam score --input=… --model={trained.output} --output=…")


def _text(value: object) -> str:
    """A value as an argument has it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tell(line: str) -> None:
    print(f"{PROG}: {redact(line)}", file=sys.stderr)


if __name__ == "__main__":
    process.run(main, PROG)
