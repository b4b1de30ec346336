"""torchbeam itself: the command, in process and on Spark, and data frames of Spark."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from benchmarks.job import Clock, Job


def _arguments(job: Job) -> list[str]:
    options = {"input": job.input, "model": job.model, "output": job.output, "device": "cpu", **job.settings}
    options.pop("check", None)  # of the loop
    return [f"--{name}={value}" for name, value in options.items()]


def torchbeam(job: Job, clock: Clock) -> None:
    """`torchbeam score` on Beam's in-process runner: the whole command, with listing, the sample and the checks."""
    from pipelines import score
    from pipelines.command.process import imports_without_collection

    with imports_without_collection() as imported:  # as the command imports them
        from pipelines.jobs import scoring  # noqa: F401

        imported()
    said = io.StringIO()
    with clock.running(), contextlib.redirect_stdout(said):
        code = score.main(_arguments(job))
    if code:
        raise SystemExit(f"torchbeam score ended with exit code {code}: {said.getvalue()}")


def command(job: Job) -> list[str]:
    """The command line, as one types it."""
    return [sys.executable, "-m", "torchbeam", "score", *_arguments(job)]


def spark_command(job: Job) -> list[str]:
    """The same on `local[cores]` of Spark, with Beam's runner for it. Java starts while Python imports, so this is the command."""
    return [*command(job), "--runner=SparkRunner", f"--spark_master_url=local[{os.cpu_count()}]"]


def imports(_: Job) -> list[str]:
    """A program that does nothing but import Beam and PyTorch."""
    return [sys.executable, "-c", "import apache_beam, torch"]
