"""`report.html`: a self-contained page. It loads nothing, runs no scripts, and follows the light or dark theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from transforms.evaluation import charts
from transforms.evaluation.charts import Axis, covering
from transforms.evaluation.names import HEADLINE, TITLES
from transforms.evaluation.page import template
from transforms.evaluation.result import Evaluation

MATRIX_CLASSES = 25  # beyond, the most frequent confusions are listed instead
_CLASSES = 50
_SLICES = 20  # of a column; the largest
_MAIN = {"classification": "accuracy", "multilabel": "accuracy", "regression": "mae"}


def html(evaluation: Evaluation) -> str:
    """The page."""
    metrics = evaluation.metrics
    matrix = metrics.get("confusion_matrix")
    few = matrix is not None and len(matrix["labels"]) <= MATRIX_CLASSES
    return template("report.html.j2").render(
        title=metrics.get("model", {}).get("name") or metrics["label"],
        metrics=metrics,
        cards=_cards(metrics),
        comparison=_comparison(metrics),
        matrix=matrix_cells(matrix) if matrix and few else None,
        confusions=_confusions(matrix) if matrix and not few else None,
        classes=_classes(metrics.get("classes")),
        charts=_charts(metrics, evaluation.charts),
        slices=_slices(metrics),
        worst=[{"loss": number(loss), "values_": values} for loss, values in evaluation.worst],
        shown=evaluation.shown,
        drift=_drift(metrics["drift"]),
    )


def html_of_models(metrics: Mapping[str, Any]) -> str:
    """The page of a run of several models: the headline numbers of all, side by side."""
    tables = []
    for task, names in HEADLINE.items():
        models = {name: each for name, each in metrics["models"].items() if each["task"] == task}
        lines = [{"title": "Rows", "cells": [{"value": number(each["rows"])} for each in models.values()]}]
        for name in names:
            cells = [
                {"value": number(each.get(name)), "limits": number_range(each["intervals"].get(name))}
                for each in models.values()
            ]
            if any(each.get(name) is not None for each in models.values()):
                lines.append({"title": TITLES[name], "cells": cells})
        if models:
            tables.append({"task": task, "models": models, "lines": lines})
    return template("models.html.j2").render(metrics=metrics, tables=tables)


def number(value: float | None) -> str:
    """A number as a person reads it, with four significant digits; – where there is none."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def number_range(limits: Sequence[float] | None) -> str:
    """Two numbers as a person reads them; empty where there are none."""
    return f"{number(limits[0])} – {number(limits[1])}" if limits else ""


