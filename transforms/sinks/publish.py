"""The end of a run: renames its files to their final names and writes the report, which marks the run as finished.

Until then all files are in a temporary folder under the output. Publishing is the last step of the pipeline, and a
runner may retry it after part of the work: each step detects what an earlier attempt has done. The final name of a file
is derived from its temporary name only. So an attempt that gets other files, because a runner recomputed some, neither
confuses files nor leaves extra ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsList, AsSingleton, PCollection

from handlers.errors import AccountingError, PublishError, TorchbeamError
from handlers.model.stores import explain, shared_s3
from transforms.accounting import COMPARISON_FILES, Counts, report, total
from transforms.file_ops import (
    exists,
    files_in,
    join,
    name_of,
    present,
    read_text,
    remove,
    remove_tree,
    rename,
    write_text,
)
from transforms.sinks.bigquery_tables import Tables, load
from transforms.sinks.claims import publishing
from transforms.sinks.formats import dead_letter_format, sink
from transforms.sinks.temporary import temporary_folder
from transforms.sinks.write import Part, write_empty

PREDICTIONS = "predictions"
DEAD_LETTERS = "dead_letters"
FAILED_FILES = "failed_files.jsonl"
REPORT = "report.json"
PARTS = "part-*"


@dataclass(frozen=True)
class Publication:
    """What is published, and where to.

    Attributes:
        output: the folder of the run, local or remote; for tables, the folder of the files to load.
        run_id: letters and digits; part of every file name.
        predictions: the schema of the predictions.
        dead_letters: the schema of the dead letters.
        report_path: the path of the report, if not `<output>/report.json`.
        overwrite: whether a finished run under `output` is replaced.
        models: for a run of several models, the fixed fields of each in the report, by name.
        compares: whether the run compares two models, in `COMPARISON_FILES`.
        started: when the run began, in Unix time.
        tables: the tables to load, if the output is not files under `output`; requires `report_path`.
        keep_folder: whether the local temporary folder stays after publishing, until the driver removes it, so that a
            runner that computes files again finds it.
    """

    output: str
    run_id: str
    predictions: pa.Schema
    dead_letters: pa.Schema
    output_format: str = "parquet"
    report_path: str | None = None
    overwrite: bool = False
    model_name: str = ""
    model_version: str = ""
    model_registered: str = ""
    models: Mapping[str, Mapping[str, Any]] | None = None
    runner: str = ""
    compares: bool = False
    started: float = 0.0
    tables: Tables | None = None
    keep_folder: bool = False

    @property
    def report_file(self) -> str:
        """The path of the report."""
        return self.report_path or join(self.output, REPORT)

    @property
    def predictions_at(self) -> str:
        """The folder or the table of the predictions."""
        return f"bigquery:{self.tables.predictions_table}" if self.tables else join(self.output, PREDICTIONS)

    @property
    def dead_letters_at(self) -> str:
        """The folder or the table of the dead letters."""
        return f"bigquery:{self.tables.dead_letters_table}" if self.tables else join(self.output, DEAD_LETTERS)

    @property
    def failed_files_at(self) -> str:
        """The list of the files that could not be read; next to the report if the output is tables."""
        if self.tables is None:
            return join(self.output, FAILED_FILES)
        return f"{self.report_file.removesuffix('.json')}.{FAILED_FILES}"

    def page_at(self, name: str) -> str:
        """The path of one of `COMPARISON_FILES`; next to the report if the output is tables."""
        if self.tables is None:
            return join(self.output, name)
        return f"{self.report_file.removesuffix('.json')}.{name}"

    @property
    def dead_letter_format(self) -> str:
        """The format of the dead letters: Parquet if the format of the predictions cannot hold them."""
        return dead_letter_format(self.output_format)


def left_over(output: str) -> list[str]:
    """The parts under `output`, of any run.

    Without a report they belong to a run that was killed while it published, or whose report is elsewhere. Only
    `overwrite` allows publishing over them.
    """
    return [path for name in (PREDICTIONS, DEAD_LETTERS) for path in files_in(join(output, name), PARTS)]


def publish(
    run: Publication,
    predictions: Sequence[Part],
    dead_letters: Sequence[Part],
    failed_files: Sequence[dict[str, Any]],
    report: dict[str, Any],
    pages: Mapping[str, str] | None = None,
) -> None:
    """Renames the files of a run to their final names and writes its report; safe to retry.

    Raises, before anything changes, `PublishError` if there are outputs of another run and `run.overwrite` is off, or
    if a file to publish is missing; `ClaimLostError` if another run has claimed the output.
    """
    folders = [
        (PREDICTIONS, run.predictions, run.output_format, predictions),
        (DEAD_LETTERS, run.dead_letters, run.dead_letter_format, dead_letters),
    ]
    with publishing(run.output, run.run_id, run.runner) as still_mine:
        if not run.overwrite:
            _refuse_to_mix(run)
        for name, _, _, parts in folders:
            _check_complete(join(run.output, name), _moves(parts, join(run.output, name), run.run_id))
        remove(reports(run.output, run.report_path))
        for name, schema, output_format, parts in folders:
            still_mine()
            _publish_parts(run.run_id, join(run.output, name), schema, output_format, parts)
        still_mine()
        _finish(run, failed_files, report, pages or {})


def publish_tables(
    run: Publication,
    predictions: Sequence[Part],
    dead_letters: Sequence[Part],
    failed_files: Sequence[dict[str, Any]],
    report: dict[str, Any],
    pages: Mapping[str, str] | None = None,
) -> None:
    """Loads the files of a run into its tables and writes its report; safe to retry.

    Raises `ServiceError` if they cannot be loaded, `AccountingError` if a table lacks rows, and `ClaimLostError` if
    another run has claimed the output.
    """
    assert run.tables is not None  # noqa: S101 - checked by the caller
    with publishing(run.output, run.run_id, run.runner) as still_mine:
        remove([path for path in [run.report_file] if exists(path)])
        # Predictions last: a reader that waits for them also finds the dead letters.
        for name, schema, parts in (
            (DEAD_LETTERS, run.dead_letters, dead_letters),
            (PREDICTIONS, run.predictions, predictions),
        ):
            still_mine()
            files = sorted(part.path for part in parts)
            if not files:
                # An empty file creates or empties the table.
                files = [join(temporary_folder(run.output, run.run_id), f"{name}-empty.parquet")]
                write_empty(files[0], schema, run.output_format)
            table = run.tables.dead_letters_table if name == DEAD_LETTERS else run.tables.predictions_table
            loaded = load(run.tables, table, f"torchbeam-{run.run_id}-{name}", schema, files)
            if loaded != (expected := sum(part.rows for part in parts)):
                raise AccountingError(f"{expected} rows were to be loaded into {table}, but BigQuery reports {loaded}")
        still_mine()
        _finish(run, failed_files, report, pages or {})


def _finish(
    run: Publication, failed_files: Sequence[dict[str, Any]], report: dict[str, Any], pages: Mapping[str, str]
) -> None:
    _publish_failed_files(run.failed_files_at, failed_files)
    for name in COMPARISON_FILES:
        if name in pages:
            write_text(run.page_at(name), pages[name])
        elif run.overwrite and exists(run.page_at(name)):  # of the run that is replaced
            remove([run.page_at(name)])
    temporary = temporary_folder(run.output, run.run_id)
    for folder in Path(temporary).iterdir() if run.keep_folder else [temporary]:
        remove_tree(str(folder))
    write_text(run.report_file, json.dumps(report | {"run_id": run.run_id}, indent=2) + "\n")


def _publish_parts(run_id: str, folder: str, schema: pa.Schema, output_format: str, parts: Sequence[Part]) -> None:
    moves = _moves(parts, folder, run_id)
    extension = sink(output_format).extension
    empty = join(folder, f"part-{run_id}-empty{extension}")
    wanted = set(moves.values()) or {empty}
    remove(sorted(set(files_in(folder, PARTS)) - wanted))
    if not moves:
        write_empty(empty, schema, output_format)
        return
    # A file without its temporary name was renamed by an earlier attempt.
    rename([(path, moves[path]) for path in sorted(present(moves))])


def _moves(parts: Sequence[Part], folder: str, run_id: str) -> dict[str, str]:
    """From temporary to final name: `part-<run_id>-<unique name>.<extension>`."""
    return {part.path: join(folder, f"part-{run_id}-{name_of(part.path).removeprefix('part-')}") for part in parts}


def _check_complete(folder: str, moves: Mapping[str, str]) -> None:
    waiting, published = present(moves), set(files_in(folder, PARTS))
    lost = [path for path, final in moves.items() if path not in waiting and final not in published]
    if lost:
        raise PublishError(f"{len(lost)} files to publish in {folder} are missing, the first is {lost[0]}; run again")


def _refuse_to_mix(run: Publication) -> None:
    others = [path for path in left_over(run.output) if not name_of(path).startswith(f"part-{run.run_id}-")]
    if others:
        raise PublishError(f"{run.output} holds files of another run ({name_of(others[0])}): --overwrite replaces them")
    for path in reports(run.output, run.report_path):
        if run_of(path) != run.run_id:
            raise PublishError(f"{path} is the report of another run: --overwrite replaces it")


def reports(output: str, report_path: str | None = None) -> list[str]:
    """The reports of finished runs: under `output`, and at `report_path` if it is elsewhere."""
    default = join(output, REPORT)
    return [path for path in sorted({default, report_path or default}) if exists(path)]


def run_of(report_file: str) -> str | None:
    """The run id in a report; None if the file is not a report."""
    try:
        found = json.loads(read_text(report_file)).get("run_id")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def read_report(report_file: str) -> dict[str, Any]:
    """The report of a finished run."""
    found: dict[str, Any] = json.loads(read_text(report_file))
    return found


def _publish_failed_files(path: str, failed_files: Sequence[dict[str, Any]]) -> None:
    if failed_files:
        ordered = sorted(failed_files, key=lambda failed: str(failed["path"]))
        write_text(path, "".join(json.dumps(failed, ensure_ascii=False) + "\n" for failed in ordered))
    elif exists(path):
        remove([path])


# The transform


class Outputs(TypedDict):
    """The outputs of a run, which are the input of `Publish`."""

    predictions: PCollection[Part]
    dead_letters: PCollection[Part]
    failed_files: PCollection[dict[str, Any]]
    counts: PCollection[Counts]
    pages: NotRequired[PCollection[Mapping[str, str]]]


@dataclass(eq=False)
class Publish(beam.PTransform[Any, Any]):
    """`Outputs` to a PCollection of the report, once everything is published.

    Adds up the counts and checks them against the rows of the files.
    """

    run: Publication

    def expand(self, outputs: Outputs) -> PCollection[dict[str, Any]]:
        """Waits for all `outputs`, as side inputs of a single element."""
        counts = outputs["counts"] | "Count" >> beam.CombineGlobally(total)
        published: PCollection[dict[str, Any]] = (
            outputs["counts"].pipeline
            | "Once" >> beam.Create([self.run])
            | "Publish"
            >> beam.Map(
                publish_run,
                AsList(outputs["predictions"]),
                AsList(outputs["dead_letters"]),
                AsList(outputs["failed_files"]),
                AsSingleton(counts),
                *([AsSingleton(outputs["pages"])] if "pages" in outputs else []),
            ).with_output_types(dict[str, Any])
        )
        return published


@shared_s3()
def publish_run(
    run: Publication,
    predictions: Sequence[Part],
    dead_letters: Sequence[Part],
    failed_files: Sequence[dict[str, Any]],
    counts: Counts,
    pages: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Publishes a run and returns its report; `pages` are the texts of further files by their names: `COMPARISON_FILES`.

    Raises, before anything changes, `AccountingError` if the counts do not add up or differ from the rows of the files, and
    `PublishError` if the run has ended in the meantime.
    """
    if run.keep_folder and not Path(folder := temporary_folder(run.output, run.run_id)).is_dir():
        raise PublishError(f"{folder} was removed, as it is once a run has ended: nothing is published; run again")
    found = report(
        counts,
        model_name=run.model_name,
        model_version=run.model_version,
        registered=run.model_registered,
        runner=run.runner,
        seconds=time.time() - run.started,
        models=run.models,
    )
    _check_rows(PREDICTIONS, predictions, counts.rows_scored)
    _check_rows(DEAD_LETTERS, dead_letters, counts.rows_dead)
    try:
        write = publish_tables if run.tables else publish
        write(run, predictions, dead_letters, failed_files, found, pages)
    except TorchbeamError:
        raise
    except Exception as error:
        raise PublishError(f"{run.output} cannot be published: {explain(error)}") from error
    return found | {"run_id": run.run_id}


def _check_rows(name: str, parts: Iterable[Part], expected: int) -> None:
    written = sum(part.rows for part in parts)
    if written != expected:
        raise AccountingError(
            f"{expected} rows were counted for {name}, but its files hold {written}: nothing is published"
        )
