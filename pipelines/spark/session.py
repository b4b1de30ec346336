"""A run on Spark from start to end: the job server, the job and its progress."""

from __future__ import annotations

import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import apache_beam as beam
import grpc  # type: ignore[import-untyped,unused-ignore]
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, SparkRunnerOptions

from handlers.errors import TorchbeamError
from handlers.redact import redact
from pipelines.spark.call import call_of
from pipelines.spark.early import take
from pipelines.spark.job_server import JobServer, JobServerError, Running, beams_own, running
from pipelines.spark.local import is_local
from pipelines.spark.progress import SparkProgress
from pipelines.spark.submit import Submission
from pipelines.spark.worker import NO_BEAM
from transforms.accounting import Counts

_POLL_SECONDS = 0.2
_CANCEL_SECONDS = 20.0


@dataclass
class Session:
    """A run on Spark.

    Attributes:
        options: Beam's, with the job server that takes the job.
        server: the job server; None if the user runs one.
        progress: the progress of the job.
        folder: a temporary folder of the run, removed at its end.
    """

    options: PipelineOptions
    server: Running | None
    progress: SparkProgress
    folder: Path

    def run(self, pipeline: beam.Pipeline) -> None:
        """Runs a pipeline to its end; an interruption also cancels the job on the cluster.

        Raises:
            TorchbeamError: if the job failed, with the cause from the log of the job server if known.
        """
        # A separate thread submits the job and waits, so that an interruption or the end of the job server is seen at once.
        job = _Job(pipeline, self.folder)
        job.start()
        try:
            while job.is_alive():
                job.join(_POLL_SECONDS)
                self._check_server()
        except BaseException:
            if self.server is None or self.server.process.poll() is None:
                _cancel(job)
            raise
        if job.error is not None:
            if self.server is not None:
                # Another thread reads the log, and the cause may be in its last lines.
                time.sleep(_POLL_SECONDS)
                self._check_server()
            raise _said_by_worker(job.error) or job.error

    def so_far(self) -> Counts | None:
        """The counts so far, if Spark reports them."""
        return self.progress.so_far()

    def state(self) -> str:
        """The state of Spark, for the progress line."""
        return self.progress.state()

    def _check_server(self) -> None:
        if self.server is None:
            return
        if self.server.problem:
            raise TorchbeamError(self.server.problem)
        if self.server.process.poll() is not None:
            raise JobServerError(f"the job server ended before the job did: {self.server.last_error()}")


def _said_by_worker(error: BaseException) -> RuntimeError | None:
    """The error of a Python worker inside the Java exceptions."""
    text = str(error)
    if found := re.search(r"Error received from SDK harness for instruction \S+: (.*?)(\n\s+at |\Z)", text, re.DOTALL):
        return RuntimeError(found.group(1).strip())
    if found := re.search(r"Process died with exit code (\d+)", text):
        code = int(found.group(1))
        why = (
            " the Python of the workers cannot import apache_beam" if code == NO_BEAM else "; see the executors' hosts"
        )
        return RuntimeError(
            f"WorkerError: the worker command ended with exit code {code}{':' * (code == NO_BEAM)}{why}"
        )
    return None


class _Job(threading.Thread):
    """Submits a pipeline and waits for its end.

    Attributes:
        submitted: set once there is a result or an error.
        result: Beam's result of the job.
        error: why it was not submitted, or failed.
    """

    def __init__(self, pipeline: beam.Pipeline, folder: Path) -> None:
        super().__init__(name="spark-job", daemon=True)
        self._pipeline = pipeline
        self._folder = folder
        self.submitted = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with _replaced(tempfile, "tempdir", str(self._folder)):
                self.result = self._pipeline.run()
            self.submitted.set()
            self.result.wait_until_finish()
        except BaseException as error:
            self.error = error
        finally:
            self.submitted.set()


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Sets a global of `module` for the time of the context."""
    # Beam creates temporary folders that it never removes, and starts threads whose errors nobody catches, deep inside
    # `pipeline.run()`. It takes neither a folder nor an exception handler, so only these two globals reach them.
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _cancel(job: _Job) -> None:
    """Cancels the job on the cluster; without a response in time it ends with the job server."""

    def ask() -> None:
        job.submitted.wait()
        with suppress(Exception):
            job.result.cancel()

    asking = threading.Thread(target=ask, name="cancel-job", daemon=True)
    asking.start()
    asking.join(_CANCEL_SECONDS)


@contextmanager
def spark_session(submission: Submission, options: PipelineOptions, *, verbose: bool = False) -> Iterator[Session]:
    """Runs the job server of a run for the time of the context.

    Args:
        submission: the prepared submission.
        options: Beam's options, from the arguments of `submission`.
        verbose: whether the job server logs everything.

    Raises:
        JobServerError: if it does not start.
    """
    for line in submission.warnings:
        print(f"torchbeam score: warning: {redact(line)}", file=sys.stderr)
    with _threads_of_workers_here(submission.threads), _without_grpc_tracebacks():
        if submission.job_server is None or submission.java is None:
            with tempfile.TemporaryDirectory(prefix="torchbeam-spark-") as folder:
                yield Session(options, None, SparkProgress(None), Path(folder))
            return
        jar = _jar(submission.job_server)
        master = options.view_as(SparkRunnerOptions).spark_master_url
        local = is_local(master) and options.view_as(PortableOptions).environment_type == "LOOPBACK"
        call = call_of(
            jar,
            submission.java,
            master,
            submission.jvm_arguments,
            submission.environment,
            local=local,
            verbose=verbose,
        )
        with running(call, take(call)) as server:
            options.view_as(PortableOptions).job_endpoint = server.endpoint
            yield Session(options, server, SparkProgress(server), server.folder)


@contextmanager
def _threads_of_workers_here(threads: int | None) -> Iterator[None]:
    """Sets the threads of PyTorch for each task if the workers are threads of this process; None keeps its default."""
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # threads that start to compute later inherit it
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_grpc_tracebacks() -> Iterator[None]:
    """Hides the tracebacks of Beam's threads that lose the job server at the end of a run, also after the context."""
    show = threading.excepthook
    others = set(threading.enumerate())
    left: set[threading.Thread] = set()

    def hook(happened: threading.ExceptHookArgs) -> None:
        of_run = happened.thread in left if ended else happened.thread not in others
        if not (of_run and issubclass(happened.exc_type, grpc.RpcError)):
            show(happened)

    ended = False
    threading.excepthook = hook
    try:
        yield
    finally:
        left.update(set(threading.enumerate()) - others)
        ended = True
        if not left:
            threading.excepthook = show


def _jar(server: JobServer) -> Path:
    if server.jar is not None:
        return server.jar
    from apache_beam.utils.subprocess_server import JavaJarServer

    return Path(JavaJarServer.local_jar(beams_own()))