def _cards(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    cards = [{"title": "Rows", "value": number(metrics["rows"]), "limits": ""}]
    for name in HEADLINE[metrics["task"]]:
        if name in metrics and (metrics[name] is not None or name == "roc_auc"):
            limits, bound = number_range(metrics["intervals"].get(name)), metrics.get("bounds", {}).get(name)
            value = number(metrics[name]) if metrics[name] is not None else "undefined"
            cards.append(
                {"title": TITLES[name], "value": value, "limits": limits + (f" ±{bound:.1g}" if bound else "")}
            )
    return cards


def _comparison(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    found = metrics.get("compare")
    if not found:
        return []
    rows = []
    for name in ("accuracy", "log_loss", "mae"):
        if name in found:
            test = found[name]
            p = test["p_value"]
            rows.append(
                {
                    "name": TITLES[name],
                    "first": number(test["first"]),
                    "second": number(test["second"]),
                    "difference": f"{test['difference']:+.4g}",
                    "interval": number_range(test["interval"]),
                    "test": test["test"],
                    "p": "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}",
                }
            )
    for name in HEADLINE[metrics["task"]]:
        mine, theirs = metrics.get(name), found["metrics"].get(name)
        if name not in found and mine is not None and theirs is not None:
            values = {"first": number(mine), "second": number(theirs), "difference": f"{mine - theirs:+.4g}"}
            rows.append({"name": TITLES[name], **values, "interval": "", "test": "", "p": ""})
    return rows


def matrix_cells(matrix: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a matrix of counts, shaded by their share of the row."""
    rows = []
    for name, counts in zip(matrix["labels"], matrix["counts"], strict=True):
        total = sum(counts) or 1
        # Strong enough to be visible, weak enough for the text on it.
        cells = [
            {"text": f"{count:,}" if count else "·", "shade": round(0.55 * (count / total) ** 0.5, 3)}
            for count in counts
        ]
        rows.append({"name": name, "cells": cells})
    return {"labels": matrix["labels"], "rows": rows}


def _confusions(matrix: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    labels = matrix["labels"]
    wrong = [
        (labels[row], labels[column], count)
        for row, counts in enumerate(matrix["counts"])
        for column, count in enumerate(counts)
        if count and row != column
    ]
    return sorted(wrong, key=lambda each: -each[2])[:30]


def _classes(classes: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any] | None:
    if not classes:
        return None
    names = [("precision", "Precision"), ("recall", "Recall"), ("f1", "F1"), ("roc_auc", "ROC-AUC")]
    names += [("average_precision", "Average precision"), ("support", "Rows")]
    columns = [(key, title) for key, title in names if any(key in each for each in classes.values())]
    kept = set(sorted(classes, key=lambda name: -classes[name]["support"])[:_CLASSES])
    rows = [
        {"name": name, "cells": [_with_limits(each, key) for key, _ in columns]}
        for name, each in classes.items()
        if name in kept
    ]
    return {"columns": [title for _, title in columns], "rows": rows, "more": len(classes) - len(rows)}


def _with_limits(values: Mapping[str, Any], key: str) -> str:
    limits = values.get("intervals", {}).get(key)
    return number(values.get(key)) + (f" ({number_range(limits)})" if limits else "")


def _charts(metrics: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def add(title: str, svg: str, note: str = "") -> None:
        found.append({"title": title, "svg": Markup(svg), "note": note})  # noqa: S704 - names in it are escaped

    some = (
        f"The {len(data.get('roc', {}))} classes with the most rows."
        if len(data.get("roc", {})) < len(_scored(metrics))
        else ""
    )
    roc = {name: points for name, points in data.get("roc", {}).items() if points}
    if roc:
        add("ROC", charts.lines(roc, Axis("False positive rate"), Axis("True positive rate"), diagonal=True), some)
    curves = {name: points for name, points in data.get("precision_recall", {}).items() if points}
    if curves:
        level = None
        if metrics.get("positive_class") in curves:
            level = metrics["classes"][metrics["positive_class"]]["support"] / metrics["rows"]
        add("Precision and recall", charts.lines(curves, Axis("Recall"), Axis("Precision"), level=level), some)
    if data.get("calibration"):
        what = "probability of the positive class" if metrics.get("positive_class") else "confidence"
        series = {"": data["calibration"]}
        svg = charts.lines(series, Axis(f"Mean {what}"), Axis("Share that is right"), diagonal=True, dots=True)
        add("Calibration", svg, "On the dashed line predicted probabilities equal observed frequencies.")
    lifts = {name: points for name, points in data.get("lift", {}).items() if points}
    if lifts:
        top = max(value for points in lifts.values() for _, value in points)
        y = Axis("Lift", 0, max(top, 1) * 1.08)
        add("Cumulative lift", charts.lines(lifts, Axis("Share of rows, highest score first"), y, level=1.0), some)
    if data.get("residuals"):
        title = "Residual (label − prediction), the middle 99 %"
        add("Residuals", charts.histogram(data["residuals"]["edges"], data["residuals"]["rows"], title))
    if data.get("scatter"):
        values = [value for point in data["scatter"] for value in point]
        axes = covering("Prediction", values), covering("Label", values)
        add("Labels by prediction", charts.dots(data["scatter"], *axes), f"A sample of {len(data['scatter'])} rows.")
    if len(metrics.get("outputs", ())) > 1:
        errors: dict[str, charts.Points] = {"": [(each["output"] + 1, each["mae"]) for each in metrics["outputs"]]}
        baselines = {name: each for name, each in metrics.get("baselines", {}).items() if each["rows"]}
        if baselines:
            errors = {"model": errors[""]} | {
                name.replace("_", " "): [(step["step"], step["mae"]) for step in each["steps"]]
                for name, each in baselines.items()
            }
        y = covering("MAE", [value for points in errors.values() for _, value in points], zero=True)
        of_forecast = metrics.get("baselines") is not None
        x = Axis("Step of the forecast" if of_forecast else "Output", 1, len(metrics["outputs"]))
        add("Error by step" if of_forecast else "Error by output", charts.lines(errors, x, y, dots=True))
    return found


def _scored(metrics: Mapping[str, Any]) -> list[str]:
    """The classes that have curves."""
    return [name for name, each in metrics.get("classes", {}).items() if "roc_auc" in each]


def _slices(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    main = _MAIN[metrics["task"]]
    found = []
    for column, values in metrics["slices"].items():
        largest = set(sorted(values, key=lambda name: -values[name]["rows"])[:_SLICES])
        rows = [
            (name, each[main], each["intervals"].get(main), each["rows"])
            for name, each in values.items()
            if name in largest and each[main] is not None
        ]
        if rows:
            note = f"The {len(rows)} largest of {len(values)} values." if len(rows) < len(values) else ""
            svg = charts.slices(rows, TITLES[main], metrics[main])
            found.append({"title": f"{TITLES[main]} by {column}", "svg": Markup(svg), "note": note})  # noqa: S704 - escaped
    return found


def _drift(drift: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "kind": each["kind"],
            "psi": number(each["psi"]),
            "bad": (each["psi"] or 0) >= 0.25,
            "nulls": f"{each['nulls']:.1%}",
            "trained": f"{each['nulls_in_training']:.1%}",
            "new": f"{', '.join(each['new_categories'])} ({each['new_rows']:,} rows)"
            if each.get("new_categories")
            else "",
        }
        for name, each in drift.items()
    ]
