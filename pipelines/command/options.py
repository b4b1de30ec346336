"""The options of a command: frozen dataclasses, built once from the arguments.

A field made by `option` is a flag of the same name; its type, default and help are declared in that one place.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn, TypeVar

from handlers.batching import Batching, chunk_bytes
from handlers.errors import UsageError
from handlers.model.environment import check_name
from handlers.model.trust import Trust, check_version
from pipelines.command.values import function, names, path, positive, positive_or_auto, rate, spark_version

T = TypeVar("T")

REQUIRED = object()

# Beam's in-process runner. Beam's own DirectRunner starts another engine where it can download one.
IN_PROCESS = ("FnApiRunner", "DirectRunner")


def option(
    help: str,
    default: Any = REQUIRED,
    *,
    parse: Callable[[str], Any] = str,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    repeatable: bool = False,
    flag: str | None = None,
) -> Any:
    """A dataclass field that is a command-line flag.

    Args:
        help: the text for `--help`.
        default: the default value; a field without one is required.
        parse: converts the text to a value; raises ValueError with the reason.
        choices: the allowed texts.
        metavar: the name of the value in `--help`.
        repeatable: whether the flag may be given several times; the values are a tuple.
        flag: the name of the flag, if it differs from the field.
    """
    metadata = {"help": help, "parse": parse, "choices": choices, "metavar": metavar, "repeatable": repeatable}
    metadata["flag"] = flag
    return field(metadata=metadata) if default is REQUIRED else field(default=default, metadata=metadata)


def flag(help: str) -> Any:
    """A field that is a switch: `--name`, or `--name=true` for launchers that need a value."""
    return field(default=False, metadata={"help": help, "parse": _boolean, "choices": None, "switch": True})


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "on", "off"):
        raise ValueError(f'must be true or false, not "{text}"')
    return text.lower() in ("true", "on")


@dataclass(frozen=True)
class SourceOptions:
    """The input."""

    TITLE = "source"

    input: str = option(
        "file, directory or pattern (quote it), local, gs:// or s3://; or bigquery:project.dataset.table, "
        "'bigquery:SELECT …'",
        parse=path,
    )
    input_format: str | None = option(
        "format of the input (default: from the extension)",
        None,
        choices=("parquet", "csv", "jsonl", "avro", "text", "image"),
    )
    limit: int | None = option("score only about N rows, to try a model", None, parse=positive, metavar="N")


MODEL_HELP = (
    "model directory, or a bare .pt2 or TorchScript file, local, gs:// or s3://; or a name in --registry, as credit@3, "
    "credit@champion, credit@latest; or models:/name@alias of MLflow"
)


@dataclass(frozen=True)
class TrustedModel:
    """A model and how far it is trusted."""

    model: str = option(MODEL_HELP, parse=path)
    registry: str | None = option(
        "folder of models by name and version, local, gs:// or s3:// (default: the environment variable TORCHBEAM_REGISTRY)",
        None,
        parse=path,
        metavar="DIR",
    )
    model_version: str | None = option(
        "the required version of the model, 12 to 64 hexadecimal digits; any other is refused",
        None,
        parse=check_version,
        metavar="VERSION",
    )
    no_model_code: bool = flag("refuse a model directory that contains code; see docs/security.md")
    allow_env: tuple[str, ...] = option(
        "an environment variable that env_vars of the model may set, besides the default ones; may be repeated",
        (),
        parse=check_name,
        repeatable=True,
        metavar="NAME",
    )

    @property
    def trust(self) -> Trust:
        """How far the model directory is trusted."""
        return Trust(self.allow_env, self.model_version, not self.no_model_code)


@dataclass(frozen=True)
class ModelOptions(TrustedModel):
    """The model, and how it runs."""

    TITLE = "model"

    model: str = option(f"{MODEL_HELP}; several as NAME=DIR", "", parse=lambda text: text and path(text))
    batch_size: int | None = option(
        "rows of a micro-batch, which is one model call; auto chooses by the bytes of a row (default: auto)",
        None,
        parse=positive_or_auto,
        metavar="N",
    )
    device: str = option("auto, cpu, cuda or cuda:N; auto is a GPU if there is one (default: auto)", "auto")
    device_map: str | None = option(
        "spreads layers over GPUs, CPU and disk, if the model is too large for one (default: placement in model.yaml)",
        None,
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
    )
    precision: Literal["float32", "bfloat16", "float16"] = option(
        "float32, or bfloat16 or float16 by autocast (default: float32)",
        "float32",
        choices=("float32", "bfloat16", "float16"),
    )
    compile: bool = flag("compile the model with torch.compile")
    model_copies: int = option("processes that may share one GPU (default: 1)", 1, parse=positive, metavar="N")
    accelerator: str | None = option(
        "resource hint of the inference step, such as type:nvidia-l4;count:1;install-nvidia-driver", None
    )
    min_ram: str | None = option("resource hint of the inference step with a unit, such as 16GB", None)
    preprocess: tuple[str, ...] = option(
        "module:function on rows, after those of the model; may be repeated",
        (),
        parse=function,
        repeatable=True,
        metavar="FUNCTION",
    )
    postprocess: tuple[str, ...] = option(
        "module:function on predictions, after those of the model; may be repeated",
        (),
        parse=function,
        repeatable=True,
        metavar="FUNCTION",
    )


@dataclass(frozen=True)
class SinkOptions:
    """The output."""

    TITLE = "sink"

    output: str = option(
        "directory of the run, local, gs:// or s3://; or bigquery:project.dataset.table, with dead letters in "
        "<table>_dead_letters, loaded from files under --temp_location=gs://…",
        parse=path,
    )
    output_format: str = option(
        "format of predictions and dead letters (default: parquet)",
        "parquet",
        choices=("parquet", "csv", "jsonl", "avro"),
    )
    columns: tuple[str, ...] = option(
        "input columns to copy into the output, separated by commas, * for all (default: *)", ("*",), parse=names
    )
    probabilities: bool = flag(
        "task classification: a column probability_CLASS for every class, as evaluate reads them"
    )
    overwrite: bool = flag("replace a finished run under --output")
    report: str | None = option(
        "path of the report (default: <output>/report.json); required for a table", None, parse=path, metavar="FILE"
    )


@dataclass(frozen=True)
class RunOptions:
    """How the run is executed."""

    TITLE = "run"

    runner: str = option(
        "FnApiRunner (in this process), SparkRunner, DataflowRunner, … (default: FnApiRunner)", "FnApiRunner"
    )
    max_failure_rate: float = option(
        "share of dead letters among the rows read above which the run ends with exit code 3, all outputs written "
        "(default: 1.0)",
        1.0,
        parse=rate,
        metavar="RATE",
    )
    wait: bool = flag(
        "on Dataflow: wait until the job ends and return its exit code; otherwise return once it is submitted"
    )
    shared_filesystem: bool = flag("local paths are the same on all machines of the cluster")
    spark_version: str | None = option(
        "Spark version of the cluster, such as 3.5.7, if its master does not report it; selects the job server",
        None,
        parse=spark_version,
        metavar="VERSION",
    )
    spark_master_ui: str | None = option(
        "web page of the Spark master (default: searched on its host, ports 8080 to 8083)", None, metavar="HOST:PORT"
    )
    chunk_bytes: int = option(
        "memory of a chunk, the rows that are processed together, with a unit, from 1MB to 1GB; a run needs a few times "
        "as much besides the model (default: 64MiB)",
        Batching.chunk_bytes,
        parse=chunk_bytes,
        metavar="SIZE",
    )
    verbose: bool = flag("show the logs of Beam and the tracebacks of errors")


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` instead of exiting, so that errors are one line with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`."""
        raise UsageError(message)


