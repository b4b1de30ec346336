"""The checks before a run on Spark, and the doctor that makes them all."""

from __future__ import annotations

import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spark_parts import FakeJava, free_port, make_fake_java, options, spark_version

from handlers.errors import UsageError
from pipelines import doctor
from pipelines.spark import checks
from pipelines.spark.checks import Executor, check_endpoint, check_spark, check_versions, check_worker_command
from pipelines.spark.job_server import JobServer
from pipelines.spark.submit import worker_command


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJava:
    return make_fake_java(tmp_path, monkeypatch)


class TestVersions:
    def test_equal_to_the_patch(self) -> None:
        assert "Spark 3.5.7 in the job server" in check_versions(JobServer(Path("a.jar"), "3.5.7"), "3.5.7")
        with pytest.raises(UsageError, match=r"a.jar is for Spark 3.5.0.*runs 3.5.7.*SPARK_VERSION=3.5.7"):
            check_versions(JobServer(Path("a.jar"), "3.5.0"), "3.5.7")

    def test_unknown_is_not_guessed(self) -> None:
        assert "of Beam itself is not known" in check_versions(JobServer(None), "3.5.7")


class TestExecutor:
    @pytest.mark.parametrize(
        ("properties", "executor"),
        [
            ([], Executor(1, 1024)),
            (["-Dspark.executor.memory=512m", "-Xmx2g"], Executor(1, 512)),
            (["-Dspark.executor.memory=2G", "-Dspark.executor.cores=4"], Executor(4, 2048)),
            (["-Dspark.executor.memory=700"], Executor(1, 700)),
            (["-Dspark.executor.memory=much", "-Dspark.executor.cores="], Executor(1, 1024)),
        ],
    )
    def test_of_java_properties(self, properties: list[str], executor: Executor) -> None:
        given = [f"--job_server_jvm_properties={each}" for each in properties]
        assert Executor.of(options("local[2]", *given)) == executor


class TestSpark:
    def test_streaming_is_refused(self) -> None:
        with pytest.raises(UsageError, match="streaming does not work on Spark"):
            check_spark(options("local[2]", "--streaming"), None)

    @pytest.mark.parametrize(
        "url", ["mesos://host:5050", "sparc://host:7077", "localhost", "local[0]", "local[abc]", "k8s://x", "k8s://x:y"]
    )
    def test_unknown_kind_of_master(self, url: str) -> None:
        with pytest.raises(UsageError, match="must be one of"):
            check_spark(options(url), None)

    @pytest.mark.parametrize(
        "url", ["local", "local[2]", "local[*]", "yarn", "k8s://https://host:443", "k8s://host:443"]
    )
    def test_masters_that_are_not_asked(self, fake_java: FakeJava, url: str) -> None:
        fake_java('openjdk version "17.0.15"')
        assert check_spark(options(url), None).master is None


class TestWorkerCommand:
    @pytest.fixture
    def worker(self, tmp_path: Path) -> Callable[[str], str]:
        def make(program: str, name: str = "torchbeam-worker") -> str:
            script = tmp_path / name
            script.write_text(f"#!{sys.executable}\n{program}\n")
            script.chmod(0o755)
            return str(script)

        return make

    def test_our_own(self) -> None:
        command = worker_command()
        assert check_worker_command(command) == f"{command} runs"

    def test_fails(self, worker: Callable[..., str]) -> None:
        with pytest.raises(UsageError, match="No module named 'no_such_module'; install torchbeam again"):
            check_worker_command(worker("import no_such_module"))

    def test_is_given_its_environment(self, worker: Callable[..., str]) -> None:
        command = worker("import os, sys; sys.exit(os.environ['TORCHBEAM_TEST'] != '1')")
        assert "runs" in check_worker_command(command, {"TORCHBEAM_TEST": "1"})

    def test_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("")
        for name in ("worker", "text"):
            with pytest.raises(UsageError, match=f'{name}" is not on this machine, or is not an executable'):
                check_worker_command(str(tmp_path / name))

    def test_interpreter_is_gone(self, tmp_path: Path) -> None:
        (tmp_path / "torchbeam-worker").write_text("#!/nowhere/python\n")
        (tmp_path / "torchbeam-worker").chmod(0o755)
        with pytest.raises(UsageError, match="torchbeam-worker cannot be run: No such file"):
            check_worker_command(str(tmp_path / "torchbeam-worker"))

    def test_one_of_the_users_own_is_not_run(self, worker: Callable[..., str]) -> None:
        assert "is there" in check_worker_command(worker("raise SystemExit(1)", "boot"))

    def test_hangs(self, worker: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "_WORKER_SECONDS", 0.5)
        with pytest.raises(UsageError, match="did not end"):
            check_worker_command(worker("import time; time.sleep(60)"))


