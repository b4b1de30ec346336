"""`python -m pipelines.doctor`: finds problems before a run and says how to fix them.

It takes the options of `score`, or after `doctor stream` those of `stream`, and checks what is given: without `--input` it does
not check columns. The checks are in `pipelines.checks`; this module has the command and the order of its checks.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, TypeVar

from packaging.requirements import Requirement

from handlers.errors import TorchbeamError, UsageError
from handlers.model.directory import ModelDir
from handlers.model.stores import shared_s3
from pipelines.checks.checkup import Checkup, Finding, Outcome, SkipError, State
from pipelines.command import process
from pipelines.command.errors import FINISHED, WRONG_USAGE
from pipelines.command.options import Command
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.options import ScoreOptions, connect, open_model, remote_paths
from pipelines.jobs.stream_options import StreamOptions

if TYPE_CHECKING:
    from pipelines.jobs.models import SeveralModels

T = TypeVar("T")

PROG = "torchbeam doctor"
COMMAND = Command(
    prog=PROG,
    description="Check for problems before a run and say how to fix them. Takes the options of score; doctor stream takes those "
    "of stream.",
    usage="[--runner=…] [--model=…] [--input=…] [--output=…]",
    exit_codes="0 no problem was found, 2 a problem was found, 130 interrupted",
    strict=False,
    interrupted="",
)

STREAM = replace(
    COMMAND,
    prog=f"{PROG} stream",
    description="Check for problems before a stream and say how to fix them. Takes the options of stream.",
    usage="[--runner=…] [--model=…] [--input=…] [--output=…] [--dead_letters=…]",
)

_SHOWN = ("apache-beam", "torch", "pyarrow")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["stream"]:
        return process.execute(STREAM, argv[1:], StreamOptions.parse, _run_stream)
    return process.execute(COMMAND, argv, ScoreOptions.parse, _run)


def _run(options: ScoreOptions) -> int:
    return _said(lambda: _examine(options))


def _run_stream(options: StreamOptions) -> int:
    return _said(lambda: _examine_stream(options))


def _said(examine: Callable[[], int]) -> int:
    try:
        with shared_s3():
            return examine()
    except OSError as error:  # checks catch their errors; this one is of stdout
        raise TorchbeamError(f"the output of this command cannot be written: {error.strerror}") from error


def _examine(options: ScoreOptions) -> int:
    checkup = Checkup()
    checkup.check("versions", _versions)
    if options.run.runner == dataflow.RUNNER:
        checkup.check("credentials", lambda: _credentials(options.beam))
    # Before any path is read: reading from a store that does not respond would never end.
    stores = checkup.check("stores", lambda: _stores(options)) if remote_paths(options) else None
    # Before torch is imported, which reads the model's environment variables, such as OMP_NUM_THREADS.
    of_model = stores if any(name.startswith("model") for name in remote_paths(options)) else None
    opened = model = None
    if options.has_several:
        opened = checkup.check("models", lambda: _reached(of_model, lambda: _open_models(options)))
        if opened.finding is not None:
            options = opened.value.options
    if opened is None or (opened.finding is not None and not opened.value.settings):  # a file may name one model
        opened = None
        model = checkup.check("model", lambda: _reached(of_model, lambda: _open_model(options)))
        if model.finding is not None:  # a name in a registry stands for a path from here on
            options = replace(options, model=replace(options.model, model=model.finding.value.path))

    from pipelines.checks import steps as checks

    runner = checkup.check("runner", lambda: checks.runner(options.settled()))
    if runner.finding is not None:
        options = options.settled()
    checkup.check("options", lambda: checks.ignored(options.run, options.model, options.beam))
    checkup.check("paths", lambda: checks.paths(options))
    if options.run.runner == "SparkRunner":
        from pipelines.checks.spark import examine

        examine(checkup, runner, options.run, options.beam)
    checkup.check("device", lambda: checks.device(options.model, options.run.runner))
    if opened is not None:
        _examine_several(checkup, options, opened, stores)
    elif model is not None:
        _examine_one(checkup, options, model, stores)
    return _sum_up(checkup)


def _sum_up(checkup: Checkup) -> int:
    problems, warnings = checkup.counts[State.PROBLEM], checkup.counts[State.WARNING]
    print(f"\n{_count(problems, 'problem')}, {_count(warnings, 'warning')}")
    return WRONG_USAGE if problems else FINISHED


def _examine_stream(options: StreamOptions) -> int:
    checkup = Checkup()
    checkup.check("versions", _versions)
    if options.how.runner == dataflow.RUNNER:
        checkup.check("credentials", lambda: _credentials(options.beam))

    from pipelines.checks.stream import examine

    examine(checkup, options)
    return _sum_up(checkup)


def _examine_one(
    checkup: Checkup, options: ScoreOptions, model: Outcome[ModelDir], stores: Outcome[None] | None
) -> None:
    from pipelines.checks import steps as checks

    specs = [model.value.spec] if model.finding is not None else []
    predictor = checkup.check("weights", lambda: checks.load(options, model.value))
    source = checkup.check("input", lambda: _reached(stores, lambda: checks.read_input(options, specs)))
    columns = None
    if options.source.input:
        plan = checkup.check("columns", lambda: checks.columns(options, model.value, predictor.value, source.value))
        checkup.check("rows", lambda: checks.score_rows(model.value, predictor.value, source.value, plan.value))
        columns = checks.schemas(plan.value, source.value) if plan.finding is not None else None
    else:
        checkup.check("rows", lambda: checks.score_zeros(predictor.value))
    checkup.check("output", lambda: _reached(stores, lambda: checks.write_output(options, source, columns)))


def _examine_several(
    checkup: Checkup, options: ScoreOptions, opened: Outcome[SeveralModels], stores: Outcome[None] | None
) -> None:
    from pipelines.checks import several, steps

    specs = [each.model.spec for each in opened.value.settings] if opened.finding is not None else []
    source = checkup.check("input", lambda: _reached(stores, lambda: steps.read_input(options, specs)))
    score = checkup.check("columns", lambda: several.columns(opened.value, source.value))
    checkup.check("rows", lambda: several.score_rows(score.value, source.value))
    columns = several.schemas(score.value) if score.finding is not None else None
    checkup.check("output", lambda: _reached(stores, lambda: steps.write_output(options, source, columns)))


def _versions() -> Finding[None]:
    """The package supports the versions of Python and of the libraries."""
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
    """Google credentials are available."""
    dataflow.check_credentials(arguments)
    return Finding("there are Google credentials", None)


def _stores(options: ScoreOptions) -> Finding[None]:
    """Every object store responds."""
    connect(options)
    return Finding(f"{', '.join(remote_paths(options).values())} can be reached", None)


def _reached(stores: Outcome[None] | None, run: Callable[[], Finding[T]]) -> Finding[T]:
    """Runs the check `run`, unless the stores that it uses do not respond."""
    if stores is not None:
        _ = stores.value
    return run()


def _open_model(options: ScoreOptions) -> Finding[ModelDir]:
    """The model directory is complete and valid."""
    if not options.model.model:
        raise SkipError("no --model was given")
    given = options.resolved().model
    model = open_model(given)
    checked = ", sha256 as model.yaml says" if model.spec.sha256 else ""
    registered = f"{model.registered}: " if model.registered else ""
    return Finding(
        f"{registered}{model.spec.name}, version {model.version}: {model.spec.task}, {model.spec.format}{checked}",
        model,
    )


def _open_models(options: ScoreOptions) -> Finding[SeveralModels]:
    """The file of several models is valid, and their directories are complete; without settings where it names one."""
    from pipelines.jobs.models import SeveralModels, open_models, with_models

    options, spec = with_models(options)
    if spec is None:
        return Finding("one model", SeveralModels(options))
    several = open_models(options, spec)
    models = [f"{each.name} ({each.model.spec.name}, version {each.model.version})" for each in several.settings]
    return Finding(", ".join(models), several)


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"


if __name__ == "__main__":
    process.run(main, PROG)
