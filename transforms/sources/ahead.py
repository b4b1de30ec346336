"""Reading ahead: the next chunks are read in a thread while one is scored; parsing in several threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

import pyarrow as pa

# What may be read ahead. More than one chunk, since reading and scoring do not take turns evenly.
AHEAD_BYTES = 32 << 20
AHEAD = 3

# More threads would hold more blocks than they save time: reading the text itself is one thread's work.
PARSERS = 4

T = TypeVar("T")
R = TypeVar("R")


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


def in_threads(function: Callable[[T], R], items: Generator[T]) -> Generator[R]:
    """Yields `function` of each of `items`, in order, computed by as many threads as there are cores, up to `PARSERS`.

    What `items` raises is raised here after the results of all items before, what `function` raises at its item.
    """
    threads = min(PARSERS, pa.cpu_count())
    waiting: deque[Future[R]] = deque()
    failure: Exception | None = None
    with closing(items), ThreadPoolExecutor(threads, thread_name_prefix="parse") as pool:
        try:
            while True:
                try:
                    item = next(items)
                except StopIteration:
                    break
                except Exception as error:
                    failure = error
                    break
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise failure
