"""Checks and claims the output of a run on the driver, before anything is read."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from handlers.errors import UsageError
from handlers.model import stores
from handlers.paths import is_remote
from pipelines import runners
from pipelines.command.options import SinkOptions
from pipelines.jobs.options import ScoreOptions, model_paths
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
    """The claimed output of a run.

    Attributes:
        folder: the folder of its files, local or remote.
        tables: the tables that the files are loaded into, if any.
        claim: the claim of the run on `folder`.
    """

    folder: str
    tables: Tables | None
    claim: OutputClaim


@contextmanager
def claimed_output(options: ScoreOptions, tell: Callable[[str], None]) -> Iterator[Output]:
    """Checks the output of a run and keeps other runs out of it until the run has ended.

    If the run fails, its files and the folders that were created for it are removed.

    Args:
        options: the options of the run.
        tell: called with lines for the user.

    Raises:
        UsageError: if the output cannot be written, contains a run already, or is claimed by another run.
    """
    folder, tables = settle_output(options, runners.pipeline_options(options.run.runner, options.beam))
    runners.check_paths(
        options.run, options.beam, [options.source.input, folder, *model_paths(options), options.sink.report]
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
    """Holds a claim, and removes what killed runs have left. Workers may have permissions that this machine lacks."""
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
    """The folders that a run creates if they do not exist."""
    names = [] if is_bigquery(sink.output) else [PREDICTIONS, DEAD_LETTERS]
    return [folder, *(join(folder, name) for name in names), *([folder_of(sink.report)] if sink.report else [])]


def settle_output(options: ScoreOptions, pipeline_options: PipelineOptions) -> tuple[str, Tables | None]:
    """The folder that files are written to, and the tables that they are loaded into, if any.

    Raises:
        UsageError: if the output cannot be written.
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
        # Workers on other machines may have other permissions.
        if not is_remote(written) or runners.in_process(options.run.runner):
            check_writable(option, written)
    return folder, tables


def check_writable(option: str, folder: str) -> None:
    """Writes a small file to `folder`, or to its first existing parent, and removes it; creates no local folder.

    Raises:
        UsageError: if the file cannot be written or removed.
    """
    if is_remote(folder):
        stores.check_writable(option, folder)
        return
    here = Path(folder).absolute()
    there = next(each for each in (here, *here.parents) if os.path.lexists(each))
    if not there.is_dir():
        raise UsageError(f"{option} {folder} cannot be written: {there} is not a folder")
    try:
        with tempfile.NamedTemporaryFile(prefix="_tmp-", dir=there) as file:
            file.write(b"Whether this can be written and removed.\n")
    except OSError as error:
        raise UsageError(f"{option} {folder} cannot be written: {there}: {error.strerror or error}") from error


def check_apart(source: Input, models: Sequence[str], folder: str, report: str | None) -> None:
    """Refuses outputs that would replace what the run reads, or become part of it.

    Raises:
        UsageError: with the names of both.
    """
    for option, path in (("--output", folder), ("--report", report)):
        for model in models:
            if path and _is_in(path, model):
                raise UsageError(f"{option} {path} is in the model, --model {model}; write elsewhere")
    replaced = tuple(f"{_real(join(folder, name))}/" for name in (PREDICTIONS, DEAD_LETTERS))
    report_file = _real(report) if report else None
    for path in sorted({split.path for split in source.splits}):
        real = _real(path)
        if real == report_file:
            raise UsageError(f"--report {report} is a file of the input; name another")
        if real.startswith(replaced):
            raise UsageError(f"{path}, of the input, is part of a run in --output {folder}; write elsewhere")


def _is_in(path: str, folder: str) -> bool:
    return f"{_real(path)}/".startswith(f"{_real(folder)}/")


def _real(path: str) -> str:
    """A path that can be compared: without links if it is local."""
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def check_free(sink: SinkOptions, folder: str, tables: Tables | None) -> None:
    """Refuses an output that contains a run already. Requires the claim, so that no run can end in between.

    Raises:
        UsageError: with the option to replace it.
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
        raise UsageError(f"--output {output} cannot be listed: {stores.explain(error)}") from error
    if others:
        raise UsageError(
            f"--output {output} holds files of another run; write elsewhere, or replace it with --overwrite"
        )


def _check_kinds(output: Path) -> None:
    """Refuses files and folders that conflict with the names of a run's outputs."""
    for name in (PREDICTIONS, DEAD_LETTERS):
        if (output / name).exists() and not (output / name).is_dir():
            raise UsageError(f"--output {output} cannot be written: {output / name} is not a folder")
    if (output / FAILED_FILES).is_dir():
        raise UsageError(f"--output {output} cannot be written: {output / FAILED_FILES} is a folder")


def _check_report(path: str, sink: SinkOptions) -> None:
    """Refuses to replace a finished run without --overwrite, and always a file that is not a report."""
    if not is_remote(path) and Path(path).is_dir():
        raise UsageError(f"the report cannot be written: {path} is a folder; name a file with --report")
    named = f"--report {path}" if path == sink.report else path
    if run_of(path) is None:
        raise UsageError(
            f"{named} exists and is not a report of a run, so it is not replaced; name another with --report"
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
    # BigQuery loads from Cloud Storage only; an emulator may read local files.
    if temp_location is None or not (temp_location.startswith("gs://") or os.environ.get(EMULATOR)):
        raise UsageError(f"{what} needs --temp_location=gs://bucket/folder, for the files that are loaded from there")
    if exists(sink.report):
        _check_report(sink.report, sink)
    tables = plan_tables(sink.output, overwrite=sink.overwrite)
    # One folder for each table, so that two runs into one table compete for its claim.
    return join(temp_location, f"torchbeam-{tables.predictions_table}"), tables
