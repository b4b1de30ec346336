"""All options of a scoring run, for `score` and `doctor`. Imports neither torch nor Beam."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from handlers.errors import UsageError
from handlers.model.registry import is_reference, registry_folder, resolve
from handlers.paths import is_remote, scheme_of
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

if TYPE_CHECKING:
    from handlers.model.directory import ModelDir


@dataclass(frozen=True)
class ScoreOptions:
    """All options of the command; `beam` are passed to Beam unchanged."""

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
        """Parses arguments; raises `UsageError`, or SystemExit(0) for `--help`."""
        groups = (SourceOptions, ModelOptions, SinkOptions, RunOptions)
        values, others = parser(command, groups).parse_known_args(argv)
        if others and not others[0].startswith("-"):
            raise UsageError(f"unexpected argument \"{others[0]}\"; quote patterns, as --input='data/*.parquet'")
        source, model, sink, run = (pick(group, values) for group in groups)
        return ScoreOptions(source, model, sink, run, tuple(others))  # type: ignore[arg-type]

    def resolved(self) -> ScoreOptions:
        """The options with the path of the version that a name in the registry stands for now; `settled` comes after.

        Raises:
            UsageError: for a name that the registry does not have.
        """
        if not self.model.model:
            return self
        root = registry_folder(self.model.registry)
        if is_reference(self.model.model) and is_remote(root):
            from handlers.model import stores
            from pipelines import runners

            if self.run.runner == dataflow.RUNNER:
                dataflow.check_credentials(self.beam)
            stores.connect({"registry": root}, runners.pipeline_options(self.run.runner, self.beam))
        found = resolve(self.model.model, self.model.registry)
        return replace(self, model=replace(self.model, model=found.path))

    def settled(self) -> ScoreOptions:
        """The options completed for the runner; raises `UsageError` for what the runner would refuse later."""
        if self.run.runner in IN_PROCESS:
            return self
        report = self.sink.report and absolute_path(self.sink.report)
        absolute = replace(  # absolute paths, which do not depend on the worker's folder
            self,
            source=replace(self.source, input=absolute_path(self.source.input)),
            model=replace(
                self.model,
                model=absolute_path(self.model.model),
                registry=self.model.registry and absolute_path(self.model.registry),
            ),
            sink=replace(self.sink, output=absolute_path(self.sink.output), report=report),
        )
        if self.run.runner != dataflow.RUNNER:
            return absolute
        model, beam = dataflow.settle(absolute.model, self.beam)
        return replace(absolute, model=model, beam=beam)


def open_model(options: ModelOptions) -> ModelDir:
    """The model directory of the options, with their device map; sets the model's environment variables.

    Raises:
        UsageError: if it cannot be opened, or --device_map cannot be combined with other options.
    """
    from handlers.model.directory import ModelDir

    if options.device_map:
        for name, default in (("device", "auto"), ("compile", False), ("model_copies", 1)):
            if getattr(options, name) != default:
                raise UsageError(
                    f"--{name} cannot be combined with --device_map, which chooses the devices of the layers"
                )
    model = ModelDir(options.model, options.trust, options.registry)
    if options.device_map:
        model = model.placed(options.device_map)
    if model.spec.placement is not None:
        model.spec.placement.check_folder()
    model.set_environment()
    return model


def absolute_path(path: str) -> str:
    """A local path that holds wherever a worker is started; others as they are."""
    # Not with Path: it removes a trailing slash, which the source interprets.
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
    return {name: path for name, path in paths.items() if scheme_of(path) is not None}


def connect(options: ScoreOptions, **others: str) -> None:
    """Checks that the object stores of the run can be reached, and passes them the options of Beam.

    `others` are further paths, by the names of their flags.
    """
    if paths := remote_paths(options) | {name: path for name, path in others.items() if is_remote(path)}:
        from handlers.model import stores
        from pipelines import runners

        stores.connect(paths, runners.pipeline_options(options.run.runner, options.beam))
