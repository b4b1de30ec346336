"""The evaluation job: what is settled on the driver, the pipeline, and its run."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsSingleton, PCollection

import transforms.inference.chunk_coder  # noqa: F401 - registers the coder of chunks
from handlers import errors
from handlers.batching import Batching
from handlers.errors import TorchbeamError, UsageError
from handlers.model import stores
from handlers.model.directory import ModelDir
from handlers.paths import is_remote
from pipelines import runners
from pipelines.jobs.evaluate_options import GROUPS, EvaluateOptions, EvaluationOptions
from pipelines.jobs.evaluation_input import Run, Scored, scored_output, settled_run, view_of
from pipelines.jobs.evaluation_output import METRICS, PAGE, Target, write
from pipelines.jobs.execution import Execution, execute
from pipelines.jobs.outputs import check_writable
from pipelines.jobs.scoring import scoring, settle_input
from transforms.accounting import Counts, FileOutcomes, dead_at_read, model_entry, total
from transforms.evaluation.compare import BUCKET_ROWS, ComparePairs
from transforms.evaluation.evaluate import Evaluate
from transforms.evaluation.fingerprint import FILE, Fingerprint
from transforms.evaluation.forecasts import JoinActuals, Series
from transforms.evaluation.names import HIGHER, LOWER, OF_TWO_CLASSES, SKILLS
from transforms.evaluation.plan import EvaluationPlan
from transforms.evaluation.result import Subject
from transforms.evaluation.settle import Wanted, match_columns
from transforms.evaluation.slices import FindEdges, with_bins
from transforms.evaluation.views import View, models_of, view
from transforms.file_ops import exists, join, read_text, remove
from transforms.inference.sample import sample_rows
from transforms.inference.score import Score
from transforms.sources import Input, ReadChunks, plan_input


@dataclass(frozen=True)
class Future:
    """Where the actual values of forecasts come from: rows of `series` in `input`, or in the forecasts if it is None."""

    series: Series
    input: Input | None


@dataclass(frozen=True)
class Job:
    """An evaluation whose every setting is known to be right, as far as the driver can tell.

    Attributes:
        runs: what is evaluated; in a run of several models each of them, on the same input.
        score: scores the rows on the way; None where they are scored.
        other: the run that is compared with.
        match: what its rows are matched by, and whether that is a key.
        future: the actual values of forecasts; None for other tasks.
        chunk_bytes: bytes of a chunk at most.
    """

    runs: tuple[Run, ...]
    score: Score | None
    other: Run | None
    match: tuple[tuple[str, ...], bool]
    target: Target
    launch: runners.Launch
    future: Future | None = None
    chunk_bytes: int = Batching.chunk_bytes
    verbose: bool = False

    @property
    def first(self) -> Run:
        """The run, or the first of its models."""
        return self.runs[0]


def prepare(options: EvaluateOptions, model: ModelDir | None) -> Job:
    """Checks and settles everything that can be before the pipeline starts.

    Raises:
        UsageError: for whatever the user can fix.
        BrokenModelError: where the model cannot score anything.
    """
    score, wanted = options.score, options.evaluation
    _check_output(options)
    paths = [score.source.input, wanted.output, score.model.model or None, wanted.compare, wanted.actuals]
    runners.check_paths(score.run, score.beam, paths)
    launch = runners.settle(score.run, score.beam, GROUPS)
    future = _future(wanted, model)
    asked = Wanted(
        wanted.label,
        wanted.slice_by,
        wanted.positive_class,
        _fingerprint(wanted.fingerprint, score.model.model),
        series=future.series if future else None,
        actuals=future.input.schema if future and future.input else None,
    )
    run_id = uuid.uuid4().hex[:12]
    where = f"--input {score.source.input}"
    views: list[View | None] = [None]
    if model is None:
        scored = scored_output(score.source.input)
        source = plan_input(scored.path, score.source.input_format, limit=score.source.limit)
        schema, sample, transform = source.schema, sample_rows(source, score.run.chunk_bytes), None
        subject, models = scored.subject, models_of(schema, tuple(scored.models))
        if models and wanted.model_name is None:
            views = [view(schema, name, models) for name in models]
        elif models or (wanted.model_name is not None and wanted.compare is None):
            views = [view_of(schema, models, wanted.model_name, where)]
        if len(views) > 1 and wanted.compare is not None:
            raise UsageError(
                f"--compare takes one model, and {where} has several; add --model_name (one of {', '.join(models)})"
            )
    else:
        source = settle_input(score, [model.spec])
        if any(name in source.schema.names for name in ("predicted_class", "prediction", "predicted_labels")):
            raise UsageError(f"{where} is scored already; leave out --model, or give the rows themselves")
        subject = Subject(score.source.input, model_entry(model.spec.name, model.version, model.registered))
        transform = scoring(score, model, source, sample_rows(source, score.run.chunk_bytes), run_id)
        schema = transform.predictions_schema
        sample = pa.RecordBatch.from_pylist([], schema=schema)
        if model.spec.task in ("raw", "embedding"):
            raise UsageError(
                f"--model {score.model.model} is of task {model.spec.task}, which has no labels to compare with"
            )
    runs = tuple(settled_run(source, schema, sample, asked, each, where) for each in views)
    subjects = tuple(replace(subject, model=scored.model(each.name)) if each else subject for each in views)
    for each in runs:
        check_limits(options, each.plan)
    plan_of_run = runs[0].plan
    if made := [name for name in plan_of_run.numeric_slices if name not in source.schema.names]:
        raise UsageError(
            f'--slice_by: column "{made[0]}" is made by a function; of numbers only input columns can be sliced by'
        )
    other = None
    match: tuple[tuple[str, ...], bool] = ((), False)
    if wanted.compare is not None:
        compared = scored_output(wanted.compare)
        other = _other(compared, asked, plan_of_run, wanted)
        match = match_columns(runs[0].seen(schema), other.seen(other.input.schema), wanted.key)
        subjects = (replace(subjects[0], other=compared.subject.input),)
    names = tuple(each.name if each and wanted.model_name is None else "" for each in views)
    target = Target(wanted.output, run_id, tuple(zip(names, subjects, strict=True)), score.run.runner)
    return Job(
        runs,
        transform,
        other,
        match,
        target,
        launch,
        future if any(each.plan.asked for each in runs) else None,
        score.run.chunk_bytes,
        score.run.verbose,
    )


def _future(wanted: EvaluationOptions, model: ModelDir | None) -> Future | None:
    """The series of the forecasts, as the options or else the model define them."""
    sequences = model.spec.sequences if model is not None else None
    order_by = wanted.order_by or (sequences.order_by if sequences else None)
    if order_by is None:
        return None
    by = wanted.by or (sequences.by if sequences else ())
    return Future(
        Series(wanted.label, order_by, by, wanted.season), plan_input(wanted.actuals) if wanted.actuals else None
    )


def check_limits(options: EvaluateOptions, plan: EvaluationPlan) -> None:
    """Refuses to hold a run to metrics that its task has not got."""
    limits = [("fail_below", HIGHER, name) for name, _ in options.evaluation.fail_below]
    limits += [("fail_above", LOWER, name) for name, _ in options.evaluation.fail_above]
    for option, known, name in limits:
        names = known[plan.task]
        if name not in names:
            raise UsageError(f"--{option}: {name} is no metric of task {plan.task}; there are: {', '.join(names)}")
        if name in SKILLS and name.removeprefix("skill_") not in plan.baselines:
            needed = "--season" if plan.asked else "forecasts"
            raise UsageError(f"--{option}: {name} is a metric of forecasts; it needs {needed}")
        if name in OF_TWO_CLASSES and plan.task == "classification" and plan.positive is None:
            raise UsageError(
                f"--{option}: {name} is of two classes; with more of them there are {name}_macro and {name}_weighted"
            )


def _check_output(options: EvaluateOptions) -> None:
    output = options.evaluation.output
    try:
        there = [name for name in (METRICS, PAGE) if exists(join(output, name))]
    except Exception as error:
        raise UsageError(f"--output {output} cannot be listed: {stores.explain(error)}") from error
    if there and not options.evaluation.overwrite:
        raise UsageError(f"--output {output} holds {there[0]} already; write elsewhere, or replace it with --overwrite")
    if not is_remote(output) or runners.in_process(options.score.run.runner):
        check_writable("--output", output)


def _other(compared: Scored, asked: Wanted, plan: EvaluationPlan, wanted: EvaluationOptions) -> Run:
    source, where = plan_input(compared.path), f"--compare {wanted.compare}"
    models = models_of(source.schema, tuple(compared.models))
    seen = view_of(source.schema, models, wanted.model_name, where) if models else None
    asked = replace(asked, slice_by=(), positive_class=None, fingerprint=None)
    found = settled_run(source, source.schema, sample_rows(source), asked, seen, where)
    if found.plan.task != plan.task:
        raise UsageError(f"{where} is of task {found.plan.task}, and --input of task {plan.task}")
    if plan.positive in found.plan.classes and found.plan.positive is not None:
        found = replace(found, plan=replace(found.plan, positive=plan.positive))
    return found


def _fingerprint(path: str | None, model: str) -> Fingerprint | None:
    named = path or (join(model, FILE) if model else None)
    if named is None or (path is None and not exists(named)):
        return None
    try:
        text = read_text(named)
    except Exception as error:
        raise UsageError(f"--fingerprint {named} cannot be read: {stores.explain(error)}") from error
    found = Fingerprint.parse(text, named)
    if found is None and path is not None:
        raise UsageError(f"--fingerprint {named} holds no fingerprint; give the training.json that training wrote")
    return found


# The pipeline


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Puts the pipeline of a job together."""
    target = job.target
    rows, counts = _rows(pipeline, job)
    sides: dict[str, Any] = {"counts": AsSingleton(counts | "Count" >> beam.CombineGlobally(total))}
    edges = AsSingleton(_edges(pipeline, job)) if job.first.plan.numeric_slices else None
    for index, run in enumerate(job.runs):
        chunks = _seen(pipeline, job, rows, run, "")
        if job.other is not None:
            first = chunks
        if edges is not None:
            chunks = chunks | f"Bins{run.label}" >> beam.Map(with_bins, edges).with_output_types(pa.RecordBatch)
        run_id = target.run_id if job.score is None and index == 0 else ""  # each row is counted once
        totals = chunks | f"Evaluate{run.label}" >> Evaluate(run.plan, run_id)
        sides[f"totals_{index}"] = AsSingleton(totals)
    if job.other is not None:
        read = (pipeline | "ReadOther" >> ReadChunks(job.other.input, max_chunk_bytes=job.chunk_bytes)).chunks
        others = _seen(pipeline, job, read, job.other, "Other")
        columns, unique = job.match
        most = max(job.first.input.rows or 0, job.other.input.rows or 0) or 16 * BUCKET_ROWS
        compare = ComparePairs((job.first.plan, job.other.plan), columns, unique, most // BUCKET_ROWS + 1)
        sides["pairs"] = AsSingleton((first, others) | "Compare" >> compare)
        sides["other"] = AsSingleton(others | "EvaluateOther" >> Evaluate(job.other.plan))
    _ = pipeline | "Once" >> beam.Create([target]) | "Write" >> beam.Map(write, **sides)


def _seen(
    pipeline: beam.Pipeline, job: Job, rows: PCollection[pa.RecordBatch], run: Run, which: str
) -> PCollection[pa.RecordBatch]:
    """The rows of a run, with the columns that its model sees, forecasts with their actual values."""
    if run.view is not None:
        rows = rows | f"View{which}{run.label}" >> beam.Map(run.view.rows).with_output_types(pa.RecordBatch)
    return _with_actuals(pipeline, job, rows, run, f"Join{which}{run.label}") if run.plan.asked else rows


def _rows(pipeline: beam.Pipeline, job: Job) -> tuple[PCollection[pa.RecordBatch], PCollection[Counts]]:
    """Rows with labels and predictions, and the counts of what was read."""
    score = job.score
    counts: tuple[PCollection[Counts], ...] = ()
    if score is None:
        read = pipeline | "Read" >> ReadChunks(job.first.input, max_chunk_bytes=job.chunk_bytes)
        chunks = read.chunks
    else:
        batching = score.batching
        read = pipeline | "Read" >> ReadChunks(
            job.first.input, score.needed, batching.chunk_rows, batching.chunk_bytes, score.model_version
        )
        scored = read.chunks | "Score" >> score
        chunks, counts = scored.predictions, (scored.counts,)
    files = read.files | "Files" >> FileOutcomes()
    unreadable = read.dead_letters | "RowsUnreadable" >> beam.Map(dead_at_read)
    return chunks, (*counts, unreadable, files.counts) | "AllCounts" >> beam.Flatten()


def _with_actuals(
    pipeline: beam.Pipeline, job: Job, chunks: PCollection[pa.RecordBatch], run: Run, label: str
) -> PCollection[pa.RecordBatch]:
    """Forecasts with the actual values of their steps and the baselines."""
    assert job.future is not None  # noqa: S101
    series, actuals = job.future.series, job.future.input
    fingerprint = run.plan.fingerprint
    kept = (*run.plan.shown, *run.plan.slices, *job.match[0], *(fingerprint.columns if fingerprint else ()))
    rows = (run.input.rows or 16 * BUCKET_ROWS) if actuals is None else (actuals.rows or 16 * BUCKET_ROWS)
    join = JoinActuals(series, kept, rows // BUCKET_ROWS + 1)
    sides: Any = chunks
    if actuals is not None:
        narrow = replace(actuals, schema=pa.schema([actuals.schema.field(name) for name in series.columns]))
        read = pipeline | f"{label}Actuals" >> ReadChunks(narrow, max_chunk_bytes=job.chunk_bytes)
        sides = (chunks, read.chunks)
    joined: PCollection[pa.RecordBatch] = sides | label >> join
    return joined


def _edges(pipeline: beam.Pipeline, job: Job) -> PCollection[Any]:
    """The bins of the columns of numbers that are sliced by; the rows are read once more for them, those columns alone."""
    columns = job.first.plan.numeric_slices
    source = job.first.input
    narrow = replace(source, schema=pa.schema([source.schema.field(name) for name in columns]))
    edges: PCollection[Any] = (
        pipeline | "ReadSliced" >> ReadChunks(narrow, max_chunk_bytes=job.chunk_bytes)
    ).chunks | "Edges" >> FindEdges(columns)
    return edges


def run(job: Job, *, wait: bool = True) -> dict[str, Any] | None:
    """Runs a job to its end and gives its metrics; on Dataflow only with `wait`, else None once it is submitted.

    Raises:
        UsageError: where nothing can be said of the rows, or Beam refuses the options.
        TorchbeamError: where it failed.
    """
    job = replace(job, target=replace(job.target, started=time.time()))
    target = job.target
    result = join(target.output, METRICS)
    how = Execution(job.launch, target.runner, target.run_id, job.first.input.rows, result, job.verbose, "evaluating")
    if not execute(lambda pipeline: build(pipeline, job), how, wait=wait):
        return None
    if exists(target.refusal):
        refused = json.loads(read_text(target.refusal))
        remove([target.refusal])
        raise getattr(errors, refused["type"], TorchbeamError)(refused["message"])
    try:
        found: dict[str, Any] = json.loads(read_text(result))
    except Exception as error:
        raise TorchbeamError(
            f"the evaluation is finished, but {result} cannot be read: {stores.explain(error)}"
        ) from error
    return found