@dataclass(frozen=True)
class Command:
    """The description of a command.

    Attributes:
        prog: its name.
        description: for `--help`, like `usage` and `exit_codes`.
        strict: whether required options must be given; otherwise they default to an empty string.
        interrupted: the message after "interrupted"; may be empty.
        runs_beam: whether unknown options are passed to Beam.
    """

    prog: str
    description: str
    usage: str
    exit_codes: str
    strict: bool = True
    interrupted: str = "nothing was published"
    runs_beam: bool = True


def parser(command: Command, groups: Sequence[type]) -> argparse.ArgumentParser:
    """A parser with the flags of `groups`, each under its title."""
    passed_on = "All other options are passed to Beam unchanged. " if command.runs_beam else ""
    made = Parser(
        prog=command.prog,
        description=command.description,
        usage=f"{command.prog} {command.usage} [options]",
        epilog=f"{passed_on}Exit codes: {command.exit_codes}.",
        allow_abbrev=False,
    )
    for group in groups:
        section = made.add_argument_group(group.TITLE)  # type: ignore[attr-defined]
        for item in fields(group):
            section.add_argument(_flag_of(item), dest=item.name, **_argument(item, command.strict))
    return made


def flags_of(groups: Sequence[type]) -> list[str]:
    """The flags of `groups`, such as `--input`."""
    return [_flag_of(item) for group in groups for item in fields(group)]


