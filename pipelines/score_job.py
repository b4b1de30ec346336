"""The scoring job: what is settled on the driver, the pipeline, and its run."""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

import transforms.chunk_coder  # noqa: F401 - registers the coder of chunks
from handlers import errors
from handlers.chunks import chunk_schema, dead_letter_schema, merge
from handlers.columnar import Batching, ColumnarModelHandler, ResourceHints
from handlers.errors import BrokenFileError, TorchbeamError, UsageError
from handlers.model_dir import ModelDir
from handlers.placement import Placement
from handlers.predictor import Predictor
from handlers.scorer import Chain, make_plan
from pipelines import runners
from pipelines.options import SinkOptions
from pipelines.score import ScoreOptions
from pipelines.watch import Watch
from transforms import progress
from transforms.accounting import Counts, FileOutcomes
from transforms.bigquery_tables import Tables, check_columns, loadable, plan_tables
from transforms.publish import (
    Publication,
    Publish,
    clean_up,
    left_over,
    read_report,
    report_exists,
    run_finished,
    temporary_folder,
)
from transforms.score import Score
from transforms.sinks import WriteChunks
from transforms.sources import BadRows, Input, ReadChunks, plan_input, read_split
from transforms.sources.formats.bigquery import EMULATOR, is_bigquery

SAMPLE_ROWS = 1000
SAMPLE_SPLITS = 20  # of which some may be empty; where all are, further ones are looked into

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A scoring run whose every setting is known to be right, as far as the driver can tell."""

    input: Input
    handler: ColumnarModelHandler
    publication: Publication
    options: PipelineOptions


def prepare(options: ScoreOptions, model: ModelDir) -> Job:
    """Checks and settles everything that can be before the pipeline starts.

    Raises:
        UsageError: for whatever the user must mend.
        BrokenModelError: where the model cannot score anything.
    """
    pipeline_options = runners.pipeline_options(options.run.runner, options.beam)
    folder, tables = _check_output(options.sink, pipeline_options)
    runners.check_paths(
        options.run, options.beam, [options.source.input, folder, options.model.model, options.sink.report]
    )
    inputs = [spec for spec in model.spec.inputs if spec.encoder == "numeric" and "float" in (spec.dtype or "float32")]
    numeric = [name for spec in inputs for name in spec.patterns]
    batching = Batching(batch_size=options.model.batch_size)
    source = plan_input(
        options.source.input,
        options.source.input_format,
        numeric_columns=numeric,
        limit=options.source.limit,
        chunk_rows=batching.chunk_rows,
    )
    placement = Placement(
        options.model.device, options.model.precision, options.model.compile, options.model.model_copies
    )
    hints = ResourceHints(options.model.accelerator, options.model.min_ram)
    # On a cluster the workers have the GPUs, and the driver need not have one.
    here = placement if runners.in_process(options.run.runner) else Placement("cpu")
    plan = make_plan(
        model,
        Predictor(model.load(), here, options.model.batch_size),
        _sample(source),
        Chain.of(model.spec, options.model.preprocess, options.model.postprocess),
        options.sink.columns,
    )
    columns = [plan.output, dead_letter_schema(source.schema)]
    if tables is not None:
        columns = [loadable(each) for each in columns]
        check_columns(tables, *columns)
    publication = Publication(
        output=folder,
        run_id=uuid.uuid4().hex[:12],
        predictions=columns[0],
        dead_letters=columns[1],
        output_format=options.sink.output_format,
        report_path=options.sink.report,
        overwrite=options.sink.overwrite,
        model_name=model.spec.name,
        model_version=model.version,
        runner=options.run.runner,
        tables=tables,
    )
    return Job(source, ColumnarModelHandler(model, plan, placement, batching, hints), publication, pipeline_options)


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Puts the pipeline of a job together."""
    publication, handler = job.publication, job.handler
    folder = temporary_folder(publication.output, publication.run_id)
    read = pipeline | "Read" >> ReadChunks(
        job.input,
        handler.plan.needed,
        handler.batching.chunk_rows,
        handler.batching.chunk_bytes,
        publication.model_version,
    )
    scored = read.chunks | "Score" >> Score(handler, publication.run_id)
    predictions = scored.predictions | "WritePredictions" >> WriteChunks(
        f"{folder}/predictions", publication.predictions, publication.output_format
    )
    dead_letters = (
        (read.dead_letters, scored.dead_letters)
        | "AllDeadLetters" >> beam.Flatten()
        | "WriteDeadLetters"
        >> WriteChunks(f"{folder}/dead_letters", publication.dead_letters, publication.dead_letter_format)
    )
    files = read.files | "Files" >> FileOutcomes()
    counts = (
        scored.counts,
        read.files | "RowsRead" >> beam.Map(_rows_read),
        read.dead_letters | "RowsUnreadable" >> beam.Map(_dead_at_read),
        files | "FilesRead" >> beam.Map(lambda outcome: outcome.counts()),
    ) | "AllCounts" >> beam.Flatten()
    _ = {
        "predictions": predictions,
        "dead_letters": dead_letters,
        "failed_files": files
        | "Failed" >> beam.Filter(lambda outcome: outcome.error is not None)
        | beam.Map(lambda outcome: outcome.failed()),
        "counts": counts,
    } | "Publish" >> Publish(publication)


