"""Reading ahead, with generators that note what was taken of them and in which thread."""

import threading
from collections.abc import Generator

import pytest
from deadlines import WAIT_SECONDS
from noted_items import noting

from transforms.sources.ahead import AHEAD, AHEAD_BYTES, ahead


def small(_: int) -> int:
    return 1


@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_all_items_come_in_order(count: int) -> None:
    made: list[int] = []
    closed: list[int] = []

    assert list(ahead(noting(count, made, closed), small)) == list(range(count))
    assert closed == [count]


def test_the_next_item_is_made_in_a_thread_while_one_is_used() -> None:
    second = threading.Event()
    threads = []

    def items() -> Generator[int]:
        threads.append(threading.current_thread())
        yield 1
        second.set()
        yield 2

    found = ahead(items(), small)

    assert next(found) == 1
    assert second.wait(WAIT_SECONDS)  # nobody has asked for it
    assert list(found) == [2]
    assert threads != [threading.current_thread()]


@pytest.mark.parametrize(("size", "most"), [(1, AHEAD), (AHEAD_BYTES // 2, 2), (AHEAD_BYTES, 1), (AHEAD_BYTES * 2, 1)])
def test_what_is_ahead_is_bounded_by_bytes(size: int, most: int) -> None:
    made: list[int] = []
    found = ahead(noting(10, made, []), lambda _: size)

    for number in found:
        assert len(made) <= number + 1 + most

    assert made == list(range(10))


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def items() -> Generator[int]:
        yield 1
        raise MemoryError("no more")

    found = ahead(items(), small)

    assert next(found) == 1
    with pytest.raises(MemoryError, match="no more"):
        next(found)


def test_the_generator_is_closed_and_the_thread_ended_where_the_consumer_stops() -> None:
    made: list[int] = []
    closed: list[int] = []
    found = ahead(noting(10, made, closed), small)

    next(found)
    found.close()

    assert len(closed) == 1
    assert len(made) <= 1 + AHEAD
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]
