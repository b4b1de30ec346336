"""Reading a stream: a splittable DoFn whose restriction is the offsets of a partition, and micro-batches.

A micro-batch is what a partition gave within the delay, or as many messages as a chunk takes. It goes down the fused stage at
once: nothing is encoded or shuffled on the way to its delivery. The rest of the partition is deferred after some time, so that
the runner can checkpoint and rebalance.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.transforms.core import RestrictionProvider

from transforms.streams.messages import Messages, Reader, Source
from transforms.streams.runs import StreamRun, run_of

END = sys.maxsize - 1  # the last offset: a partition that has come to it is done
HOLD_SECONDS = 5.0  # how long a partition is read before its rest is deferred


@dataclass(frozen=True)
class MicroBatches:
    """When messages become a chunk.

    Attributes:
        rows: messages of a chunk at most.
        delay: seconds that the first message of a chunk waits at most for others.
    """

    rows: int = 8192
    delay: float = 0.05


class OffsetTracker(OffsetRestrictionTracker):
    """Tracks the offsets of a partition, which has no end: it is cut only behind what was read."""

    def is_bounded(self) -> bool:
        """False: messages go on coming."""
        return False

    def try_split(self, fraction_of_remainder: float) -> Any:
        """Splits off all that was not read; None for a share of it, which has no meaning where there is no end."""
        return super().try_split(0) if fraction_of_remainder == 0 else None  # type: ignore[no-untyped-call]


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(Messages)
class ReadMessages(beam.DoFn, RestrictionProvider):
    """Partitions to micro-batches of their messages, from the first one that was not delivered.

    Args:
        source: where the messages come from.
        batches: when messages become a chunk.
        run_id: the run, by which a process knows its limit and its end.
        stop_after: messages that each process reads before it ends the partitions.
    """

    def __init__(self, source: Source, batches: MicroBatches, run_id: str, stop_after: int | None = None) -> None:
        self._source = source
        self._batches = batches
        self._run_id = run_id
        self._stop_after = stop_after

    def initial_restriction(self, element: str) -> OffsetRange:
        """All from the first message that was not delivered."""
        return OffsetRange(self._source.start(element), sys.maxsize)

    def create_tracker(self, restriction: OffsetRange) -> OffsetTracker:
        """Tracks the offsets of a partition."""
        return OffsetTracker(restriction)

    def restriction_size(self, element: str, restriction: OffsetRange) -> int:
        """1: how many messages will come is unknown."""
        del element, restriction
        return 1

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: str,
        tracker: Any = beam.DoFn.RestrictionParam(),  # noqa: B008 - Beam's way to declare a parameter
    ) -> Iterator[Messages]:
        """Gives what arrives, until it is time to let the runner checkpoint."""
        run = run_of(self._run_id, self._stop_after)
        source, offset = self._source, tracker.current_restriction().start
        reader = run.take_reader(source.name, element, offset, lambda: source.reader(element, offset))
        until = time.monotonic() + HOLD_SECONDS
        deferred = False
        try:
            while not deferred:
                rows = run.reserve(self._batches.rows)
                if not rows:
                    tracker.try_claim(END)
                    break
                messages = reader.read(rows, self._batches.delay)
                count = len(messages) if messages else 0
                if messages and not tracker.try_claim(messages.offsets[-1]):
                    run.release(rows)  # the runner has cut the restriction: what was read now is read again by another
                    break
                run.release(rows - count)
                if messages:
                    offset = messages.offsets[-1] + 1
                    yield messages
                deferred = time.monotonic() >= until
        except BaseException:
            run.drop_reader(reader)
            raise
        if deferred:
            run.keep_reader(source.name, element, offset, reader)
            tracker.defer_remainder()
        else:
            run.drop_reader(reader)


@beam.typehints.with_input_types(tuple[str, ...])
@beam.typehints.with_output_types(Messages)
class ReadInTurn(beam.DoFn):
    """The same for all partitions at once, for a runner of one thread: partitions take turns of one micro-batch.

    It returns when the run ends. Beam's in-process runner has nothing to checkpoint, and keeps some memory for every bundle
    until its end, so a bundle is all of the run. A turn waits for its share of the delay, so that a message waits no longer.
    """

    def __init__(self, source: Source, batches: MicroBatches, run_id: str, stop_after: int | None = None) -> None:
        self._source = source
        self._batches = batches
        self._run_id = run_id
        self._stop_after = stop_after

    def process(self, element: tuple[str, ...]) -> Iterator[Messages]:
        """Gives what arrives in `element`, the partitions."""
        run = run_of(self._run_id, self._stop_after)
        readers: list[Reader] = []
        try:
            readers.extend(self._reader(run, partition) for partition in element)
            seconds = self._batches.delay / max(len(readers), 1)
            for reader in itertools.cycle(readers):
                rows = run.reserve(self._batches.rows)
                if not rows:
                    break
                messages = reader.read(rows, seconds)
                run.release(rows - (len(messages) if messages else 0))
                if messages:
                    yield messages
        finally:
            for reader in readers:
                run.drop_reader(reader)

    def _reader(self, run: StreamRun, partition: str) -> Reader:
        source, offset = self._source, self._source.start(partition)
        return run.take_reader(source.name, partition, offset, lambda: source.reader(partition, offset))


@beam.typehints.with_input_types(bytes)
class Partitions(beam.DoFn):
    """The partitions of a source; they are asked for once, when the pipeline starts.

    Args:
        source: the source.
        together: whether they are one element.
    """

    def __init__(self, source: Source, *, together: bool) -> None:
        self._source = source
        self._together = together

    def process(self, element: bytes) -> Iterator[Any]:
        """Asks the broker."""
        del element
        partitions = self._source.partitions()
        yield from [tuple(partitions)] if self._together else partitions
