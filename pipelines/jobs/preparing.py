"""The preparation job: what is settled on the driver, the pipeline, and the folder that it leaves.

`prepare_rows` is what `prepare` and `train` call.
"""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.pvalue import AsList, AsSingleton

from handlers.columnar.chunks import dead_letter_schema
from handlers.errors import AccountingError, UsageError
from handlers.paths import is_remote
from handlers.sequences.cutter import WindowCutter
from handlers.sequences.windows import sample_windows
from handlers.train.cleaning import CleaningPlan, plan_cleaning
from handlers.train.config import ModelConfig
from handlers.train.prepared import ABOUT, Prepared, write_about
from handlers.version import __version__
from pipelines import runners
from pipelines.command.options import ModelOptions
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.execution import Execution, execute
from pipelines.jobs.outputs import check_writable
from pipelines.jobs.prepare_checks import (
    PARTS,
    check_apart,
    check_counts,
    check_free,
    check_label,
    check_merged,
    check_split,
    check_usable,
)
from pipelines.jobs.prepare_options import GROUPS, PrepareOptions
from transforms.accounting import Counts, FileOutcome, FileOutcomes, dead_at_read, total
from transforms.file_ops import join, read_text, remove_tree, write_text
from transforms.inference.rechunk import Rechunk
from transforms.inference.sample import sample_rows
from transforms.inference.score import SAMPLE_ROWS
from transforms.inference.sequences import CutWindows
from transforms.preparation.merge import Merged, downloaded, merge
from transforms.preparation.spill import Prepare, Sampling
from transforms.processes import Process
from transforms.sinks.claims import OutputClaim, held
from transforms.sinks.publish import DEAD_LETTERS, FAILED_FILES
from transforms.sinks.temporary import clean_up, missing_folders, remove_abandoned, remove_empty, temporary_folder
from transforms.sinks.write import Part, WriteChunks, write_empty
from transforms.sources import Input, ReadChunks, plan_input
from transforms.sources.blocks import CHUNK_ROWS

Tell = Callable[[str], None]

_RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """A preparation whose every setting is known to be right, as far as the driver can tell.

    Attributes:
        cutter: cuts windows by key, if the model takes them.
        staging: where the workers write, local or remote; removed at the end.
    """

    options: PrepareOptions
    input: Input
    plan: CleaningPlan
    sampling: Sampling
    launch: runners.Launch
    run_id: str
    staging: str
    cutter: WindowCutter | None = None


def prepare_rows(options: PrepareOptions, config: ModelConfig | None = None, tell: Tell = lambda _: None) -> Prepared:
    """Prepares rows on whatever runner, and gives them; waits until it is done.

    Args:
        options: what is read, which rows are taken, and the local folder that they go to. An empty one is a new temporary
            folder, which the caller removes.
        config: the features and functions of the model; those of `options.config` by default.
        tell: called with lines for the user.

    Raises:
        UsageError: for whatever the user can fix; also for rows that nothing can be learnt from.
        TorchbeamError: where the job failed. Nothing is left of it then.
    """
    options = options.settled()
    if config is None:
        config = ModelConfig.open(options.config.model) if options.config.model else ModelConfig()
    if not options.folder.output:
        options = replace(
            options, folder=replace(options.folder, output=tempfile.mkdtemp(prefix="torchbeam-prepared-"))
        )
    with _claimed(options, tell) as run_id:
        job = settle(options, config, run_id)
        try:
            return run(job, tell)
        finally:
            if is_remote(job.staging):
                remove_tree(job.staging)