def run(job: Job) -> dict[str, Any]:
    """Runs a job to its end and gives its report.

    Raises:
        TorchbeamError: where it failed; what it had written is removed.
    """
    job = replace(job, publication=replace(job.publication, started=time.time()))
    publication = job.publication
    local = runners.in_process(publication.runner)
    try:
        pipeline = beam.Pipeline(options=job.options)
        build(pipeline, job)
        with Watch((lambda: progress.so_far(publication.run_id)) if local else None, job.input.rows):
            pipeline.run().wait_until_finish()
    except BaseException as error:
        clean_up(publication.output, publication.run_id)
        if isinstance(error, Exception) and not isinstance(error, TorchbeamError):
            raise _cause(error) from error
        raise
    return read_report(publication.report_file)


def _check_output(sink: SinkOptions, pipeline_options: PipelineOptions) -> tuple[str, Tables | None]:
    """The folder that files are written to, and the tables that they are loaded into."""
    if is_bigquery(sink.output):
        return _check_tables(sink, pipeline_options.view_as(GoogleCloudOptions).temp_location)
    output = sink.output
    if "://" not in output:
        there = next(folder for folder in (Path(output), *Path(output).absolute().parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise UsageError(f"--output {output} cannot be written: {there} is no folder that you may write to")
    if not sink.overwrite:
        if run_finished(output, sink.report):
            raise UsageError(f"--output {output} holds a finished run; write elsewhere, or replace it with --overwrite")
        if left_over(output):
            raise UsageError(
                f"--output {output} holds files of another run; write elsewhere, or replace it with --overwrite"
            )
    return output, None


def _check_tables(sink: SinkOptions, temp_location: str | None) -> tuple[str, Tables]:
    what = f"--output={sink.output}"
    if sink.output_format != "parquet":
        raise UsageError(f"{what} is loaded from Parquet; leave out --output_format={sink.output_format}")
    if sink.report is None:
        raise UsageError(f"{what} needs --report=FILE, which says that the run is finished")
    # BigQuery loads from Cloud Storage only; a server that stands in for it may read the disk.
    if temp_location is None or not (temp_location.startswith("gs://") or os.environ.get(EMULATOR)):
        raise UsageError(f"{what} needs --temp_location=gs://bucket/folder, for the files that are loaded from there")
    if not sink.overwrite and report_exists(sink.report):
        raise UsageError(f"--report {sink.report} is of a finished run; name another, or replace it with --overwrite")
    return temp_location, plan_tables(sink.output, overwrite=sink.overwrite)


def _sample(source: Input) -> pa.RecordBatch:
    """The first rows of the input that can be read; none where it has none. They have provenance."""
    chunks: list[pa.RecordBatch] = []
    rows = 0
    broken: BrokenFileError | None = None
    for place, split in enumerate(source.splits):
        if rows >= SAMPLE_ROWS or (rows and place >= SAMPLE_SPLITS):
            break
        try:
            for chunk in read_split(split, source.schema, chunk_rows=SAMPLE_ROWS):
                if not isinstance(chunk, BadRows):
                    chunks.append(chunk)
                    rows += chunk.num_rows
                if rows >= SAMPLE_ROWS:
                    break
        except BrokenFileError as error:
            broken = broken or error
    if not chunks:
        if broken is not None and not source.schema.names:
            raise UsageError(f"none of the {source.files} input files can be read: {broken}")
        return pa.RecordBatch.from_pylist([], schema=chunk_schema(source.schema))
    return merge(chunks).slice(0, SAMPLE_ROWS)


def _cause(error: Exception) -> BaseException:
    """What went wrong in a worker, out of the traceback that runners make the text of their own error."""
    lines = [line.strip() for line in str(error).splitlines()]
    if any(line.startswith(("KeyboardInterrupt", "RuntimeError: KeyboardInterrupt")) for line in lines):
        return KeyboardInterrupt()
    pattern = re.compile(r"(?:[a-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)): (.+)")
    for line in reversed(lines):
        if match := pattern.match(line):
            name, message = match.group(1), re.sub(r" \[while running .*$", "", match.group(2))
            kind = getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, TorchbeamError):
                return kind(message)
            return TorchbeamError(f"the run failed: {name}: {message}")
    return TorchbeamError(f"the run failed: {type(error).__name__}: {errors.one_line(error)}")


def _rows_read(file: Any) -> Counts:
    return Counts(rows_read=file.rows)


def _dead_at_read(letters: pa.RecordBatch) -> Counts:
    errors_by_type: dict[str, int] = {}
    for kind in letters.column("dead_letter").field("type").to_pylist():
        errors_by_type[f"read/{kind}"] = errors_by_type.get(f"read/{kind}", 0) + 1
    return Counts(rows_dead=letters.num_rows, dead_by_error=errors_by_type)
