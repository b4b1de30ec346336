"""Where a run writes to: checked on the driver, before anything is read."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from handlers.errors import UsageError
from handlers.model import stores
from handlers.paths import is_remote
from pipelines import runners
from pipelines.command.options import SinkOptions
from pipelines.jobs.options import ScoreOptions
from transforms.bigquery import EMULATOR, is_bigquery
from transforms.file_ops import exists, folder_of, join
from transforms.processes import Process
from transforms.sinks.bigquery_tables import Tables, plan_tables
from transforms.sinks.claims import Claim, OutputClaim, held
from transforms.sinks.publish import DEAD_LETTERS, FAILED_FILES, PREDICTIONS, left_over, reports, run_of
from transforms.sinks.temporary import clean_up, missing_folders, remove_abandoned, remove_empty, temporary_folder
from transforms.sources import Input


@dataclass(frozen=True)
class Output:
    """Where a run writes to, claimed for it.

    Attributes:
        folder: local or remote.
        tables: that the files are loaded into, if any.
        claim: that the run holds on `folder`.
    """

    folder: str
    tables: Tables | None
    claim: OutputClaim


@contextmanager
def claimed_output(options: ScoreOptions, tell: Callable[[str], None]) -> Iterator[Output]:
    """Settles the output of a run and keeps other runs out of it, until the run has ended.

    Where it ends with an error, what it has written there is removed, with the folders that were made for it.

    Args:
        options: of the run.
        tell: is given lines for the user.

    Raises:
        UsageError: where the output cannot be written, holds a run already, or is claimed by another one.
    """
    folder, tables = settle_output(options, runners.pipeline_options(options.run.runner, options.beam))
    runners.check_paths(
        options.run, options.beam, [options.source.input, folder, options.model.model, options.sink.report]
    )
    claim = OutputClaim(folder, uuid.uuid4().hex[:12], options.run.runner, Process.current())
    made = missing_folders(temporary_folder(folder, claim.run_id), *_written(options.sink, folder))
    try:
        with _held(claim, folder, options, tell):
            try:
                check_free(options.sink, folder, tables)
                yield Output(folder, tables, claim)
            except BaseException:
                if not claim.left:
                    clean_up(folder, claim.run_id)
                raise
    finally:
        remove_empty(made)


@contextmanager
def _held(claim: OutputClaim, folder: str, options: ScoreOptions, tell: Callable[[str], None]) -> Iterator[None]:
    """Holds a claim, and removes what runs that were killed have left. Other machines may have rights that this one lacks."""
    with ExitStack() as stack:
        try:
            dead = stack.enter_context(held(claim, tell))
        except UsageError:
            raise
        except Exception as error:
            if not is_remote(folder) or runners.in_process(options.run.runner):
                raise UsageError(f"--output {folder} cannot be claimed: {stores.explain(error)}") from error
            tell(
                f"warning: --output {folder} cannot be claimed from here, so another run into it is noticed only when one "
                f"publishes: {stores.explain(error)}"
            )
        else:
            if not claim.atomic:
                tell(
                    f"warning: the file system of --output {folder} has no conditional writes, so two runs that start within "
                    "a second may both claim it; one of them then fails when it publishes"
                )
            _remove_abandoned(folder, claim.run_id, dead, tell)
        yield


def _remove_abandoned(folder: str, run_id: str, dead: Claim | None, tell: Callable[[str], None]) -> None:
    try:
        removed = remove_abandoned(folder, run_id, dead.run_id if dead else None)
    except Exception as error:
        tell(f"warning: {folder} has files of a run that was killed, which cannot be removed: {stores.explain(error)}")
        return
    if removed:
        tell(f"removed {', '.join(removed)} in {folder}, which a run that was killed had left")


def _written(sink: SinkOptions, folder: str) -> list[str]:
    """The folders that a run makes, if they are not there."""
    names = [] if is_bigquery(sink.output) else [PREDICTIONS, DEAD_LETTERS]
    return [folder, *(join(folder, name) for name in names), *([folder_of(sink.report)] if sink.report else [])]


def settle_output(options: ScoreOptions, pipeline_options: PipelineOptions) -> tuple[str, Tables | None]:
    """The folder that files are written to, and the tables that they are loaded into, if any.

    Raises:
        UsageError: where it cannot be written.
    """
    sink = options.sink
    if is_bigquery(sink.output):
        folder, tables = _tables(sink, pipeline_options.view_as(GoogleCloudOptions).temp_location)
    else:
        folder, tables = sink.output, None
        if not is_remote(folder):
            _check_kinds(Path(folder))
    folders = {"--output": folder} | ({"--report": folder_of(sink.report)} if sink.report else {})
    for option, written in folders.items():
        # Workers elsewhere may have rights of their own.
        if not is_remote(written) or runners.in_process(options.run.runner):
            check_writable(option, written)
    return folder, tables


def check_writable(option: str, folder: str) -> None:
    """Writes a small file where `folder` is, or will be, and removes it; a local folder is not made.

    Raises:
        UsageError: it may not be written, or not be removed.
    """
    if is_remote(folder):
        stores.check_writable(option, folder)
        return
    here = Path(folder).absolute()
    there = next(each for each in (here, *here.parents) if os.path.lexists(each))
    if not there.is_dir():
        raise UsageError(f"{option} {folder} cannot be written: {there} is no folder")
    try:
        with tempfile.NamedTemporaryFile(prefix="_tmp-", dir=there) as file:
            file.write(b"Whether this can be written and removed.\n")
    except OSError as error:
        raise UsageError(f"{option} {folder} cannot be written: {there}: {error.strerror or error}") from error


def check_apart(source: Input, model: str, folder: str, report: str | None) -> None:
    """Refuses outputs that would take the place of what the run reads, or become part of it.

    Raises:
        UsageError: names both.
    """
    for option, path in (("--output", folder), ("--report", report)):
        if path and _lies_in(path, model):
            raise UsageError(f"{option} {path} lies in the model, --model {model}; write elsewhere")
    replaced = tuple(f"{_real(join(folder, name))}/" for name in (PREDICTIONS, DEAD_LETTERS))
    report_file = _real(report) if report else None
    for path in sorted({split.path for split in source.splits}):
        real = _real(path)
        if real == report_file:
            raise UsageError(f"--report {report} is a file of the input; name another")
        if real.startswith(replaced):
            raise UsageError(f"{path}, of the input, is part of a run in --output {folder}; write elsewhere")


def _lies_in(path: str, folder: str) -> bool:
    return f"{_real(path)}/".startswith(f"{_real(folder)}/")


def _real(path: str) -> str:
    """A path as it can be compared: without links, where it is local."""
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def check_free(sink: SinkOptions, folder: str, tables: Tables | None) -> None:
    """Refuses an output that holds a run already. The claim comes before: a run that ends in between is found.

    Raises:
        UsageError: says how to replace it.
    """
    if tables is not None:
        if sink.report is not None and exists(sink.report):
            _check_report(sink.report, sink)
        plan_tables(sink.output, overwrite=sink.overwrite)
        return
    output = folder
    try:
        for path in reports(output, sink.report):
            _check_report(path, sink)
        others = [] if sink.overwrite else left_over(output)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--output {output} cannot be looked into: {stores.explain(error)}") from error
    if others:
        raise UsageError(
            f"--output {output} holds files of another run; write elsewhere, or replace it with --overwrite"
        )


def _check_kinds(output: Path) -> None:
    """Refuses what is in the way of the names that a run gives."""
    for name in (PREDICTIONS, DEAD_LETTERS):
        if (output / name).exists() and not (output / name).is_dir():
            raise UsageError(f"--output {output} cannot be written: {output / name} is no folder")
    if (output / FAILED_FILES).is_dir():
        raise UsageError(f"--output {output} cannot be written: {output / FAILED_FILES} is a folder")


def _check_report(path: str, sink: SinkOptions) -> None:
    """Refuses to replace a finished run without being told to, and a file that is no report in any case."""
    if not is_remote(path) and Path(path).is_dir():
        raise UsageError(f"the report cannot be written: {path} is a folder; name a file with --report")
    named = f"--report {path}" if path == sink.report else path
    if run_of(path) is None:
        raise UsageError(
            f"{named} is there and is no report of a run, so it is not replaced; name another with --report"
        )
    if sink.overwrite:
        return
    if path == sink.report:
        raise UsageError(f"{named} is of a finished run; name another, or replace it with --overwrite")
    raise UsageError(f"--output {sink.output} holds a finished run; write elsewhere, or replace it with --overwrite")


def _tables(sink: SinkOptions, temp_location: str | None) -> tuple[str, Tables]:
    what = f"--output={sink.output}"
    if sink.output_format != "parquet":
        raise UsageError(f"{what} is loaded from Parquet; leave out --output_format={sink.output_format}")
    if sink.report is None:
        raise UsageError(f"{what} needs --report=FILE, which says that the run is finished")
    # BigQuery loads from Cloud Storage only; a server that stands in for it may read the disk.
    if temp_location is None or not (temp_location.startswith("gs://") or os.environ.get(EMULATOR)):
        raise UsageError(f"{what} needs --temp_location=gs://bucket/folder, for the files that are loaded from there")
    if exists(sink.report):
        _check_report(sink.report, sink)
    tables = plan_tables(sink.output, overwrite=sink.overwrite)
    # A folder of the table's own, so that two runs into the table meet there, and runs into others do not.
    return join(temp_location, f"torchbeam-{tables.predictions_table}"), tables
