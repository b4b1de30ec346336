"""What the tests of the checks share: a `java` that is none, and real Spark processes from the pyspark package."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from deadlines import WAIT_SECONDS
from short_jvms import SHORT_JVM

from handlers.errors import UsageError
from pipelines.command.supervisor import die_with_parent
from pipelines.spark.java import find_java

FakeJava = Callable[..., Path]


def make_fake_java(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJava:
    """Makes the only `java` on PATH, which prints one line to stderr as the real one does."""

    def make(line: str, then: str = "exit 0") -> Path:
        script = folder / "jdk" / "bin" / "java"
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


def spark_version() -> str:
    import pyspark

    return str(pyspark.__version__)


def _page_is_up(port: int) -> bool:
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
    settings = {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", **SHORT_JVM}
    parent = os.getpid()
    with (folder / "spark.log").open("ab") as log:
        process = subprocess.Popen(
            [str(home / "bin" / "spark-class"), *map(str, arguments), "--webui-port", str(page)],
            stdout=log,
            stderr=log,
            env=os.environ | settings,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),  # also where the tests are killed, nothing is left
        )
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not _page_is_up(page):
            assert process.poll() is None, (folder / "spark.log").read_text()
            assert time.monotonic() < deadline, (folder / "spark.log").read_text()
            time.sleep(0.2)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def lonely_master(folder: Path) -> Iterator[tuple[str, str, int]]:
    """A real master without workers: its URL, its web page, and the id of its process."""
    port, page = free_port(), free_port()
    of_master = ("org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", port)
    with spark_process(folder, *of_master, page=page) as process:
        yield f"spark://127.0.0.1:{port}", f"http://127.0.0.1:{page}", process


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


def wait_for(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.3)
