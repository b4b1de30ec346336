"""What is added to the user's arguments for a run on Spark."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
from spark_parts import options

from handlers.errors import UsageError
from pipelines.command.built import built
from pipelines.spark import job_server, submit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of job servers, with those for two versions of Spark."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(job_server.VARIABLE, raising=False)
    folder = built("spark-job-server")
    folder.mkdir(parents=True)
    for version in ("3.5.7", "3.4.10"):
        make_jar(folder / f"beam-2.70.0-spark-{version}.jar", version)
    return folder


def make_jar(path: Path, version: str) -> Path:
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("org/apache/beam/runners/spark/SparkJobServerDriver.class", b"")
        jar.writestr("spark-version-info.properties", f"version={version}\n")
    return path


def settled(*arguments: str, version: str | None = None) -> dict[str, str]:
    url = next((each.split("=", 1)[1] for each in arguments if each.startswith("--spark_master_url=")), "local[4]")
    found = submit.settle(options(url, *arguments), arguments, None, version)
    return dict(argument.removeprefix("--").split("=", 1) for argument in found.arguments)


class TestSettle:
    def test_on_this_machine_workers_are_threads_of_this_process(self) -> None:
        found = settled()
        assert found["spark_master_url"] == f"local[{len(os.sched_getaffinity(0))}]"
        assert found["environment_type"] == "LOOPBACK"
        assert "environment_config" not in found

    def test_on_a_cluster_workers_are_processes_of_this_python(self) -> None:
        found = settled("--spark_master_url=spark://host:7077", "--job_server_jvm_properties=-Dspark.task.cpus=3")
        assert found["environment_type"] == "PROCESS"
        config = json.loads(found["environment_config"])
        assert config["command"] == submit.worker_command()
        assert config["env"]["OMP_NUM_THREADS"] == "3"

    def test_what_the_user_says_stays(self) -> None:
        given = ("--environment_type=DOCKER", "--app_name=mine", "--environment_cache_millis=5")
        found = settled("--spark_master_url=spark://host:7077", *given)
        assert found.items() >= dict(each.removeprefix("--").split("=") for each in given).items()

    @pytest.mark.parametrize(
        "wrong",
        [
            "--environment_type=FOO",
            "--sdk_worker_parallelism=many",
            "--environment_cache_millis=abc",
            "-Dspark.task.cpus=some",
        ],
    )
    def test_wrong_values(self, wrong: str) -> None:
        with pytest.raises(UsageError, match=wrong.split("=")[0]):
            settled(wrong if wrong.startswith("--") else f"--job_server_jvm_properties={wrong}")

    @pytest.mark.parametrize(
        ("config", "problem"),
        [
            ("[]", "it is not an object"),
            ("no JSON", "Expecting value"),
            ('{"comand": "/opt/worker"}', '"comand" is none of command, env'),
            ('{"command": 3}', '"command" is not a string'),
            ('{"env": ["A=1"]}', '"env" is not an object of strings'),
            ('{"env": {"A": 1}}', '"env" is not an object of strings'),
        ],
    )
    def test_wrong_configuration_of_workers(self, config: str, problem: str) -> None:
        with pytest.raises(UsageError, match=f"--environment_config .* is not valid for PROCESS.*{problem}"):
            settled("--environment_type=PROCESS", f"--environment_config={config}")

    def test_threads_of_workers_in_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def threads(*arguments: str) -> int | None:
            return submit.settle(options("local[4]", *arguments), arguments, None, None).threads

        cpus = "--job_server_jvm_properties=-Dspark.task.cpus=2"
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert (threads(), threads(cpus), threads("--environment_type=PROCESS")) == (1, 2, None)
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        assert threads(cpus) is None

    def test_cluster_of_unknown_version(self) -> None:
        def warnings(url: str, version: str | None, *more: str) -> list[str]:
            arguments = (f"--spark_master_url={url}", *more)
            return list(submit.settle(options(url, *arguments), arguments, None, version).warnings)

        (warning,) = warnings("yarn", None)
        assert "cluster yarn is unknown; the job server is for Spark 3.5.7" in warning
        assert warnings("yarn", "3.4.10") == warnings("local[2]", None) == []


class TestWhereWorkersAre:
    """With a job server of the user's own, and with LOOPBACK where others would have to reach this process."""

    def test_job_server_here(self) -> None:
        found = settled("--job_endpoint=127.0.0.1:8099")
        assert found["environment_type"] == "LOOPBACK"
        assert "spark_master_url" not in found  # it has its own

    def test_job_server_elsewhere(self) -> None:
        endpoint = "--job_endpoint=jobs.invalid:8099"
        with pytest.raises(UsageError, match=r"job server jobs.invalid:8099 .*--spark_master_url.*--environment_type"):
            settled(endpoint)
        assert settled(endpoint, "--spark_master_url=spark://host:7077")["environment_type"] == "PROCESS"
        assert settled(endpoint, "--environment_type=DOCKER")["environment_type"] == "DOCKER"

    @pytest.mark.parametrize(
        "where", ["--job_endpoint=jobs.invalid:8099", "--spark_master_url=spark://host.invalid:7077"]
    )
    def test_loopback_elsewhere(self, where: str) -> None:
        with pytest.raises(UsageError, match=r"LOOPBACK .*only this host can reach, but .*invalid"):
            settled(where, "--environment_type=LOOPBACK")

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_loopback_with_a_cluster_here(self, host: str) -> None:
        loopback = "--environment_type=LOOPBACK"
        assert settled(f"--spark_master_url=spark://{host}:7077", loopback)["environment_type"] == "LOOPBACK"


class TestJobServer:
    def test_that_of_the_version_and_else_the_newest(self) -> None:
        assert job_server.find_job_server(None, "3.4.10").spark_version == "3.4.10"
        assert job_server.find_job_server(None, None).spark_version == "3.5.7"

    def test_the_option_and_the_variable_go_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own, other = make_jar(tmp_path / "own.jar", "3.3.1"), make_jar(tmp_path / "other.jar", "3.3.2")
        monkeypatch.setenv(job_server.VARIABLE, str(other))
        assert job_server.find_job_server(str(own), None).spark_version == "3.3.1"
        assert job_server.find_job_server(None, None).spark_version == "3.3.2"

    def test_the_command_that_makes_one_is_told(self) -> None:
        with pytest.raises(UsageError, match=r"there are those for 3\.5\.7, 3\.4\.10.*SPARK_VERSION=3\.5\.1"):
            job_server.find_job_server(None, "3.5.1")


class TestWorkers:
    def test_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setenv("MKL_NUM_THREADS", "7")
        found = submit.worker_environment({"spark.task.cpus": "2"})
        assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("2", "7")
        assert found["OMP_WAIT_POLICY"] == "PASSIVE"

    def test_modules_are_found_where_this_process_finds_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", "relative")
        monkeypatch.setattr(sys, "path", ["", *sys.path])
        assert submit.worker_environment({})["PYTHONPATH"].split(os.pathsep) == [
            str(tmp_path),
            str(tmp_path / "relative"),
        ]
