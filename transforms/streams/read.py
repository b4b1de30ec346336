"""Reading a stream: a splittable DoFn whose restriction is the offsets of a partition, and micro-batches.

A micro-batch is what a partition gave within the delay, or as many messages as a chunk takes. It goes down the fused stage at
once: nothing is encoded or shuffled on the way to its delivery. The rest of the partition is deferred after some time, so that
the runner can checkpoint, and other partitions have their turn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.transforms.core import RestrictionProvider

from transforms.streams.messages import Messages, Source
from transforms.streams.runs import run_of

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


@beam.typehints.with_input_types(tuple[str, int])
@beam.typehints.with_output_types(Messages)
class ReadMessages(beam.DoFn, RestrictionProvider):
    """Partitions, with their number, to micro-batches of their messages, from the first one that was not delivered.

    Args:
        source: where the messages come from.
        batches: when messages become a chunk.
        run_id: the run, by which a process knows its limit and its end.
        stop_after: messages that each process reads before it ends the partitions.
        in_turn: whether one thread reads all partitions, so that none may wait or go on for long.
    """

    def __init__(
        self, source: Source, batches: MicroBatches, run_id: str, stop_after: int | None = None, *, in_turn: bool = True
    ) -> None:
        self._source = source
        self._batches = batches
        self._run_id = run_id
        self._stop_after = stop_after
        self._in_turn = in_turn

    def initial_restriction(self, element: tuple[str, int]) -> OffsetRange:
        """All from the first message that was not delivered."""
        return OffsetRange(self._source.start(element[0]), sys.maxsize)

    def create_tracker(self, restriction: OffsetRange) -> OffsetTracker:
        """Tracks the offsets of a partition."""
        return OffsetTracker(restriction)

    def restriction_size(self, element: tuple[str, int], restriction: OffsetRange) -> int:
        """1: how many messages will come is unknown."""
        del element, restriction
        return 1

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: tuple[str, int],
        tracker: Any = beam.DoFn.RestrictionParam(),  # noqa: B008 - Beam's way to declare a parameter
    ) -> Iterator[Messages]:
        """Gives what arrives, until it is time to let others have their turn."""
        partition, partitions = element
        turns = partitions if self._in_turn else 1
        run = run_of(self._run_id, self._stop_after)
        source, offset = self._source, tracker.current_restriction().start
        reader = run.take_reader(source.name, partition, offset, lambda: source.reader(partition, offset))
        until = time.monotonic() + (HOLD_SECONDS if turns == 1 else 0)
        deferred = False
        try:
            while not deferred:
                rows = run.reserve(self._batches.rows)
                if not rows:
                    tracker.try_claim(END)
                    break
                messages = reader.read(rows, self._batches.delay / turns)
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
            run.keep_reader(source.name, partition, offset, reader)
            tracker.defer_remainder()
        else:
            run.drop_reader(reader)


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(tuple[str, int])
class Partitions(beam.DoFn):
    """The partitions of a source, each with their number."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def process(self, element: bytes) -> Iterator[tuple[str, int]]:
        """Asks the broker once, when the pipeline starts."""
        del element
        partitions = self._source.partitions()
        for partition in partitions:
            yield partition, len(partitions)
