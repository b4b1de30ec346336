"""Beam's job server for Spark: its jar and its process."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

from handlers.errors import TorchbeamError, UsageError
from handlers.redact import redact
from pipelines.command.built import built
from pipelines.command.supervisor import GRACE_SECONDS, STOP_SECONDS, kill_supervised, start_supervised, stop_supervised
from pipelines.spark.call import Call
from pipelines.spark.local import is_current
from pipelines.spark.master import is_standalone

VARIABLE = "TORCHBEAM_SPARK_JOB_SERVER_JAR"
DEFAULT_SPARK_VERSION = "3.5.7"  # that of templates/spark/pom.xml

_START_SECONDS = 60.0
_DOWNLOAD_CHECK_SECONDS = 4.0
_RECORD_SECONDS = 120  # for Java to write its archive of classes: 5 s on two idle cores
_STARVED = 2  # warnings of Spark that no executor has started, one every 15 s

_BUILT = re.compile(r"beam-(?P<beam>[\d.]+)-spark-(?P<spark>[\d.]+)\.jar")
_log = logging.getLogger("SparkJobServer")


class JobServerError(TorchbeamError):
    """The job server did not start, or ended before the job did."""


# Which jar


@dataclass(frozen=True)
class JobServer:
    """A job server.

    Attributes:
        jar: its jar on this machine; None if Beam downloads its own.
        spark_version: the Spark version in the jar, such as `3.5.7`; None if unknown.
        beam_version: the Beam version in the jar.
    """

    jar: Path | None
    spark_version: str | None = None
    beam_version: str | None = None


def find_job_server(option: str | None, spark_version: str | None) -> JobServer:
    """The job server to use: from the option, the environment variable, the cache, or Beam.

    Args:
        option: the value of --spark_job_server_jar, a path or a URL.
        spark_version: the version of the cluster, such as `3.5.7`; None for any.

    Raises:
        UsageError: if there is no job server, with the command that builds one, or if a given file is not one.
    """
    for given, named in ((option, "--spark_job_server_jar"), (os.environ.get(VARIABLE), VARIABLE)):
        if given:
            return _given(given, named)
    built = built_job_servers()
    fitting = [server for server in built if spark_version in (None, server.spark_version)]
    if fitting:
        return fitting[0]
    # Beam's download contains one Spark version, which is not known before.
    if spark_version is None and _can_be_downloaded():
        return JobServer(None)
    wanted = spark_version or DEFAULT_SPARK_VERSION
    there = f" (there are those for {', '.join(str(server.spark_version) for server in built)})" if built else ""
    raise UsageError(
        f"there is no job server for Spark {wanted} on this machine{there}; make one, once, in a checkout of torchbeam "
        f"with Java and Maven: make spark-job-server SPARK_VERSION={wanted}; or name one with --spark_job_server_jar "
        f"or {VARIABLE}"
    )


def built_job_servers() -> list[JobServer]:
    """The job servers in the user's cache, newest versions first."""
    # `make` has put the versions into the names; to read them takes half a second for a jar of 100,000 entries.
    found = [
        JobServer(jar, match["spark"], match["beam"])
        for jar in built("spark-job-server").glob("*.jar")
        if (match := _BUILT.fullmatch(jar.name))
    ]
    return sorted(
        found, key=lambda server: (_numbers(server.spark_version), _numbers(server.beam_version)), reverse=True
    )


def read_job_server(jar: Path) -> JobServer:
    """The versions inside a jar; raises `UsageError` if it is not a job server."""
    try:
        with zipfile.ZipFile(jar) as archive:
            names = set(archive.namelist())
            if "org/apache/beam/runners/spark/SparkJobServerDriver.class" not in names:
                raise UsageError(f"{jar} is not a job server of Beam for Spark; make one with: make spark-job-server")
            spark = _property(archive, names, "spark-version-info.properties", "version")
            beam = _property(
                archive, names, "META-INF/maven/org.apache.beam/beam-runners-spark-3/pom.properties", "version"
            )
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{jar} cannot be read as a jar: {error}; make one with: make spark-job-server") from None
    return JobServer(jar, spark, beam)


