"""Metrics of a stream in Prometheus text, served by each worker process.

| metric | labels | what |
| --- | --- | --- |
| `torchbeam_messages_read_total` | source, partition | messages whose chunk was delivered |
| `torchbeam_messages_scored_total`, `…_dropped_total`, `…_dead_total` | source, partition | what became of them |
| `torchbeam_dead_letters_total` | stage, type | dead letters by reason |
| `torchbeam_batch_rows` | | histogram: messages of a chunk |
| `torchbeam_delay_seconds` | | histogram: from the event time of a message to its delivery |
| `torchbeam_offset` | source, partition | offset of the last message that was delivered |
| `torchbeam_model_info` | model_version | 1 for the model that scored the last chunk |
| `torchbeam_model_refreshes_total` | outcome | newer models: `taken`, `refused`, or `not_found` for a look that failed |
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from handlers.errors import UsageError
from transforms.streams.accounts import SECOND, Accounts
from transforms.streams.messages import Messages

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LOG = logging.getLogger("torchbeam.stream")
DELAYS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)  # seconds
ROWS = (1, 10, 100, 1000, 2000, 4000, 8000, 16000, 32000, 65536)

_lock = threading.Lock()
_served: dict[int, StreamMetrics | None] = {}


def metrics_on(port: int) -> StreamMetrics | None:
    """The metrics that this process serves on `port`, from the first call on; None if another process serves there.

    Raises:
        UsageError: where the client of Prometheus is missing.
    """
    with _lock:
        if port not in _served:
            _served[port] = _serve(port)
        return _served[port]


def _serve(port: int) -> StreamMetrics | None:
    try:
        import prometheus_client
    except ImportError:
        raise UsageError("--metrics_port needs prometheus-client; pip install 'torchbeam[stream]'") from None
    made = StreamMetrics(prometheus_client)
    try:
        prometheus_client.start_http_server(port, registry=made.registry)
    except OSError as error:
        LOG.warning("metrics are not served on port %s: %s", port, error.strerror)
        return None
    return made


def refreshed(outcome: str, number: int) -> None:
    """Counts newer models that were `taken` or `refused`, and looks that failed, where this process serves metrics."""
    with _lock:
        served = [each for each in _served.values() if each is not None]
    for each in served:
        each.refreshes.labels(outcome).inc(number)


class StreamMetrics:
    """The metrics of the streams of a process."""

    def __init__(self, client: Any) -> None:
        self.registry = client.CollectorRegistry()
        of_partition = ("source", "partition")

        def counter(name: str, what: str, labels: tuple[str, ...] = of_partition) -> Any:
            return client.Counter(f"torchbeam_{name}", what, labels, registry=self.registry)

        self._read = counter("messages_read", "messages whose chunk was delivered")
        self._scored = counter("messages_scored", "messages with a prediction")
        self._dropped = counter("messages_dropped", "messages that a function left out")
        self._dead = counter("messages_dead", "messages that became dead letters")
        self._letters = counter("dead_letters", "dead letters by reason", ("stage", "type"))
        self.refreshes = counter("model_refreshes", "models taken or refused while the stream ran", ("outcome",))
        self._rows = client.Histogram(
            "torchbeam_batch_rows", "messages of a chunk", buckets=ROWS, registry=self.registry
        )
        self._offset = client.Gauge(
            "torchbeam_offset", "offset of the last delivered message", of_partition, registry=self.registry
        )
        self._model = client.Gauge(
            "torchbeam_model_info", "the model of the last chunk", ("model_version",), registry=self.registry
        )
        self._version = ""
        self._delays = np.zeros(len(DELAYS) + 1, np.int64)
        self._delay_sum = 0.0
        self._delay_lock = threading.Lock()
        self.registry.register(self)

    def count(self, messages: Messages, accounts: Accounts) -> None:
        """Adds a chunk that was delivered just now."""
        sums, of = accounts.sums, (accounts.source, accounts.partition)
        for counter, value in (
            (self._read, sums.read),
            (self._scored, sums.scored),
            (self._dropped, sums.dropped),
            (self._dead, sums.dead),
        ):
            counter.labels(*of).inc(value)
        for error, value in accounts.dead_by_error.items():
            self._letters.labels(*error.rsplit("/", 1)).inc(value)
        self._rows.observe(sums.read)
        self._offset.labels(*of).set(accounts.to_offset)
        if accounts.model_version != self._version:
            self._version = accounts.model_version
            self._model.clear()
            self._model.labels(self._version).set(1)
        delays = np.maximum(time.time() - np.asarray(messages.times, np.int64) / SECOND, 0)
        # Prometheus' own histogram takes one value at a time.
        found = np.bincount(np.searchsorted(DELAYS, delays), minlength=len(DELAYS) + 1)
        with self._delay_lock:
            self._delays += found
            self._delay_sum += float(delays.sum())

    def collect(self) -> Iterator[Metric]:
        """The histogram of delays, for the registry."""
        from prometheus_client.core import HistogramMetricFamily

        with self._delay_lock:
            counts, total = np.cumsum(self._delays).tolist(), self._delay_sum
        buckets = list(zip([*map(str, DELAYS), "+Inf"], counts, strict=True))
        yield HistogramMetricFamily(
            "torchbeam_delay_seconds", "from the event time of a message to its delivery", buckets, total
        )
