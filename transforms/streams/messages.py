"""Messages, and what a source and a sink of them are: the seam between brokers and the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True)
class Messages:
    """Messages of one partition in the order of their offsets: a micro-batch.

    Attributes:
        source: the topic, subscription or folder.
        partition: the part of it whose messages have an order; "0" where there is one only.
        offsets: the position of every message in its partition, increasing. They may have gaps.
        keys: the key of every message, or None.
        values: the bytes of every message; None for a tombstone.
        headers: the headers of every message.
        times: event time of every message in microseconds since 1970 (UTC).
        ids: what identifies every message for good, where its partition and offset do not.
        receipts: what the broker wants back for every message to count it as done; empty where offsets are committed.
    """

    source: str
    partition: str
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]
    times: Sequence[int]
    ids: Sequence[str] = ()
    receipts: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.offsets)

    def id(self, index: int) -> str:
        """Identifies a message for good: a reader of the outputs removes duplicates by it."""
        return self.ids[index] if self.ids else f"{self.source}/{self.partition}/{self.offsets[index]}"


class OutMessage(NamedTuple):
    """A message to be written; `time` is its event time in microseconds since 1970 (UTC)."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    time: int


@runtime_checkable
class Reader(Protocol):
    """Reads one partition from an offset on."""

    def read(self, max_messages: int, seconds: float) -> Messages | None:
        """Up to `max_messages`, as soon as there are so many or `seconds` are over; None if nothing came."""

    def close(self) -> None:
        """Leaves the broker."""


@runtime_checkable
class Source(Protocol):
    """Where messages come from. It is small, goes to the workers with the pipeline, and has no secrets."""

    @property
    def name(self) -> str:
        """The topic, subscription or folder."""

    def check(self) -> None:
        """Asks the broker; raises `UsageError` with one line if it or the topic is not there, or refuses the user."""

    def partitions(self) -> list[str]:
        """The partitions there are now."""

    def start(self, partition: str) -> int:
        """The offset of the first message that was not yet delivered."""

    def reader(self, partition: str, offset: int) -> Reader:
        """A reader of `partition` whose first message is the one at `offset` or after it."""

    def commit(self, messages: Messages) -> None:
        """Counts `messages`, and all before them in their partition, as delivered: a new start begins behind them."""


@runtime_checkable
class Writer(Protocol):
    """Writes messages. What `write` got is certain only when `flush` has returned."""

    def write(self, messages: Sequence[OutMessage]) -> None:
        """Takes messages on; raises `StreamError` if the broker refuses one."""

    def flush(self) -> None:
        """Waits until the broker has all; raises `StreamError` if it has not."""

    def close(self) -> None:
        """Leaves the broker."""


@runtime_checkable
class Sink(Protocol):
    """Where messages go to. Like a source it is small and has no secrets."""

    @property
    def name(self) -> str:
        """The topic or folder."""

    def check(self) -> None:
        """Asks the broker; raises `UsageError` with one line if it or the topic is not there, or refuses the user."""

    def writer(self) -> Writer:
        """A writer; each belongs to one thread."""
