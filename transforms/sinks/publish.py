"""The end of a run: final names for what was written, and the report that says that the run is finished.

Until here everything is in a temporary folder under the output. Publishing is the last step of the pipeline, and a
runner may retry it after part of the work: each step finds what an earlier attempt has done. A file's final name
follows from its temporary one alone, so an attempt that is given other files, because a runner computed some again,
neither takes one for another nor leaves one too many.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsList, AsSingleton, PCollection

from handlers.errors import AccountingError, PublishError, TorchbeamError
from handlers.model.stores import explain, shared_s3
from transforms.accounting import Counts, report, total
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
    """What is published, and where.

    Attributes:
        output: the folder of the run, local or remote; where it goes to tables, one for the files until then.
        run_id: of letters and digits; part of every file name.
        predictions: the schema of the predictions.
        dead_letters: the schema of the dead letters.
        report_path: where the report goes, if not to `<output>/report.json`.
        overwrite: whether a finished run under `output` is replaced.
        started: when the run began, in Unix time.
        tables: where it goes, if not to files under `output`; then `report_path` must be given.
        keep_folder: whether the temporary folder, a local one, stays when all that is in it is published: whoever made
            it removes it. A runner that computes files again after that finds it.
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
    runner: str = ""
    started: float = 0.0
    tables: Tables | None = None
    keep_folder: bool = False

    @property
    def report_file(self) -> str:
        """Where the report goes."""
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
        """The list of the files that could not be read; beside the report where there is no folder of the run."""
        if self.tables is None:
            return join(self.output, FAILED_FILES)
        return f"{self.report_file.removesuffix('.json')}.{FAILED_FILES}"

    @property
    def dead_letter_format(self) -> str:
        """The format of the dead letters: Parquet where that of the predictions cannot hold them."""
        return dead_letter_format(self.output_format)


def left_over(output: str) -> list[str]:
    """The parts under `output`, of whatever run.

    Where no run is finished they are from one that was ended while it published, or whose report went elsewhere;
    without `overwrite` nothing can be published beside them.
    """
    return [path for name in (PREDICTIONS, DEAD_LETTERS) for path in files_in(join(output, name), PARTS)]


def publish(
    run: Publication,
    predictions: Sequence[Part],
    dead_letters: Sequence[Part],
    failed_files: Sequence[dict[str, Any]],
    report: dict[str, Any],
) -> None:
    """Gives the files of a run their final names and writes its report; may be called again after an interruption.

    Raises, before anything is touched, `PublishError` where another run's outputs are there and `run.overwrite` is off,
    and where a file to be published is gone; `ClaimLostError` where another run has claimed the output.
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
        _finish(run, failed_files, report)


def publish_tables(
    run: Publication,
    predictions: Sequence[Part],
    dead_letters: Sequence[Part],
    failed_files: Sequence[dict[str, Any]],
    report: dict[str, Any],
) -> None:
    """Loads the files of a run into its tables and writes its report; may be called again after an interruption.

    Raises `ServiceError` where they cannot be loaded, `AccountingError` where a table has not got all of its rows, and
    `ClaimLostError` where another run has claimed the output.
    """
    assert run.tables is not None  # noqa: S101 - the caller has looked
    with publishing(run.output, run.run_id, run.runner) as still_mine:
        remove([path for path in [run.report_file] if exists(path)])
        # The predictions last: whoever waits for them finds the dead letters, too.
        for name, schema, parts in (
            (DEAD_LETTERS, run.dead_letters, dead_letters),
            (PREDICTIONS, run.predictions, predictions),
        ):
            still_mine()
            files = sorted(part.path for part in parts)
            if not files:
                # A table without rows is made, or emptied, in the same way.
                files = [join(temporary_folder(run.output, run.run_id), f"{name}-empty.parquet")]
                write_empty(files[0], schema, run.output_format)
            table = run.tables.dead_letters_table if name == DEAD_LETTERS else run.tables.predictions_table
            loaded = load(run.tables, table, f"torchbeam-{run.run_id}-{name}", schema, files)
            if loaded != (expected := sum(part.rows for part in parts)):
                raise AccountingError(f"{expected} rows were to be loaded into {table}, but BigQuery tells of {loaded}")
        still_mine()
        _finish(run, failed_files, report)


def _finish(run: Publication, failed_files: Sequence[dict[str, Any]], report: dict[str, Any]) -> None:
    _publish_failed_files(run.failed_files_at, failed_files)
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
    # What is not under its temporary name has its final one: an earlier attempt got so far.
    rename([(path, moves[path]) for path in sorted(present(moves))])


def _moves(parts: Sequence[Part], folder: str, run_id: str) -> dict[str, str]:
    """From temporary to final name: `part-<run_id>-<what tells this file from all others>.<extension>`."""
    return {part.path: join(folder, f"part-{run_id}-{name_of(part.path).removeprefix('part-')}") for part in parts}


def _check_complete(folder: str, moves: Mapping[str, str]) -> None:
    waiting, published = present(moves), set(files_in(folder, PARTS))
    lost = [path for path, final in moves.items() if path not in waiting and final not in published]
    if lost:
        raise PublishError(f"files to be published in {folder} are gone: {len(lost)}, {lost[0]} the first; run again")


def _refuse_to_mix(run: Publication) -> None:
    others = [path for path in left_over(run.output) if not name_of(path).startswith(f"part-{run.run_id}-")]
    if others:
        raise PublishError(f"{run.output} holds files of another run ({name_of(others[0])}): --overwrite replaces them")
    for path in reports(run.output, run.report_path):
        if run_of(path) != run.run_id:
            raise PublishError(f"{path} is the report of another run: --overwrite replaces it")


def reports(output: str, report_path: str | None = None) -> list[str]:
    """The reports of finished runs: under `output`, and at `report_path` where it is elsewhere."""
    default = join(output, REPORT)
    return [path for path in sorted({default, report_path or default}) if exists(path)]


def run_of(report_file: str) -> str | None:
    """The id of the run that a report is of; None where the file is no report."""
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
    """What comes out of a run: the input of `Publish`."""

    predictions: PCollection[Part]
    dead_letters: PCollection[Part]
    failed_files: PCollection[dict[str, Any]]
    counts: PCollection[Counts]


@dataclass(eq=False)
class Publish(beam.PTransform[Any, Any]):
    """`Outputs` to a PCollection of the report, once everything is published.

    The counts may be one or many; they are added up. They are held against the rows of the files, too.
    """

    run: Publication

    def expand(self, outputs: Outputs) -> PCollection[dict[str, Any]]:
        """Waits for all of `outputs`, as side inputs of a single element."""
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
) -> dict[str, Any]:
    """Publishes a run and gives its report.

    Raises, before anything is touched, `AccountingError` where the counts do not add up or are not those of the files, and
    `PublishError` where the run has ended meanwhile.
    """
    if run.keep_folder and not Path(folder := temporary_folder(run.output, run.run_id)).is_dir():
        raise PublishError(f"{folder} was removed, as it is once a run has ended: nothing is published; run again")
    found = report(
        counts,
        model_name=run.model_name,
        model_version=run.model_version,
        runner=run.runner,
        seconds=time.time() - run.started,
    )
    _check_rows(PREDICTIONS, predictions, counts.rows_scored)
    _check_rows(DEAD_LETTERS, dead_letters, counts.rows_dead)
    try:
        (publish_tables if run.tables else publish)(run, predictions, dead_letters, failed_files, found)
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
