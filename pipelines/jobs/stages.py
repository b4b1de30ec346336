"""The stages of `run`: what a config says of them, and whether a stage has to run. Imports neither torch nor Beam at its top."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from handlers.errors import UsageError
from handlers.model import files
from handlers.model.spec import message_of, not_yaml
from handlers.model.trust import CODE_FOLDER
from handlers.paths import is_remote
from handlers.version import __version__
from pipelines.command.options import Command, ModelOptions
from pipelines.jobs.evaluate_options import EvaluateOptions, EvaluationOptions
from pipelines.jobs.options import ScoreOptions
from pipelines.jobs.prepare_options import PrepareOptions
from pipelines.jobs.train_options import TrainOptions
from transforms.bigquery import is_bigquery

Value = str | bool | int | float | None
Section = dict[str, Value | list[Value]]
Arguments = Mapping[str, Value | list[Value]]

STAMPS = "_stages"  # readers skip names that begin with an underscore


@dataclass(frozen=True)
class Kind:
    """One of the commands that are stages.

    Attributes:
        parse: its parser of options.
        inputs: its options that name files which it reads.
        result: the file that it writes last, under its output.
        folder: its output, under the output of the pipeline.
    """

    parse: Callable[[list[str], Command], object]
    inputs: tuple[str, ...]
    result: str
    folder: str


KINDS = {
    "prepare": Kind(PrepareOptions.parse, ("input", "model"), "prepared.json", "prepared"),
    "train": Kind(TrainOptions.parse, ("input", "prepared", "model", "pretrained"), "model.yaml", "model"),
    "score": Kind(ScoreOptions.parse, ("input", "model"), "report.json", "scored"),
    "evaluate": Kind(EvaluateOptions.parse, ("input", "model", "compare", "fingerprint"), "metrics.json", "evaluation"),
}
_REPEATABLE = {
    field.name
    for group in (ModelOptions, EvaluationOptions)
    for field in fields(group)
    if field.metadata.get("repeatable")
}


class PipelineConfig(BaseModel):
    """The file of `--config`: the options of each stage by their long names. A stage that is not there does not run."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    output: str
    prepare: Section | None = None
    train: Section | None = None
    score: Section | None = None
    evaluate: Section | None = None

    @staticmethod
    def open(path: str) -> PipelineConfig:
        """Reads and checks a file; raises `UsageError` that names the field at fault."""
        try:
            content = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise not_yaml(path, error) from None
        if not isinstance(content, dict):
            raise UsageError(f"{path} must be a mapping of output and the stages {', '.join(KINDS)}")
        try:
            config = PipelineConfig.model_validate(
                {name: {} if value is None and name in KINDS else value for name, value in content.items()}
            )
        except ValidationError as error:
            raise UsageError(f"{path}: {_explain(error)}") from None
        if not any(getattr(config, name) is not None for name in KINDS):
            raise UsageError(f"{path} has no stage; there are: {', '.join(KINDS)}")
        if not config.output.strip() or is_remote(config.output):
            raise UsageError(f"{path}: output must be a local folder; a stage may have an output of its own")
        return config


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][:2])
    if first["type"] == "extra_forbidden":
        return f'unknown field "{where}"; there are: output, {", ".join(KINDS)}'
    if first["type"] == "missing":
        return f'field "{where}" is missing'
    if len(first["loc"]) > 1:
        return f'field "{where}" must be text, a number, true or false, or a list of these'
    return f'field "{where}": {message_of(first)}'


@dataclass(frozen=True)
class Stage:
    """A stage with all its options.

    Attributes:
        name: of the command.
        options: by their long names; those of the config, and the defaults that join the stages.
        stamp_file: what is known of its last run.
    """

    name: str
    options: Arguments
    stamp_file: Path

    @property
    def kind(self) -> Kind:
        """What holds for the command."""
        return KINDS[self.name]

    @property
    def output(self) -> str:
        """Where it writes."""
        return str(self.options["output"])

    @property
    def result(self) -> str:
        """The file that it writes last."""
        return f"{self.output.rstrip('/')}/{self.kind.result}"

    def arguments(self, **more: Value) -> list[str]:
        """The arguments of the command."""
        return list(_arguments({**self.options, **more}))

    def check(self, path: str) -> None:
        """Refuses options that the command would refuse; raises `UsageError` that names the stage."""
        command = importlib.import_module(f"pipelines.{self.name}").COMMAND
        try:
            parsed: Any = self.kind.parse(self.arguments(), command)
            parsed = parsed.score if self.name == "evaluate" else parsed
            if parsed.beam:
                from pipelines import runners

                runners.pipeline_options(parsed.run.runner, parsed.beam)
        except UsageError as error:
            raise UsageError(f"{path}: {self.name}: {error}") from None

    def key(self) -> str:
        """A hash of all that its output depends on: options, input files, the version of its model, and of this package.

        The empty text where that is unknown, as for a table.
        """
        found: dict[str, Any] = {"torchbeam": __version__, "options": dict(self.options)}
        for name in self.kind.inputs:
            value = self.options.get(name)
            if value is None:
                continue
            identity = _identity(str(value), whole=name in ("model", "pretrained"))
            if identity is None:
                return ""
            found[name] = identity
        return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def stages(config: PipelineConfig) -> list[Stage]:
    """The stages of a config, with the defaults that join each to those before it."""
    root = config.output.rstrip("/")
    given: dict[str, Section] = {name: getattr(config, name) for name in KINDS if getattr(config, name) is not None}
    found: dict[str, dict[str, Any]] = {
        name: {"output": f"{root}/{KINDS[name].folder}", **section} for name, section in given.items()
    }
    prepare, train, score, evaluate = (found.get(name) for name in KINDS)
    if train is not None and prepare is not None and "input" not in train:
        train.setdefault("prepared", prepare["output"])
        if prepare.get("model") is not None:
            train.setdefault("model", prepare["model"])
    if score is not None:
        if train is not None:
            score.setdefault("model", train["output"])
        if evaluate is not None:
            score.setdefault("probabilities", True)
    if evaluate is not None:
        if score is not None and "model" not in evaluate:
            evaluate.setdefault("input", score["output"])
        if train is not None:
            evaluate.setdefault("fingerprint", f"{train['output']}/training.json")
        label = (prepare or {}).get("label") or (train or {}).get("label")
        if label is not None:
            evaluate.setdefault("label", label)
    return [Stage(name, options, Path(root) / STAMPS / f"{name}.json") for name, options in found.items()]


