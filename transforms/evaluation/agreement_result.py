"""The result of a comparison of two models: the content of `comparison.json`, and the page `comparison.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from markupsafe import Markup

from handlers.graph.result import ModelCounts
from transforms.accounting import COMPARISON_FILES, Counts
from transforms.evaluation import charts, intervals
from transforms.evaluation.agreement import Agreement, Side
from transforms.evaluation.page import template
from transforms.evaluation.regression import QUANTILES, quantile
from transforms.evaluation.report import MATRIX_CLASSES, matrix_cells, number, number_range

_VALUE = {"classification": "confidence", "multilabel": "probability", "regression": "prediction"}
_BINS = 40
_PAIRS = 50
_CLASSES = 30


def pages(found: Agreement, counts: Counts, about: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The files of a comparison by name: `comparison.json` and `comparison.html`.

    Args:
        found: the totals of all rows.
        counts: of the run.
        about: the fixed fields of each model in the report.
    """
    content = result(found, counts, about)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return dict(zip(COMPARISON_FILES, (text, html(content)), strict=True))


def result(found: Agreement, counts: Counts, about: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `comparison.json`; differences are first − second."""
    plan = found.plan
    sides = {
        name: dict(about.get(name, {})) | _of_side(side, counts.models.get(name, ModelCounts()), _VALUE[plan.task])
        for name, side in zip(plan.models, (found.first, found.second), strict=True)
    }
    share = found.equal / found.rows if found.rows else None
    limits = intervals.wilson(found.equal, found.rows)
    return {
        "task": plan.task,
        "first": plan.models[0],
        "second": plan.models[1],
        "rows": found.rows,
        "rows_only_first": found.first.rows - found.rows,
        "rows_only_second": found.second.rows - found.rows,
        "rows_equal": found.equal,
        "agreement": share,
        "agreement_interval": list(limits) if limits else None,
        "models": sides,
        "confusion": _confusion(found) if plan.task == "classification" else None,
        "difference": _difference(found),
        "columns": list(plan.shown),
        "rows_that_differ_most": [
            {"distance": distance, "values": list(values)} for distance, values in found.most_different.rows
        ],
    }


def _of_side(side: Side, counts: ModelCounts, what: str) -> dict[str, Any]:
    ran = counts.rows_in - counts.skipped
    found: dict[str, Any] = {
        "rows_scored": side.rows,
        "rows_dead": counts.dead,
        "seconds": round(counts.seconds, 3),
        "microseconds_per_row": round(1e6 * counts.seconds / ran, 3) if ran else None,
        f"mean_{what}": side.value.value(),
    }
    if side.classes:
        ordered = sorted(side.classes.items(), key=lambda item: (-item[1], item[0]))
        found["classes"] = dict(ordered)
    return found


def _confusion(found: Agreement) -> dict[str, Any]:
    """Rows by the class of the first model and that of the second: a matrix, or of many classes the most frequent pairs."""
    labels = sorted({name for pair in found.pairs for name in pair})
    pairs = sorted(found.pairs.items(), key=lambda item: (-item[1], item[0]))
    if len(labels) <= MATRIX_CLASSES:
        return {"labels": labels, "counts": [[found.pairs[one, two] for two in labels] for one in labels]}
    different = [(one, two, rows) for (one, two), rows in pairs if one != two]
    return {
        "pairs": [{"first": one, "second": two, "rows": rows} for one, two, rows in different[:_PAIRS]],
        "rows_in_other_pairs": sum(rows for _, _, rows in different[_PAIRS:]) + found.other_pairs,
    }


def _difference(found: Agreement) -> dict[str, Any] | None:
    """Of confidence or prediction, over the rows that both models answered."""
    mean = found.difference.value()
    if mean is None:
        return None
    values, counts = found.spread.weighted()
    total = found.difference.total()
    rows = float(total.count[0])
    error = found.difference.error()
    limits = intervals.normal(mean, error) if error is not None else None
    low, high = quantile(values, counts, 0.005), quantile(values, counts, 0.995)
    histogram = None
    if high > low:
        height, edges = np.histogram(values, _BINS, (low, high), weights=counts)
        histogram = {"edges": edges.tolist(), "rows": height.astype(int).tolist()}
    return {
        "of": _VALUE[found.plan.task],
        "mean": mean,
        "mean_interval": list(limits) if limits else None,
        "mean_absolute": found.distance.value(),
        "rmse": sqrt(float(total.m2[0]) / rows + mean**2),
        "correlation": _correlation(found),
        "quantiles": {f"p{round(share * 100):02d}": quantile(values, counts, share) for share in QUANTILES},
        "exact": found.spread.bins is None,
        "histogram": histogram,
    }


def _correlation(found: Agreement) -> float | None:
    """Pearson's, from the spreads of both and of their sum."""
    one, two, both = (float(each.total().m2[0]) for each in (*found.both, found.total))
    return max(-1.0, min(1.0, (both - one - two) / 2 / sqrt(one * two))) if one > 0 and two > 0 else None


def html(content: Mapping[str, Any]) -> str:
    """The page."""
    confusion = content["confusion"]
    return template("comparison.html.j2").render(
        found=content,
        names=(content["first"], content["second"]),
        cards=_cards(content),
        models=_models(content),
        matrix=matrix_cells(confusion) if confusion and "labels" in confusion else None,
        pairs=confusion.get("pairs") if confusion else None,
        charts=_charts(content),
        most_different=[
            {"distance": number(row["distance"]), "values_": row["values"]} for row in content["rows_that_differ_most"]
        ],
    )


def _cards(content: Mapping[str, Any]) -> list[dict[str, str]]:
    cards = [{"title": "Rows that both answered", "value": number(content["rows"]), "limits": ""}]
    if content["agreement"] is not None:
        limits = number_range(content["agreement_interval"])
        cards.append({"title": "Same answer", "value": f"{content['agreement']:.2%}", "limits": limits})
    if difference := content["difference"]:
        what = difference["of"]
        limits = number_range(difference["mean_interval"])
        cards.append({"title": f"Difference of {what}", "value": f"{difference['mean']:+.3g}", "limits": limits})
        cards.append({"title": "Mean absolute difference", "value": number(difference["mean_absolute"]), "limits": ""})
        cards.append({"title": "Correlation", "value": number(difference["correlation"]), "limits": ""})
    return cards


def _models(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table of both models: a title, and the value of each."""
    what = _VALUE[content["task"]]
    titles = {
        "version": "Version",
        "rows_scored": "Rows answered",
        "rows_dead": "Rows failed",
        f"mean_{what}": f"Mean {what}",
        "seconds": "Seconds in the model",
        "microseconds_per_row": "Microseconds a row",
        "parameter_bytes": "Bytes of parameters",
    }
    sides = [content["models"][content[which]] for which in ("first", "second")]
    lines = [
        {"title": title, "values_": [_shown(side.get(name)) for side in sides]}
        for name, title in titles.items()
        if any(name in side for side in sides)
    ]
    classes = {name: None for side in sides for name in list(side.get("classes", {}))[:_CLASSES]}
    for name in classes:
        shares = [
            f"{side['classes'].get(name, 0) / side['rows_scored']:.1%}" if side.get("classes") else "–"
            for side in sides
        ]
        lines.append({"title": f"Share of {name}", "values_": shares})
    return lines


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else number(value)


def _charts(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    difference = content["difference"]
    if not difference or not difference["histogram"]:
        return []
    title = f"{content['first']} − {content['second']}, the middle 99 %"
    svg = charts.histogram(difference["histogram"]["edges"], difference["histogram"]["rows"], title)
    return [{"title": f"Difference of {difference['of']}", "svg": Markup(svg)}]  # noqa: S704 - names in it are escaped
