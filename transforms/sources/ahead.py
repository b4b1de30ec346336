"""Reading ahead: the next chunks are read in a thread while one is scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

# What may be read ahead. More than one chunk, since reading and scoring do not take turns evenly.
AHEAD_BYTES = 32 << 20
AHEAD = 3

T = TypeVar("T")


def ahead(items: Generator[T], size: Callable[[T], int]) -> Generator[T]:
    """Yields `items` in order. While one is used, up to `AHEAD` further ones are made in a thread.

    Args:
        items: the items; what they raise is raised here, at the same item.
        size: bytes of an item. There are fewer ahead where items of the size of the last one exceed `AHEAD_BYTES`
            together, but always one.
    """
    end: Any = object()
    waiting: deque[Future[T]] = deque()
    # The generator is closed after the thread has ended: it cannot be closed while it runs.
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="read") as thread:
        try:
            waiting.append(thread.submit(next, items, end))
            while (item := waiting.popleft().result()) is not end:
                count = max(1, min(AHEAD, AHEAD_BYTES // max(1, size(item))))
                while len(waiting) < count:
                    waiting.append(thread.submit(next, items, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()
