"""The options of `prepare`, which `train` shares. Imports neither torch nor Beam."""

from __future__ import annotations

from dataclasses import dataclass, replace

from handlers.errors import UsageError
from pipelines.command.options import IN_PROCESS, Command, RunOptions, SourceOptions, flag, option, parser, pick
from pipelines.command.values import names, path, positive, rate
from pipelines.jobs.options import absolute_path


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError(f'must be a number above 0 and up to 1, not "{text}"')
    return value


def held_out(text: str) -> float:
    """A number from 0 to less than 1."""
    value = rate(text)
    if value == 1:
        raise ValueError("must be less than 1, else there is nothing to train on")
    return value


def seed(text: str) -> int:
    """A whole number from 0 to 2^32 - 1, as every generator of random numbers takes it."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 32:
        raise ValueError(f'must be a whole number from 0 to {(1 << 32) - 1}, not "{text}"')
    return value


@dataclass(frozen=True)
class RowOptions:
    """Which rows are trained on."""

    TITLE = "rows"

    label: str = option("column of the true answers, of the input or a feature", parse=path, metavar="COLUMN")
    sample: float | None = option(
        "take each row with this probability, such as 0.1, instead of all rows", None, parse=share, metavar="SHARE"
    )
    sample_rows: int | None = option(
        "take so many rows, such as 1_000_000, all of them equally likely; all rows where there are fewer",
        None,
        parse=positive,
        metavar="N",
    )
    validation: float = option(
        "share of the rows that are held out, to watch the training (default: 0.2)",
        0.2,
        parse=held_out,
        metavar="SHARE",
    )
    split_by: tuple[str, ...] = option(
        "columns, between commas, whose values keep rows together: rows of one customer, say, are all trained on or all "
        "held out",
        (),
        parse=names,
        metavar="COLUMNS",
    )
    seed: int = option("seed of every random choice (default: 0)", 0, parse=seed, metavar="N")

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample_rows is not None:
            raise UsageError("--sample and --sample_rows exclude each other; give one of them")


@dataclass(frozen=True)
class ConfigOptions:
    """What the rows go through."""

    TITLE = "model"

    model: str | None = option(
        "YAML of the model, a model.yaml without weights: its features and preprocess are applied",
        None,
        parse=path,
        metavar="FILE",
    )


@dataclass(frozen=True)
class FolderOptions:
    """Where the prepared rows go."""

    TITLE = "sink"

    output: str = option("local folder to write the prepared rows to", parse=path)
    overwrite: bool = flag("replace prepared rows under --output")


GROUPS = (SourceOptions, RowOptions, ConfigOptions, FolderOptions, RunOptions)


@dataclass(frozen=True)
class PrepareOptions:
    """All options of `prepare`; `beam` are passed to Beam unchanged."""

    source: SourceOptions
    rows: RowOptions
    config: ConfigOptions
    folder: FolderOptions
    run: RunOptions
    beam: tuple[str, ...] = ()

    @property
    def verbose(self) -> bool:
        """Whether the logs of Beam and the tracebacks of errors are shown."""
        return self.run.verbose

    @staticmethod
    def parse(argv: list[str], command: Command) -> PrepareOptions:
        """Parses arguments; raises `UsageError`, or SystemExit(0) for `--help`."""
        values, others = parser(command, GROUPS).parse_known_args(argv)
        if others and not others[0].startswith("-"):
            raise UsageError(f"unexpected argument \"{others[0]}\"; quote patterns, as --input='data/*.parquet'")
        source, rows, config = pick(SourceOptions, values), pick(RowOptions, values), pick(ConfigOptions, values)
        return PrepareOptions(
            source, rows, config, pick(FolderOptions, values), pick(RunOptions, values), tuple(others)
        )

    def settled(self) -> PrepareOptions:
        """The same with paths that hold wherever a worker is started."""
        if self.run.runner in IN_PROCESS:
            return self
        return replace(
            self,
            source=replace(self.source, input=absolute_path(self.source.input)),
            folder=replace(self.folder, output=absolute_path(self.folder.output)),
        )
