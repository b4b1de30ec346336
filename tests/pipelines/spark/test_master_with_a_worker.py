"""What is found out about a Spark master that has a worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from spark_parts import free_port, lonely_master, options, session, spark_process, wait_for

from handlers.errors import UsageError
from pipelines.spark.checks import check_cores, check_spark
from pipelines.spark.master import ask_master

pytestmark = pytest.mark.slow(20)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A real master with one worker: its URL and its web page."""
    folder = tmp_path_factory.mktemp("worker")
    of_worker = ("org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--cores", 1, "--memory", "1g")
    with (
        lonely_master(folder) as (url, page, _),
        spark_process(folder, *of_worker, "--work-dir", folder, url, page=free_port()),
    ):
        wait_for(lambda: len(ask_master(url, page).workers) == 1)
        yield url, page


class TestMasterWithAWorker:
    def test_free_cores(self, worker: tuple[str, str]) -> None:
        url, page = worker
        target = check_spark(options(url), page)
        assert target.master is not None
        assert check_cores(target.master) == "1 of 1 free, on 1 worker"

    def test_executor_that_no_worker_has_room_for(self, worker: tuple[str, str]) -> None:
        url, page = worker
        for setting in ("-Dspark.executor.memory=2g", "-Dspark.executor.cores=2"):
            with pytest.raises(UsageError, match=r"no worker .* has room for an executor.*1024 MiB are free at most"):
                check_spark(options(url, f"--job_server_jvm_properties={setting}"), page)

    def test_all_cores_are_held(self, worker: tuple[str, str]) -> None:
        url, page = worker
        hold = (
            "import time; from pyspark import SparkConf, SparkContext\n"
            f"SparkContext(conf=SparkConf().setMaster('{url}').setAppName('holder').set('spark.ui.enabled', 'false'))\n"
            "time.sleep(300)"
        )
        with session([sys.executable, "-c", hold], os.environ | {"SPARK_LOCAL_IP": "127.0.0.1"}):
            wait_for(lambda: ask_master(url, page).workers[0].cores_free == 0)
            with pytest.raises(UsageError, match='has no free cores: all 1 are held by "holder"'):
                check_spark(options(url), page)
