"""From totals to the content of `metrics.json`, with the warnings for its readers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from handlers.errors import BrokenModelError, TorchbeamError, UsageError
from transforms.accounting import Counts
from transforms.evaluation.classification import ClassTotals
from transforms.evaluation.compare import Pairs
from transforms.evaluation.evaluate import Totals
from transforms.evaluation.plan import MAX_CLASSES, MAX_SLICES, EvaluationPlan
from transforms.evaluation.regression import NumberTotals

_NOT_FLAT = ("intervals", "bounds", "classes", "confusion_matrix", "charts", "outputs", "positive_class", "baselines")


@dataclass(frozen=True)
class Subject:
    """What is evaluated, for the record.

    Attributes:
        input: where the rows are.
        model: name and version of the model, where they are known.
        other: the run that is compared with.
        dead_by_error: dead letters of the run whose output is evaluated, by reason.
        failed: rows of that run that were dead letters.
    """

    input: str
    model: dict[str, str] = field(default_factory=dict)
    other: str | None = None
    dead_by_error: dict[str, int] = field(default_factory=dict)
    failed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What comes out: `metrics` go to `metrics.json`, and together with `charts` and `worst` into the report."""

    metrics: dict[str, Any]
    charts: dict[str, Any]
    worst: list[tuple[float, tuple[str, ...]]]
    shown: tuple[str, ...]


def check(totals: Totals, counts: Counts) -> None:
    """Raises `UsageError` or `BrokenModelError` where the rows cannot be evaluated."""
    plan, task = totals.plan, totals.task
    if not totals.rows:
        if counts.rows_dead:
            worst = max(counts.dead_by_error, key=lambda error: counts.dead_by_error[error])
            raise BrokenModelError(
                f"none of the {counts.rows_read} rows could be scored; the most frequent reason is {worst}"
            )
        if counts.files_dead:
            raise BrokenModelError(f"none of the {counts.files_dead} files could be read")
        raise UsageError("the input has no rows; there is nothing to evaluate")
    if totals.missing.label == totals.rows and plan.asked:
        raise UsageError(
            f'--label: no forecast has the actual values of all its steps in column "{plan.asked}"; are --by and --order_by right, '
            "and does the input, or --actuals, go far enough?"
        )
    if totals.missing.label == totals.rows:
        raise UsageError(f'--label: every row of column "{plan.label}" is null; there is nothing to compare with')
    if getattr(task, "too_many", False):
        raise UsageError(
            f'--label: column "{plan.label}" and the predictions have more than {MAX_CLASSES} classes; '
            "is it a number of the row, or a regression?"
        )
    for column in sorted(totals.slices.too_many):
        raise UsageError(f'--slice_by: column "{column}" has more than {MAX_SLICES} values; choose one with fewer')
    if totals.missing.label + totals.missing.prediction == totals.rows:
        raise UsageError(
            f"none of the {totals.rows - totals.missing.label} rows with a label has a usable prediction (null, NaN or, as "
            "probabilities, not from 0 to 1)"
        )
    if isinstance(task, ClassTotals):
        truths, answers = {pair[0] for pair in task.confusion}, {pair[1] for pair in task.confusion}
        if not truths & (answers | set(plan.classes)):
            raise UsageError(
                f'--label: column "{plan.label}" ({_few(truths)}) and the predicted classes ({_few(answers)}) have no class in '
                "common; are they written alike?"
            )


def evaluation(
    totals: Totals,
    counts: Counts,
    subject: Subject,
    other: Totals | None = None,
    pairs: Pairs | None = None,
) -> Evaluation:
    """Metrics, charts and the worst rows.

    Raises:
        TorchbeamError: where the rows cannot be evaluated; see `check`.
    """
    check(totals, counts)
    plan, missing = totals.plan, totals.missing
    found = totals.task.metrics()
    charts = found.pop("charts", {})
    evaluated = totals.rows - missing.label - missing.prediction
    metrics: dict[str, Any] = {
        "task": plan.task,
        "label": plan.asked or plan.label,
        "rows": evaluated,
        "rows_read": counts.rows_read,
        "rows_without_label": missing.label,
        "rows_without_prediction": missing.prediction,
        "rows_dropped": counts.rows_dropped,
        "rows_dead": counts.rows_dead,
        "files_dead": counts.files_dead,
    }
    accounted = totals.rows + counts.rows_dropped + counts.rows_dead
    if counts.rows_read != accounted:
        raise TorchbeamError(
            f"{counts.rows_read} rows were read, but {totals.rows} evaluated + {counts.rows_dropped} dropped + "
            f"{counts.rows_dead} dead = {accounted}: nothing is written"
        )
    metrics |= found
    metrics["slices"] = totals.slices.metrics()
    metrics["drift"] = totals.drift.result() if totals.drift is not None else {}
    metrics["dead_by_error"] = dict(counts.dead_by_error) or subject.dead_by_error
    metrics["input"] = subject.input
    metrics["model"] = subject.model
    if pairs is not None and other is not None:
        metrics["compare"] = _compared(pairs, other, subject, plan)
    metrics["warnings"] = warnings(totals, counts, subject, metrics)
    return Evaluation(_finite(metrics), _finite(charts), totals.worst.rows, plan.shown)


