"""All options of a scoring run, as `score` and `doctor` take them. Imports neither torch nor Beam."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from handlers.errors import UsageError
from handlers.paths import is_remote
from pipelines.command.options import (
    IN_PROCESS,
    Command,
    ModelOptions,
    RunOptions,
    SinkOptions,
    SourceOptions,
    parser,
    pick,
)
from pipelines.dataflow import settings as dataflow
from transforms.bigquery import is_bigquery


@dataclass(frozen=True)
class ScoreOptions:
    """All options of the command; `beam` are those that go to the runner as they are."""

    source: SourceOptions
    model: ModelOptions
    sink: SinkOptions
    run: RunOptions
    beam: tuple[str, ...] = ()

    @property
    def verbose(self) -> bool:
        """Whether the logs of Beam and the tracebacks of errors are shown."""
        return self.run.verbose

    @staticmethod
    def parse(argv: list[str], command: Command) -> ScoreOptions:
        """Builds the options from arguments; raises `UsageError`, or SystemExit(0) for `--help`."""
        groups = (SourceOptions, ModelOptions, SinkOptions, RunOptions)
        values, others = parser(command, groups).parse_known_args(argv)
        if others and not others[0].startswith("-"):
            raise UsageError(f"unexpected argument \"{others[0]}\"; quote patterns, as --input='data/*.parquet'")
        source, model, sink, run = (pick(group, values) for group in groups)
        return ScoreOptions(source, model, sink, run, tuple(others))  # type: ignore[arg-type]

    def settled(self) -> ScoreOptions:
        """The same with what the runner needs; raises `UsageError` for what it would refuse only later."""
        if self.run.runner in IN_PROCESS:
            return self
        report = self.sink.report and absolute_path(self.sink.report)
        absolute = replace(  # local paths that hold wherever a worker is started
            self,
            source=replace(self.source, input=absolute_path(self.source.input)),
            model=replace(self.model, model=absolute_path(self.model.model)),
            sink=replace(self.sink, output=absolute_path(self.sink.output), report=report),
        )
        if self.run.runner != dataflow.RUNNER:
            return absolute
        model, beam = dataflow.settle(absolute.model, self.beam)
        return replace(absolute, model=model, beam=beam)


def absolute_path(path: str) -> str:
    """A local path that holds wherever a worker is started; others as they are."""
    # Not through Path: what a slash at the end, or a pattern, means is the source's to say.
    if not path or is_remote(path) or is_bigquery(path):
        return path
    return os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118


def remote_paths(options: ScoreOptions) -> dict[str, str]:
    """The paths in object stores, by the names of their flags."""
    paths = {
        "input": options.source.input,
        "model": options.model.model,
        "output": options.sink.output,
        "report": options.sink.report or "",
    }
    return {name: path for name, path in paths.items() if is_remote(path)}


def connect(options: ScoreOptions, **others: str) -> None:
    """Sees that the object stores can be reached, where there are any, and gives them the options of Beam.

    `others` are further paths, by the names of their flags.
    """
    if paths := remote_paths(options) | {name: path for name, path in others.items() if is_remote(path)}:
        from handlers.model import stores
        from pipelines import runners

        stores.connect(paths, runners.pipeline_options(options.run.runner, options.beam))
