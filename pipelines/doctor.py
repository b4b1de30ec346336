"""`python -m pipelines.doctor`: what would fail in a run, found before it, and how to mend it.

It takes the options of `score`, and looks at what it is given: without `--input` nothing is said of columns. The checks
are in `pipelines.checks.steps` and `pipelines.spark.checks`; this module has the command and the order of its checks.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TypeVar

from packaging.requirements import Requirement

from handlers.errors import TorchbeamError, UsageError
from handlers.model.directory import ModelDir
from handlers.model.stores import shared_s3
from pipelines.checks.checkup import Checkup, Finding, Outcome, SkipError, State
from pipelines.command import process
from pipelines.command.errors import FINISHED, WRONG_USAGE
from pipelines.command.options import Command, ModelOptions
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.options import ScoreOptions, connect, remote_paths

T = TypeVar("T")

PROG = "torchbeam doctor"
COMMAND = Command(
    prog=PROG,
    description="Check before a run what would fail in it, and say how to mend it. Takes the options of score.",
    usage="[--runner=…] [--model=…] [--input=…] [--output=…]",
    exit_codes="0 nothing is in the way of the run, 2 something is, 130 interrupted",
    strict=False,
    interrupted="",
)

_SHOWN = ("apache-beam", "torch", "pyarrow")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and gives its exit code."""
    return process.execute(COMMAND, argv, ScoreOptions.parse, _run)


def _run(options: ScoreOptions) -> int:
    try:
        with shared_s3():
            return _examine(options)
    except OSError as error:  # checks catch their own; this one is of stdout
        raise TorchbeamError(f"the output of this command cannot be written: {error.strerror}") from error


def _examine(options: ScoreOptions) -> int:
    checkup = Checkup()
    checkup.check("versions", _versions)
    if options.run.runner == dataflow.RUNNER:
        checkup.check("credentials", lambda: _credentials(options.beam))
    # Before a path is looked into: a store that does not answer would be waited for without an end.
    stores = checkup.check("stores", lambda: _stores(options)) if remote_paths(options) else None
    # Before torch is imported: the environment variables of the model, OMP_NUM_THREADS and its like, are read then.
    of_model = stores if "model" in remote_paths(options) else None
    model = checkup.check("model", lambda: _reached(of_model, lambda: _open_model(options.model)))

    from pipelines.checks import steps as checks

    runner = checkup.check("runner", lambda: checks.runner(options.settled()))
    if runner.finding is not None:
        options = options.settled()
    checkup.check("options", lambda: checks.ignored(options))
    checkup.check("paths", lambda: checks.paths(options))
    if options.run.runner == "SparkRunner":
        from pipelines.checks.spark import examine

        examine(checkup, runner, options.run, options.beam)
    checkup.check("device", lambda: checks.device(options))
    predictor = checkup.check("weights", lambda: checks.load(options, model.value))
    source = checkup.check("input", lambda: _reached(stores, lambda: checks.read_input(options, model)))
    plan = None
    if options.source.input:
        plan = checkup.check("columns", lambda: checks.columns(options, model.value, predictor.value, source.value))
        checkup.check("rows", lambda: checks.score_rows(model.value, predictor.value, source.value, plan.value))
    else:
        checkup.check("rows", lambda: checks.score_zeros(predictor.value))
    checkup.check("output", lambda: _reached(stores, lambda: checks.write_output(options, source, plan)))

    problems, warnings = checkup.counts[State.PROBLEM], checkup.counts[State.WARNING]
    print(f"\n{_count(problems, 'problem')}, {_count(warnings, 'warning')}")
    return WRONG_USAGE if problems else FINISHED


def _versions() -> Finding[None]:
    """The versions of Python and of the libraries are those that the package is made for."""
    found = [f"Python {platform.python_version()}"]
    wrong = []
    try:
        wanted = [Requirement(text) for text in metadata.requires("torchbeam") or ()]
    except metadata.PackageNotFoundError:  # run from its sources
        wanted = [Requirement(name) for name in _SHOWN]
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if requirement.name in _SHOWN:
            found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, and {requirement.specifier} is needed")
    if wrong:
        raise UsageError(f"{'; '.join(wrong)}: run {sys.executable} -m pip install --upgrade torchbeam")
    return Finding(", ".join(found), None)


def _credentials(arguments: Sequence[str]) -> Finding[None]:
    """There are credentials of Google."""
    dataflow.check_credentials(arguments)
    return Finding("there are Google credentials", None)


def _stores(options: ScoreOptions) -> Finding[None]:
    """Every object store answers."""
    connect(options)
    return Finding(f"{', '.join(remote_paths(options).values())} can be reached", None)


def _reached(stores: Outcome[None] | None, ask: Callable[[], Finding[T]]) -> Finding[T]:
    """What `ask` finds, unless the stores that it would ask do not answer."""
    if stores is not None:
        _ = stores.value
    return ask()


def _open_model(options: ModelOptions) -> Finding[ModelDir]:
    """The model directory is whole and valid."""
    if not options.model:
        raise SkipError("no --model was given")
    model = ModelDir(options.model, options.trust)
    model.set_environment()
    checked = ", sha256 as model.yaml says" if model.spec.sha256 else ""
    return Finding(
        f"{model.spec.name}, version {model.version}: {model.spec.task}, {model.spec.format}{checked}", model
    )


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"


if __name__ == "__main__":
    process.run(main, PROG)
