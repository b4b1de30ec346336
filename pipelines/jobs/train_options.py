"""The options of `train`. Imports neither torch nor Beam."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from handlers.errors import UsageError
from handlers.paths import is_remote
from handlers.train.config import BUILT_IN, ModelConfig, check_architecture
from pipelines.command.options import (
    IN_PROCESS,
    Command,
    RunOptions,
    SourceOptions,
    flag,
    flags_of,
    option,
    parser,
    pick,
    unknown_option,
)
from pipelines.command.values import path, positive, positive_or_auto
from pipelines.jobs.options import absolute_path
from pipelines.jobs.prepare_options import RowOptions

TASKS = ("classification", "multilabel", "regression")
# Fields of model.yaml that training writes.
_WRITTEN = ("format", "weights", "sha256")


def above_zero(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise ValueError(f'must be a number above 0, not "{text}"')
    return value


def zero_or_more(text: str) -> float:
    """A number of 0 or more."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f'must be a number of 0 or more, not "{text}"')
    return value


def whole_or_none(text: str) -> int:
    """A whole number of 0 or more; 0 for `none`."""
    return 0 if text in ("0", "none") else positive(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


@dataclass(frozen=True)
class InputOptions(SourceOptions):
    """The rows to train on."""

    TITLE = "source"

    input: str = option(
        "rows with a label: a file, directory or pattern (quote it), local, gs:// or s3://; or "
        "bigquery:project.dataset.table, 'bigquery:SELECT …'",
        "",
        parse=path,
    )
    limit: int | None = option("read only about N rows, to try it out", None, parse=positive, metavar="N")
    prepared: str | None = option(
        "folder that prepare wrote, to train on its rows instead of --input", None, parse=path, metavar="DIR"
    )


@dataclass(frozen=True)
class LabelledRows(RowOptions):
    """Which of them."""

    TITLE = "rows"

    label: str = option("column of the true answers, of the input or a feature", "", parse=path, metavar="COLUMN")
    skip_null_labels: bool = flag("train without the rows whose label is null or not finite, instead of refusing them")


@dataclass(frozen=True)
class NetworkOptions:
    """What is trained."""

    TITLE = "model"

    model: str = option(
        "YAML with the fields of model.yaml (features, preprocess, inputs, labels, architecture, arguments, …) and, under "
        "training, options of this command",
        "",
        parse=path,
        metavar="CONFIG",
    )
    architecture: str | None = option(
        "mlp (tables), lstm (list columns), huggingface (text or images, with --pretrained) or module:Class",
        None,
        parse=check_architecture,
    )
    pretrained: str | None = option(
        "folder that save_pretrained wrote, which --architecture=huggingface fine-tunes",
        None,
        parse=path,
        metavar="DIR",
    )
    task: str | None = option(
        "what the label is (default: text, flags and whole numbers of up to 20 values are classes, other numbers a "
        "regression, lists of text multilabel)",
        None,
        choices=TASKS,
    )


@dataclass(frozen=True)
class TrainingOptions:
    """How it is trained."""

    TITLE = "training"

    epochs: int | None = option(
        "passes over the rows at most (default: 30; 3 with huggingface)", None, parse=positive, metavar="N"
    )
    batch_size: int | None = option(
        "rows of a step (default: auto, 16 to 1024 by the number of rows)", None, parse=positive_or_auto, metavar="N"
    )
    learning_rate: float | None = option(
        "of AdamW, at its highest: it rises in the first 5% of the steps and then falls to 0 as a cosine (default: 0.001; "
        "0.00005 with huggingface)",
        None,
        parse=above_zero,
        metavar="RATE",
    )
    weight_decay: float = option("of AdamW (default: 0.01)", 0.01, parse=zero_or_more)
    patience: int = option(
        "stop after N epochs without a lower validation loss; none never stops early (default: 5)",
        5,
        parse=whole_or_none,
        metavar="N",
    )
    gradient_clip: float = option(
        "norm that gradients are scaled down to; 0 for none (default: 1.0)", 1.0, parse=zero_or_more, metavar="NORM"
    )
    class_weights: Literal["none", "balanced"] = option(
        "balanced: rare classes weigh as much as common ones (default: none)", "none", choices=("none", "balanced")
    )
    loss: Literal["mse", "huber"] = option(
        "of a regression: mse, or huber, which large errors move less (default: mse)", "mse", choices=("mse", "huber")
    )
    precision: Literal["float32", "bfloat16", "float16"] = option(
        "float32, or bfloat16 or float16 by autocast (default: float32)",
        "float32",
        choices=("float32", "bfloat16", "float16"),
    )
    device: str = option("auto, cpu, cuda or cuda:N; auto is a GPU if there is one (default: auto)", "auto")
    logger: Literal["csv", "tensorboard"] = option(
        "how losses are logged under <output>/logs (default: csv)", "csv", choices=("csv", "tensorboard")
    )


@dataclass(frozen=True)
class OutputOptions:
    """Where the model goes."""

    TITLE = "sink"

    output: str = option("local folder of the model directory to write", parse=path)
    name: str | None = option("name of the model (default: that of the config, else of --output)", None, parse=path)
    overwrite: bool = flag("replace a model under --output, or a training that has not ended")
    resume: bool = flag("continue a training that was interrupted from its last epoch; start one if there is none")


GROUPS = (InputOptions, LabelledRows, NetworkOptions, TrainingOptions, OutputOptions, RunOptions)


@dataclass(frozen=True)
class TrainOptions:
    """All options of the command; `beam` are passed to Beam unchanged.

    Attributes:
        config: the file of `--model`, read.
    """

    source: InputOptions
    rows: LabelledRows
    network: NetworkOptions
    training: TrainingOptions
    sink: OutputOptions
    run: RunOptions
    config: ModelConfig
    beam: tuple[str, ...] = ()

    @property
    def verbose(self) -> bool:
        """Whether the logs of Beam and the tracebacks of errors are shown."""
        return self.run.verbose

    @property
    def architecture(self) -> str:
        """What is trained: a built-in architecture or `module:Class`."""
        return self.network.architecture or self.config.spec.architecture or ""

    @staticmethod
    def parse(argv: list[str], command: Command) -> TrainOptions:
        """Parses arguments; raises `UsageError`, or SystemExit(0) for `--help`."""
        parse = parser(command, GROUPS).parse_known_args
        values, others = parse(argv)
        config = ModelConfig()
        if values.model:
            config = ModelConfig.open(values.model)
            given = {each[2:].partition("=")[0] for each in argv if each.startswith("--")}
            values, others = parse([*_arguments(config, given), *argv])
        if others and not others[0].startswith("-"):
            raise UsageError(f"unexpected argument \"{others[0]}\"; quote patterns, as --input='data/*.parquet'")
        source, rows, network, training, sink, run = (pick(group, values) for group in GROUPS)
        options = TrainOptions(source, rows, network, training, sink, run, config, tuple(others))  # type: ignore[arg-type]
        options._check()
        return options

    def _check(self) -> None:
        """Refuses options that do not go together."""
        spec, path = self.config.spec, self.network.model
        for name in _WRITTEN:
            if getattr(spec, name) is not None:
                raise UsageError(f"{path}: {name} is written by the training; remove it")
        if spec.loader:
            raise UsageError(f"{path}: a model with a loader cannot be trained; give architecture as module:Class")
        if spec.sequences is not None:
            raise UsageError(
                f"{path}: windows of sequences are not trained on yet; remove sequences, and write the windows as list columns "
                "for --architecture=lstm"
            )
        if bool(self.source.input) == (self.source.prepared is not None):
            what = "exclude each other" if self.source.input else "are both missing"
            raise UsageError(f"--input and --prepared {what}; give one of them")
        if self.source.input and not self.rows.label:
            raise UsageError("--label is missing; name the column of the true answers")
        if self.source.prepared is not None:
            for name in ("sample", "sample_rows", "validation", "split_by"):
                if getattr(self.rows, name) != getattr(LabelledRows(), name):
                    raise UsageError(f"--{name} is an option of prepare; the rows of --prepared are chosen already")
            if self.beam:  # which prepares nothing
                raise unknown_option(self.beam[0], flags_of(GROUPS))
        if not self.architecture:
            raise UsageError(
                f"say what to train: --architecture={', '.join(BUILT_IN)} or module:Class, or --model=CONFIG.yaml with architecture"
            )
        if (self.architecture == "huggingface") != (self.network.pretrained is not None):
            raise UsageError("--architecture=huggingface and --pretrained=DIR, the folder to fine-tune, go together")
        if self.network.task and spec.task != "raw" and self.network.task != spec.task:
            raise UsageError(f"--task={self.network.task}, but {path} says task: {spec.task}; remove one of them")
        if is_remote(self.sink.output):
            raise UsageError(
                f"--output {self.sink.output}: training writes to a local folder; copy the model directory there afterwards"
            )

    def settled(self) -> TrainOptions:
        """The same with paths that hold wherever a worker is started."""
        if self.run.runner in IN_PROCESS:
            return self
        return replace(self, source=replace(self.source, input=absolute_path(self.source.input)))


def _arguments(config: ModelConfig, given: set[str]) -> list[str]:
    """The options under `training` of a config as arguments, without those of the command line."""
    groups: tuple[Any, ...] = (LabelledRows, NetworkOptions, TrainingOptions)
    known = [each.name for group in groups for each in fields(group) if each.name not in ("model", "architecture")]
    arguments = []
    for name, value in config.spec.training.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(known)}"
            raise UsageError(f'{Path(config.path).name}: unknown option "{name}" under training; {hint}')
        if value is not None and name not in given:
            arguments.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return arguments
