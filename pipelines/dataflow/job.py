"""Submits a pipeline to Dataflow and follows the job."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import GoogleCloudOptions, SetupOptions, WorkerOptions
from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult
from apache_beam.runners.runner import PipelineState

from handlers.errors import TorchbeamError, one_line
from handlers.metrics import NAMESPACE
from pipelines.command.watch import watch
from pipelines.dataflow.own_wheel import build_wheel
from pipelines.dataflow.settings import NotFollowedError, StillRunning
from transforms.accounting import Counts

PROGRESS_SECONDS = 15.0

_CONSOLE = "https://console.cloud.google.com/dataflow/jobs"


@dataclass(frozen=True)
class Submitted:
    """A submitted job.

    Attributes:
        result: Beam's handle of the job.
        job_id: the job id; None if only the graph was written, for the launcher of a template.
        name: the name of the job.
        console: the URL of its web page.
    """

    result: DataflowPipelineResult
    job_id: str | None
    name: str
    console: str


def submit(pipeline: beam.Pipeline) -> Submitted:
    """Stages what the workers need and submits the job.

    Raises:
        TorchbeamError: if Dataflow or the staging storage rejects the job.
        StillRunning: if this process was interrupted; Dataflow may have accepted the job.
    """
    options = pipeline.options
    cloud = options.view_as(GoogleCloudOptions)
    with tempfile.TemporaryDirectory() as folder:
        _stage_package(options, Path(folder))
        try:
            result = cast("DataflowPipelineResult", pipeline.run())
        except KeyboardInterrupt:
            jobs = f"{_CONSOLE}?project={cloud.project}"
            raise StillRunning(f"check whether the job was submitted already: {jobs}") from None
        except Exception as error:
            raise TorchbeamError(f"Dataflow did not take the job: {type(error).__name__}: {one_line(error)}") from error
    if cloud.template_location is not None:
        return Submitted(result, None, "", "")
    job_id = result.job_id()
    console = f"{_CONSOLE}/{cloud.region}/{job_id}?project={cloud.project}"
    return Submitted(result, job_id, result._job.name, console)


def _stage_package(options: beam.options.pipeline_options.PipelineOptions, folder: Path) -> None:
    """Stages this package if the workers do not get it otherwise.

    A custom image has it, and so does the package that `--setup_file` builds. The images of Beam do not: there pip
    installs the wheel, and PyTorch with it, when a worker starts.
    """
    setup = options.view_as(SetupOptions)
    worker = options.view_as(WorkerOptions)
    if worker.sdk_container_image or worker.worker_harness_container_image or setup.setup_file:
        return
    setup.extra_packages = [*(setup.extra_packages or []), str(build_wheel(folder))]


def announce(submitted: Submitted, options: beam.options.pipeline_options.PipelineOptions, report: str) -> None:
    """Prints the submitted job and the path of its report on stdout."""
    cloud = options.view_as(GoogleCloudOptions)
    if submitted.job_id is None:
        print(f"graph    {cloud.template_location}, for the launcher to submit")
    else:
        print(f"job      {submitted.name}, id {submitted.job_id}")
        print(f"console  {submitted.console}")
    print(f"report   {report}, once the job is finished", flush=True)


def follow(submitted: Submitted, rows: int | None) -> None:
    """Shows progress until the job ends; `rows` is the number of input rows, if known.

    Raises:
        DataflowRuntimeException: if the job failed or was cancelled, with the last error of the service.
        StillRunning: if this process was interrupted.
        NotFollowedError: if Dataflow stopped responding, so the state of the job is unknown.
    """
    try:
        with watch(_Progress(submitted.result), rows):
            submitted.result.wait_until_finish()
    except KeyboardInterrupt:
        raise StillRunning(f"not followed any more; the job goes on: {submitted.console}") from None
    except Exception as error:
        if _has_ended(submitted.result):
            raise
        raise NotFollowedError(
            f"Dataflow does not answer any more ({one_line(error, 300)}), but the job may go on: {submitted.console}"
        ) from error


def _has_ended(result: DataflowPipelineResult) -> bool:
    with suppress(Exception):
        return bool(PipelineState.is_terminal(result.state))
    return False


class _Progress:
    """The progress of a job from its metrics, which are polled; prints each new state on stderr."""

    def __init__(self, result: DataflowPipelineResult) -> None:
        self._result = result
        self._counts = Counts()
        self._state = ""
        self._next = 0.0

    def state(self) -> str:
        """Empty, since each state is printed once."""
        return ""

    def so_far(self) -> Counts:
        """The counts so far."""
        if time.monotonic() >= self._next:
            with suppress(Exception):  # only the display depends on it
                self._poll()
            self._next = time.monotonic() + PROGRESS_SECONDS
        return self._counts

    def _poll(self) -> None:
        state = self._result.state
        if state not in (self._state, PipelineState.UNRECOGNIZED):
            self._state = state
            print(f"the job is {state.lower()}", file=sys.stderr, flush=True)
        metrics = self._result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
        rows: dict[str, int] = {}
        for metric in metrics:
            name = metric.key.metric.name
            rows[name] = rows.get(name, 0) + (metric.committed or metric.attempted or 0)
        self._counts = _counts(rows)


def _counts(rows: Mapping[str, int]) -> Counts:
    dead = sum(number for name, number in rows.items() if name.startswith("rows_failed_"))
    return Counts(rows_scored=rows.get("rows_scored", 0), rows_dropped=rows.get("rows_dropped", 0), rows_dead=dead)
