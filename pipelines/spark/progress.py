"""How far a job on Spark is: from the log of the job server, and from Spark's web page, where Beam's metrics are."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress

from pipelines.spark.job_server import Running
from pipelines.spark.pages import read_page
from transforms.accounting import Counts

_SECONDS = 5.0  # between two looks at the page, and for an answer
_COUNTER = re.compile(r"\{[^{}]*NAME=(rows_\w+)[^{}]*NAMESPACE=torchbeam[^{}]*\}: (\d+)")


class SparkProgress:
    """What can be told of a job that runs. For people to look at: a task that is done again counts twice."""

    def __init__(self, server: Running | None) -> None:
        self._server = server
        self._counts: Counts | None = None
        self._asked = 0.0

    def so_far(self) -> Counts | None:
        """The rows of the tasks that are done; None until there are any."""
        page = self._server.ui if self._server else None
        if page and time.monotonic() - self._asked > _SECONDS:
            self._asked = time.monotonic()
            # The page comes after the job has begun, and goes before it has ended.
            with suppress(OSError, ValueError, LookupError, TypeError):
                self._counts = _counts(page) or self._counts
        return self._counts

    def state(self) -> str:
        """How far Spark is, and where it can be watched."""
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
                # The metrics are those of the whole job so far, in each stage.
                found = {name: max(rows, found.get(name, 0)) for name, rows in (found | of_stage).items()}
    if not found:
        return None
    return Counts(
        rows_scored=found.get("rows_scored", 0),
        rows_dropped=found.get("rows_dropped", 0),
        rows_dead=sum(rows for name, rows in found.items() if name.startswith("rows_failed_")),
    )