def _given(given: str, named: str) -> JobServer:
    url = urlparse(given)
    if url.scheme in ("http", "https"):
        return JobServer(_download(given))
    path = Path(unquote(url.path) if url.scheme == "file" else given).expanduser().absolute()
    if not path.is_file():
        raise UsageError(f"{named} is {given}, but there is no such file; make one with: make spark-job-server")
    return read_job_server(path)


def _download(url: str) -> Path:
    from apache_beam.utils.subprocess_server import JavaJarServer

    try:
        return Path(JavaJarServer.local_jar(url))
    except Exception as error:
        raise UsageError(f"the job server {url} cannot be downloaded: {error}") from None


def beams_own() -> str:
    """The file or URL of Beam's own job server, for the installed Beam version."""
    from apache_beam.utils.subprocess_server import JavaJarServer

    return str(JavaJarServer.path_to_beam_jar(":runners:spark:3:job-server:shadowJar"))


def _can_be_downloaded() -> bool:
    """Whether Beam's own job server is downloaded or available; one request with a short timeout."""
    from apache_beam.utils.subprocess_server import JavaJarServer

    where = beams_own()
    if not where.startswith("http"):
        return Path(where).is_file()
    if (Path(JavaJarServer.JAR_CACHE) / where.rsplit("/", 1)[-1]).is_file():
        return True
    try:
        with urlopen(Request(where, method="HEAD"), timeout=_DOWNLOAD_CHECK_SECONDS) as answer:  # noqa: S310 - https
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _property(archive: zipfile.ZipFile, names: set[str], file: str, key: str) -> str | None:
    if file not in names:
        return None
    found = re.search(rf"^{key}=(.+)$", archive.read(file).decode(errors="replace"), re.MULTILINE)
    return found.group(1).strip() if found else None


def _numbers(version: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version or "")]


# Its process

# The options that Spark needs on Java 17; Spark's launcher also sets them.
_OPENED = (
    *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio"),
    *("java.util", "java.util.concurrent", "java.util.concurrent.atomic"),
    *("sun.nio.ch", "sun.nio.cs", "sun.security.action", "sun.util.calendar"),
)
JAVA_ARGUMENTS = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
    "-Djdk.reflect.useDirectMethodHandle=false",
)


@dataclass
class Running:
    """A running job server and the state read from its log.

    Attributes:
        call: what it was started with.
        folder: a temporary folder of the run, removed at its end.
        recorded: the archive of classes in `folder` that Java writes at its end, if it does.
        endpoint: the address for jobs; empty until it accepts them.
        ui: the URL of Spark's web page, once the job has one.
        tasks: the number of finished Spark tasks.
        executors: the number of executors that the cluster started; `local[…]` has none.
        waiting: whether Spark waits for an executor for the first tasks.
        problem: a fatal problem found in the log, in one line.
        last: the last lines of the log.
    """

    call: Call
    process: subprocess.Popen[str]
    folder: Path
    recorded: Path | None = None
    endpoint: str = ""
    ui: str | None = None
    tasks: int = 0
    executors: int = 0
    waiting: bool = False
    problem: str | None = None
    last: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    _starved: int = 0
    _reader: threading.Thread | None = None

    def read_log(self) -> None:
        """Starts to read the log, in a thread."""
        self._reader = threading.Thread(target=self.follow, name="job-server-log", daemon=True)
        self._reader.start()

    def join(self) -> None:
        """Waits for the end of the log."""
        if self._reader is not None:
            self._reader.join(STOP_SECONDS)

    def follow(self) -> None:
        """Reads the log until its end; runs in a separate thread."""
        for line in self.process.stdout or ():
            text = redact(line.rstrip())
            self.last.append(text)
            _log.info("%s", text)
            self._note(text)

    def _note(self, line: str) -> None:
        if match := re.search(r"JobService started on (\S+:\d+)", line):
            self.endpoint = match.group(1)
        elif match := re.search(r"Bound SparkUI to .*started at (http\S+)|SparkUI available at (http\S+)", line):
            self.ui = match.group(1) or match.group(2)
        elif match := re.search(r"Successfully started service 'SparkUI' on port (\d+)", line):
            self.ui = self.ui or f"http://localhost:{match.group(1)}"
        elif "Finished task" in line:
            self.tasks += 1
            self.waiting = False
        elif "Registered executor" in line:
            self.executors += 1
            self.waiting = False
        elif "All masters are unresponsive" in line:
            self.problem = (
                "the Spark master does not answer; check --spark_master_url, and that it is of the same Spark"
            )
        elif "serialVersionUID" in line or "InvalidClassException" in line:
            self.problem = (
                "the Spark of the job server is not that of the cluster, to the last number; make the right one with: "
                "make spark-job-server SPARK_VERSION=…, and give --spark_version=…"
            )
        elif "Initial job has not accepted any resources" in line:
            self._starved += 1
            self.waiting = True
            # Other clusters may queue a job for long, and an executor that was lost comes back. A standalone master
            # that had room a moment ago gives one at once.
            if is_standalone(self.call.master) and not self.executors and self._starved >= _STARVED:
                self.problem = (
                    "the cluster gives the job no executor: its cores or its memory are taken, or no worker is left; "
                    f"see {self.ui or 'the page of the master'}, or ask for less with "
                    "--job_server_jvm_properties=-Dspark.executor.memory=…"
                )

    def last_error(self) -> str:
        """The line of the log that best explains why it ended."""
        errors = [line for line in self.last if re.search(r"Exception|Error|ERROR|Unsupported|cannot|Invalid", line)]
        return (errors or [*self.last, "it logged nothing"])[-1].strip()


