"""The end of a run: final names for what was written, and the report that says that the run is finished.

Until here everything is in a temporary folder under the output. Publishing is the last step of the pipeline, and a
runner may retry it after part of the work: each step finds what an earlier attempt has done. A file's final name
follows from its temporary one alone, so an attempt that is given other files, because a runner computed some again,
neither takes one for another nor leaves one too many.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, TypedDict

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsList, AsSingleton, PCollection

from handlers.errors import TorchbeamError
from handlers.stores import explain
from transforms.accounting import AccountingError, CombineCounts, Counts, report
from transforms.bigquery_tables import Tables, load
from transforms.sink_formats import dead_letter_format, sink
from transforms.sinks import Part, create, write_empty

PREDICTIONS = "predictions"
DEAD_LETTERS = "dead_letters"
FAILED_FILES = "failed_files.jsonl"
REPORT = "report.json"


class PublishError(TorchbeamError):
    """The outputs of a run could not be given their final names."""


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


def temporary_folder(output: str, run_id: str) -> str:
    """Where a run writes until it is published; readers skip names that begin with an underscore."""
    return join(output, f"_tmp-{run_id}")


def run_finished(output: str, report_path: str | None = None) -> bool:
    """Whether there is a finished run under `output`."""
    return bool(_reports(output, report_path))


def report_exists(report_path: str) -> bool:
    """Whether there is a report at `report_path`."""
    return _exists(report_path)


def left_over(output: str) -> list[str]:
    """The parts under `output`, of whatever run.

    Where no run is finished they are from one that was ended while it published, or whose report went elsewhere;
    without `overwrite` nothing can be published beside them.
    """
    return [path for name in (PREDICTIONS, DEAD_LETTERS) for path in _parts(join(output, name))]


def clean_up(output: str, run_id: str) -> None:
    """Removes the temporary folder of a run that failed, as well as it can."""
    with suppress(Exception):  # the run has failed with an error of its own, which is the one to be told
        _remove_tree(temporary_folder(output, run_id))


def publish(
    run: Publication,
    predictions: Sequence[Part],
    dead_letters: Sequence[Part],
    failed_files: Sequence[dict[str, Any]],
    report: dict[str, Any],
) -> None:
    """Gives the files of a run their final names and writes its report; may be called again after an interruption.

    Raises `PublishError`, before anything is touched, where another run's outputs are there and `run.overwrite` is off,
    and where a file to be published is gone.
    """
    folders = [
        (PREDICTIONS, run.predictions, run.output_format, predictions),
        (DEAD_LETTERS, run.dead_letters, run.dead_letter_format, dead_letters),
    ]
    if not run.overwrite:
        _refuse_to_mix(run)
    for name, _, _, parts in folders:
        _check_complete(join(run.output, name), _moves(parts, join(run.output, name), run.run_id))
    _remove(_reports(run.output, run.report_path))
    for name, schema, output_format, parts in folders:
        _publish_parts(run.run_id, join(run.output, name), schema, output_format, parts)
    _finish(run, failed_files, report)


def publish_tables(
    run: Publication,
    predictions: Sequence[Part],
    dead_letters: Sequence[Part],
    failed_files: Sequence[dict[str, Any]],
    report: dict[str, Any],
) -> None:
    """Loads the files of a run into its tables and writes its report; may be called again after an interruption.

    Raises `ServiceError` where they cannot be loaded, and `AccountingError` where a table has not got all of its rows.
    """
    assert run.tables is not None  # noqa: S101 - the caller has looked
    _remove([path for path in [run.report_file] if _exists(path)])
    # The predictions last: whoever waits for them finds the dead letters, too.
    for name, schema, parts in (
        (DEAD_LETTERS, run.dead_letters, dead_letters),
        (PREDICTIONS, run.predictions, predictions),
    ):
        files = sorted(part.path for part in parts)
        if not files:
            # A table without rows is made, or emptied, in the same way.
            files = [join(temporary_folder(run.output, run.run_id), f"{name}-empty.parquet")]
            write_empty(files[0], schema, run.output_format)
        table = run.tables.dead_letters_table if name == DEAD_LETTERS else run.tables.predictions_table
        loaded = load(run.tables, table, f"torchbeam-{run.run_id}-{name}", schema, files)
        if loaded != (expected := sum(part.rows for part in parts)):
            raise AccountingError(f"{expected} rows were to be loaded into {table}, but BigQuery tells of {loaded}")
    _finish(run, failed_files, report)


def _finish(run: Publication, failed_files: Sequence[dict[str, Any]], report: dict[str, Any]) -> None:
    _publish_failed_files(run.failed_files_at, failed_files)
    _remove_tree(temporary_folder(run.output, run.run_id))
    _write_text(run.report_file, json.dumps(report | {"run_id": run.run_id}, indent=2) + "\n")


def _publish_parts(run_id: str, folder: str, schema: pa.Schema, output_format: str, parts: Sequence[Part]) -> None:
    moves = _moves(parts, folder, run_id)
    extension = sink(output_format).extension
    empty = join(folder, f"part-{run_id}-empty{extension}")
    wanted = set(moves.values()) or {empty}
    _remove(sorted(set(_parts(folder)) - wanted))
    if not moves:
        write_empty(empty, schema, output_format)
        return
    # What is not under its temporary name has its final one: an earlier attempt got so far.
    _rename([(path, moves[path]) for path in sorted(_present(moves))])


def _moves(parts: Sequence[Part], folder: str, run_id: str) -> dict[str, str]:
    """From temporary to final name: `part-<run_id>-<what tells this file from all others>.<extension>`."""
    return {part.path: join(folder, f"part-{run_id}-{_name(part.path).removeprefix('part-')}") for part in parts}


def _check_complete(folder: str, moves: Mapping[str, str]) -> None:
    waiting, published = _present(moves), set(_parts(folder))
    lost = [path for path, final in moves.items() if path not in waiting and final not in published]
    if lost:
        raise PublishError(f"files to be published in {folder} are gone: {len(lost)}, {lost[0]} the first; run again")


def _refuse_to_mix(run: Publication) -> None:
    others = [path for path in left_over(run.output) if not _name(path).startswith(f"part-{run.run_id}-")]
    if others:
        raise PublishError(f"{run.output} holds files of another run ({_name(others[0])}): --overwrite replaces them")
    for path in _reports(run.output, run.report_path):
        if _read_run_id(path) != run.run_id:
            raise PublishError(f"{path} is the report of another run: --overwrite replaces it")


def _reports(output: str, report_path: str | None) -> list[str]:
    """The reports of finished runs: under `output`, and at `report_path` where it is elsewhere."""
    default = join(output, REPORT)
    return [path for path in sorted({default, report_path or default}) if _exists(path)]


def _read_run_id(report_file: str) -> str | None:
    try:
        with FileSystems.open(report_file, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            found = json.loads(file.read()).get("run_id")
    except (ValueError, AttributeError):
        return None
    return str(found)


def read_report(report_file: str) -> dict[str, Any]:
    """The report of a finished run."""
    with FileSystems.open(report_file, compression_type="uncompressed") as file:
        found: dict[str, Any] = json.loads(file.read())
    return found


def _publish_failed_files(path: str, failed_files: Sequence[dict[str, Any]]) -> None:
    if failed_files:
        ordered = sorted(failed_files, key=lambda failed: str(failed["path"]))
        _write_text(path, "".join(json.dumps(failed, ensure_ascii=False) + "\n" for failed in ordered))
    elif _exists(path):
        _remove([path])


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
        counts = outputs["counts"] | "Count" >> beam.CombineGlobally(CombineCounts())
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


def publish_run(
    run: Publication,
    predictions: Sequence[Part],
    dead_letters: Sequence[Part],
    failed_files: Sequence[dict[str, Any]],
    counts: Counts,
) -> dict[str, Any]:
    """Publishes a run and gives its report.

    Raises `AccountingError`, before anything is touched, where the counts do not add up or are not those of the files.
    """
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


# Files, local or remote. Beam's own functions take a path for a pattern, and a local folder may be named `[x]`.


def join(folder: str, name: str) -> str:
    """`name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _is_local(path: str) -> bool:
    return FileSystems.get_scheme(path) is None


def _exists(path: str) -> bool:
    return Path(path).exists() if _is_local(path) else bool(FileSystems.exists(path))


def _matches(pattern: str) -> Iterator[str]:
    for match in FileSystems.match([pattern]):
        yield from (found.path for found in match.metadata_list)


def _parts(folder: str) -> list[str]:
    if _is_local(folder):
        return [join(folder, path.name) for path in Path(folder).glob("part-*")]
    return list(_matches(join(escape(folder), "part-*")))


def _present(paths: Iterable[str]) -> set[str]:
    """Those of `paths` that are there; remote folders are listed, which takes fewer calls than asking for each file."""
    local = {path for path in paths if _is_local(path) and _exists(path)}
    remote = {path for path in paths if not _is_local(path)}
    folders = {path.rsplit("/", 1)[0] for path in remote}
    return local | (remote & {found for folder in folders for found in _matches(join(escape(folder), "*"))})


def _remove(paths: Sequence[str]) -> None:
    for path in paths:
        if _is_local(path):
            Path(path).unlink(missing_ok=True)
    # Of the remote file systems only Google's takes what is to be deleted for a pattern.
    remote = [escape(path) if path.startswith("gs://") else path for path in paths if not _is_local(path)]
    if remote:
        FileSystems.delete(remote)


def _remove_tree(folder: str) -> None:
    if _is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    if FileSystems.get_filesystem(folder).has_dirs():
        if _exists(folder):
            _remove([folder])
        return
    _remove(list(_matches(join(escape(folder), "**"))))


def _rename(moves: Sequence[tuple[str, str]]) -> None:
    local = [(source, target) for source, target in moves if _is_local(target)]
    for source, target in local:
        _rename_local(source, target)
    remote = [move for move in moves if not _is_local(move[1])]
    for folder in {target.rsplit("/", 1)[0] for _, target in remote}:
        if not _exists(folder):
            FileSystems.mkdirs(folder)
    if remote:
        FileSystems.rename([source for source, _ in remote], [target for _, target in remote])


def _rename_local(source: str, target: str) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(source).replace(target)


def _write_text(path: str, text: str) -> None:
    """Writes a whole file or none: by renaming on a local disk; remote stores show a file once it is closed."""
    if not _is_local(path):
        with create(path) as file:
            file.write(text.encode())
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"_{target.name}-{uuid.uuid4().hex[:12]}")
    temporary.write_text(text)
    temporary.replace(target)
