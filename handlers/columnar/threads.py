"""A function applied by threads ahead of its user, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Generator[T], threads: int, name: str) -> Generator[R]:
    """Yields `function` of each of `items`, in order; while one is used, `threads` further ones are computed.

    What `items` raises is raised here after the results of all items before, what `function` raises at its item.

    Args:
        function: what is computed.
        items: its arguments, made in the thread of the user.
        threads: how many compute.
        name: with which the names of the threads begin.
    """
    end: Any = object()
    waiting: deque[Future[R]] = deque()
    failure: Exception | None = None
    with closing(items), ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        try:
            while True:
                try:
                    item = next(items, end)
                except Exception as error:
                    failure = error
                    break
                if item is end:
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
