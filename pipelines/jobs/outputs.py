"""Where a run writes to: checked on the driver, before anything is read."""

from __future__ import annotations

import os
import tempfile
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
from transforms.sinks.bigquery_tables import Tables, plan_tables
from transforms.sinks.publish import DEAD_LETTERS, FAILED_FILES, PREDICTIONS, left_over, reports, run_of
from transforms.sources import Input


def settle_output(options: ScoreOptions, pipeline_options: PipelineOptions) -> tuple[str, Tables | None]:
    """The folder that files are written to, and the tables that they are loaded into, if any.

    Raises:
        UsageError: where it cannot be written, or holds a run already.
    """
    sink = options.sink
    if is_bigquery(sink.output):
        folder, tables = _tables(sink, pipeline_options.view_as(GoogleCloudOptions).temp_location)
    else:
        folder, tables = sink.output, None
        _check_folder(sink)
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


def _check_folder(sink: SinkOptions) -> None:
    output = sink.output
    if not is_remote(output):
        _check_kinds(Path(output))
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
    return temp_location, plan_tables(sink.output, overwrite=sink.overwrite)
