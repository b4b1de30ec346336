"""What is found out about Java and a Spark master, asked of real ones and of ports that are none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from handlers.errors import UsageError
from pipelines import doctor
from pipelines.spark import checks, java
from pipelines.spark.checks import (
    Executor,
    check_cores,
    check_endpoint,
    check_spark,
    check_versions,
    check_worker_command,
)
from pipelines.spark.java import Java, find_java
from pipelines.spark.job_server import JobServer
from pipelines.spark.master import Master, addresses, ask_master
from pipelines.spark.submit import worker_command

FakeJava = Callable[..., Path]


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJava:
    """Makes the only `java` on PATH, which prints one line to stderr as the real one does."""

    def make(line: str, then: str = "exit 0") -> Path:
        script = tmp_path / "jdk" / "bin" / "java"
        script.parent.mkdir(parents=True)
        script.write_text(f"#!/bin/sh\necho '{line}' >&2\n{then}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
        monkeypatch.delenv("JAVA_HOME", raising=False)
        return script

    return make


def options(url: str, *arguments: str) -> PipelineOptions:
    return PipelineOptions([f"--spark_master_url={url}", *arguments])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestJava:
    @pytest.mark.parametrize(
        ("line", "major"),
        [
            ('openjdk version "17.0.15" 2025-04-15', 17),
            ('java version "11.0.23" 2024-04-16 LTS', 11),
            ('openjdk version "17-ea"', 17),
        ],
    )
    def test_supported(self, fake_java: FakeJava, line: str, major: int) -> None:
        script = fake_java(line)
        found = find_java()
        assert (found.path, found.major) == (str(script), major)

    @pytest.mark.parametrize(
        ("line", "version"),
        [('openjdk version "1.8.0_402"', "Java 1.8.0_402"), ('openjdk version "21.0.2" 2024-01-16', "Java 21.0.2")],
    )
    def test_others_are_refused(self, fake_java: FakeJava, line: str, version: str) -> None:
        fake_java(line)
        with pytest.raises(UsageError, match=rf"{version}, but .* 11 and 17; install Java 17"):
            find_java()

    def test_major_of_the_old_scheme(self) -> None:
        assert [Java("java", version).major for version in ("1.8.0_402", "9", "21.0.2")] == [8, 9, 21]

    def test_none_on_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("JAVA_HOME", raising=False)
        with pytest.raises(UsageError, match=r"no java on PATH.*install Java 17"):
            find_java()

    def test_java_home_wins_over_path(self, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
        home = fake_java('openjdk version "11.0.1"').parents[1]
        monkeypatch.setenv("PATH", "/nowhere:/bin")
        monkeypatch.setenv("JAVA_HOME", str(home))
        assert find_java().major == 11
        monkeypatch.setenv("JAVA_HOME", str(home / "gone"))
        with pytest.raises(UsageError, match=r"JAVA_HOME is .*/gone"):
            find_java()

    def test_launcher_wins_over_java_home(self, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
        script = fake_java('openjdk version "11.0.1"')
        monkeypatch.setenv("JAVA_HOME", "/nowhere")
        assert find_java(str(script)).path == str(script)
        with pytest.raises(UsageError, match="there is no java at --job_server_java_launcher=/nowhere/java"):
            find_java("/nowhere/java")

    def test_java_that_tells_no_version(self, fake_java: FakeJava) -> None:
        fake_java("The operation could not be completed. Unable to locate a Java Runtime.", "exit 1")
        with pytest.raises(UsageError, match="Unable to locate a Java Runtime"):
            find_java()

    def test_java_that_hangs(self, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(java, "_SECONDS", 0.5)
        fake_java("thinking", "exec sleep 60")
        begin = time.monotonic()
        with pytest.raises(UsageError, match="did not end"):
            find_java()
        assert time.monotonic() - begin < 10


class TestNoMaster:
    def test_nobody_listens(self) -> None:
        url = f"spark://127.0.0.1:{free_port()}"
        with pytest.raises(UsageError, match=rf"{url} cannot be used.*refuses connections.*start-master"):
            ask_master(url)

    def test_port_that_never_answers_ends_in_seconds(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            begin = time.monotonic()
            with pytest.raises(UsageError, match="does not answer within 4 seconds"):
                ask_master(f"spark://127.0.0.1:{silent.getsockname()[1]}")
            assert time.monotonic() - begin < 10

    def test_unknown_host(self) -> None:
        with pytest.raises(UsageError, match="is no host that is known here"):
            ask_master("spark://no-such-host.invalid:7077")

    @pytest.mark.parametrize(
        "url", ["spark://host", "spark://", "spark://host:port", "spark://host:99999", "host:7077"]
    )
    def test_malformed_url(self, url: str) -> None:
        with pytest.raises(UsageError, match=r"must be spark://host:port"):
            ask_master(url)

    def test_addresses(self) -> None:
        assert addresses("spark://a:1,b.c:2,[::1]:3") == [("a", 1), ("b.c", 2), ("::1", 3)]


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

    @pytest.mark.parametrize("url", ["mesos://host:5050", "sparc://host:7077", "localhost"])
    def test_unknown_kind_of_master(self, url: str) -> None:
        with pytest.raises(UsageError, match="is none of"):
            check_spark(options(url), None)

    @pytest.mark.parametrize("url", ["local", "local[2]", "local[*]", "yarn", "k8s://https://host:443"])
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
            with pytest.raises(UsageError, match=f'{name}" is not on this machine, or is no executable'):
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


def page_is_up(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def spark_process(folder: Path, *arguments: object, page: int) -> Iterator[int]:
    """The id of a process of the Spark in the pyspark package, once its web page is up. It is ended with its children."""
    pyspark = pytest.importorskip("pyspark")
    try:
        find_java()
    except UsageError as error:
        pytest.skip(str(error))
    home = Path(pyspark.__file__).parent
    settings = {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
    with (folder / "spark.log").open("ab") as log:
        process = subprocess.Popen(
            [str(home / "bin" / "spark-class"), *map(str, arguments), "--webui-port", str(page)],
            stdout=log,
            stderr=log,
            env=os.environ | settings,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while not page_is_up(page):
            assert process.poll() is None, (folder / "spark.log").read_text()
            assert time.monotonic() < deadline, (folder / "spark.log").read_text()
            time.sleep(0.2)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A real master without workers: its URL and its web page."""
    port, page = free_port(), free_port()
    of_master = ("org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", port)
    with spark_process(tmp_path_factory.mktemp("master"), *of_master, page=page):
        yield f"spark://127.0.0.1:{port}", f"http://127.0.0.1:{page}"


