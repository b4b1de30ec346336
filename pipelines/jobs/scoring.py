"""The scoring job: its preparation on the driver, its pipeline, and its run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsSingleton

from handlers.batching import Batching, ResourceHints
from handlers.columnar.chunks import with_model
from handlers.errors import TorchbeamError
from handlers.graph.plan import Node
from handlers.model import stores
from handlers.model.directory import ModelDir
from handlers.model.registry import registered_name
from handlers.model.spec import ModelSpec
from handlers.paths import is_remote
from handlers.predict.placement import Placement
from pipelines import runners
from pipelines.command.options import ModelOptions
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.execution import Execution, execute
from pipelines.jobs.models import SeveralModels
from pipelines.jobs.options import ScoreOptions, model_paths
from pipelines.jobs.outputs import Output, check_apart
from transforms.accounting import FileOutcomes, dead_at_read, model_entry, total
from transforms.evaluation.agreement import AgreementPlan, CompareModels
from transforms.evaluation.agreement_result import pages
from transforms.inference.sample import sample_rows
from transforms.inference.score import Score
from transforms.inference.score_models import ScoreModels
from transforms.sinks.bigquery_tables import Tables, check_columns, loadable
from transforms.sinks.claims import OutputClaim
from transforms.sinks.publish import Publication, Publish, read_report
from transforms.sinks.temporary import temporary_folder
from transforms.sinks.write import WriteChunks
from transforms.sources import Input, ReadChunks, plan_input


@dataclass(frozen=True)
class Job:
    """A scoring run whose settings are all checked, as far as the driver can."""

    input: Input
    score: Score | ScoreModels
    publication: Publication
    launch: runners.Launch
    claim: OutputClaim
    verbose: bool = False
    compare: AgreementPlan | None = None


def prepare(options: ScoreOptions, model: ModelDir, output: Output) -> Job:
    """Checks and prepares everything that is possible before the pipeline starts.

    Raises:
        UsageError: for anything that the user must fix.
        BrokenModelError: if the model cannot score anything.
    """
    launch = runners.settle(options.run, options.beam)
    source = settle_input(options, [model.spec])
    check_apart(source, [options.model.model], output.folder, options.sink.report)
    sample = sample_rows(source, options.run.chunk_bytes)
    score = scoring(options, model, source, sample, output.claim.run_id)
    columns = settle_columns(score.predictions_schema, score.dead_letters_schema, output.tables)
    publication = replace(
        _publication(options, output, columns, model.spec.name, model.version), model_registered=model.registered
    )
    return Job(source, score, publication, launch, output.claim, options.run.verbose)


def prepare_models(several: SeveralModels, output: Output) -> Job:
    """The same for a run of several models.

    Raises:
        UsageError: for anything that the user must fix.
        BrokenModelError: if a model cannot score anything.
    """
    options = several.options
    launch = runners.settle(options.run, options.beam)
    source = settle_input(options, [each.model.spec for each in several.settings])
    check_apart(source, model_paths(options), output.folder, options.sink.report)
    score = scoring_models(several, source, sample_rows(source, options.run.chunk_bytes), output.claim.run_id)
    columns = settle_columns(score.predictions_schema, score.dead_letters_schema, output.tables)
    compare = None
    if several.compare and source.schema.names:  # empty files have no columns, and no rows to compare
        compare = AgreementPlan.of(score.plan, *several.compare)
    about = {node.name: _about(node) for node in score.plan.nodes}
    publication = _publication(options, output, columns, ", ".join(about), score.plan.version)
    publication = replace(publication, models=about, compares=compare is not None)
    return Job(source, score, publication, launch, output.claim, options.run.verbose, compare)


def _about(node: Node) -> dict[str, Any]:
    model, by_key = node.settings.model, node.settings.by_key
    if by_key is not None:
        names = {key: registered_name(path, by_key.registry) for key, path in by_key.models.items()}
        registered = {key: name for key, name in names.items() if name}
        about = {"by_key": by_key.column, "models": len(by_key.models), "memory": by_key.memory}
        return about | ({"registry": registered} if registered else {})
    return model_entry(model.spec.name, model.version, model.registered) | {"parameter_bytes": node.bytes}


def _publication(
    options: ScoreOptions, output: Output, columns: tuple[pa.Schema, pa.Schema], model_name: str, model_version: str
) -> Publication:
    predictions, dead_letters = columns
    return Publication(
        output=output.folder,
        run_id=output.claim.run_id,
        predictions=predictions,
        dead_letters=dead_letters,
        output_format=options.sink.output_format,
        report_path=options.sink.report,
        overwrite=options.sink.overwrite,
        model_name=model_name,
        model_version=model_version,
        runner=options.run.runner,
        tables=output.tables,
        keep_folder=not is_remote(output.folder) and options.run.runner != dataflow.RUNNER,
    )


def placement(options: ModelOptions) -> Placement:
    """Where the model runs in every worker."""
    return Placement(options.device, options.precision, options.compile, options.model_copies)


def settle_input(options: ScoreOptions, specs: Sequence[ModelSpec] = ()) -> Input:
    """The files of the input, their columns and splits; the `specs` that are known define which columns are numeric."""
    return plan_input(
        options.source.input,
        options.source.input_format,
        numeric_columns=tuple(name for spec in specs for name in spec.numeric_columns),
        limit=options.source.limit,
    )


def placement_here(options: ScoreOptions) -> Placement:
    """Where the model runs in this process. On a cluster the driver uses the CPU, since it may have no GPU."""
    return placement(options.model) if runners.in_process(options.run.runner) else Placement("cpu")


def scoring(options: ScoreOptions, model: ModelDir, source: Input, sample: pa.RecordBatch, run_id: str = "") -> Score:
    """The transform of a run, which determines its output columns from the rows of `sample`."""
    return Score(
        model,
        source.schema,
        sample,
        columns=options.sink.columns,
        preprocess=options.model.preprocess,
        postprocess=options.model.postprocess,
        probabilities=options.sink.probabilities,
        placement=placement(options.model),
        batching=Batching(chunk_bytes=options.run.chunk_bytes, batch_size=options.model.batch_size),
        hints=ResourceHints(options.model.accelerator, options.model.min_ram),
        driver=placement_here(options),
        run_id=run_id,
    )


def scoring_models(several: SeveralModels, source: Input, sample: pa.RecordBatch, run_id: str = "") -> ScoreModels:
    """The transform of a run of several models."""
    options = several.options
    return ScoreModels(
        several.settings,
        source.schema,
        sample,
        columns=options.sink.columns,
        split=several.split,
        probabilities=options.sink.probabilities,
        batching=Batching(chunk_bytes=options.run.chunk_bytes),
        driver=None if runners.in_process(options.run.runner) else Placement("cpu"),
        run_id=run_id,
    )


def settle_columns(
    predictions: pa.Schema, dead_letters: pa.Schema, tables: Tables | None
) -> tuple[pa.Schema, pa.Schema]:
    """The columns as they are written, of both kinds of rows; raises `UsageError` if existing tables have others."""
    if tables is not None:
        predictions, dead_letters = loadable(predictions), loadable(dead_letters)
        check_columns(tables, predictions, dead_letters)
    return predictions, dead_letters


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Builds the pipeline of a job."""
    publication, score = job.publication, job.score
    folder = temporary_folder(publication.output, publication.run_id)
    read = pipeline | "Read" >> ReadChunks(
        job.input,
        score.needed,
        score.batching.chunk_rows,
        score.batching.chunk_bytes,
        score.model_version,
    )
    scored = read.chunks | "Score" >> score
    predictions = scored.predictions | "WritePredictions" >> WriteChunks(
        f"{folder}/predictions",
        publication.predictions,
        publication.output_format,
        group_bytes=score.batching.chunk_bytes,
        make_parents=not publication.keep_folder,
    )
    unreadable = read.dead_letters
    if isinstance(score, ScoreModels):
        unreadable = unreadable | "WithModel" >> beam.Map(with_model).with_output_types(pa.RecordBatch)
    dead_letters = (
        (unreadable, scored.dead_letters)
        | "AllDeadLetters" >> beam.Flatten()
        | "WriteDeadLetters"
        >> WriteChunks(
            f"{folder}/dead_letters",
            publication.dead_letters,
            publication.dead_letter_format,
            group_bytes=score.batching.chunk_bytes,
            make_parents=not publication.keep_folder,
        )
    )
    files = read.files | "Files" >> FileOutcomes()
    counts = (
        scored.counts,
        read.dead_letters | "RowsUnreadable" >> beam.Map(dead_at_read),
        files.counts,
    ) | "AllCounts" >> beam.Flatten()
    outputs: dict[str, Any] = {
        "predictions": predictions,
        "dead_letters": dead_letters,
        "failed_files": files.failed | "Failed" >> beam.Map(lambda outcome: outcome.failed()),
        "counts": counts,
    }
    if job.compare is not None:
        compared = scored.predictions | "Compare" >> CompareModels(job.compare)
        every = counts | "Total" >> beam.CombineGlobally(total)
        outputs["pages"] = compared | "Pages" >> beam.Map(pages, AsSingleton(every), publication.models)
    _ = outputs | "Publish" >> Publish(publication)


def run(job: Job, *, wait: bool = True) -> dict[str, Any] | None:
    """Runs a job to its end and returns its report; on Dataflow without `wait`, submits it and returns None.

    Raises:
        UsageError: if Beam refuses the options.
        TorchbeamError: if the job failed.
    """
    job = replace(job, publication=replace(job.publication, started=time.time()))
    publication = job.publication
    if publication.keep_folder:
        Path(temporary_folder(publication.output, publication.run_id)).mkdir(parents=True)
    run = Execution(
        job.launch, publication.runner, publication.run_id, job.input.rows, publication.report_file, job.verbose
    )
    if publication.runner == dataflow.RUNNER:
        job.claim.hand_over()
    try:
        ended = execute(lambda pipeline: build(pipeline, job), run, wait=wait)
    except (dataflow.StillRunning, dataflow.NotFollowedError):
        job.claim.left = True  # and so are the files of the job
        raise
    if not ended:
        job.claim.left = True
        return None
    try:
        return read_report(publication.report_file)
    except Exception as error:
        raise TorchbeamError(
            f"the run is finished, but {publication.report_file} cannot be read: {stores.explain(error)}"
        ) from error
