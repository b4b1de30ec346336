"""What the tests on Spark share: the job server, a cluster, and the command in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spark_cluster import Cluster, Run, started_cluster

from handlers.errors import UsageError
from pipelines.spark.java import find_java
from pipelines.spark.job_server import DEFAULT_SPARK_VERSION, find_job_server


@pytest.fixture(scope="session")
def job_server() -> Path:
    """The jar; a test that asks for it is skipped where there is none, or no Java that runs it."""
    try:
        find_java()
        jar = find_job_server(None, DEFAULT_SPARK_VERSION).jar
    except UsageError as error:
        pytest.skip(str(error))
    assert jar is not None
    return jar


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, job_server: Path) -> Iterator[Cluster]:
    """The cluster that tests share which leave it as it was."""
    with started_cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def own_cluster(tmp_path: Path, job_server: Path) -> Iterator[Cluster]:
    """A cluster to break."""
    (tmp_path / "cluster").mkdir()
    with started_cluster(tmp_path / "cluster") as made:
        yield made


@pytest.fixture
def run() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*arguments: object, **named: object) -> Run:
        given = [*map(str, arguments), *(f"--{name}={value}" for name, value in named.items())]
        runs.append(Run(*given))
        return runs[-1]

    yield start
    for started in runs:
        started.process.kill()
        started.process.wait()
