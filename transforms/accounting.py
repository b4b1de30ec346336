"""Counting every row once, and the report that proves it.

The counts come from the data itself, combined in the pipeline: metrics count a retried bundle twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection, TaggedOutput

from handlers.columnar.chunks import DEAD_LETTER
from handlers.errors import AccountingError
from handlers.graph.result import ModelCounts
from handlers.version import __version__

# Further files of a run that compares two models: the numbers and the page.
COMPARISON_FILES = ("comparison.json", "comparison.html")

_NONE = ModelCounts()
_FAILED = "failed"
_PARTS = "parts"


@dataclass(frozen=True)
class Counts:
    """What happened to rows and files. Adding two gives the counts of both.

    Attributes:
        dead_by_error: rows by `"stage/ErrorType"`.
        noted: further counts of the encoders by name, such as `texts_truncated`.
        models: what each model did, in a run of several.
    """

    rows_read: int = 0
    rows_scored: int = 0
    rows_dropped: int = 0
    rows_dead: int = 0
    files_read: int = 0
    files_dead: int = 0
    dead_by_error: Mapping[str, int] = field(default_factory=dict)
    noted: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, ModelCounts] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            rows_read=self.rows_read + other.rows_read,
            rows_scored=self.rows_scored + other.rows_scored,
            rows_dropped=self.rows_dropped + other.rows_dropped,
            rows_dead=self.rows_dead + other.rows_dead,
            files_read=self.files_read + other.files_read,
            files_dead=self.files_dead + other.files_dead,
            dead_by_error=_sums(self.dead_by_error, other.dead_by_error),
            noted=_sums(self.noted, other.noted),
            models={
                name: self.models.get(name, _NONE) + other.models.get(name, _NONE)
                for name in {**self.models, **other.models}
            }
            if self.models or other.models
            else {},
        )


def _sums(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of `counts`."""
    return sum(counts, Counts())