def unknown_option(argument: str, flags: Sequence[str]) -> UsageError:
    """The error for an argument that is none of `flags`, with the one that it may stand for."""
    name = argument.partition("=")[0]
    near = near_flag(name, flags)
    return UsageError(f"unknown option {name}; {f'did you mean {near}?' if near else 'see --help'}")


def near_flag(name: str, flags: Sequence[str]) -> str | None:
    """The one of `flags` that is spelt like `name`; None if there is none."""
    return next(iter(difflib.get_close_matches(name, flags, 1, 0.8)), None)


def _flag_of(item: dataclasses.Field[Any]) -> str:
    return f"--{item.metadata.get('flag') or item.name}"


def _argument(item: dataclasses.Field[Any], strict: bool) -> dict[str, Any]:
    about = item.metadata
    parse = _checked(item.name, about["parse"], item.default)
    settings: dict[str, Any] = {"help": about["help"].replace("%", "%%"), "type": parse}
    if item.default is dataclasses.MISSING:
        settings |= {"required": strict, "action": _Once}
    else:
        settings["default"] = item.default
    if about.get("switch"):
        settings |= {"nargs": "?", "const": True, "metavar": "true|false"}
    elif about["choices"]:
        settings |= {"choices": about["choices"]}
    elif about["metavar"]:
        settings["metavar"] = about["metavar"]
    if about.get("repeatable"):
        settings["action"] = _Append
    return settings


class _Once(argparse.Action):
    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            raise UsageError(f"{option_string} is given twice; use a pattern or a directory for several files")
        setattr(namespace, self.dest, values)


class _Append(argparse.Action):
    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), values))


def _checked(name: str, parse: Callable[[str], Any], default: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if text is default:  # argparse converts defaults, too, where they are text
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise UsageError(f"--{name} {error}") from None

    return convert


def pick(kind: type[T], values: argparse.Namespace) -> T:
    """The options of one dataclass from all parsed ones; missing required ones are empty."""
    found = {}
    for item in fields(kind):  # type: ignore[arg-type]
        value = getattr(values, item.name)
        found[item.name] = "" if value is None and item.default is dataclasses.MISSING else value
    return kind(**found)


def parse_one(kind: type[T], argv: Sequence[str], command: Command) -> T:
    """The options of a command that has one group of them and passes none to Beam.

    Raises:
        UsageError: for an unknown option or an invalid value.
        SystemExit: for `--help`.
    """
    if argv and not argv[0].startswith("-"):
        raise UsageError(f'unexpected argument "{argv[0]}"; write {command.usage}')
    values, unknown = parser(command, (kind,)).parse_known_args(argv)
    if unknown:
        raise unknown_option(unknown[0], flags_of((kind,)))
    return pick(kind, values)
