"""torchbeam itself: the command, in process and on Spark, and data frames of Spark."""

from __future__ import annotations

import contextlib
import io
import os

from benchmarks.job import Clock, Job


def _score(job: Job, clock: Clock, *more: str) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pipelines import score
    from pipelines.jobs import scoring  # noqa: F401 - what the command imports later

    options = {"input": job.input, "model": job.model, "output": job.output, "device": "cpu", **job.settings}
    arguments = [f"--{name}={value}" for name, value in options.items() if name != "check"]
    said = io.StringIO()
    with clock.running(), contextlib.redirect_stdout(said):
        code = score.main([*arguments, *more])
    if code:
        raise SystemExit(f"torchbeam score ended with exit code {code}: {said.getvalue()}")


def torchbeam(job: Job, clock: Clock) -> None:
    """`torchbeam score` on Beam's in-process runner: the whole command, with listing, the sample and the checks."""
    _score(job, clock)
