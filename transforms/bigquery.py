"""What the BigQuery source and sink share: names, the REST client, and the emulator."""

from __future__ import annotations

import os
from typing import Any

PREFIX = "bigquery:"
# The environment variable with the address of an emulator.
EMULATOR = "BIGQUERY_EMULATOR_HOST"
# How long calls to an unreachable server are retried, in seconds. Short, since the user waits for them before a run.
BEFORE_RUN = 30
WAY_OUT = "check the name, the credentials of this process and its roles (see docs/bigquery.md)"


def is_bigquery(name: str) -> bool:
    """Whether the input or output `name` is in BigQuery."""
    return name.startswith(PREFIX)


def rest_client(project: str | None) -> Any:
    """The client for everything except reading; its jobs run in `project`, by default the project of the credentials."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.bigquery import Client

    if os.environ.get(EMULATOR):
        return Client(project=project or "emulator", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
    return Client(project=project)


def rest_retry() -> Any:
    """The retry policy for calls of `rest_client` before the run."""
    from google.cloud.bigquery.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(BEFORE_RUN)


def billed_project() -> str | None:
    """The project billed for reads, from the environment; None if it is not set there."""
    return os.environ.get("GOOGLE_CLOUD_PROJECT")
