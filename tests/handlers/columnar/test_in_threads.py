"""Results of threads, in order, from generators that note what was taken of them."""

import threading
from collections.abc import Generator

import pytest
from noted_items import noting

from handlers.columnar.threads import in_threads


@pytest.mark.parametrize("count", [0, 1, 20])
def test_results_of_threads_come_in_order(count: int) -> None:
    made: list[int] = []
    closed: list[int] = []

    assert list(in_threads(lambda number: number * 2, noting(count, made, closed), 4, "parse")) == list(
        range(0, 2 * count, 2)
    )
    assert closed == [count]


def test_results_before_an_error_come_first() -> None:
    def items() -> Generator[int]:
        yield from range(7)
        raise OSError("broken")

    found = in_threads(str, items(), 4, "parse")
    assert [next(found) for _ in range(7)] == list("0123456")
    with pytest.raises(OSError, match="broken"):
        next(found)


def test_an_error_of_a_thread_comes_at_its_item() -> None:
    found = in_threads(lambda number: 6 // (3 - number), noting(20, [], closed := []), 4, "parse")
    assert [next(found) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert closed


def test_threads_are_given_few_items_ahead_and_end_with_their_user() -> None:
    made: list[int] = []
    found = in_threads(str, noting(1000, made, closed := []), 4, "parse")
    assert next(found) == "0"
    assert len(made) <= 4 + 1
    found.close()
    assert closed == [len(made)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("parse")]
