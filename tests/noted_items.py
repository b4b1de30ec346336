"""A generator that notes what was taken of it."""

from collections.abc import Generator


def noting(count: int, made: list[int], closed: list[int]) -> Generator[int]:
    """0 … count-1, each added to `made` when it is taken; at the end, how many were made is added to `closed`."""
    try:
        for number in range(count):
            made.append(number)
            yield number
    finally:
        closed.append(len(made))
