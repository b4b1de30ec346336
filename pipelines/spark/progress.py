"""The progress of a job on Spark, from the log of the job server and from Beam's metrics on Spark's web page."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress

from pipelines.spark.job_server import Running
from pipelines.spark.pages import read_page
from transforms.accounting import Counts

_SECONDS = 5.0  # between two requests of the page, and the time limit of each
_COUNTER = re.compile(r"\{[^{}]*NAME=(rows_\w+)[^{}]*NAMESPACE=torchbeam[^{}]*\}: (\d+)")


class SparkProgress:
    """The progress of a running job, for people to watch: a retried task counts twice."""

    def __init__(self, server: Running | None) -> None:
        self._server = server
        self._counts: Counts | None = None
        self._requested = 0.0

    def so_far(self) -> Counts | None:
        """The rows of the finished tasks; None until there are any."""
        page = self._server.ui if self._server else None
        if page and time.monotonic() - self._requested > _SECONDS:
            self._requested = time.monotonic()
            # The page exists only between the start of the job and its end.
            with suppress(OSError, ValueError, LookupError, TypeError):
                self._counts = _counts(page) or self._counts
        return self._counts

    def state(self) -> str:
        """What Spark is doing, and the address of its web page."""
        server = self._server
        if server is None:
            return ""
        if server.ui is None:
            return "starting Spark"
        if server.waiting:
            return f"waiting for executors, see {server.ui}"
        done = f"{server.tasks} tasks done" if server.tasks else "running the first tasks"
        return f"{done}, see {server.ui}"


def _counts(page: str) -> Counts | None:
    (application, *_) = json.loads(read_page(f"{page}/api/v1/applications", _SECONDS))
    stages = json.loads(read_page(f"{page}/api/v1/applications/{application['id']}/stages", _SECONDS))
    found: dict[str, int] = {}
    for stage in stages:
        for update in stage.get("accumulatorUpdates", ()):
            if update["name"] == "Beam.Metrics":
                of_stage: dict[str, int] = {}
                for name, rows in _COUNTER.findall(update["value"]):
                    of_stage[name] = of_stage.get(name, 0) + int(rows)
                # Each stage has the metrics of the whole job so far.
                found = {name: max(rows, found.get(name, 0)) for name, rows in (found | of_stage).items()}
    if not found:
        return None
    return Counts(
        rows_scored=found.get("rows_scored", 0),
        rows_dropped=found.get("rows_dropped", 0),
        rows_dead=sum(rows for name, rows in found.items() if name.startswith("rows_failed_")),
    )
