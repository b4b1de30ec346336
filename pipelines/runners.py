"""The requirements of runners: Beam's pipeline options, and paths that their workers can reach."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, ProfilingOptions
from apache_beam.runners.runner import PipelineRunner, create_runner

from handlers.errors import UsageError, one_line
from handlers.paths import is_remote
from pipelines.command.hosts import host_of, is_loopback
from pipelines.command.options import (
    IN_PROCESS,
    ModelOptions,
    Parser,
    RunOptions,
    SinkOptions,
    SourceOptions,
    flags_of,
    near_flag,
    unknown_option,
)
from pipelines.command.several import SeveralModelsOptions
from pipelines.dataflow import settings as dataflow
from pipelines.prism import find_prism, needs_prism, running_prism
from pipelines.spark.checks import check_spark, check_versions
from pipelines.spark.local import is_local
from pipelines.spark.master import on_loopback
from pipelines.spark.session import spark_session
from pipelines.spark.submit import Submission
from pipelines.spark.submit import settle as settle_spark
from transforms import progress
from transforms.accounting import Counts
from transforms.bigquery import is_bigquery

_OF_SCORE = (SourceOptions, ModelOptions, SeveralModelsOptions, SinkOptions, RunOptions)


def in_process(runner: str) -> bool:
    """Whether the pipeline runs in this process."""
    return runner in IN_PROCESS


def pipeline_options(runner: str, arguments: Sequence[str], groups: Sequence[type] = _OF_SCORE) -> PipelineOptions:
    """Beam's options for a runner, from the arguments that are not ours.

    Args:
        runner: the name of the runner.
        arguments: those that the command does not have itself.
        groups: the options of the command, one of which a misspelt argument may stand for.

    Raises:
        UsageError: for a runner that Beam does not know, and for an argument that neither we nor Beam know.
    """
    name = IN_PROCESS[0] if in_process(runner) else runner
    try:
        made: object = create_runner(name)
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise UsageError(f'--runner "{runner}" is not known to Beam: {one_line(error, 200)}') from None
    if not isinstance(made, PipelineRunner):
        raise UsageError(f'--runner "{runner}" is a {type(made).__name__}, not a runner of Beam')
    on_dataflow = runner == dataflow.RUNNER
    strict = in_process(runner) or (on_dataflow and not dataflow.from_template(arguments))
    _refuse_unknown(arguments, flags_of(groups), strict=strict)
    options = PipelineOptions([*arguments, f"--runner={name}"], save_main_session=False)
    if in_process(runner):
        _check_in_process(options)
    return options


def _check_in_process(options: PipelineOptions) -> None:
    """Refuses options that would make Beam fail during or after the run."""
    profiling = options.view_as(ProfilingOptions)
    for name in ("profile_cpu", "profile_memory"):
        if getattr(profiling, name) and not profiling.profile_location:
            raise UsageError(f"--{name} needs --profile_location, a folder for the profiles")
    workers = options.view_as(DirectOptions).direct_num_workers
    if workers < 0:
        raise UsageError(f"--direct_num_workers must be a whole number of 0 or more, not {workers}")


@dataclass(frozen=True)
class Launch:
    """How a run is started: Beam's options, the submission for Spark, and the program of Prism."""

    options: PipelineOptions
    spark: Submission | None = None
    prism: str | None = None


def settle(run: RunOptions, arguments: Sequence[str], groups: Sequence[type] = _OF_SCORE) -> Launch:
    """Adds what a runner needs besides the arguments, and quickly checks for what would fail or hang.

    Args:
        run: how the command is executed.
        arguments: those that are passed to Beam.
        groups: the options of the command, one of which a misspelt argument may stand for.

    Raises:
        UsageError: with the problem and its fix.
    """
    options = pipeline_options(run.runner, arguments, groups)
    if needs_prism(run.runner, options):
        return Launch(options, prism=find_prism(arguments))
    if run.runner != "SparkRunner":
        return Launch(options)
    target = check_spark(options, run.spark_master_ui)
    version = (target.master.version if target.master else None) or run.spark_version
    submission = settle_spark(options, arguments, target.java, version)
    if version and submission.job_server:
        check_versions(submission.job_server, version)
    return Launch(pipeline_options(run.runner, submission.arguments, groups), submission)