class TestEndpoint:
    def test_nobody_listens(self) -> None:
        endpoint = f"localhost:{free_port()}"
        with pytest.raises(UsageError, match=f"no job server at --job_endpoint={endpoint}: Connection refused"):
            check_endpoint(endpoint)
        with pytest.raises(UsageError, match="no job server at --job_endpoint=embed"):
            check_endpoint("embed")

    def test_streaming_is_refused_there_too(self) -> None:
        with pytest.raises(UsageError, match="streaming"):
            check_spark(options("local", "--job_endpoint=localhost:1", "--streaming"), None)
        with pytest.raises(UsageError, match="no job server at --job_endpoint=localhost:1"):
            check_spark(options("local", "--job_endpoint=localhost:1"), None)

    def test_somebody_does(self) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            assert "takes connections" in check_endpoint(f"127.0.0.1:{server.getsockname()[1]}")


class TestDoctor:
    """The doctor before a run on Spark, with a jar of no more than what tells its versions."""

    @pytest.fixture
    def lines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., dict[str, tuple[str, str]]]:
        def call(spark_version: str, *arguments: str) -> dict[str, tuple[str, str]]:
            with zipfile.ZipFile(tmp_path / "server.jar", "w") as jar:
                jar.writestr("org/apache/beam/runners/spark/SparkJobServerDriver.class", b"")
                jar.writestr("spark-version-info.properties", f"version={spark_version}\n")
            code = doctor.main(
                ["--runner=SparkRunner", f"--spark_job_server_jar={tmp_path / 'server.jar'}", *arguments]
            )
            parts = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[:-2]]
            found = {name: (state, text) for state, name, text in parts}
            assert code == (2 if "problem" in [state for state, _ in found.values()] else 0)
            return found

        return call

    def test_master_without_workers(self, lines: Callable[..., Any], master: tuple[str, str]) -> None:
        url, page = master
        found = lines(spark_version(), f"--spark_master_url={url}", f"--spark_master_ui={page}")
        assert {name: found[name][0] for name in ("java", "master", "cores", "jar", "spark", "workers")} == {
            "java": "ok",
            "master": "ok",
            "cores": "problem",
            "jar": "ok",
            "spark": "ok",
            "workers": "ok",
        }
        assert "torchbeam-worker runs; it must be there on all hosts" in found["workers"][1]

    def test_versions_differ(self, lines: Callable[..., Any], master: tuple[str, str]) -> None:
        url, page = master
        state, text = lines("3.5.0", f"--spark_master_url={url}", f"--spark_master_ui={page}")["spark"]
        assert state == "problem"
        assert f"is for Spark 3.5.0, but the cluster runs {spark_version()}" in text
        assert f"make spark-job-server SPARK_VERSION={spark_version()}" in text

    def test_page_is_not_found(self, lines: Callable[..., Any], master: tuple[str, str]) -> None:
        found = lines("3.5.0", f"--spark_master_url={master[0]}")
        assert found["master"][0] == "warning"
        assert "--spark_master_ui" in found["master"][1]
        assert (found["cores"][0], found["spark"][0]) == ("skipped", "skipped")
        found = lines("3.5.0", f"--spark_master_url={master[0]}", "--spark_version=3.5.1")
        assert "the cluster runs 3.5.1" in found["spark"][1]

    def test_local(self, lines: Callable[..., Any], fake_java: FakeJava) -> None:
        fake_java('openjdk version "17.0.1"')
        found = lines("3.5.0", "--spark_master_url=local[2]")
        assert found["workers"] == ("ok", "LOOPBACK: in this process")
        assert not {"cores", "spark"} & found.keys()

    def test_yarn(self, lines: Callable[..., Any], fake_java: FakeJava) -> None:
        fake_java('openjdk version "17.0.1"')
        found = lines("3.5.0", "--spark_master_url=yarn", "--spark_version=3.5.0")
        assert found["master"] == ("ok", "yarn: not queried from here")
        assert found["spark"][0] == "ok"
        assert "cores" not in found

    def test_no_java(self, lines: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        found = lines("3.5.0")
        assert found["java"][0] == "problem"
        assert found["workers"] == ("skipped", 'needs "java"')

    def test_worker_command_that_is_not_there(self, lines: Callable[..., Any], fake_java: FakeJava) -> None:
        fake_java('openjdk version "17.0.1"')
        config = '--environment_config={"command": "/nowhere/worker"}'
        found = lines("3.5.0", "--spark_master_url=local[2]", "--environment_type=PROCESS", config)
        assert found["workers"][0] == "problem"
        assert '"/nowhere/worker" is not on this machine' in found["workers"][1]

    def test_job_server_of_the_users_own(self, lines: Callable[..., Any]) -> None:
        found = lines("3.5.0", f"--job_endpoint=localhost:{free_port()}")
        assert "no job server at --job_endpoint" in found["server"][1]
        assert "java" not in found
