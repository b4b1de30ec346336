"""A job server that starts before Beam is imported, and the archive of its classes; `java` is a script that acts as one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from spark_parts import make_fake_java, options

from pipelines.command.built import built
from pipelines.runners import pipeline_options
from pipelines.spark.call import Call
from pipelines.spark.early import local_call, started_early
from pipelines.spark.java import find_java
from pipelines.spark.job_server import VARIABLE, Running, running
from pipelines.spark.local import class_archive, is_current
from pipelines.spark.session import spark_session
from pipelines.spark.submit import settle

# Like a job server: it notes its arguments, says where it listens, and on SIGTERM writes the archive that it is asked for.
SERVER = r"""
case "$*" in -version) exit 0;; esac
echo "$*" >> "$STARTS"
for each; do case "$each" in -XX:ArchiveClassesAtExit=*) archive="${each#*=}";; esac; done
trap '[ -z "$archive" ] || echo classes > "$archive"; exit 143' TERM
echo "JobService started on localhost:1234"
while :; do sleep 0.05; done
"""


@pytest.fixture(autouse=True)
def jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only jar in the cache; the `java` on PATH is the script, and temporary files are in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    make_fake_java(tmp_path, monkeypatch)('openjdk version "17.0.15" 2025-04-15', SERVER)
    made = built("spark-job-server") / "beam-2.70.0-spark-3.5.7.jar"
    made.parent.mkdir(parents=True)
    made.touch()
    return made


def starts(tmp_path: Path) -> list[str]:
    """The arguments of each start."""
    file = tmp_path / "starts"
    return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def left(tmp_path: Path) -> Iterator[None]:
    """At the end no temporary files are left."""
    yield
    assert list((tmp_path / "temporary").iterdir()) == []


class TestEarly:
    @pytest.mark.parametrize("memory", [(), ("--job_server_jvm_properties=-Xmx3g",)])
    def test_is_the_one_that_the_run_would_start(self, memory: tuple[str, ...], tmp_path: Path, left: None) -> None:
        with started_early("SparkRunner", memory, None, verbose=False):
            submission = settle(pipeline_options("SparkRunner", memory), memory, find_java(), None)
            with spark_session(submission, pipeline_options("SparkRunner", submission.arguments)) as session:
                assert session.server is not None
                assert session.server.endpoint == "localhost:1234"
        assert len(starts(tmp_path)) == 1
        assert session.server.process.poll() is not None

    def test_run_that_needs_another_one(self, tmp_path: Path, left: None) -> None:
        with started_early("SparkRunner", (), None, verbose=True):  # another log
            submission = settle(options("local[1]"), (), find_java(), None)
            with spark_session(submission, pipeline_options("SparkRunner", submission.arguments)):
                pass
        assert len(starts(tmp_path)) == 2

    def test_nobody_takes_it(self, left: None) -> None:
        with pytest.raises(KeyboardInterrupt), started_early("SparkRunner", (), None, verbose=False):
            raise KeyboardInterrupt

    def test_other_runner(self, tmp_path: Path) -> None:
        with started_early("DirectRunner", (), None, verbose=False):
            pass
        assert starts(tmp_path) == []

    @pytest.mark.parametrize(
        "argument",
        [
            "--spark_master_url=spark://host:7077",
            "--spark_master_url=yarn",
            "--job_endpoint=host:1",
            "--environment_type=PROCESS",
            "--spark_job_server_jar=other.jar",
        ],
    )
    def test_spark_elsewhere(self, argument: str) -> None:
        assert local_call([], None, verbose=False) is not None
        assert local_call([argument], None, verbose=False) is None

    def test_collector_of_the_user(self) -> None:
        ours = local_call([], None, verbose=False)
        users = local_call(["--job_server_jvm_properties=-XX:+UseG1GC"], None, verbose=False)
        assert ours is not None
        assert "-XX:+UseSerialGC" in ours.arguments
        assert users is not None
        assert [each for each in users.arguments if each.endswith("GC")] == ["-XX:+UseG1GC"]

    def test_no_jar_for_that_spark(self) -> None:
        assert local_call([], "3.5.1", verbose=False) is None


class TestArchive:
    @pytest.fixture
    def call(self, jar: Path) -> Call:
        java = find_java()
        return Call(jar, java.path, "local[1]", (), local=True, archive=class_archive(java, jar))

    def test_of_a_run_that_finishes_is_used_by_the_next(self, call: Call, tmp_path: Path, left: None) -> None:
        assert call.archive == call.jar.with_name("beam-2.70.0-spark-3.5.7.java-17.0.15.jsa")
        for _ in range(2):
            with running(call):
                pass
        assert call.archive.read_text() == "classes\n"
        first, second = starts(tmp_path)
        assert "-XX:ArchiveClassesAtExit=" in first
        assert f"-XX:SharedArchiveFile={call.archive} " in second
        assert sorted(path.suffix for path in call.archive.parent.iterdir()) == [".jar", ".jsa"]

    def test_of_a_run_that_fails_is_not_kept(self, call: Call, left: None) -> None:
        def fail(server: Running) -> None:
            raise RuntimeError

        with pytest.raises(RuntimeError), running(call) as server:
            fail(server)
        assert list(call.jar.parent.iterdir()) == [call.jar]

    def test_jar_that_is_newer(self, call: Call) -> None:
        assert call.archive is not None
        call.archive.touch()
        os.utime(call.archive, (1, 1))
        assert not is_current(call.archive, call.jar)

    def test_jar_elsewhere(self, tmp_path: Path) -> None:
        assert class_archive(find_java(), tmp_path / "own.jar") is None
