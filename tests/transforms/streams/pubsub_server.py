"""Google's own in-memory Pub/Sub, which `tests/services.sh` builds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.cloud import pubsub_v1

PROJECT = "my-project-1"
PROGRAM = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchbeam" / "pubsub-emulator"
MISSING = f"there is no {PROGRAM}; tests/services.sh builds it with Go"


@contextmanager
def pubsub_server() -> Iterator[str]:
    """A running server; gives its address for `PUBSUB_EMULATOR_HOST`."""
    with subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def create_topic(topic: str) -> str:
    """Creates a topic; gives its full name."""
    name = f"projects/{PROJECT}/topics/{topic}"
    pubsub_v1.PublisherClient().create_topic(name=name)
    return name


def create_subscription(topic: str, subscription: str, ack_deadline_seconds: int = 10) -> None:
    """Creates a subscription of a topic."""
    pubsub_v1.SubscriberClient().create_subscription(
        name=f"projects/{PROJECT}/subscriptions/{subscription}",
        topic=f"projects/{PROJECT}/topics/{topic}",
        ack_deadline_seconds=ack_deadline_seconds,
    )