def spark_version() -> str:
    import pyspark

    return str(pyspark.__version__)


class TestMaster:
    def test_without_workers(self, master: tuple[str, str]) -> None:
        url, page = master
        found = ask_master(url, page)
        assert found == Master(url, page, spark_version(), cores=0)
        with pytest.raises(UsageError, match=f"{url} has no workers.*start-worker.sh {url}"):
            check_cores(found)
        with pytest.raises(UsageError, match="has no workers"):
            check_spark(options(url), page)

    def test_page_is_found_by_itself(self, master: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        url, page = master
        monkeypatch.setenv("SPARK_MASTER_WEBUI_PORT", page.rpartition(":")[2])
        assert ask_master(url).ui == page

    def test_page_without_scheme(self, master: tuple[str, str]) -> None:
        url, page = master
        assert ask_master(url, page.removeprefix("http://")).version == spark_version()

    def test_page_that_is_not_found_leaves_all_unknown(self, master: tuple[str, str]) -> None:
        url, _ = master
        found = ask_master(url)
        assert found == Master(url)
        assert "not known" in check_cores(found)

    @pytest.mark.parametrize("page", ["127.0.0.1:1", "http://127.0.0.1:{port}", "file:///etc/passwd"])
    def test_page_that_is_none(self, master: tuple[str, str], page: str) -> None:
        url, _ = master
        with pytest.raises(UsageError, match=r"--spark_master_ui .* is no web page of the Spark master"):
            ask_master(url, page.format(port=url.rpartition(":")[2]))

    def test_port_of_the_page_in_place_of_the_masters(self, master: tuple[str, str]) -> None:
        _, page = master
        with pytest.raises(UsageError, match="is a web page"):
            ask_master(page.replace("http", "spark"))

    def test_one_of_several_answers(self, master: tuple[str, str]) -> None:
        url, page = master
        several = f"spark://127.0.0.1:{free_port()},{url.removeprefix('spark://')}"
        assert ask_master(several, page).version == spark_version()

    def test_stopped_master(self, tmp_path: Path) -> None:
        """A process that is there and does not run accepts connections, and must not be waited for."""
        port, page = free_port(), free_port()
        of_master = ("org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", port)
        with spark_process(tmp_path, *of_master, page=page) as process:
            os.kill(process, signal.SIGSTOP)
            begin = time.monotonic()
            with pytest.raises(UsageError, match="does not answer within"):
                ask_master(f"spark://127.0.0.1:{port}", f"127.0.0.1:{page}")
            assert time.monotonic() - begin < 10


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
        assert found["master"] == ("ok", "yarn: it is not asked from here")
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


@pytest.fixture(scope="module")
def worker(master: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    url, page = master
    folder = tmp_path_factory.mktemp("worker")
    of_worker = ("org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--cores", 1, "--memory", "1g")
    with spark_process(folder, *of_worker, "--work-dir", folder, url, page=free_port()):
        wait_for(lambda: len(ask_master(url, page).workers) == 1)
        yield url, page


@pytest.mark.slow
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


@contextmanager
def session(command: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    """A process and all that it starts, ended at the end."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.3)