def settle(options: PrepareOptions, config: ModelConfig, run_id: str) -> Job:
    """Checks and settles everything that can be before the pipeline starts.

    Raises:
        UsageError: for whatever the user can fix.
    """
    rows, given = options.rows, options.source
    arguments = options.beam
    if options.run.runner == dataflow.RUNNER:
        _, arguments = dataflow.settle(ModelOptions(model=""), arguments)
    code = str(config.code_folder) if config.code_folder else None
    runners.check_paths(options.run, arguments, [given.input, code])
    staging = _staging(options, arguments, run_id)
    launch = runners.settle(options.run, arguments, GROUPS)
    numeric = config.spec.numeric_columns
    if config.spec.task in ("regression", "forecast"):
        numeric = (*numeric, rows.label)
    source = plan_input(given.input, given.input_format, numeric_columns=numeric, limit=given.limit)
    check_apart(source, options.folder.output)
    where = f"--input {given.input}"
    sample, cutter = sample_rows(source, options.run.chunk_bytes), None
    if config.spec.sequences is not None and source.schema.names:
        cutter = WindowCutter(config.spec.sequences, source.schema)
        sample = sample_windows(sample, cutter, SAMPLE_ROWS)
    plan = plan_cleaning(config, rows.label, sample, where)
    if cutter is not None:
        plan = replace(plan, needed=plan.needed | cutter.needed)
    for name in rows.split_by:
        check_split(name, source.schema, plan.schema, where)
    sampling = Sampling(rows.seed, given.input, rows.sample or 1.0, rows.sample_rows, rows.validation, rows.split_by)
    return Job(options, source, plan, sampling, launch, run_id, staging, cutter)


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Puts the pipeline of a job together."""
    chunk_bytes = job.options.run.chunk_bytes
    read = pipeline | "Read" >> ReadChunks(job.input, job.plan.needed, max_chunk_bytes=chunk_bytes)
    chunks, others = read.chunks, []
    if job.cutter is not None:
        chunks, in_windows = chunks | "Sequences" >> CutWindows(job.cutter, CHUNK_ROWS, chunk_bytes, job.run_id)
        others.append(in_windows)
    chunks = chunks | "Rechunk" >> Rechunk(CHUNK_ROWS, chunk_bytes)
    prepared = chunks | "Prepare" >> Prepare(job.plan, job.sampling, join(job.staging, "rows"), job.run_id)
    dead_letters = (
        (prepared.dead_letters, read.dead_letters)
        | "AllDeadLetters" >> beam.Flatten()
        | "WriteDeadLetters"
        >> WriteChunks(
            join(job.staging, DEAD_LETTERS), dead_letter_schema(job.input.schema), "parquet", group_bytes=chunk_bytes
        )
    )
    files = read.files | "Files" >> FileOutcomes()
    unreadable = read.dead_letters | "RowsUnreadable" >> beam.Map(dead_at_read).with_output_types(Counts)
    counts = (prepared.counts, unreadable, files.counts, *others) | "AllCounts" >> beam.Flatten()
    _ = (
        pipeline
        | "Once" >> beam.Create([join(job.staging, _RESULT)])
        | "Result"
        >> beam.Map(
            _write_result,
            AsList(prepared.files),
            AsList(dead_letters),
            AsList(files.failed),
            AsSingleton(counts | "Count" >> beam.CombineGlobally(total)),
        )
    )


def _write_result(
    path: str, files: Sequence[Part], dead_letters: Sequence[Part], failed: Sequence[FileOutcome], counts: Counts
) -> None:
    """Writes what the driver needs to know; last of all, and again after an interruption."""
    content = {
        "files": [asdict(part) for part in sorted(files, key=lambda part: part.path)],
        "dead_letters": [asdict(part) for part in sorted(dead_letters, key=lambda part: part.path)],
        "failed": [outcome.failed() for outcome in sorted(failed, key=lambda outcome: outcome.path)],
        "counts": asdict(counts),
    }
    write_text(path, json.dumps(content))


def run(job: Job, tell: Tell) -> Prepared:
    """Runs a job to its end and gives the prepared rows."""
    started = time.time()
    options, local = job.options, Path(temporary_folder(job.options.folder.output, job.run_id))
    local.mkdir(parents=True, exist_ok=True)
    path = join(job.staging, _RESULT)
    how = Execution(job.launch, options.run.runner, job.run_id, job.input.rows, path, options.run.verbose, "preparing")
    execute(lambda pipeline: build(pipeline, job), how, wait=True)
    result = json.loads(read_text(path))
    counts = Counts(**result["counts"])
    check_counts(counts, result)
    check_usable(counts, job.plan.label, f"--input {options.source.input}")
    files = downloaded([part["path"] for part in result["files"]], local / "rows")
    merged = merge(files, job.plan.schema, local, rows=job.sampling.rows)
    check_merged(merged, counts, result, job.sampling)
    for part in downloaded([part["path"] for part in result["dead_letters"]], local / DEAD_LETTERS):
        if Path(part).parent != local / DEAD_LETTERS:
            raise AccountingError(f"{part} is not where dead letters are written")
    if not result["dead_letters"]:
        write_empty(str(local / DEAD_LETTERS / "part-empty.parquet"), dead_letter_schema(job.input.schema), "parquet")
    about = _about(job, counts, merged)
    check_label(local, job.plan.label, job.plan.schema, about["rows"]["sampled"])
    if job.sampling.validation and not merged.validation:
        tell(f"warning: no row is held out of {merged.train}; give more rows, a larger --validation or another --seed")
    _publish(local, Path(options.folder.output), about | {"seconds": round(time.time() - started, 3)}, result["failed"])
    return Prepared.open(options.folder.output)


def _about(job: Job, counts: Counts, merged: Merged) -> dict[str, Any]:
    """The content of `prepared.json`."""
    rows = job.options.rows
    return {
        "label": rows.label,
        "seed": rows.seed,
        "sample": rows.sample,
        "sample_rows": rows.sample_rows,
        "validation": rows.validation,
        "split_by": list(rows.split_by),
        "input": job.options.source.input,
        "rows": {
            "read": counts.rows_read,
            "sampled": merged.train + merged.validation,
            "train": merged.train,
            "validation": merged.validation,
            "dropped": counts.rows_dropped,
            "dead": counts.rows_dead,
        },
        "dead_by_error": dict(sorted(counts.dead_by_error.items(), key=lambda item: (-item[1], item[0]))),
        "files": {"read": counts.files_read, "dead": counts.files_dead},
        "features": dict(job.plan.config.spec.features),
        "runner": job.options.run.runner,
        "fingerprint": merged.fingerprint,
        "torchbeam": __version__,
    }


def _publish(local: Path, output: Path, about: dict[str, Any], failed: Sequence[dict[str, Any]]) -> None:
    """Gives everything its final name; `prepared.json` last."""
    (output / ABOUT).unlink(missing_ok=True)
    for name, pattern in PARTS.items():
        (output / name).mkdir(exist_ok=True)
        for old in (output / name).glob(pattern):
            old.unlink()
        for new in (local / name).glob(pattern):
            new.replace(output / name / new.name)
    (output / FAILED_FILES).unlink(missing_ok=True)
    if failed:
        write_text(str(output / FAILED_FILES), "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in failed))
    remove_tree(str(local))
    write_about(output, about)


# Files


@contextmanager
def _claimed(options: PrepareOptions, tell: Tell) -> Iterator[str]:
    """Checks and claims the output, and yields the id of the run; what a failed run has made is removed."""
    output = options.folder.output
    if is_remote(output):
        raise UsageError(f"--output {output}: training reads rows from a disk; give a local folder")
    check_writable("--output", output)
    run_id = uuid.uuid4().hex[:12]
    made = missing_folders(temporary_folder(output, run_id), *(join(output, name) for name in PARTS))
    claim = OutputClaim(output, run_id, options.run.runner, Process.current())
    try:
        with ExitStack() as stack:
            dead = stack.enter_context(held(claim, tell))
            if removed := remove_abandoned(output, run_id, dead.run_id if dead else None):
                tell(f"removed {', '.join(removed)} in {output}, which a run that was killed had left")
            check_free(Path(output), overwrite=options.folder.overwrite)
            try:
                yield run_id
            except BaseException:
                clean_up(output, run_id)
                raise
    finally:
        remove_empty(made)


def _staging(options: PrepareOptions, arguments: Sequence[str], run_id: str) -> str:
    """Where workers write: next to the output, or under --temp_location where they are on other machines."""
    output = options.folder.output
    try:
        runners.check_paths(options.run, arguments, [output])
    except UsageError as error:
        beam_options = runners.pipeline_options(options.run.runner, arguments, GROUPS)
        temporary = beam_options.view_as(GoogleCloudOptions).temp_location
        if temporary is None or not is_remote(temporary):
            raise UsageError(
                f"{error}; or name a folder that all of them reach with --temp_location, for rows on their way to --output"
            ) from None
        return join(temporary, f"torchbeam-prepare-{run_id}")
    return temporary_folder(output, run_id)
