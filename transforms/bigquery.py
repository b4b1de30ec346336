"""What the BigQuery source and sink share: names, the REST client, and whom to ask in place of Google."""

from __future__ import annotations

import os
from typing import Any

PREFIX = "bigquery:"
# The environment variable that names another server than Google's.
EMULATOR = "BIGQUERY_EMULATOR_HOST"
# For how long a server that cannot be reached is asked again, in seconds: before the run somebody waits for the answer.
BEFORE_RUN = 30
WAY_OUT = "check the name, the credentials of this process and its roles (see docs/bigquery.md)"


def is_bigquery(name: str) -> bool:
    """Whether `name`, of an input or output, stands for something in BigQuery."""
    return name.startswith(PREFIX)


def rest_client(project: str | None) -> Any:
    """A client of all but reading, whose jobs run in `project`; None for that of the credentials."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.bigquery import Client

    if os.environ.get(EMULATOR):
        return Client(project=project or "emulator", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
    return Client(project=project)


def rest_retry() -> Any:
    """For how long a call of `rest_client` is tried again before the run."""
    from google.cloud.bigquery.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(BEFORE_RUN)


def billed_project() -> str | None:
    """The project that pays for reading, where the environment says it; else the client or the table tells."""
    return os.environ.get("GOOGLE_CLOUD_PROJECT")
