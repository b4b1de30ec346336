"""What became of the messages of a chunk, in total and by window of event time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from transforms.streams.scored import ScoredMessages

SECOND = 1_000_000  # event times are in microseconds
IDLE_SECONDS = 60.0


@dataclass(frozen=True)
class Sums:
    """Counts of messages; read = scored + dropped + dead."""

    read: int = 0
    scored: int = 0
    dropped: int = 0
    dead: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.read + other.read,
            self.scored + other.scored,
            self.dropped + other.dropped,
            self.dead + other.dead,
        )

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return {"read": self.read, "scored": self.scored, "dropped": self.dropped, "dead": self.dead}


@dataclass(frozen=True)
class Accounts:
    """What became of the messages of one chunk.

    Attributes:
        source: the topic, subscription or folder.
        partition: of the chunk.
        from_offset: of its first message.
        to_offset: of its last message.
        windows: the counts by the start of their window of event time, in microseconds since 1970 (UTC).
        dead_by_error: dead letters by `stage/type`.
        model_version: the model that scored the chunk.
    """

    source: str
    partition: str
    from_offset: int
    to_offset: int
    windows: Mapping[int, Sums]
    dead_by_error: Mapping[str, int]
    model_version: str

    @property
    def sums(self) -> Sums:
        """The counts of the chunk."""
        return sum(self.windows.values(), Sums())

    @property
    def id(self) -> str:
        """Identifies the chunk: a second one of the same first message replaces the first."""
        return f"{self.source}/{self.partition}/{self.from_offset}"

    def as_json(self) -> bytes:
        """The message that goes to `--accounts`."""
        record = {
            "source": self.source,
            "partition": self.partition,
            "from_offset": self.from_offset,
            "to_offset": self.to_offset,
            **self.sums.as_dict(),
            "windows": [{"start": iso(start), **sums.as_dict()} for start, sums in sorted(self.windows.items())],
            "dead_by_error": dict(self.dead_by_error),
            "model_version": self.model_version,
        }
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def accounts_of(scored: ScoredMessages, window_seconds: float) -> Accounts:
    """Counts the messages of a chunk, each in the window of its event time."""
    messages = scored.messages
    times = np.asarray(messages.times, np.int64)
    width = max(round(window_seconds * SECOND), 1)
    starts, window = np.unique(times // width * width, return_inverse=True)
    dead = np.fromiter(scored.failures, np.int64, len(scored.failures))

    def count(of: np.ndarray) -> list[int]:
        found: list[int] = np.bincount(of, minlength=len(starts)).tolist()
        return found

    read, done, died = count(window), count(window[scored.indices]), count(window[dead])
    windows = {
        int(start): Sums(all_, good, all_ - good - bad, bad)
        for start, all_, good, bad in zip(starts, read, done, died, strict=True)
    }
    errors = Counter(f"{failure.stage}/{failure.type}" for failure in scored.failures.values())
    return Accounts(
        messages.source,
        messages.partition,
        int(messages.offsets[0]),
        int(messages.offsets[-1]),
        windows,
        errors,
        scored.model_version,
    )


def iso(microseconds: int) -> str:
    """A time in ISO 8601 (UTC); one that Python's calendar lacks as the number that it is."""
    try:
        return datetime.fromtimestamp(microseconds / SECOND, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return str(microseconds)


class WindowSums:
    """The sums of windows, of all chunks of a process; a window is given out when all partitions have passed it."""

    def __init__(self) -> None:
        self._open: dict[int, Sums] = {}
        self._latest: dict[str, tuple[int, float]] = {}  # by partition, the window that it is in, and since when

    def add(self, accounts: Accounts, now: float) -> list[tuple[int, Sums]]:
        """Adds a chunk; gives the windows that are over, the earliest first. What comes late is given out by itself.

        Args:
            accounts: of the chunk.
            now: seconds on any clock. A partition without a chunk in the last `IDLE_SECONDS` holds no window open.
        """
        for start, sums in accounts.windows.items():
            self._open[start] = self._open.get(start, Sums()) + sums
        newest = max(accounts.windows)
        before, _ = self._latest.get(accounts.partition, (newest, now))
        self._latest[accounts.partition] = (max(before, newest), now)
        return self._take(min(start for start, seen in self._latest.values() if now - seen <= IDLE_SECONDS))

    def rest(self) -> list[tuple[int, Sums]]:
        """The windows that are left at the end."""
        return self._take(None)

    def _take(self, before: int | None) -> list[tuple[int, Sums]]:
        over = sorted(start for start in self._open if before is None or start < before)
        return [(start, self._open.pop(start)) for start in over]
