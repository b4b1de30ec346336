"""The model card: what a trained model is, on what it was trained and how good it is, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FEW_ROWS = 20
SHOWN = 20  # columns, classes and metrics of a list


def card(about: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The text of `README.md`.

    Args:
        about: the content of `training.json`.
        titles: names of metrics as people read them; those that are not there are left out.
    """
    rows, metrics = about["rows"], about["metrics"]
    parts = [
        f"# {about['name']}",
        "",
        f"A model of task {about['task']} that predicts `{about['label']}`. Architecture `{about['architecture']}`"
        + (f", fine-tuned from `{about['pretrained']}`" if about["pretrained"] else "")
        + f", trained with torchbeam {about['torchbeam']}.",
        "",
        "## Data",
        "",
        f"- Source: {_code(about['source'])}",
        *[f"- {line}" for line in _rows(rows)],
        f"- Held out: {about['validation']}",
        *([f"- Classes: {_names(about['labels'])}"] if about["labels"] else []),
        "",
        "## Inputs",
        "",
        "| input | encoder | columns |",
        "| --- | --- | --- |",
        *[f"| {each['name']} | {each['encoder']} | {_names(each['columns'])} |" for each in about["inputs"]],
        "",
        *_list("Features, computed from each row as in training:", about["features"]),
        *_list("Columns that are not used:", about["left_out"]),
        "## Validation",
        "",
        f"On {rows['validated']:,} rows that were not trained on, with the weights of epoch {about['best_epoch']} of "
        f"{len(about['history'])}:",
        "",
        "| metric | value |",
        "| --- | ---: |",
        *[f"| {title} | {_number(metrics[name])} |" for name, title in titles.items() if metrics.get(name) is not None],
        "",
        *_classes(metrics.get("classes") or {}),
        "## Use",
        "",
        "```",
        f"torchbeam score --input=… --model={about['name']} --output=scored",
        "```",
        "",
        "## Limits",
        "",
        *[f"- {line}" for line in _limits(about)],
    ]
    return "\n".join(parts).rstrip() + "\n"


def _rows(rows: Mapping[str, int]) -> list[str]:
    lines = []
    if "read" in rows:
        lines.append(f"Rows read: {rows['read']:,}")
    if rows.get("sampled") not in (None, rows.get("read")):
        lines.append(f"Rows sampled: {rows['sampled']:,}")
    lines.append(f"Rows trained on: {rows['trained']:,}")
    for name, what in (
        ("dropped", "left out by functions"),
        ("dead", "that could not be read or prepared"),
        ("unusable", "that could not be encoded"),
    ):
        if rows.get(name):
            lines.append(f"Rows {what}: {rows[name]:,}")
    return lines


def _limits(about: Mapping[str, Any]) -> list[str]:
    lines = [
        "The numbers above are those of rows like the training rows. `torchbeam evaluate` measures new rows with labels, and "
        "how far their values have drifted from those in `training.json`.",
    ]
    if any(each["encoder"] == "categorical" for each in about["inputs"]):
        lines.append("A category that no training row had is treated as unknown.")
    if any(each.get("allow_nonfinite") for each in about["inputs"]):
        lines.append(
            "Missing numbers are replaced by the mean of the training rows, in columns that had missing ones there; in other "
            "columns a row with a missing number is a dead letter."
        )
    elif any(each["encoder"] == "numeric" for each in about["inputs"]):
        lines.append("A row with a missing number is a dead letter.")
    classes = about["metrics"].get("classes") or {}
    few = [name for name, each in classes.items() if each["support"] < FEW_ROWS]
    if few:
        lines.append(f"Classes with fewer than {FEW_ROWS} validation rows, whose numbers are rough: {_names(few)}.")
    return lines


def _classes(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not classes:
        return []
    lines = ["| class | rows | precision | recall | F1 |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, each in list(classes.items())[:SHOWN]:
        numbers = " | ".join(_number(each[metric]) for metric in ("precision", "recall", "f1"))
        lines.append(f"| {_cell(name)} | {each['support']:,} | {numbers} |")
    return [*lines, *([f"| … {len(classes) - SHOWN} more | | | | |"] if len(classes) > SHOWN else []), ""]


def _list(title: str, items: Mapping[str, str]) -> list[str]:
    if not items:
        return []
    shown = [f"- `{name}`: {_code(text) if title.startswith('Features') else text}" for name, text in items.items()]
    more = [f"- … {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    return [title, "", *shown[:SHOWN], *more, ""]


def _names(names: Sequence[Any]) -> str:
    shown = ", ".join(_cell(str(name)) for name in names[:SHOWN])
    return f"{shown}, … {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{' '.join(str(text).split())}`"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"
