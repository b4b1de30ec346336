"""Finding the rows that make a function fail, by halving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from handlers.errors import TorchbeamError

R = TypeVar("R")


@dataclass
class Isolated(Generic[R]):
    """The results of a call on rows 0 … n-1 without the rows that fail.

    Attributes:
        results: `(start, stop, result)` of the calls that went well, in row order.
        failures: `(row, error)` of the rows that fail alone, in row order.
    """

    results: list[tuple[int, int, R]] = field(default_factory=list)
    failures: list[tuple[int, Exception]] = field(default_factory=list)


def contained(call: Callable[..., R], *arguments: Any) -> R:
    """Calls `call`; what would end the process, such as sys.exit in user code, becomes an ordinary error."""
    try:
        return call(*arguments)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as end:  # SystemExit, GeneratorExit, and others that a library may have made
        raise RuntimeError(f"{type(end).__name__}: {end}".removesuffix(": ")) from end


def isolate(
    call: Callable[[int, int], R],
    start: int,
    stop: int,
    give_up: Callable[[int, int], Exception | None] = lambda _low, _high: None,
) -> Isolated[R]:
    """Calls `call(start, stop)`; where it raises, halves the range until each failing row is isolated.

    With k failing rows among n this takes at most 1 + 2k·ceil(log2 n) calls. A `TorchbeamError` is not the fault of a row (a lost
    device, a broken model) and is re-raised. `give_up(low, high)` is called before a failed range is halved; an
    error that it returns is the failure of every row of the range.
    """
    found: Isolated[R] = Isolated()
    ranges = [(start, stop)] if stop > start else []
    while ranges:
        low, high = ranges.pop()
        try:
            found.results.append((low, high, contained(call, low, high)))
        except TorchbeamError:
            raise
        except Exception as error:
            if high - low == 1:
                found.failures.append((low, error))
            elif (verdict := give_up(low, high)) is not None:
                found.failures += [(row, verdict) for row in range(low, high)]
            else:
                middle = (low + high) // 2
                ranges += [(middle, high), (low, middle)]  # a stack: the lower half comes first
    return found