class FileRecord(Protocol):
    """What a source reports when it has finished a file, or one split of it.

    `rows` were read and passed on; `error` is None if the split was read to its end; `whole` is true if the split is the
    whole file.
    """

    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def dead(self) -> int: ...  # noqa: D102
    @property
    def error(self) -> str | None: ...  # noqa: D102
    @property
    def whole(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class FileOutcome:
    """A whole file: the rows of all its splits, and the first error of any of them."""

    path: str
    rows: int
    error: str | None

    def failed(self) -> dict[str, Any]:
        """The line of `failed_files.jsonl`."""
        return {"path": self.path, "error": self.error, "rows": self.rows}


def file_outcome(path: str, records: Iterable[FileRecord]) -> FileOutcome:
    """Combines the splits of the file `path`; a file with any error is dead."""
    records = list(records)
    errors = sorted(record.error for record in records if record.error is not None)
    return FileOutcome(path, sum(record.rows for record in records), errors[0] if errors else None)


def dead_at_read(letters: pa.RecordBatch) -> Counts:
    """The counts of rows that could not be read, from their dead letters."""
    errors = Counter(f"read/{kind}" for kind in letters.column(DEAD_LETTER).field("type").to_pylist())
    return Counts(rows_dead=letters.num_rows, dead_by_error=errors)


def outcomes_of(records: Iterable[FileRecord]) -> tuple[Counts, list[FileOutcome]]:
    """The counts of files, whose splits are all in `records`, and of the rows read from them; and the files with an error."""
    by_path: dict[str, list[FileRecord]] = {}
    for record in records:
        by_path.setdefault(record.path, []).append(record)
    outcomes = [file_outcome(path, found) for path, found in by_path.items()]
    rows = sum(outcome.rows for outcome in outcomes)
    return replace(_file_counts(outcomes), rows_read=rows), [each for each in outcomes if each.error is not None]


class FileAccounts(NamedTuple):
    """The outputs of `FileOutcomes`.

    Attributes:
        counts: `Counts` of the files and of the rows read from them.
        failed: the `FileOutcome` of every file with an error.
    """

    counts: PCollection[Counts]
    failed: PCollection[FileOutcome]


@dataclass(eq=False)
class FileOutcomes(beam.PTransform[Any, Any]):
    """`PCollection[Sequence[FileRecord]]`, records of splits in groups of any size, to `FileAccounts`."""

    def expand(self, records: PCollection[Any]) -> FileAccounts:
        """Shuffles only files of several splits, by path."""
        found = records | "Whole" >> beam.ParDo(_WholeFiles()).with_outputs(  # type: ignore[no-untyped-call]
            _FAILED, _PARTS, main="counts"
        )
        joined = (
            found[_PARTS]
            | "Group" >> beam.GroupByKey()
            | "Join" >> beam.MapTuple(file_outcome).with_output_types(FileOutcome)
            | "Joined" >> beam.ParDo(_Outcome()).with_outputs(_FAILED, main="counts")  # type: ignore[no-untyped-call]
        )
        return FileAccounts(
            (found.counts, joined.counts) | "Counts" >> beam.Flatten(),
            (found[_FAILED], joined[_FAILED]) | "Failed" >> beam.Flatten(),
        )


@beam.typehints.with_output_types(Counts, failed=FileOutcome, parts=tuple[str, Any])
class _WholeFiles(beam.DoFn):
    def process(self, records: Sequence[FileRecord]) -> Iterator[Any]:
        outcomes = [file_outcome(record.path, [record]) for record in records if record.whole]
        yield replace(_file_counts(outcomes), rows_read=sum(record.rows for record in records))
        for outcome in outcomes:
            if outcome.error is not None:
                yield TaggedOutput(_FAILED, outcome)
        for record in records:
            if not record.whole:
                yield TaggedOutput(_PARTS, (record.path, record))


@beam.typehints.with_output_types(Counts, failed=FileOutcome)
class _Outcome(beam.DoFn):
    def process(self, outcome: FileOutcome) -> Iterator[Any]:
        yield _file_counts([outcome])
        if outcome.error is not None:
            yield TaggedOutput(_FAILED, outcome)


def _file_counts(outcomes: Sequence[FileOutcome]) -> Counts:
    dead = sum(outcome.error is not None for outcome in outcomes)
    return Counts(files_read=len(outcomes) - dead, files_dead=dead)


def model_entry(name: str, version: str, registered: str) -> dict[str, str]:
    """The model of a report; `registered` is its name and version in a registry, such as `credit@3`, or empty."""
    return {"name": name, "version": version, **({"registry": registered} if registered else {})}


def report(
    counts: Counts,
    *,
    model_name: str,
    model_version: str,
    runner: str,
    seconds: float,
    registered: str = "",
    models: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The content of `report.json`; `models` are the fixed fields of each model, in a run of several.

    Raises `AccountingError` if a row is missing or counted twice.
    """
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
        "model": model_entry(model_name, model_version, registered),
        **(
            {"models": {name: {**about, **_of_model(name, counts)} for name, about in models.items()}} if models else {}
        ),
        "runner": runner,
        "seconds": round(seconds, 3),
        "rows_per_second": round(counts.rows_read / seconds, 1) if seconds > 0 else 0.0,
        "dead_by_error": _most_first(counts.dead_by_error),
        **({"noted": dict(sorted(counts.noted.items()))} if counts.noted else {}),
        "failure_rate": counts.rows_dead / counts.rows_read if counts.rows_read else 0.0,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "torchbeam": __version__,
    }


def _of_model(name: str, counts: Counts) -> dict[str, Any]:
    """The counts of one of several models, and what its `when` has saved."""
    found = counts.models.get(name, _NONE)
    parts = (found.scored, found.dropped, found.dead, found.skipped)
    if found.rows_in != sum(parts) or min(parts) < 0 or found.rows_in > counts.rows_read:
        raise AccountingError(
            f'{found.rows_in} rows came to model "{name}", but {found.scored} scored + {found.dropped} dropped + '
            f"{found.dead} dead + {found.skipped} skipped came out: the outputs are not published"
        )
    ran = found.rows_in - found.skipped
    keyed = {"loads": found.loads, "peak_bytes": found.peak_bytes} if found.loads else {}
    return {
        "rows_in": found.rows_in,
        "rows_scored": found.scored,
        "rows_dropped": found.dropped,
        "rows_dead": found.dead,
        "rows_skipped": found.skipped,
        "seconds": round(found.seconds, 3),
        "seconds_saved": round(found.seconds / ran * found.skipped, 3) if ran else None,
        **keyed,
        "dead_by_error": _most_first(found.dead_by_error),
    }


def _most_first(errors: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(errors.items(), key=lambda item: (-item[1], item[0])))
