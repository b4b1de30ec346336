"""What holds for all tests: fast ones before slow ones, and the same random numbers every time."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from kafka_brokers import TestBroker

# Idle threads of OpenMP would spin, which makes everything slow where more processes run than there are cores. It is read
# when torch is imported, and by the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How fast a machine is must not decide whether a test passes.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("test", derandomize=True, database=None, **_COMMON)
# `make fuzz`. It prints what reproduces a failure; that belongs into an @example of the test.
settings.register_profile("fuzz", max_examples=500, print_blob=True, **_COMMON)
settings.load_profile("test")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests marked `slow(seconds)` come last, the longest first: so no process is left with it at the end.

    Files stay whole, because their tests share what they set up, and because xdist hands them out whole.
    """
    seconds: dict[Path, float] = {}
    for item in items:
        if mark := item.get_closest_marker("slow"):
            seconds[item.path] = max(seconds.get(item.path, 0), *mark.args or (1,))
    items.sort(key=lambda item: (item.path in seconds, -seconds.get(item.path, 0)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whatever ran before, a test draws the same numbers. torch is not imported for tests that do without."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _no_progress_lines() -> Iterator[None]:
    """A run has no line of progress on stderr after 15 seconds, which it may take on a busy machine; see `said`, too."""
    from transforms import progress_bar

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress_bar, "LOG_SECONDS", 3600.0)
        yield


@pytest.fixture(scope="session")
def _kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    from kafka_brokers import started_broker

    with started_broker(tmp_path_factory.mktemp("kafka")) as made:
        yield made


@pytest.fixture
def kafka(_kafka: TestBroker) -> TestBroker:
    """A Kafka broker, started once; a test skips where there is no Java or its jars are not there."""
    if not _kafka.running:  # a test has killed it, and failed
        _kafka.start()
    return _kafka
