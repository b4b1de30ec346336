"""Rounds of contestants in this process: each in turn, in an order that rotates, its output compared before its time counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

Contestant = Callable[[list[Any]], np.ndarray]


def compare(
    contestants: Mapping[str, Contestant],
    items: list[Any],
    rounds: int,
    against: str,
    check: Callable[[np.ndarray, np.ndarray], bool],
) -> None:
    """Prints the median of each contestant's seconds, and how many times as fast as `against` it is.

    Args:
        contestants: by name; each gives an array of (items, …).
        items: what each works on.
        rounds: how often.
        against: the one whose output is the expected one, called once before the first round.
        check: whether an output equals the expected one.
    """
    names = list(contestants)
    expected = contestants[against](items)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            output = contestants[name](items)
            seconds[name].append(time.perf_counter() - started)
            assert check(output, expected), f"{name} gives another output"
    base = statistics.median(seconds[against])
    print(f"{len(items)} items, {rounds} rounds, {torch.get_num_threads()} threads")
    for name, times in seconds.items():
        median = statistics.median(times)
        speed = f"{median:8.2f} s  {len(items) / median:8.1f} items/s  {base / median:6.2f} ×"
        print(f"{name:24}{speed}  {min(times):.2f}–{max(times):.2f}")
