"""Delivery: outputs are written, then what was read is committed. So whatever ends a run, nothing is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import apache_beam as beam

from transforms import progress
from transforms.accounting import Counts
from transforms.streams.accounts import Accounts, Sums, WindowSums, accounts_of, iso
from transforms.streams.encode import Outputs, outputs_of
from transforms.streams.messages import Messages, Sink, Source
from transforms.streams.metrics import metrics_on
from transforms.streams.runs import close
from transforms.streams.scored import ScoredMessages

LOG = logging.getLogger("torchbeam.stream")


@runtime_checkable
class Deliverer(Protocol):
    """Writes the outputs of chunks; each belongs to one thread."""

    def deliver(self, messages: Messages, outputs: Outputs) -> None:
        """Writes `outputs` and commits `messages`, of which they are all the outputs; raises `StreamError`."""

    def close(self) -> None:
        """Leaves the broker."""


@runtime_checkable
class Delivery(Protocol):
    """How outputs are written and what was read is committed. It is small and has no secrets."""

    def check(self) -> None:
        """Raises `UsageError` with one line if something that it needs is missing."""

    def open(self) -> Deliverer:
        """What delivers in a worker."""


@dataclass(frozen=True)
class Ends:
    """What a delivery goes between.

    Attributes:
        source: where the messages come from.
        predictions: where predictions go.
        dead_letters: where messages go that could not be scored.
        accounts: where the counts of chunks go; None for nowhere.
    """

    source: Source
    predictions: Sink
    dead_letters: Sink
    accounts: Sink | None = None

    @property
    def sinks(self) -> list[Sink]:
        """Where outputs go."""
        return [sink for sink in (self.predictions, self.dead_letters, self.accounts) if sink is not None]


class AtLeastOnce(Ends):
    """Outputs are flushed before what was read is committed: after a restart some may come again, with the same id."""

    def check(self) -> None:
        """Asks each of them."""
        self.source.check()
        for sink in self.sinks:
            sink.check()

    def open(self) -> Deliverer:
        """Opens the writers."""
        return _FlushThenCommit(self)


class _FlushThenCommit:
    def __init__(self, delivery: AtLeastOnce) -> None:
        self._source = delivery.source
        self._predictions = delivery.predictions.writer()
        self._dead_letters = delivery.dead_letters.writer()
        self._accounts = delivery.accounts.writer() if delivery.accounts is not None else None

    def deliver(self, messages: Messages, outputs: Outputs) -> None:
        written = [(self._predictions, outputs.predictions), (self._dead_letters, outputs.dead_letters)]
        if self._accounts is not None:
            written.append((self._accounts, outputs.accounts))
        for writer, some in written:
            if some:
                writer.write(some)
        for writer, some in written:
            if some:
                writer.flush()
        self._source.commit(messages)

    def close(self) -> None:
        close([self._predictions, self._dead_letters, *([self._accounts] if self._accounts is not None else [])])


def delivery_of(source: Source) -> Callable[[Source, Sink, Sink, Sink | None], Delivery]:
    """How the outputs of messages from `source` are delivered: as it says, or at least once."""
    own: Callable[[Source, Sink, Sink, Sink | None], Delivery] | None = getattr(source, "delivery", None)
    return own or AtLeastOnce


@beam.typehints.with_input_types(ScoredMessages)
@beam.typehints.with_output_types(Accounts)
class Deliver(beam.DoFn):
    """Delivers chunks in their order and gives their accounts.

    Args:
        delivery: how.
        window_seconds: of event time, for the counts.
        run_id: under which the progress is counted and windows are summed.
        metrics_port: where the process serves metrics; None for nowhere.
    """

    def __init__(self, delivery: Delivery, window_seconds: float, run_id: str, metrics_port: int | None = None) -> None:
        self._delivery = delivery
        self._window_seconds = window_seconds
        self._run_id = run_id
        self._metrics_port = metrics_port
        self._deliverer: Deliverer | None = None

    def process(self, scored: ScoredMessages) -> Iterator[Accounts]:
        """Delivers a chunk; when it returns, all is written and committed."""
        if self._deliverer is None:  # not in setup: then a runner could not report an error of the broker as one
            self._deliverer = self._delivery.open()
        accounts = accounts_of(scored, self._window_seconds)
        self._deliverer.deliver(scored.messages, outputs_of(scored, accounts))
        count(self._run_id, accounts)
        if self._metrics_port is not None and (metrics := metrics_on(self._metrics_port)) is not None:
            metrics.count(scored.messages, accounts)
        yield accounts

    def teardown(self) -> None:
        """Leaves the broker."""
        if self._deliverer is not None:
            self._deliverer.close()
            self._deliverer = None


_lock = threading.Lock()
_windows: dict[str, WindowSums] = {}


def count(run_id: str, accounts: Accounts) -> None:
    """Adds a delivered chunk to the progress of its run, and logs the windows that are over."""
    sums = accounts.sums
    progress.add(
        run_id,
        Counts(sums.read, sums.scored, sums.dropped, sums.dead, dead_by_error=accounts.dead_by_error),
    )
    with _lock:
        over = _windows.setdefault(run_id, WindowSums()).add(accounts, time.monotonic())
    _log(over)


def log_rest(run_id: str) -> None:
    """Logs the windows that are left at the end of a run."""
    with _lock:
        windows = _windows.pop(run_id, WindowSums())
    _log(windows.rest())


def _log(windows: list[tuple[int, Sums]]) -> None:
    for start, sums in windows:
        LOG.info(
            "window %s: %s read, %s scored, %s dropped, %s dead",
            iso(start),
            *(f"{each:,}" for each in (sums.read, sums.scored, sums.dropped, sums.dead)),
        )
