"""What holds for all tests: fast ones before slow ones, and the same random numbers every time."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# How fast a machine is must not decide whether a test passes.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("test", derandomize=True, database=None, **_COMMON)
# `make fuzz`. It prints what reproduces a failure; that belongs into an @example of the test.
settings.register_profile("fuzz", max_examples=500, print_blob=True, **_COMMON)
settings.load_profile("test")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `slow(seconds)` come last, the longest of them first: with two processes none is left waiting."""
    items.sort(key=_order)


def _order(item: pytest.Item) -> tuple[bool, float]:
    mark = item.get_closest_marker("slow")
    return (False, 0.0) if mark is None else (True, -float(mark.args[0] if mark.args else 0))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whatever ran before, a test draws the same numbers. torch is not imported for tests that do without."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
