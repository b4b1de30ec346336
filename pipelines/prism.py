"""Prism, Beam's runner for one machine: its program and its process."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, PrismRunnerOptions

from handlers.errors import TorchbeamError, UsageError
from handlers.redact import redact
from pipelines.command.built import built
from pipelines.command.supervisor import STOP_SECONDS, start_supervised, stop_supervised

PRISM = "PrismRunner"
_START_SECONDS = 30.0

_log = logging.getLogger("PrismRunner")


def find_prism(arguments: Sequence[str] = ()) -> str:
    """The program: that of `--prism_location`, the one on the PATH, or the one that `make prism` has built.

    Beam itself would download it.

    Raises:
        UsageError: if there is none.
    """
    location: str | None = PipelineOptions(list(arguments)).view_as(PrismRunnerOptions).prism_location
    if location is not None:
        if not os.access(location, os.X_OK) or not Path(location).is_file():
            raise UsageError(f'--prism_location "{redact(location)}" is no program on this machine')
        return location
    made = built("prism") / beam.__version__ / "prism"
    found = shutil.which("prism") or (str(made) if os.access(made, os.X_OK) else None)
    if found is None:
        raise UsageError(
            "PrismRunner needs its program, and there is no prism on PATH; build it (make prism, or go install "
            f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam.__version__}), or give --prism_location=FILE"
        )
    return found


def needs_prism(runner: str, options: PipelineOptions) -> bool:
    """Whether a run needs a Prism of its own: not if `--job_endpoint` names one that runs."""
    return runner == PRISM and not options.view_as(PortableOptions).job_endpoint


@contextmanager
def running_prism(program: str, options: PipelineOptions) -> Iterator[None]:
    """Runs Prism for the time of the context, and has `options` name it; it also ends when this process is killed.

    Raises:
        TorchbeamError: if it does not start.
    """
    level = options.view_as(PrismRunnerOptions).prism_log_level
    command = [program, "--job_port=0", "--serve_http=false", "--log_kind=json", f"--log_level={level}"]
    process = start_supervised(command)
    log = _Log(process)
    log.start()
    try:
        options.view_as(PortableOptions).job_endpoint = log.endpoint()
        yield
    finally:
        stop_supervised(process)
        log.join(STOP_SECONDS)


class _Log(threading.Thread):
    """Reads what Prism logs, in JSON, one object a line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(name="prism-log", daemon=True)
        self._process = process
        self._last: deque[str] = deque(maxlen=5)
        self._found = threading.Event()
        self._endpoint = ""

    def run(self) -> None:
        for line in self._process.stdout or ():
            try:
                entry = json.loads(line)
                level, text = str(entry.get("level", "INFO")), str(entry.get("msg", line.strip()))
                if endpoint := entry.get("endpoint"):
                    self._endpoint = str(endpoint)
                    self._found.set()
            except (ValueError, AttributeError):
                level, text = "INFO", line.strip()
            self._last.append(text)
            _log.log(logging.ERROR if level == "ERROR" else logging.DEBUG, "%s", redact(text))

    def endpoint(self) -> str:
        """The address for jobs, as soon as it is known."""
        end = time.monotonic() + _START_SECONDS
        while not self._found.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > end:
                raise TorchbeamError(f"Prism did not start: {'; '.join(self._last) or 'it said nothing'}")
        return self._endpoint