def _compared(pairs: Pairs, other: Totals, subject: Subject, plan: EvaluationPlan) -> dict[str, Any]:
    has_loss = plan.task == "regression" or (plan.scored and other.plan.scored)
    flat = {name: value for name, value in other.task.metrics().items() if name not in _NOT_FLAT}
    return {"input": subject.other, **pairs.result(plan.task, has_loss), "metrics": flat}


def warnings(totals: Totals, counts: Counts, subject: Subject, metrics: dict[str, Any]) -> list[str]:
    """What a reader should know before trusting the numbers, one sentence each."""
    plan, task, found = totals.plan, totals.task, []
    if totals.missing.label:
        without = "the actual values of all steps" if plan.asked else "a label (null or NaN)"
        found.append(f"{_rows(totals.missing.label)} without {without}: not in the metrics.")
    if totals.missing.prediction:
        found.append(
            f"{_rows(totals.missing.prediction)} with a label, but without a usable prediction: not in the metrics."
        )
    if counts.rows_dead or subject.failed:
        found.append(
            f"{_rows(counts.rows_dead or subject.failed)} dead letters, which could not be scored: not in the metrics."
        )
    if counts.files_dead:
        found.append(f"{counts.files_dead} of the files could not be read, or not to the end.")
    if isinstance(task, ClassTotals):
        found += _of_classes(task)
    if isinstance(task, NumberTotals) and any(not output.sums["truth"].total().m2[0] for output in task.outputs):
        found.append(f'Column "{plan.label}" has the same value in every row: R² has no meaning.')
    for name, baseline in metrics.get("baselines", {}).items():
        if (baseline.get("skill") or 0) < 0:
            found.append(f"The model is worse than the baseline {name.replace('_', ' ')}.")
    if metrics.get("bounds"):
        names = ", ".join(metrics["bounds"])
        found.append(f"Computed from bins, because there are many rows: {names}; how far off they may be is in bounds.")
    compare = metrics.get("compare", {})
    for side, name in (("rows_only_first", "this run"), ("rows_only_second", "the other run")):
        if compare.get(side):
            found.append(f"{_rows(compare[side])} in {name} only: not in the comparison.")
    if compare.get("rows_with_repeated_key"):
        found.append(
            f"{_rows(compare['rows_with_repeated_key'])} with a key that is not unique: not in the comparison."
        )
    for name, column in metrics["drift"].items():
        if (column["psi"] or 0) >= 0.25:
            found.append(f'Column "{name}" is distributed differently than in training (PSI {column["psi"]:.2f}).')
    return found


def _of_classes(task: ClassTotals) -> list[str]:
    plan, found = task.plan, []
    truths = {pair[0] for pair in task.confusion}
    if len(truths) == 1:
        found.append(f'All labels are of one class, "{next(iter(truths))}": ROC-AUC is undefined (null).')
    elif plan.scored and (absent := [name for name in plan.classes if name not in truths]):
        found.append(
            f"No row has the label {_few(absent)}: ROC-AUC is undefined (null) for it, and so is the mean over all."
        )
    if task.unknown:
        unknown = sorted(truths - set(plan.classes))
        found.append(
            f"{_rows(task.unknown)} with a label that the model has no probability for ({_few(unknown)}): log loss, Brier score "
            "and the curves are left out (null)."
        )
    if not plan.scored:
        found.append(
            "No probabilities of the classes: score with --probabilities for ROC-AUC, log loss and the curves."
        )
    return found


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count:,} rows are"


def _few(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON cannot represent: they are null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
