"""What a run of a stream shares in one process: how many messages it may still read, whether it stops, its idle readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from transforms.streams.messages import Reader, Writer

IDLE_SECONDS = 60.0  # a reader that nobody took back for so long is closed: the runner moved its partition


class StreamRun:
    """A run in this process. All its threads share one; get it from `run_of`.

    Args:
        stop_after: how many messages may be read; None for no limit.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self._left = stop_after
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], tuple[int, float, Reader]] = {}
        self._taken: list[Reader] = []

    @property
    def stopping(self) -> bool:
        """Whether the run ends with the chunk in hand."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ends the run with the chunk in hand; can be called from a signal handler."""
        self._stopping.set()

    def reserve(self, messages: int) -> int:
        """How many of `messages` may be read now: 0 if the run is to end. What is not used is given back by `release`."""
        if self._stopping.is_set():
            return 0
        with self._lock:
            if self._left is None:
                return messages
            messages = min(messages, self._left)
            self._left -= messages
            return messages

    def release(self, messages: int) -> None:
        """Gives back what was reserved and not read."""
        with self._lock:
            if self._left is not None:
                self._left += messages

    def take_reader(self, source: str, partition: str, offset: int, make: Callable[[], Reader]) -> Reader:
        """The reader of a partition that was left at `offset`, or a new one of `make`."""
        with self._lock:
            at, _, reader = self._idle.pop((source, partition), (None, 0.0, None))
            old = [key for key, (_, since, _) in self._idle.items() if time.monotonic() - since > IDLE_SECONDS]
            unused = [self._idle.pop(key)[2] for key in old]
        if reader is not None and at != offset:
            unused.append(reader)
            reader = None
        close(unused)
        reader = reader or make()
        with self._lock:
            self._taken.append(reader)
        return reader

    def keep_reader(self, source: str, partition: str, offset: int, reader: Reader) -> None:
        """Keeps a reader whose next message is at `offset`, for the next call."""
        with self._lock:
            self._taken = [each for each in self._taken if each is not reader]
            self._idle[source, partition] = (offset, time.monotonic(), reader)

    def drop_reader(self, reader: Reader) -> None:
        """Closes a reader that was taken."""
        with self._lock:
            self._taken = [each for each in self._taken if each is not reader]
        close([reader])

    def close_readers(self) -> None:
        """Closes all readers, those of a call that has failed among them: its frame may live on in a traceback."""
        with self._lock:
            readers = [*self._taken, *(reader for _, _, reader in self._idle.values())]
            self._idle.clear()
            self._taken = []
        close(readers)


_lock = threading.Lock()
_runs: dict[str, StreamRun] = {}


def run_of(run_id: str, stop_after: int | None = None) -> StreamRun:
    """The run `run_id` in this process; the first call makes it."""
    with _lock:
        if run_id not in _runs:
            _runs[run_id] = StreamRun(stop_after)
        return _runs[run_id]


def end_run(run_id: str) -> None:
    """Forgets a run and closes its readers."""
    with _lock:
        run = _runs.pop(run_id, None)
    if run is not None:
        run.close_readers()


def close(unused: Sequence[Reader | Writer]) -> None:
    """Closes what is no longer needed; the broker's errors do not matter any more."""
    for each in unused:
        with suppress(Exception):
            each.close()
