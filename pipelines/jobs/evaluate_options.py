"""The options of `evaluate`. Imports neither torch nor Beam."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from handlers.errors import UsageError
from pipelines.command.options import (
    Command,
    ModelOptions,
    RunOptions,
    SinkOptions,
    SourceOptions,
    flag,
    option,
    parser,
    pick,
)
from pipelines.command.values import names, path, positive
from pipelines.jobs.options import ScoreOptions, absolute_path
from transforms.evaluation.names import ALL_HIGHER, ALL_LOWER

Limit = tuple[str, float]


def at_least(text: str) -> Limit:
    """`metric=value` of a metric that is better when higher."""
    return _limit(text, ALL_HIGHER, ALL_LOWER, "fail_above")


def at_most(text: str) -> Limit:
    """`metric=value` of a metric that is better when lower."""
    return _limit(text, ALL_LOWER, ALL_HIGHER, "fail_below")


def _limit(text: str, known: tuple[str, ...], others: tuple[str, ...], instead: str) -> Limit:
    name, _, value = text.partition("=")
    if name in others:
        raise ValueError(
            f"{name} is better when {'lower' if instead == 'fail_above' else 'higher'}; write --{instead}={text}"
        )
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *others], 1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(known)}"
        raise ValueError(f'there is no metric "{name}"; {hint}')
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if number != number:
        raise ValueError(f'must be {name}=NUMBER, not "{text}"')
    return name, number


@dataclass(frozen=True)
class InputOptions(SourceOptions):
    """The rows to evaluate."""

    TITLE = "source"

    input: str = option(
        "output of score (its folder, or files with the columns of predictions), or with --model rows to score on the way",
        parse=path,
    )


@dataclass(frozen=True)
class OnTheWayOptions(ModelOptions):
    """The model for rows that are not scored yet."""

    TITLE = "model"

    model: str = option("model directory, to score the input on the way", "")


@dataclass(frozen=True)
class EvaluationOptions:
    """The metrics, and the output."""

    TITLE = "evaluation"

    label: str = option("column of the true answers", parse=path, metavar="COLUMN")
    output: str = option("directory for metrics.json and report.html, local, gs:// or s3://", parse=path)
    model_name: str | None = option(
        "of a run of several models the one to evaluate (default: all, each in a folder of its name under --output)",
        None,
        metavar="NAME",
    )
    slice_by: tuple[str, ...] = option(
        "columns, comma separated, for whose values the metrics are computed, too; numbers are cut into 5 bins by quantiles",
        (),
        parse=names,
        metavar="COLUMNS",
    )
    positive_class: str | None = option(
        "of two classes the positive one, for the curves (default: the second of the model's labels)",
        None,
        metavar="CLASS",
    )
    compare: str | None = option(
        "output of another run on the same rows, to compare with by a paired test", None, parse=path, metavar="RUN"
    )
    key: str | None = option(
        "column that identifies a row in both runs of --compare (default: all input columns that both have)",
        None,
        metavar="COLUMN",
    )
    by: tuple[str, ...] = option(
        "of forecasts: columns whose values identify a series, comma separated (default: those of --model, else none)",
        (),
        parse=names,
        metavar="COLUMNS",
    )
    order_by: str | None = option(
        "of forecasts: column of the time; forecasts are compared with the label of later rows of their series "
        "(default: that of --model)",
        None,
        metavar="COLUMN",
    )
    season: int | None = option(
        "of forecasts: steps of a season, for the seasonal-naive baseline, as 7 for days of a week",
        None,
        parse=positive,
        metavar="STEPS",
    )
    actuals: str | None = option(
        "of forecasts: rows with the actual values, if the forecasts do not carry them",
        None,
        parse=path,
        metavar="INPUT",
    )
    fail_below: tuple[Limit, ...] = option(
        "exit with code 3 if a metric is lower, as accuracy=0.9; may be repeated",
        (),
        parse=at_least,
        repeatable=True,
        metavar="METRIC=VALUE",
    )
    fail_above: tuple[Limit, ...] = option(
        "exit with code 3 if a metric is higher, as rmse=3.5; may be repeated",
        (),
        parse=at_most,
        repeatable=True,
        metavar="METRIC=VALUE",
    )
    fingerprint: str | None = option(
        "training.json of the model, for data drift (default: that of --model)", None, parse=path, metavar="FILE"
    )
    overwrite: bool = flag("replace metrics.json and report.html under --output")


GROUPS = (InputOptions, EvaluationOptions, OnTheWayOptions, RunOptions)


@dataclass(frozen=True)
class EvaluateOptions:
    """All options of the command.

    Attributes:
        score: the options shared with `score`; `score.sink` is derived from `evaluation.output`.
        evaluation: the options of `evaluate` only.
    """

    score: ScoreOptions
    evaluation: EvaluationOptions

    @property
    def verbose(self) -> bool:
        """Whether the logs of Beam and the tracebacks of errors are shown."""
        return self.score.run.verbose

    @staticmethod
    def parse(argv: list[str], command: Command) -> EvaluateOptions:
        """Builds the options from arguments; raises `UsageError`, or SystemExit(0) for `--help`."""
        values, others = parser(command, GROUPS).parse_known_args(argv)
        if others and not others[0].startswith("-"):
            raise UsageError(f"unexpected argument \"{others[0]}\"; quote patterns, as --input='data/*.parquet'")
        evaluation, model = pick(EvaluationOptions, values), pick(OnTheWayOptions, values)
        if evaluation.key is not None and evaluation.compare is None:
            raise UsageError("--key is for --compare=RUN, which is not given")
        if evaluation.model_name is not None and model.model:
            raise UsageError("--model_name is for an output of several models, not for --model; leave one of them out")
        if evaluation.order_by is None and not model.model:
            for name in ("by", "season", "actuals"):
                if getattr(evaluation, name):
                    raise UsageError(f"--{name} is for forecasts; name the column of their time, too, with --order_by")
        sink = SinkOptions(output=evaluation.output, probabilities=True, overwrite=evaluation.overwrite)
        source, run = pick(InputOptions, values), pick(RunOptions, values)
        return EvaluateOptions(ScoreOptions(source, model, sink, run, tuple(others)), evaluation)

    def settled(self) -> EvaluateOptions:
        """The options completed for the runner; raises `UsageError` for what the runner would refuse later."""
        score = self.score.settled()
        if score is self.score:
            return self
        evaluation = replace(
            self.evaluation,
            output=score.sink.output,
            compare=self.evaluation.compare and absolute_path(self.evaluation.compare),
            actuals=self.evaluation.actuals and absolute_path(self.evaluation.actuals),
        )
        return EvaluateOptions(score, evaluation)
