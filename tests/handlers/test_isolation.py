"""Halving finds exactly the rows that fail, in order, in few calls."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.errors import DeviceLostError
from handlers.isolation import isolate


@given(
    st.integers(0, 200).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1))))),
    st.integers(0, 5),
)
def test_exactly_the_rows_that_fail_alone(case: tuple[int, set[int]], start: int) -> None:
    count, chosen = case
    poisoned = {row + start for row in chosen if row < count}
    calls = []

    def call(low: int, high: int) -> list[int]:
        calls.append((low, high))
        if poisoned & set(range(low, high)):
            raise ValueError(f"{low}")
        return list(range(low, high))

    found = isolate(call, start, start + count)
    assert [row for row, _ in found.failures] == sorted(poisoned)
    assert [str(error) for row, error in found.failures] == [str(row) for row in sorted(poisoned)]
    good = [row for low, high, result in found.results for row in result]
    assert good == [row for row in range(start, start + count) if row not in poisoned]
    assert [(low, high) for low, high, _ in found.results] == sorted((low, high) for low, high, _ in found.results)
    if count:
        assert len(calls) <= 1 + 2 * len(poisoned) * math.ceil(math.log2(count) or 1)


def test_no_rows_no_call() -> None:
    assert isolate(lambda low, high: 1 / 0, 3, 3).results == []


def test_an_error_that_is_no_rows_fault_ends_it() -> None:
    def call(low: int, high: int) -> None:
        raise DeviceLostError("gone")

    with pytest.raises(DeviceLostError):
        isolate(call, 0, 8)


@pytest.mark.parametrize("end", [SystemExit(0), GeneratorExit(), type("Ends", (BaseException,), {})()])
def test_what_would_end_the_process_is_an_error_of_its_row(end: BaseException) -> None:
    def call(low: int, high: int) -> int:
        if low <= 2 < high:
            raise end
        return high

    ((row, error),) = isolate(call, 0, 8).failures
    assert row == 2
    assert isinstance(error, RuntimeError)
    assert str(error).startswith(type(end).__name__)


def test_giving_up_costs_the_whole_range() -> None:
    verdict = RuntimeError("broken")

    def call(low: int, high: int) -> None:
        raise ValueError

    found = isolate(call, 0, 8, lambda low, high: verdict if high - low <= 4 else None)
    assert found.failures == [(row, verdict) for row in range(8)]
