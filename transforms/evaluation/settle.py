"""Plans an evaluation on the driver: the role of each column, from the schema and a sample of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from handlers.errors import UsageError
from handlers.predict.heads.head import PROBABILITY
from transforms.evaluation.classification import classes_of
from transforms.evaluation.curves import EXACT_SCORES
from transforms.evaluation.fingerprint import Fingerprint
from transforms.evaluation.forecasts import Series, can_be_time
from transforms.evaluation.plan import (
    ACTUAL,
    CLASS,
    CONFIDENCE,
    FORECAST,
    FORECAST_FROM,
    LABELS,
    MAX_CLASSES,
    NUMBER,
    EvaluationPlan,
    Task,
)
from transforms.evaluation.rows import as_text
from transforms.evaluation.slices import can_slice, slice_kinds

TASKS: dict[str, Task] = {
    CLASS: "classification",
    LABELS: "multilabel",
    NUMBER: "regression",
    FORECAST: "regression",
}
_SHOWN = 14  # columns of the worst rows
OUTPUTS = (CLASS, CONFIDENCE, LABELS, "probabilities", NUMBER, FORECAST, FORECAST_FROM, "embedding", "model_version")


@dataclass(frozen=True)
class Wanted:
    """What the user asks for.

    Attributes:
        label: the column of the true answers.
        slice_by: columns to slice by.
        positive_class: of two classes, the one whose scores count.
        fingerprint: of the rows that the model was trained on.
        exact_scores: scores that are kept exactly before they are counted in bins.
        series: which rows are a time series, to look up what forecasts are compared with.
        actuals: the columns of the rows with the actual values; None if the forecasts carry them.
    """

    label: str
    slice_by: tuple[str, ...] = ()
    positive_class: str | None = None
    fingerprint: Fingerprint | None = None
    exact_scores: int = EXACT_SCORES
    series: Series | None = None
    actuals: pa.Schema | None = None


def settle(schema: pa.Schema, sample: pa.RecordBatch, wanted: Wanted, where: str) -> EvaluationPlan:
    """The plan for rows of `schema`, some of which are in `sample`. `where` is the input, for messages.

    Raises:
        UsageError: for columns that are not there or cannot be what they are needed for.
    """
    predicted = next((name for name in TASKS if name in schema.names), None)
    if predicted is None:
        raise UsageError(
            f"{where} has no predictions: none of the columns {', '.join(TASKS)}; give the output of score, or --model=DIR to "
            "score on the way"
        )
    task = TASKS[predicted]
    joined = _joins(schema, predicted, wanted)
    if joined:
        _check_series(schema, wanted, where)
        label = ACTUAL
    else:
        label, kind = wanted.label, _kind(schema, wanted.label, "label", where)
        _check_label(task, label, kind, schema.field(predicted).type)
    slices = tuple(dict.fromkeys(wanted.slice_by))
    for name in slices:
        if not can_slice(_kind(schema, name, "slice_by", where)):
            raise UsageError(f'--slice_by: column "{name}" holds {schema.field(name).type}; take one of single values')
    plan = EvaluationPlan(
        task=task,
        label=label,
        predicted=predicted,
        slices=slices,
        numeric_slices=slice_kinds(schema, slices),
        asked=wanted.label if joined else "",
        baselines=wanted.series.baselines if joined and wanted.series else (),
        shown=_shown(schema, label, predicted, slices, wanted.series),
        fingerprint=wanted.fingerprint,
        exact_scores=wanted.exact_scores,
    )
    if task == "classification":
        return _of_classes(plan, schema, sample, wanted.positive_class)
    if wanted.positive_class is not None:
        raise UsageError(f"--positive_class is for classifications; the predictions are those of task {task}")
    return plan


def _joins(schema: pa.Schema, predicted: str, wanted: Wanted) -> bool:
    """Whether the labels are looked up in later rows of the series; not if each row has them as a list."""
    if predicted != FORECAST:
        if wanted.series or wanted.actuals:
            raise UsageError(
                f"--order_by, --by, --season and --actuals are for forecasts; the predictions are in column {predicted}"
            )
        return False
    if wanted.series is not None:
        return True
    if wanted.label in schema.names and pa.types.is_nested(schema.field(wanted.label).type):
        return False
    raise UsageError(
        "the forecasts are compared with later rows of their series: name the column of the time with --order_by, and the "
        "columns that identify a series with --by"
    )


def _check_series(schema: pa.Schema, wanted: Wanted, where: str) -> None:
    """Refuses columns from which actual values cannot be looked up."""
    series, actuals = wanted.series, schema if wanted.actuals is None else wanted.actuals
    assert series is not None  # noqa: S101
    if FORECAST_FROM not in schema.names:
        raise UsageError(f"{where} has no column {FORECAST_FROM}, the time of the first step of a forecast")
    kind = schema.field(FORECAST).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise UsageError(
            f"column {FORECAST} of {where} holds {kind}; forecasts are lists of numbers, one for each step"
        )
    if taken := [name for name in (ACTUAL, *series.baselines) if name in schema.names]:
        raise UsageError(f'{where} has a column "{taken[0]}", a name that the evaluation uses; rename it')
    there = where if wanted.actuals is None else "--actuals"
    label = _kind(actuals, series.value, "label", there)
    if not (pa.types.is_integer(label) or pa.types.is_floating(label) or pa.types.is_decimal(label)):
        raise UsageError(f'--label: column "{series.value}" of {there} holds {label}; forecasts are of numbers')
    for option, names in (("order_by", (series.order_by,)), ("by", series.by)):
        for name in names:
            mine, other = _kind(schema, name, option, where), _kind(actuals, name, option, there)
            if option == "order_by" and not can_be_time(mine):
                raise UsageError(f'--order_by: column "{name}" holds {mine}; it takes integers, dates and timestamps')
            if option == "order_by" and _sort(mine) != _sort(first := schema.field(FORECAST_FROM).type):
                raise UsageError(f'--order_by: column "{name}" holds {mine}, but {FORECAST_FROM} {first}')
            if _sort(mine) != _sort(other):
                raise UsageError(f'--{option}: column "{name}" holds {mine} in {where} and {other} in {there}')


def _sort(kind: pa.DataType) -> str:
    """A name for all types whose values are written alike."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    for name in ("integer", "floating", "string", "large_string", "date", "timestamp"):
        if getattr(pa.types, f"is_{name}")(kind):
            return {"large_string": "string", "date": "timestamp"}.get(name, name)
    return str(kind)