class InProcess:
    """A run in this process."""

    def __init__(self, options: PipelineOptions, run_id: str) -> None:
        self.options = options
        self._run_id = run_id

    def run(self, pipeline: beam.Pipeline) -> None:
        """Runs a pipeline to its end."""
        pipeline.run().wait_until_finish()

    def so_far(self) -> Counts | None:
        """The counts so far; None if this process does not know them."""
        return progress.so_far(self._run_id)

    def state(self) -> str:
        """The state in a few words; empty, since the counts suffice."""
        return ""


class Elsewhere(InProcess):
    """A run on another runner of Beam, whose progress is unknown."""

    def so_far(self) -> None:
        """None."""
        return


def session(launch: Launch, runner: str, run_id: str, *, verbose: bool) -> AbstractContextManager[Any]:
    """Runs and watches the pipeline of a run: `run(pipeline)`, `so_far()`, `state()`, and Beam's `options`."""
    if launch.spark is not None:
        return spark_session(launch.spark, launch.options, verbose=verbose)
    if launch.prism is not None:
        return _on_prism(launch.prism, launch.options, run_id)
    return nullcontext((InProcess if in_process(runner) else Elsewhere)(launch.options, run_id))


@contextmanager
def _on_prism(program: str, options: PipelineOptions, run_id: str) -> Iterator[InProcess]:
    with running_prism(program, options):
        yield InProcess(options, run_id)  # the workers are threads of this process


def check_paths(run: RunOptions, arguments: Sequence[str], paths: Sequence[str | None]) -> None:
    """Refuses local paths if workers run on other machines, unless they are declared as shared."""
    local = [path for path in paths if path is not None and not is_remote(path) and not is_bigquery(path)]
    if not local or run.shared_filesystem or in_process(run.runner):
        return
    where = _remote_workers(run.runner, arguments)
    if where:
        raise UsageError(
            f'"{local[0]}" is a local path, but the workers are on other machines ({where}); use a path that all of '
            "them reach, such as gs://…, or declare with --shared_filesystem that it is the same everywhere"
        )


def _remote_workers(runner: str, arguments: Sequence[str]) -> str | None:
    """The master whose workers are on other machines; None if they are on this one.

    A master that listens on a loopback address has only local workers.
    """
    if runner == dataflow.RUNNER:
        return None if dataflow.is_emulated(arguments) else "Dataflow"
    parsed = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parsed.add_argument("--spark_master_url", default="local")
    parsed.add_argument("--flink_master", default="[auto]")
    values, _ = parsed.parse_known_args(arguments)
    spark, flink = values.spark_master_url, values.flink_master
    if not is_local(spark) and not on_loopback(spark):
        return str(spark)
    return None if flink in ("[auto]", "[local]") or is_loopback(host_of(flink)) else str(flink)


def _refuse_unknown(arguments: Sequence[str], flags: Sequence[str], *, strict: bool) -> None:
    """Refuses arguments that Beam would silently ignore; `flags` are those of the command.

    Job servers of portable runners have further options that are not known here, so for them only arguments that look
    like a misspelt option of ours or Beam's are refused.
    """
    known = Parser(allow_abbrev=False, add_help=False, conflict_handler="resolve")
    for kind in PipelineOptions.__subclasses__():
        if add := getattr(kind, "_add_argparse_args", None):
            add(known)
    _, unknown = known.parse_known_args(list(arguments))
    flags = [*flags, *(flag for action in known._actions for flag in action.option_strings)]
    for argument in unknown:
        if not argument.startswith("--") and strict:
            raise UsageError(f'unexpected argument "{argument}"')
        if strict or near_flag(argument.partition("=")[0], flags):
            raise unknown_option(argument, flags)
