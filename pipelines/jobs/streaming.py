"""The streaming job: its checks on the driver, its pipeline, and its run until it is ended."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import apache_beam as beam
from apache_beam.options.pipeline_options import StandardOptions

from handlers.batching import ResourceHints
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from handlers.refresh.refresher import close_all
from handlers.refresh.watch import Refresh
from pipelines import runners
from pipelines.dataflow import settings as dataflow
from pipelines.jobs.execution import Execution, execute
from pipelines.jobs.stream_options import GROUPS, StreamOptions
from transforms import progress
from transforms.accounting import Counts
from transforms.streams.deliver import log_rest
from transforms.streams.endpoints import Settings
from transforms.streams.metrics import metrics_on
from transforms.streams.read import MicroBatches
from transforms.streams.runs import end_run, run_of
from transforms.streams.score_stream import ScoreStream
from transforms.streams.settle import MessageFormat

# A second signal this soon is the same one: Ctrl-C reaches parent and child.
_SAME_SECONDS = 1.0


@dataclass(frozen=True)
class StreamJob:
    """A stream whose settings are all checked, as far as the driver can."""

    score: ScoreStream
    launch: runners.Launch
    runner: str
    verbose: bool


@dataclass(frozen=True)
class Ended:
    """How a run in this process ended.

    Attributes:
        counts: of all messages that it delivered.
        interrupted: whether a signal ended it.
    """

    counts: Counts
    interrupted: bool


def prepare(options: StreamOptions, model: ModelDir, refresh: Refresh | None = None) -> StreamJob:
    """Checks everything that is possible before the pipeline starts.

    Args:
        options: of the command.
        model: the model with which it begins.
        refresh: where newer ones are.

    Raises:
        UsageError: for anything that the user must fix.
        BrokenModelError: if the model cannot score anything.
    """
    launch = settle(options)
    score = scoring(options, model, refresh)
    score.check()
    check_metrics(options)
    return StreamJob(score, launch, options.how.runner, options.how.verbose)


def settle(options: StreamOptions) -> runners.Launch:
    """How the stream is started; raises `UsageError` for a runner that cannot run it."""
    check_runner(options)
    launch = runners.settle(options.run, options.beam, GROUPS)
    if not runners.in_process(options.how.runner):
        launch.options.view_as(StandardOptions).streaming = True
    return launch


def check_metrics(options: StreamOptions) -> None:
    """Takes the port for metrics of this process; raises `UsageError` if another program has it."""
    port = options.sink.metrics_port
    if port is not None and runners.in_process(options.how.runner) and metrics_on(port) is None:
        raise UsageError(f"--metrics_port {port} is in use on this machine; choose another")


def settings(options: StreamOptions) -> Settings:
    """What sources and sinks are made with, beside their address."""
    source, sink = options.source, options.sink
    return Settings(source.group, source.kafka_config, source.begin, sink.delivery == "exactly_once", sink.output)


def scoring(options: StreamOptions, model: ModelDir, refresh: Refresh | None = None) -> ScoreStream:
    """The transform of a stream.

    Raises:
        UsageError: for an address that cannot be.
    """
    source, sink = options.source, options.sink
    local = runners.in_process(options.how.runner)
    placement = Placement(
        options.model.device, options.model.precision, options.model.compile, options.model.model_copies
    )
    return ScoreStream(
        source.input,
        model,
        sink.output,
        sink.dead_letters,
        sink.accounts,
        form=MessageFormat(
            source.message_format, source.schema, source.sample, source.schema_registry, source.max_message_bytes
        ),
        batches=MicroBatches(source.max_batch_rows, source.max_batch_delay),
        settings=settings(options),
        window_seconds=sink.window,
        metrics_port=sink.metrics_port,
        columns=sink.columns,
        preprocess=options.model.preprocess,
        postprocess=options.model.postprocess,
        probabilities=sink.probabilities,
        placement=placement,
        batch_size=options.model.batch_size,
        hints=ResourceHints(options.model.accelerator, options.model.min_ram),
        driver=placement if local else Placement("cpu"),
        run_id=uuid.uuid4().hex,
        stop_after=source.stop_after,
        refresh=refresh,
    )


def check_runner(options: StreamOptions) -> None:
    """Refuses runners on which a stream cannot run, and options that have no meaning on them."""
    runner = options.how.runner
    if runner == "SparkRunner":
        raise UsageError(
            "SparkRunner cannot run a stream: Beam's portable Spark runner runs batch pipelines only; leave --runner "
            "out, or use PrismRunner or DataflowRunner; torchbeam score scores what has arrived on Spark"
        )
    if runner == dataflow.RUNNER and options.source.stop_after is not None:
        raise UsageError("--stop_after is for tries on one machine; end a job on Dataflow by draining it")


def run(job: StreamJob, *, wait: bool = True) -> Ended | None:
    """Runs a job until a signal or `--stop_after` ends it; None for one that goes on elsewhere.

    Raises:
        TorchbeamError: if the job failed. What was delivered is committed.
    """
    run_id = job.score.run_id
    execution = Execution(job.launch, job.runner, run_id, job.score.stop_after, "", job.verbose, "streaming")
    with stop_on_signals(run_id, job.score.stop_after) as signals:
        try:
            ended = execute(lambda pipeline: _build(pipeline, job), execution, wait=wait)
        finally:
            end_run(run_id)
            close_all()
            log_rest(run_id)
    return Ended(progress.so_far(run_id), bool(signals)) if ended else None


def _build(pipeline: beam.Pipeline, job: StreamJob) -> None:
    _ = pipeline | "ScoreStream" >> job.score


@contextmanager
def stop_on_signals(run_id: str, stop_after: int | None = None) -> Iterator[list[int]]:
    """Ends the run with the chunk in hand when the process is to end; a second signal ends it at once.

    Yields the signals that came.
    """
    stream = run_of(run_id, stop_after)
    came: list[int] = []
    last = 0.0

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        if came and time.monotonic() - last > _SAME_SECONDS:
            raise KeyboardInterrupt
        last = time.monotonic()
        came.append(number)
        stream.stop()

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