def start(call: Call) -> Running:
    """Starts a job server. Whoever starts it ends it; it also ends when this process is killed."""
    folder = Path(tempfile.mkdtemp(prefix="torchbeam-spark-"))
    recorded = None
    arguments = list(call.arguments)
    if call.archive is not None and is_current(call.archive, call.jar):
        arguments.insert(0, f"-XX:SharedArchiveFile={call.archive}")
    elif call.archive is not None and os.access(call.archive.parent, os.W_OK):
        recorded = folder / "classes.jsa"
        arguments.insert(0, f"-XX:ArchiveClassesAtExit={recorded}")
    whole = [call.java, *JAVA_ARGUMENTS, *arguments, f"-Djava.io.tmpdir={folder}", "-jar", str(call.jar)]
    whole += ["--spark-master-url", call.master, "--job-port", "0", "--artifact-port", "0", "--expansion-port", "-1"]
    whole += ["--artifacts-dir", str(folder)]
    _log.info("%s", redact(" ".join(whole)))
    grace = _RECORD_SECONDS if recorded else GRACE_SECONDS
    try:
        process = start_supervised(whole, folder, dict(call.environment), grace)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    server = Running(call, process, folder, recorded)
    server.read_log()
    return server


def end(server: Running, *, finished: bool) -> None:
    """Ends a job server.

    Args:
        server: the job server.
        finished: whether its job has finished. Then a local Spark has stopped already, and Java is killed: its own end takes half
            a second.
    """
    try:
        if server.recorded is not None and finished:
            stop_supervised(server.process, _RECORD_SECONDS)
        elif server.recorded is not None or (finished and server.call.local):
            kill_supervised(server.process)
        else:
            stop_supervised(server.process)
        server.join()
        if server.recorded is not None and server.call.archive is not None and finished:
            _keep(server.recorded, server.call.archive)
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)


def _keep(recorded: Path, archive: Path) -> None:
    """Moves an archive of classes to its place, so that it is there as a whole or not at all."""
    partial = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        shutil.copyfile(recorded, partial)
        partial.replace(archive)
    except OSError as error:  # the next start is slow again
        _log.info("the archive of classes %s was not written: %s", archive, error)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def running(call: Call, started: Running | None = None) -> Iterator[Running]:
    """Runs a job server for the time of the context; it also ends when this process is killed.

    Args:
        call: what it is started with.
        started: one that was started with it.

    Raises:
        JobServerError: if it does not start.
    """
    server = started or start(call)
    finished = False
    try:
        _wait_for_start(server)
        yield server
        finished = True
    finally:
        end(server, finished=finished)


def _wait_for_start(server: Running) -> None:
    end = time.monotonic() + _START_SECONDS
    while not server.endpoint:
        code: Any = server.process.poll()
        if code is not None:
            raise JobServerError(f"the job server ended at its start with exit code {code}: {server.last_error()}")
        if time.monotonic() > end:
            raise JobServerError(f"the job server did not start in {_START_SECONDS:.0f} s: {server.last_error()}")
        time.sleep(0.05)
