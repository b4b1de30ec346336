"""A real cluster: a standalone master and two workers, from the Spark that the pyspark package carries, on loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest
from deadlines import WAIT_SECONDS
from short_jvms import SHORT_JOB_SERVER, SHORT_JVM

from pipelines.command.supervisor import supervised_command


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)  # a look at all processes takes a while itself


def processes(command: str, session: int | None = None, environment: str = "") -> list[int]:
    """The processes with `command` in their command line, oldest first.

    Those of a session (as `setsid` makes them), and with `environment` somewhere in theirs, where it is given: other
    tests, and other people's, may run beside these.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state, _, _, of_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if environment and environment.encode() not in (folder / "environ").read_bytes():
                continue
        except (OSError, ValueError):
            continue
        if command in line and state != "Z" and session in (None, int(of_session)):
            found.append(int(folder.name))
    return sorted(found)


@dataclass
class Daemon:
    """A master or a worker, with all that it starts: executors and their Python workers."""

    process: subprocess.Popen[bytes]

    def executors(self) -> list[int]:
        return processes("CoarseGrainedExecutorBackend", self.process.pid)

    def python_workers(self) -> list[int]:
        """Beam's workers themselves, not the processes that watch over them."""
        return processes("-m pipelines.spark.worker", self.process.pid)

    def end(self) -> None:
        for pid in [self.process.pid, *processes("", self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Cluster:
    """A standalone cluster.

    Attributes:
        url: that of its master.
        ui: the master's web page.
        start_worker: starts one more, with one core.
        workers: those that are to be there.
    """

    url: str
    ui: str
    master: Daemon
    start_worker: Callable[[], Daemon]
    workers: list[Daemon] = field(default_factory=list)

    def restore(self) -> None:
        """Two workers are there, and nothing runs on them, whatever a test has done to them."""
        self.workers = [worker for worker in self.workers if worker.process.poll() is None]
        while len(self.workers) < 2:
            self.workers.append(self.start_worker())
        wait_for(lambda: _alive_workers(self.ui) == 2, "two workers")
        wait_for(lambda: not any(each.executors() or each.python_workers() for each in self.workers), "idle workers")

    @property
    def arguments(self) -> list[str]:
        return [f"--spark_master_url={self.url}", f"--spark_master_ui={self.ui}"]


@contextmanager
def started_cluster(folder: Path) -> Iterator[Cluster]:
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        pytest.skip("there is no pyspark here: pip install pyspark==3.5.7")
    home = Path(spec.origin).parent
    master_port, ui_port = free_port(), free_port()
    url, ui = f"spark://127.0.0.1:{master_port}", f"http://127.0.0.1:{ui_port}"
    environment = os.environ | {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_WORKER_DIR": str(folder / "work"),
        "SPARK_NO_DAEMONIZE": "1",
        **SHORT_JVM,  # of the executors, too
    }
    # What this process's own session has must not reach the workers by itself.
    environment = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def start(name: str, *arguments: str) -> Daemon:
        with (folder / f"{name.rpartition('.')[2]}-{free_port()}.log").open("wb") as log:
            return Daemon(
                subprocess.Popen(
                    # Also where the tests are killed, nothing is left.
                    supervised_command(
                        [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", *arguments]
                    ),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env=environment,
                    start_new_session=True,
                )
            )

    daemons: list[Daemon] = []
    try:
        master = start("master.Master", "--host", "127.0.0.1", "--port", str(master_port), "--webui-port", str(ui_port))
        daemons.append(master)
        wait_for(lambda: _alive_workers(ui) is not None, "the master's page")

        def start_worker() -> Daemon:
            size = ("--cores", "1", "--memory", "1200m")
            daemons.append(start("worker.Worker", "--host", "127.0.0.1", "--webui-port", "0", *size, url))
            return daemons[-1]

        cluster = Cluster(url, ui, master, start_worker)
        cluster.restore()
        yield cluster
    finally:
        for daemon in daemons:
            daemon.end()


def _alive_workers(ui: str) -> int | None:
    try:
        with urlopen(f"{ui}/json/", timeout=5) as page:
            return int(json.load(page)["aliveworkers"])
    except OSError:
        return None


class Run:
    """The command, in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.score", "--runner=SparkRunner", SHORT_JOB_SERVER, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, seconds: float = WAIT_SECONDS) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
        return self.process.returncode, out, err
