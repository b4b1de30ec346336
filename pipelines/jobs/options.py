"""All options of a scoring run, for `score` and `doctor`. Imports neither torch nor Beam."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from handlers.errors import UsageError
from handlers.graph.spec import NAME, ModelsSpec, named_models, parse_models
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
from pipelines.command.several import SeveralModelsOptions
from pipelines.dataflow import settings as dataflow
from transforms.bigquery import is_bigquery

if TYPE_CHECKING:
    from handlers.model.directory import ModelDir

_OF_MODEL = re.compile(rf"({NAME.pattern})=(.+)", re.DOTALL)


@dataclass(frozen=True)
class ScoreOptions:
    """All options of the command; `beam` are passed to Beam unchanged.

    Attributes:
        several: the file of several models.
        named: the models of `--model=NAME=DIR`, in their order.
    """

    source: SourceOptions
    model: ModelOptions
    sink: SinkOptions
    run: RunOptions
    beam: tuple[str, ...] = ()
    several: SeveralModelsOptions = field(default_factory=SeveralModelsOptions)
    named: tuple[tuple[str, str], ...] = ()

    @property
    def verbose(self) -> bool:
        """Whether the logs of Beam and the tracebacks of errors are shown."""
        return self.run.verbose

    @staticmethod
    def parse(argv: list[str], command: Command) -> ScoreOptions:
        """Parses arguments; raises `UsageError`, or SystemExit(0) for `--help`."""
        groups = (SourceOptions, ModelOptions, SeveralModelsOptions, SinkOptions, RunOptions)
        argv, named = _named(argv)
        values, others = parser(replace(command, strict=False), groups).parse_known_args(argv)
        if others and not others[0].startswith("-"):
            raise UsageError(f"unexpected argument \"{others[0]}\"; quote patterns, as --input='data/*.parquet'")
        source, model, several, sink, run = (pick(group, values) for group in groups)
        found = ScoreOptions(source, model, sink, run, tuple(others), several, named)  # type: ignore[arg-type]
        found._check_given(strict=command.strict)
        return found

    def _check_given(self, *, strict: bool) -> None:
        given = [name for name, value in (("--model=DIR", self.model.model), ("--model=NAME=DIR", self.named)) if value]
        given += ["--models"] if self.several.models else []
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} do not go together; leave one of them out")
        needed = {
            "--input": self.source.input,
            "--model (or --models)": given,
            "--output": self.sink.output,
        }
        if strict and (missing := [name for name, value in needed.items() if not value]):
            raise UsageError(f"the following arguments are required: {', '.join(missing)}")

    @property
    def has_several(self) -> bool:
        """Whether models are named, by `--models` or by `--model=NAME=DIR`."""
        return bool(self.several.models or self.named)

    def models(self) -> ModelsSpec | None:
        """The models of the run as the user gave them, if they are named; raises `UsageError`.

        Connect to the store of the file first.
        """
        if self.named:
            return named_models(self.named)
        if not self.several.models:
            return None
        from transforms.file_ops import read_text

        path = self.several.models
        try:
            text = read_text(path)
        except Exception as error:
            from handlers.model.stores import explain

            reason = getattr(error, "strerror", None) or explain(error)
            raise UsageError(f"--models {path} cannot be read: {reason}") from None
        return parse_models(text, path)

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
            several=replace(self.several, models=self.several.models and absolute_path(self.several.models)),
            named=tuple((name, path if is_reference(path) else absolute_path(path)) for name, path in self.named),
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


def _named(argv: list[str]) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Separates `--model=NAME=DIR` from the other arguments; one that exists as a path is a path."""
    rest: list[str] = []
    found: list[tuple[str, str]] = []
    unnamed = 0
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--model":
            argument = f"--model={next(arguments, '')}"
        option, _, value = argument.partition("=")
        match = _OF_MODEL.fullmatch(value) if option == "--model" else None
        if match is not None and "\0" not in value and not os.path.lexists(value.rstrip("/")):
            found.append((match[1], match[2]))
            continue
        rest.append(argument)
        if option == "--model":
            unnamed += 1
            if not value.strip():
                raise UsageError("--model is empty; remove it or give it a value")
    if unnamed > 1:
        raise UsageError("--model is given twice; name the models, as --model=small=DIR --model=large=DIR")
    return rest, tuple(found)


def absolute_path(path: str) -> str:
    """A local path that holds wherever a worker is started; others as they are."""
    # Not with Path: it removes a trailing slash, which the source interprets.
    if not path or is_remote(path) or is_bigquery(path):
        return path
    return os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118


def model_paths(options: ScoreOptions) -> list[str]:
    """The paths of all models of a run, as far as they are known, and of the file that names them."""
    return [
        path for path in (options.model.model, options.several.models, *(path for _, path in options.named)) if path
    ]


def remote_paths(options: ScoreOptions) -> dict[str, str]:
    """The paths in object stores, by the names of their flags."""
    paths = {
        "input": options.source.input,
        "model": options.model.model,
        "models": options.several.models or "",
        **{f"model {name}": path for name, path in options.named},
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