def _kind(schema: pa.Schema, name: str, option: str, where: str) -> pa.DataType:
    if name not in schema.names:
        known = [each for each in schema.names if not is_output(each)] or schema.names
        shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
        raise UsageError(f'--{option}: {where} has no column "{name}"; there are: {shown}')
    return schema.field(name).type


def is_output(name: str) -> bool:
    """Whether a column of this name is an output of a model, in a run of one."""
    return name in OUTPUTS or name.startswith(PROBABILITY)


def _check_label(task: Task, label: str, kind: pa.DataType, predicted: pa.DataType) -> None:
    """Refuses labels of a type that a task cannot have."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    value = kind.value_type if is_list or pa.types.is_dictionary(kind) else kind
    if pa.types.is_null(kind):
        raise UsageError(f'--label: every row of column "{label}" is null')
    if task == "regression":
        if not (pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_decimal(value)):
            raise UsageError(
                f'--label: column "{label}" holds {kind}; the predictions are numbers, and so must the labels be'
            )
        if is_list != pa.types.is_nested(predicted):
            raise UsageError(
                f'--label: column "{label}" holds {kind}, and the predictions {predicted}; both must be lists or neither'
            )
    elif task == "multilabel" and not (is_list and (pa.types.is_string(value) or pa.types.is_large_string(value))):
        raise UsageError(f'--label: column "{label}" holds {kind}; of task multilabel the labels are lists of texts')
    elif task == "classification" and (pa.types.is_nested(kind) or pa.types.is_binary(kind)):
        raise UsageError(
            f'--label: column "{label}" holds {kind}; the classes of a classification are text, numbers or flags'
        )


def _of_classes(
    plan: EvaluationPlan, schema: pa.Schema, sample: pa.RecordBatch, positive: str | None
) -> EvaluationPlan:
    numbers = pa.types.is_integer(schema.field(plan.predicted).type)
    flags = pa.types.is_boolean(schema.field(plan.label).type)
    predicted = as_text(sample.column(plan.predicted))
    classes = _with_probabilities(schema)
    flags = flags and (numbers or set(classes or classes_of(predicted)) <= {"0", "1"})
    if len(classes) > MAX_CLASSES:
        raise UsageError(f"the predictions have {len(classes)} classes; evaluate takes {MAX_CLASSES} at most")
    probabilities, confidence = bool(classes), CONFIDENCE in schema.names
    if not probabilities and confidence:
        truth = as_text(sample.column(plan.label), flags_as_numbers=flags)
        seen = classes_of(truth, predicted)
        classes = tuple(seen) if len(seen) == 2 else ()  # the confidence determines both probabilities
    if len(classes) != 2:
        if positive is not None:
            what = f"there are {len(classes)}" if probabilities else "the first rows do not have two"
            raise UsageError(f"--positive_class is for two classes; {what}")
        chosen = None
    else:
        chosen = classes[1] if positive is None else positive
        if chosen not in classes:
            raise UsageError(f'--positive_class: there is no class "{chosen}"; there are: {", ".join(classes)}')
    return EvaluationPlan(
        **{
            **vars(plan),
            "classes": classes,
            "positive": chosen,
            "probabilities": probabilities,
            "confidence": confidence,
            "flags_as_numbers": flags,
        }
    )


def _with_probabilities(schema: pa.Schema) -> tuple[str, ...]:
    """The classes that have a column of probabilities, in its order; that of the model's labels."""
    return tuple(
        each.name.removeprefix(PROBABILITY)
        for each in schema
        if each.name.startswith(PROBABILITY) and len(each.name) > len(PROBABILITY) and pa.types.is_floating(each.type)
    )


def _shown(
    schema: pa.Schema, label: str, predicted: str, slices: Sequence[str], series: Series | None
) -> tuple[str, ...]:
    """The columns of the worst rows: key and time of a series, true and predicted values, slices, then the first others."""
    others = [each.name for each in schema if not is_output(each.name)]
    of_series = [*series.by, series.order_by] if series else []
    first = [*of_series, label, predicted, *([CONFIDENCE] if CONFIDENCE in schema.names else []), *slices]
    return tuple(dict.fromkeys([*first, *others]))[:_SHOWN]


def match_columns(first: pa.Schema, second: pa.Schema, key: str | None) -> tuple[tuple[str, ...], bool]:
    """What the rows of two runs are matched by: the column `key`, or else all input columns that both have.

    Returns:
        The columns, and whether they are a key.
    """
    if key is not None:
        for schema, where in ((first, "--input"), (second, "--compare")):
            _kind(schema, key, "key", where)
        return (key,), True
    common = tuple(name for name in first.names if name in second.names and not is_output(name))
    if not common:
        raise UsageError(
            "--compare: the two runs have no input columns in common to match their rows by; give --key=COLUMN"
        )
    return common, False
