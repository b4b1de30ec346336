"""What the tests on Spark share: the job server, a cluster, and the command in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spark_cluster import Cluster, Run, started_cluster
from spark_parts import lonely_master

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
def _cluster(tmp_path_factory: pytest.TempPathFactory, job_server: Path) -> Iterator[Cluster]:
    with started_cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def cluster(_cluster: Cluster) -> Cluster:
    """A cluster with two idle workers, which tests may break: it is started once and put right again for each."""
    _cluster.restore()
    return _cluster


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A real master without workers: its URL and its web page."""
    with lonely_master(tmp_path_factory.mktemp("master")) as (url, page, _):
        yield url, page


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
