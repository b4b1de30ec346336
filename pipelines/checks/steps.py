"""The checks of the doctor for every runner: the checks that `score` makes before a run, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from apache_beam.options.pipeline_options import PipelineOptions

from handlers.batching import ResourceHints
from handlers.columnar.chunks import dead_letter_schema
from handlers.columnar.plan import Plan
from handlers.columnar.scorer import Scorer
from handlers.errors import BrokenModelError, one_line
from handlers.model.directory import ModelDir
from handlers.model.spec import ModelSpec
from handlers.predict.backend import Backend, placement_of
from handlers.predict.placement import visible_gpus
from handlers.predict.predictor import Predictor
from handlers.sequences.cutter import WindowCutter
from handlers.sequences.windows import sample_windows
from handlers.tensors import Value
from pipelines import runners
from pipelines.checks.checkup import Finding, Outcome, SkipError
from pipelines.command.ignored import ignored_options
from pipelines.command.options import ModelOptions, RunOptions
from pipelines.command.values import size
from pipelines.jobs import scoring as score_job
from pipelines.jobs.options import ScoreOptions, model_paths
from pipelines.jobs.outputs import check_apart, check_free, check_writable, settle_output
from transforms.file_ops import folder_of
from transforms.inference.sample import sample_rows
from transforms.sinks import claims
from transforms.sources import Input

_SHOWN = 6  # names of columns in a line


@dataclass(frozen=True)
class Source:
    """A readable input and its first rows."""

    input: Input
    sample: pa.RecordBatch


def runner(options: ScoreOptions) -> Finding[PipelineOptions]:
    """Beam knows the runner and all options that we do not."""
    return Finding(options.run.runner, runners.pipeline_options(options.run.runner, options.beam))


def ignored(run: RunOptions, model: ModelOptions, beam: Sequence[str]) -> Finding[None]:
    """Options that would have no effect."""
    ResourceHints(model.accelerator, model.min_ram)  # raises for invalid hints, also for ignored ones
    lines = ignored_options(run, model, beam)
    return Finding(". ".join(lines) or f"{run.runner} uses all options that were given", None, bool(lines))


def paths(options: ScoreOptions) -> Finding[None]:
    """Workers on other machines can reach the paths."""
    given = [options.source.input, options.sink.output, *model_paths(options), options.sink.report]
    runners.check_paths(options.run, options.beam, [path for path in given if path])
    if not any(given):
        raise SkipError("no path was given")
    return Finding("the workers reach them", None)


def device(model: ModelOptions, runner: str) -> Finding[None]:
    """The GPUs of this machine, and whether the device of --device is available."""
    names = [torch.cuda.get_device_name(gpu) for gpu in range(visible_gpus())]
    seen = f"{len(names)} GPU(s) here: {', '.join(sorted(set(names)))}" if names else "no GPU here"
    placement = score_job.placement(model)
    if runners.in_process(runner):
        return Finding(f"{placement.resolve()} ({seen})", None)
    return Finding(f"{model.device}, settled by each worker ({seen})", None)


def load(options: ScoreOptions, model: ModelDir) -> Finding[Predictor]:
    """The model's code can be imported and its weights match it."""
    loaded = model.load()
    placement_of(loaded, score_job.placement(options.model))
    predictor = Predictor(loaded, score_job.placement_here(options), options.model.batch_size)
    module = predictor.module
    if isinstance(module, Backend):
        return Finding(f"{module.summary}, loaded on {predictor.device}", predictor)
    numbers = sum(each.numel() for each in module.parameters()) if isinstance(module, torch.nn.Module) else 0
    return Finding(f"{numbers:,} parameters, loaded on {predictor.device}", predictor)


def read_input(options: ScoreOptions, specs: Sequence[ModelSpec]) -> Finding[Source]:
    """The input exists, and its first rows can be read; `specs` are those of the models that could be opened."""
    if not options.source.input:
        raise SkipError("no --input was given")
    source = score_job.settle_input(options, specs)
    sample = sample_rows(source, options.run.chunk_bytes)
    rows = f"{source.rows:,} rows" if source.rows is not None else "rows not counted yet"
    what = (
        f"{source.files:,} {source.format} file{'s' * (source.files != 1)} of {size(source.bytes)}, {rows}, "
        f"{len(source.schema.names)} columns"
    )
    if not sample.num_rows:
        return Finding(f"{what}; the first files have no readable rows", Source(source, sample), warning=True)
    return Finding(what, Source(source, sample))


def columns(options: ScoreOptions, model: ModelDir, predictor: Predictor, source: Source) -> Finding[Plan]:
    """The columns match the signature, and the user's functions run."""
    plan = score_job.scoring(options, model, source.input, source.sample).settle(predictor)
    inputs = [f"{bound.spec.name} takes {names(bound.columns)}" for bound in plan.inputs]
    made = [name for name in plan.output.names if name not in plan.carried] if plan.output else []
    return Finding(f"{'; '.join(inputs) or 'no inputs'}; the output gets {names(made)}", plan)


