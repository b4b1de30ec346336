"""Running the pipeline of a job to its end, on whatever runner, and what is left of a failure in a worker."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from handlers.errors import UsageError, one_line
from pipelines import runners
from pipelines.command.errors import cause_of
from pipelines.command.watch import watch
from pipelines.dataflow import settings as dataflow


@dataclass(frozen=True)
class Execution:
    """How a pipeline is run.

    Attributes:
        launch: what the runner needs.
        runner: its name.
        run_id: under which progress is counted.
        rows: how many rows there are, where that is known.
        result: the file that is written last.
        verbose: show the logs of the runner.
        what: what is done, for the progress that is shown.
    """

    launch: runners.Launch
    runner: str
    run_id: str
    rows: int | None
    result: str
    verbose: bool = False
    what: str = "scoring"


def execute(build: Callable[[beam.Pipeline], None], run: Execution, *, wait: bool) -> bool:
    """Builds a pipeline and runs it to its end; gives whether it has ended, which on Dataflow it has only with `wait`.

    Raises:
        UsageError: where Beam refuses the options.
        TorchbeamError: where it failed.
    """
    try:
        if run.runner == dataflow.RUNNER:
            return _on_dataflow(build, run, wait)
        with (
            runners.session(run.launch, run.runner, run.run_id, verbose=run.verbose) as session,
            watch(session, run.rows, run.what),
            _pipeline(session.options) as pipeline,
        ):
            build(pipeline)
            session.run(pipeline)
    except (dataflow.StillRunning, dataflow.NotFollowedError):
        raise
    except BaseException as error:
        cause = cause_of(error)
        if cause is error:
            raise
        raise cause from error
    return True


def _on_dataflow(build: Callable[[beam.Pipeline], None], run: Execution, wait: bool) -> bool:
    """Submits a job, and follows it to its end where that is wanted."""
    from pipelines.dataflow import job as dataflow_job  # its clients of Google's services take a second to import

    with _pipeline(run.launch.options) as pipeline:
        build(pipeline)
        submitted = dataflow_job.submit(pipeline)
    dataflow_job.announce(submitted, run.launch.options, run.result)
    if submitted.job_id is None or not wait:
        return False
    dataflow_job.follow(submitted, run.rows)
    return True


@contextmanager
def _pipeline(options: PipelineOptions) -> Iterator[beam.Pipeline]:
    """A pipeline; its temporary folder, which Beam leaves where a run is interrupted, is removed."""
    try:
        pipeline = beam.Pipeline(options=options)
    except ValueError as error:  # options that do not go together; a runner's own checks are made here, too
        raise UsageError(one_line(error)) from None
    try:
        yield pipeline
    finally:
        shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