def _arguments(options: Arguments) -> Iterator[str]:
    for name, value in options.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        texts = [str(each).lower() if isinstance(each, bool) else str(each) for each in values]
        for text in texts if name in _REPEATABLE else [",".join(texts)]:
            yield f"--{name}={text}"


# Whether a stage has to run


def _identity(path: str, *, whole: bool) -> list[Any] | None:
    """What changes with the files of `path`: their hashes where they are read as a `whole`, else size and time.

    None where it cannot be known; an empty list without files.
    """
    if is_bigquery(path):
        return None
    if whole and not is_remote(path):
        return _contents(Path(path))
    from transforms.file_ops import changed_at  # imports Beam
    from transforms.sources.files import find_files

    try:
        found = find_files(path)
    except UsageError:  # which the stage itself says
        return []
    times = changed_at([file.path for file in found])
    return [[file.path, file.size, times[file.path]] for file in found]


def _contents(path: Path) -> list[Any] | None:
    """The names and hashes of the files of a model, or of a config with its `code/`; None where it is no path."""
    if not path.exists():  # a name that stands for a model, which may be another one the next time
        return None
    found = sorted(files.digests(path).items())
    code = path.parent / CODE_FOLDER
    if path.is_file() and code.is_dir():
        found += [(f"{CODE_FOLDER}/{name}", digest) for name, digest in sorted(files.digests(code).items())]
    return found


def digest_of_result(stage: Stage) -> str | None:
    """The SHA-256 of what a stage has written last; None where it is not there."""
    from transforms.file_ops import exists, read_text  # imports Beam

    return hashlib.sha256(read_text(stage.result).encode()).hexdigest() if exists(stage.result) else None


def read_stamp(stage: Stage) -> dict[str, Any]:
    """What is known of the last run of a stage; empty without one."""
    try:
        found = json.loads(stage.stamp_file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_stamp(stage: Stage, content: Mapping[str, Any]) -> None:
    """Writes what is known of a run of a stage."""
    stage.stamp_file.parent.mkdir(parents=True, exist_ok=True)
    temporary = stage.stamp_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(stage.stamp_file)


def restore_stamp(stage: Stage, content: Mapping[str, Any]) -> None:
    """Writes what was known before a run; removes the file if that was nothing."""
    if content:
        write_stamp(stage, content)
    else:
        stage.stamp_file.unlink(missing_ok=True)


def is_done(stage: Stage, key: str, stamp: Mapping[str, Any]) -> bool:
    """Whether the last run of a stage is finished, of the same options and inputs, and its result as it has left it."""
    return bool(key) and stamp.get("key") == key and "result" in stamp and stamp["result"] == digest_of_result(stage)


def figures(stage: Stage) -> tuple[int | None, str]:
    """The number of rows in a result, and its first metric or what else says most."""
    from transforms.evaluation.names import HEADLINE
    from transforms.file_ops import join, read_text

    try:
        if stage.name == "train":
            about = json.loads(read_text(join(stage.output, "training.json")))
            return about["rows"]["trained"], _headline(
                about["metrics"], HEADLINE.get(about["task"], ()), " (validation)"
            )
        result = json.loads(read_text(stage.result))
        if stage.name == "prepare":
            return result["rows"]["sampled"], f"{result['rows']['validation']:,} held out"
        if stage.name == "score":
            return result["rows_scored"], f"{result['rows_dead']:,} dead letters"
        return result["rows"], _headline(result, HEADLINE.get(result["task"], ()))
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def _headline(metrics: Mapping[str, Any], names: Sequence[str], after: str = "") -> str:
    name = next((name for name in names if metrics.get(name) is not None), None)
    return "" if name is None else f"{name} {metrics[name]:.4g}{after}"