def schemas(plan: Plan, source: Source) -> tuple[pa.Schema, pa.Schema]:
    """The columns of the predictions and of the dead letters."""
    return plan.output, dead_letter_schema(source.input.schema)


def score_rows(model: ModelDir, predictor: Predictor, source: Source, plan: Plan) -> Finding[None]:
    """Scores the first rows of the input, or rows of zeros if it has none."""
    # A few rows if scoring one takes long, as for images and texts.
    sample = source.sample.slice(0, min((bound.sample_rows for bound in plan.inputs), default=None))
    if model.spec.sequences is not None and sample.num_rows:
        return _score_windows(model, predictor, source, plan)
    if not sample.num_rows:
        return _score_zeros(predictor, {name: zeros for bound in plan.inputs for name, zeros in bound.zeros(2).items()})
    scored = Scorer(model, plan, predictor).score(sample)
    what = f"of the first {sample.num_rows:,} rows {scored.predictions.num_rows:,} are scored"
    if scored.dropped:
        what += f", {scored.dropped:,} dropped"
    if dead := scored.dead_letters.num_rows:
        kinds = ", ".join(f"{rows:,} {kind}" for kind, rows in scored.dead_by_error.most_common(3))
        first = scored.dead_letters.column("dead_letter")[0].as_py()["message"]
        what += f", {dead:,} would be dead letters ({kinds}); the first: {first}"
    return Finding(what, None, warning=dead > 0)


def _score_windows(model: ModelDir, predictor: Predictor, source: Source, plan: Plan) -> Finding[None]:
    """Scores windows of the first rows. They have few rows of a key, so that windows are missing is no finding."""
    assert model.spec.sequences is not None  # noqa: S101
    cutter = WindowCutter(model.spec.sequences, source.input.schema)
    most = min((bound.sample_rows for bound in plan.inputs), default=None)
    windows = sample_windows(source.sample, cutter, len(source.sample) if most is None else most)
    if not windows.num_rows:
        return Finding("no row of the first ones has a key and a time", None, warning=True)
    scored = Scorer(model, plan, predictor).score(windows)
    what = f"of {windows.num_rows:,} windows of the first rows {scored.predictions.num_rows:,} are scored"
    if dead := scored.dead_letters.num_rows:
        first = scored.dead_letters.column("dead_letter")[0].as_py()["message"]
        what += f", {dead:,} would be dead letters; the first: {first}"
    return Finding(what, None, warning=dead > 0)


def score_zeros(predictor: Predictor) -> Finding[None]:
    """Without an input: scores rows of zeros, if the model defines the shapes of its inputs."""
    shapes = {info.name: info.shape for info in predictor.model.inputs if info.shape is not None}
    if not shapes or len(shapes) < len(predictor.model.inputs):
        raise SkipError("no --input was given, and the model does not define how many values it takes")
    dtypes = {info.name: info.dtype or torch.float32 for info in predictor.model.inputs}
    return _score_zeros(predictor, {name: torch.zeros(2, *shape, dtype=dtypes[name]) for name, shape in shapes.items()})


def write_output(
    options: ScoreOptions,
    source: Outcome[Source] | None = None,
    columns: tuple[pa.Schema, pa.Schema] | None = None,
) -> Finding[None]:
    """The output is not in use, replaces nothing that is read, and can be written.

    `columns` are those of the predictions and of the dead letters, where they are known.
    """
    if not options.sink.output:
        raise SkipError("no --output was given")
    folder, tables = settle_output(options, runners.pipeline_options(options.run.runner, options.beam))
    dead = claims.check(folder)
    check_free(options.sink, folder, tables)
    if source is not None and source.finding is not None:
        check_apart(source.value.input, model_paths(options), folder, options.sink.report)
        if columns is not None:
            score_job.settle_columns(*columns, tables)
    check_writable("--output", folder)
    if options.sink.report:
        check_writable("--report", folder_of(options.sink.report))
    left = f"; {dead} ended without cleaning up; the next run does it" if dead else ""
    return Finding(f"{options.sink.output} can be written{left}", None)


def _score_zeros(predictor: Predictor, zeros: Mapping[str, Value]) -> Finding[None]:
    if failures := predictor.predict(dict(zeros)).failures:
        error = failures[0][1]
        raise BrokenModelError(f"the model fails on rows of zeros: {type(error).__name__}: {one_line(error)}")
    return Finding("the model scores rows of zeros", None)


def names(columns: Sequence[str]) -> str:
    """The names of columns, the first few of many."""
    return (
        ", ".join(columns) if len(columns) <= _SHOWN else f"{len(columns)} columns ({', '.join(columns[:_SHOWN])}, …)"
    )
