"""Counting every row once, and the report that proves it.

The counts come from the data itself, combined in the pipeline: metrics count a retried bundle twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.pvalue import PCollection

from handlers.errors import AccountingError


@dataclass(frozen=True)
class Counts:
    """What happened to rows and files. Adding two gives the counts of both.

    Attributes:
        dead_by_error: rows by `"stage/ErrorType"`.
    """

    rows_read: int = 0
    rows_scored: int = 0
    rows_dropped: int = 0
    rows_dead: int = 0
    files_read: int = 0
    files_dead: int = 0
    dead_by_error: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        errors = dict(self.dead_by_error)
        for error, rows in other.dead_by_error.items():
            errors[error] = errors.get(error, 0) + rows
        return Counts(
            rows_read=self.rows_read + other.rows_read,
            rows_scored=self.rows_scored + other.rows_scored,
            rows_dropped=self.rows_dropped + other.rows_dropped,
            rows_dead=self.rows_dead + other.rows_dead,
            files_read=self.files_read + other.files_read,
            files_dead=self.files_dead + other.files_dead,
            dead_by_error=errors,
        )


def total(counts: Iterable[Counts]) -> Counts:
    """All of `counts` added up."""
    return sum(counts, Counts())


class FileRecord(Protocol):
    """What a source says when it is done with a file, or with one split of it.

    `rows` were read and handed on; `error` is None where the split was read to its end.
    """

    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def dead(self) -> int: ...  # noqa: D102
    @property
    def error(self) -> str | None: ...  # noqa: D102


@dataclass(frozen=True)
class FileOutcome:
    """A whole file: the rows of all its splits, and the first error of any of them."""

    path: str
    rows: int
    error: str | None

    def counts(self) -> Counts:
        """The file alone; its rows are counted where they go."""
        return Counts(files_dead=1) if self.error is not None else Counts(files_read=1)

    def failed(self) -> dict[str, Any]:
        """The line of `failed_files.jsonl`."""
        return {"path": self.path, "error": self.error, "rows": self.rows}


def file_outcome(path: str, records: Iterable[FileRecord]) -> FileOutcome:
    """Puts the splits of the file `path` together; a file with any error is dead."""
    records = list(records)
    errors = sorted(record.error for record in records if record.error is not None)
    return FileOutcome(path, sum(record.rows for record in records), errors[0] if errors else None)


@dataclass(eq=False)
class FileOutcomes(beam.PTransform[Any, Any]):
    """`PCollection[FileRecord]`, one for each split, to `PCollection[FileOutcome]`, one for each file."""

    def expand(self, records: PCollection[Any]) -> PCollection[FileOutcome]:
        """Groups the records by path."""
        outcomes: PCollection[FileOutcome] = (
            records
            | "ByPath" >> beam.Map(_by_path).with_output_types(tuple[str, Any])
            | "Group" >> beam.GroupByKey()
            | "Outcome" >> beam.MapTuple(file_outcome).with_output_types(FileOutcome)
        )
        return outcomes


def _by_path(record: FileRecord) -> tuple[str, FileRecord]:
    return record.path, record


def report(counts: Counts, *, model_name: str, model_version: str, runner: str, seconds: float) -> dict[str, Any]:
    """What `report.json` says about a run. Raises `AccountingError` where a row is missing or there twice."""
    accounted = counts.rows_scored + counts.rows_dropped + counts.rows_dead
    if counts.rows_read != accounted:
        raise AccountingError(
            f"{counts.rows_read} rows were read, but {counts.rows_scored} scored + {counts.rows_dropped} dropped + "
            f"{counts.rows_dead} dead = {accounted} came out: the outputs are not published"
        )
    return {
        "rows_read": counts.rows_read,
        "rows_scored": counts.rows_scored,
        "rows_dropped": counts.rows_dropped,
        "rows_dead": counts.rows_dead,
        "files_read": counts.files_read,
        "files_dead": counts.files_dead,
        "model": {"name": model_name, "version": model_version},
        "runner": runner,
        "seconds": round(seconds, 3),
        "rows_per_second": round(counts.rows_read / seconds, 1) if seconds > 0 else 0.0,
        "dead_by_error": dict(sorted(counts.dead_by_error.items(), key=lambda item: (-item[1], item[0]))),
        "failure_rate": counts.rows_dead / counts.rows_read if counts.rows_read else 0.0,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "torchbeam": _own_version(),
    }


def _own_version() -> str:
    try:
        return version("torchbeam")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return ""
