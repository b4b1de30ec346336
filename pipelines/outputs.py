"""Where a run writes to: checked on the driver, before anything is read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from handlers import stores
from handlers.errors import UsageError
from pipelines import runners
from pipelines.options import SinkOptions
from pipelines.score import ScoreOptions
from transforms.bigquery_tables import Tables, plan_tables
from transforms.file_ops import exists
from transforms.publish import left_over, run_finished
from transforms.sources.formats.bigquery import EMULATOR, is_bigquery


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
    places = {"--output": folder} | ({"--report": folder_of(sink.report)} if sink.report else {})
    for option, place in places.items():
        if "://" not in place or runners.in_process(
            options.run.runner
        ):  # workers elsewhere may have rights of their own
            check_writable(option, place)
    return folder, tables


def check_writable(option: str, folder: str) -> None:
    """Writes a small file where `folder` is, or will be, and removes it; a local folder is not made.

    Raises:
        UsageError: it may not be written, or not be removed.
    """
    if "://" in folder:
        stores.check_writable(option, folder)
        return
    here = Path(folder).absolute()
    there = next(each for each in (here, *here.parents) if each.exists())
    if not there.is_dir():
        raise UsageError(f"{option} {folder} cannot be written: {there} is no folder")
    try:
        with tempfile.NamedTemporaryFile(prefix="_tmp-", dir=there) as file:
            file.write(b"Whether this can be written and removed.\n")
    except OSError as error:
        raise UsageError(f"{option} {folder} cannot be written: {there}: {error.strerror or error}") from error


def folder_of(path: str) -> str:
    """Where a file is, local or remote."""
    return path.rpartition("/")[0] or "."


def _check_folder(sink: SinkOptions) -> None:
    output = sink.output
    if sink.overwrite:
        return
    try:
        finished = run_finished(output, sink.report)
        others = not finished and left_over(output)
    except Exception as error:
        raise UsageError(f"--output {output} cannot be looked into: {stores.explain(error)}") from error
    if finished:
        raise UsageError(f"--output {output} holds a finished run; write elsewhere, or replace it with --overwrite")
    if others:
        raise UsageError(
            f"--output {output} holds files of another run; write elsewhere, or replace it with --overwrite"
        )


def _tables(sink: SinkOptions, temp_location: str | None) -> tuple[str, Tables]:
    what = f"--output={sink.output}"
    if sink.output_format != "parquet":
        raise UsageError(f"{what} is loaded from Parquet; leave out --output_format={sink.output_format}")
    if sink.report is None:
        raise UsageError(f"{what} needs --report=FILE, which says that the run is finished")
    # BigQuery loads from Cloud Storage only; a server that stands in for it may read the disk.
    if temp_location is None or not (temp_location.startswith("gs://") or os.environ.get(EMULATOR)):
        raise UsageError(f"{what} needs --temp_location=gs://bucket/folder, for the files that are loaded from there")
    if not sink.overwrite and exists(sink.report):
        raise UsageError(f"--report {sink.report} is of a finished run; name another, or replace it with --overwrite")
    return temp_location, plan_tables(sink.output, overwrite=sink.overwrite)
