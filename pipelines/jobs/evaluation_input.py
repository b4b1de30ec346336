"""What is evaluated: a scored run, or each model of a run of several, by the columns that hold its answers."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from handlers.errors import UsageError
from transforms.evaluation.plan import EvaluationPlan
from transforms.evaluation.result import Subject
from transforms.evaluation.settle import Wanted, settle
from transforms.evaluation.views import View, view
from transforms.file_ops import exists, join, read_text
from transforms.sinks.publish import PREDICTIONS, REPORT
from transforms.sources import Input


@dataclass(frozen=True)
class Run:
    """A scored run, or one model of a run of several (`view`): its rows, and how labels and predictions are read from them."""

    input: Input
    plan: EvaluationPlan
    view: View | None = None

    def seen(self, schema: pa.Schema) -> pa.Schema:
        """The columns of `schema` that the model sees."""
        return self.view.schema(schema) if self.view else schema

    @property
    def label(self) -> str:
        """What the names of its steps end with."""
        return f" {self.view.name}" if self.view else ""


@dataclass(frozen=True)
class Scored:
    """A scored output: where its rows are, and what its report says of it and of each of several models."""

    path: str
    subject: Subject
    models: dict[str, Any] = field(default_factory=dict)

    def model(self, name: str) -> dict[str, str]:
        """The entry of one of several models."""
        known = self.models.get(name, {})
        return {"name": name} | {
            key: known[key] for key in ("name", "version", "registry") if isinstance(known.get(key), str)
        }


def scored_output(path: str) -> Scored:
    """The rows of a scored output, whose folder may hold more than them, and what its report says."""
    folder = path.rstrip("/") or path
    if folder.rpartition("/")[2] == PREDICTIONS:
        report = join(folder.rpartition("/")[0] or ".", REPORT)
    else:
        report = join(folder, REPORT)
        if exists(join(folder, PREDICTIONS)) or exists(report):
            path = join(folder, PREDICTIONS)
    found: dict[str, Any] = {}
    with suppress(Exception):  # there may be none, or one of something else
        found = json.loads(read_text(report)) if exists(report) else {}
    if not isinstance(found, dict) or "rows_scored" not in found:
        return Scored(path, Subject(path))
    model = {name: str(value) for name, value in found.get("model", {}).items()}
    subject = Subject(path, model, dead_by_error=found.get("dead_by_error", {}), failed=found.get("rows_dead", 0))
    return Scored(path, subject, found.get("models") or {})


def settled_run(
    source: Input, schema: pa.Schema, sample: pa.RecordBatch, asked: Wanted, seen: View | None, where: str
) -> Run:
    """The run with what is settled of it; raises `UsageError` where the columns do not fit."""
    if seen is None:
        return Run(source, settle(schema, sample, asked, where))
    try:
        return Run(source, settle(seen.schema(schema), seen.rows(sample), asked, where), seen)
    except UsageError as error:
        raise UsageError(f'model "{seen.name}": {error}; --model_name=NAME evaluates one model') from None


def view_of(schema: pa.Schema, models: tuple[str, ...], name: str | None, where: str) -> View | None:
    """The view of the model `name`; None for a run of one model."""
    if name in models:
        return view(schema, name, models)
    if models:
        what = f'has no model "{name}" to evaluate; it has' if name else "has several models; add --model_name"
        raise UsageError(f"{where} {what}: {', '.join(models)}")
    if name is not None:
        raise UsageError(f"--model_name={name} is for a run of several models, and {where} is of one; leave it out")
    return None
