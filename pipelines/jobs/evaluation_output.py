"""What an evaluation writes: metrics and a page, or of several models those of each and a page of all."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from handlers.errors import TorchbeamError
from transforms.accounting import Counts
from transforms.evaluation.compare import Pairs
from transforms.evaluation.evaluate import Totals
from transforms.evaluation.report import html, html_of_models
from transforms.evaluation.result import Subject, evaluation
from transforms.file_ops import exists, join, read_text, remove, write_text

METRICS, PAGE = "metrics.json", "report.html"


@dataclass(frozen=True)
class Target:
    """Where an evaluation goes; `run_id` is that of the evaluation itself.

    Attributes:
        subjects: what is evaluated: the name of each model in a run of several, or one with an empty name.
    """

    output: str
    run_id: str
    subjects: tuple[tuple[str, Subject], ...]
    runner: str
    started: float = 0.0

    @property
    def refusal(self) -> str:
        """The file that says why there are no metrics, read by the driver and removed."""
        return join(self.output, f"_refused-{self.run_id}.json")


def write(
    target: Target, counts: Counts, other: Totals | None = None, pairs: Pairs | None = None, **totals: Totals
) -> dict[str, Any]:
    """Writes the pages and, last of all, the metrics; or why there are none. May be called again after an interruption.

    Args:
        target: where to.
        counts: what was read.
        other: totals of the run that is compared with.
        pairs: its rows matched with those of the run.
        totals: `totals_0` and so on, for each of the subjects.
    """
    about = {
        "run_id": target.run_id,
        "runner": target.runner,
        "seconds": round(time.time() - target.started, 3),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    found: dict[str, dict[str, Any]] = {}
    refused: dict[str, TorchbeamError] = {}
    for index, (name, subject) in enumerate(target.subjects):
        try:
            result = evaluation(totals[f"totals_{index}"], counts, subject, other, pairs)
        except TorchbeamError as error:
            refused[name] = error
            continue
        found[name] = result.metrics | about
        write_text(join(_folder(target, name), PAGE), html(replace(result, metrics=found[name])))
        if name:
            _write_metrics(_folder(target, name), found[name])
    if not found:
        name, reason = next(iter(refused.items()))
        message = f'model "{name}": {reason}' if name else str(reason)
        write_text(target.refusal, json.dumps({"type": type(reason).__name__, "message": message}))
        return {}
    metrics = found.get("")
    if metrics is None:
        metrics = _of_models(found, refused, target) | about
        write_text(join(target.output, PAGE), html_of_models(metrics))
    _remove_others(target.output, found)
    _write_metrics(target.output, metrics)
    return metrics


def _of_models(found: dict[str, dict[str, Any]], refused: dict[str, TorchbeamError], target: Target) -> dict[str, Any]:
    """The metrics of a run of several models: those of each below its name."""
    first = next(iter(found.values()))
    return {
        "label": first["label"],
        "input": target.subjects[0][1].input,
        **{name: first[name] for name in ("rows_read", "rows_dead", "rows_dropped", "files_dead")},
        "models": found,
        "warnings": [f'Model "{name}" is not evaluated: {error}.' for name, error in refused.items()],
    }


def _remove_others(output: str, found: dict[str, dict[str, Any]]) -> None:
    """Removes what an evaluation that is replaced wrote of other models."""
    with suppress(Exception):
        before = json.loads(read_text(join(output, METRICS))).get("models", {})
        paths = [join(join(output, name), file) for name in set(before) - set(found) for file in (METRICS, PAGE)]
        remove([path for path in paths if exists(path)])


def _folder(target: Target, name: str) -> str:
    return join(target.output, name) if name else target.output


def _write_metrics(folder: str, metrics: dict[str, Any]) -> None:
    write_text(join(folder, METRICS), json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
