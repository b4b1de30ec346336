"""The evaluation job: what is settled on the driver, the pipeline, and its run."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import suppress
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
from pipelines.jobs.evaluate_options import EvaluateOptions, EvaluationOptions
from pipelines.jobs.execution import Execution, execute
from pipelines.jobs.outputs import check_writable
from pipelines.jobs.scoring import dead_at_read, scoring, settle_input
from transforms.accounting import Counts, FileOutcomes, model_entry, total
from transforms.evaluation.compare import BUCKET_ROWS, ComparePairs, Pairs
from transforms.evaluation.evaluate import Evaluate, Totals
from transforms.evaluation.fingerprint import FILE, Fingerprint
from transforms.evaluation.forecasts import JoinActuals, Series
from transforms.evaluation.names import HIGHER, LOWER, OF_TWO_CLASSES, SKILLS
from transforms.evaluation.plan import EvaluationPlan
from transforms.evaluation.report import html
from transforms.evaluation.result import Subject, evaluation
from transforms.evaluation.settle import Wanted, match_columns, settle
from transforms.evaluation.slices import FindEdges, with_bins
from transforms.file_ops import exists, join, read_text, remove, write_text
from transforms.inference.sample import sample_rows
from transforms.inference.score import Score
from transforms.sinks.publish import PREDICTIONS, REPORT
from transforms.sources import Input, ReadChunks, plan_input

METRICS, PAGE = "metrics.json", "report.html"


@dataclass(frozen=True)
class Run:
    """A scored run: its rows, and how labels and predictions are read from them."""

    input: Input
    plan: EvaluationPlan


@dataclass(frozen=True)
class Future:
    """Where the actual values of forecasts come from: rows of `series` in `input`, or in the forecasts if it is None."""

    series: Series
    input: Input | None


@dataclass(frozen=True)
class Target:
    """Where an evaluation goes; `run_id` is that of the evaluation itself."""

    output: str
    run_id: str
    subject: Subject
    runner: str
    started: float = 0.0

    @property
    def refusal(self) -> str:
        """The file that says why there are no metrics, read by the driver and removed."""
        return join(self.output, f"_refused-{self.run_id}.json")


@dataclass(frozen=True)
class Job:
    """An evaluation whose every setting is known to be right, as far as the driver can tell.

    Attributes:
        first: what is evaluated.
        score: scores the rows on the way; None where they are scored.
        other: the run that is compared with.
        match: what its rows are matched by, and whether that is a key.
        future: the actual values of forecasts; None for other tasks.
        chunk_bytes: bytes of a chunk at most.
    """

    first: Run
    score: Score | None
    other: Run | None
    match: tuple[tuple[str, ...], bool]
    target: Target
    launch: runners.Launch
    future: Future | None = None
    chunk_bytes: int = Batching.chunk_bytes
    verbose: bool = False


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
    launch = runners.settle(score.run, score.beam)
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
    if model is None:
        folder, subject = _scored(score.source.input)
        source = plan_input(folder, score.source.input_format, limit=score.source.limit)
        schema, sample, transform = source.schema, sample_rows(source, score.run.chunk_bytes), None
    else:
        source = settle_input(score, [model.spec])
        if any(name in source.schema.names for name in ("predicted_class", "prediction", "predicted_labels")):
            raise UsageError(
                f"--input {score.source.input} is scored already; leave out --model, or give the rows themselves"
            )
        subject = Subject(score.source.input, model_entry(model.spec.name, model.version, model.registered))
        transform = scoring(score, model, source, sample_rows(source, score.run.chunk_bytes), run_id)
        schema = transform.predictions_schema
        sample = pa.RecordBatch.from_pylist([], schema=schema)
        if model.spec.task in ("raw", "embedding"):
            raise UsageError(
                f"--model {score.model.model} is of task {model.spec.task}, which has no labels to compare with"
            )
    plan_of_run = settle(schema, sample, asked, f"--input {score.source.input}")
    check_limits(options, plan_of_run)
    if made := [name for name in plan_of_run.numeric_slices if name not in source.schema.names]:
        raise UsageError(
            f'--slice_by: column "{made[0]}" is made by a function; of numbers only input columns can be sliced by'
        )
    other = None
    match: tuple[tuple[str, ...], bool] = ((), False)
    if wanted.compare is not None:
        folder, compared = _scored(wanted.compare)
        other = _other(folder, asked, plan_of_run, wanted.compare)
        match = match_columns(schema, other.input.schema, wanted.key)
        subject = replace(subject, other=compared.input)
    target = Target(wanted.output, run_id, subject, score.run.runner)
    return Job(
        Run(source, plan_of_run),
        transform,
        other,
        match,
        target,
        launch,
        future if plan_of_run.asked else None,
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


def _scored(path: str) -> tuple[str, Subject]:
    """The rows of a scored output, whose folder may hold more than them, and what its report says."""
    folder = path.rstrip("/") or path
    if folder.rpartition("/")[2] == PREDICTIONS:
        report = join(folder.rpartition("/")[0] or ".", REPORT)
    else:
        report = join(folder, REPORT)
        if exists(join(folder, PREDICTIONS)) or exists(report):
            path = join(folder, PREDICTIONS)
    found: dict[str, Any] = {}
    with suppress(Exception):  # there may be none, or one of something else
        found = json.loads(read_text(report)) if exists(report) else {}
    if not isinstance(found, dict) or "rows_scored" not in found:
        return path, Subject(path)
    model = {name: str(value) for name, value in found.get("model", {}).items()}
    return path, Subject(path, model, dead_by_error=found.get("dead_by_error", {}), failed=found.get("rows_dead", 0))


def _other(folder: str, asked: Wanted, plan: EvaluationPlan, where: str) -> Run:
    source = plan_input(folder)
    found = settle(
        source.schema,
        sample_rows(source),
        replace(asked, slice_by=(), positive_class=None, fingerprint=None),
        f"--compare {where}",
    )
    if found.task != plan.task:
        raise UsageError(f"--compare {where} is of task {found.task}, and --input of task {plan.task}")
    if plan.positive in found.classes and found.positive is not None:
        found = replace(found, positive=plan.positive)
    return Run(source, found)


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
    first, target = job.first, job.target
    chunks, counts = _rows(pipeline, job)
    if job.future is not None:
        chunks = _with_actuals(pipeline, job, chunks, first, "Join")
    if first.plan.numeric_slices:
        chunks = chunks | "Bins" >> beam.Map(with_bins, AsSingleton(_edges(pipeline, job))).with_output_types(
            pa.RecordBatch
        )
    totals = chunks | "Evaluate" >> Evaluate(first.plan, target.run_id if job.score is None else "")
    sides: dict[str, Any] = {
        "totals": AsSingleton(totals),
        "counts": AsSingleton(counts | "Count" >> beam.CombineGlobally(total)),
    }
    if job.other is not None:
        others = (pipeline | "ReadOther" >> ReadChunks(job.other.input, max_chunk_bytes=job.chunk_bytes)).chunks
        if job.future is not None:
            others = _with_actuals(pipeline, job, others, job.other, "JoinOther")
        columns, unique = job.match
        rows = max(first.input.rows or 0, job.other.input.rows or 0) or 16 * BUCKET_ROWS
        compare = ComparePairs((first.plan, job.other.plan), columns, unique, rows // BUCKET_ROWS + 1)
        sides["pairs"] = AsSingleton((chunks, others) | "Compare" >> compare)
        sides["other"] = AsSingleton(others | "EvaluateOther" >> Evaluate(job.other.plan))
    _ = pipeline | "Once" >> beam.Create([target]) | "Write" >> beam.Map(write, **sides)


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


def write(
    target: Target, totals: Totals, counts: Counts, other: Totals | None = None, pairs: Pairs | None = None
) -> dict[str, Any]:
    """Writes the report and, last of all, the metrics; or why there are none. May be called again after an interruption."""
    try:
        found = evaluation(totals, counts, target.subject, other, pairs)
    except TorchbeamError as error:
        write_text(target.refusal, json.dumps({"type": type(error).__name__, "message": str(error)}))
        return {}
    metrics = found.metrics | {
        "run_id": target.run_id,
        "runner": target.runner,
        "seconds": round(time.time() - target.started, 3),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_text(join(target.output, PAGE), html(replace(found, metrics=metrics)))
    write_text(join(target.output, METRICS), json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    return metrics


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
