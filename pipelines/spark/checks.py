"""Checks before a submission to Spark for what would fail or hang. Each takes a few seconds at most.

A check returns a short fact, or raises `UsageError` with the problem and its fix.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apache_beam.options.pipeline_options import (
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    SparkRunnerOptions,
    StandardOptions,
)

from handlers.errors import UsageError, one_line
from pipelines.spark.java import Java, find_java
from pipelines.spark.job_server import JobServer
from pipelines.spark.master import SECONDS, Master, Worker, ask_master, is_standalone

_WORKER_SECONDS = 20.0
_MASTERS = re.compile(
    r"(local(\[(\*|[1-9]\d*)(, *\d+)?\])?|local-cluster\[.+\]|yarn|k8s://(\[[^\s\]]+\]|[^\s/:]+):\d+/?)$"
    r"|spark://|k8s://https?://."
)


@dataclass(frozen=True)
class Executor:
    """The resources that Spark requests for each executor, with the defaults of Spark.

    Attributes:
        cores: the minimum number of cores.
        memory: the memory in MiB.
    """

    cores: int = 1
    memory: int = 1024

    @staticmethod
    def of(options: PipelineOptions) -> Executor:
        """Reads them from the Java properties of the job server, such as `-Dspark.executor.memory=2g`."""
        properties = options.view_as(JobServerOptions).job_server_jvm_properties or ()
        given = dict(text.removeprefix("-D").partition("=")[::2] for text in properties)
        memory = re.fullmatch(r"(\d+)([kmgt]?)b?", given.get("spark.executor.memory", "").strip().lower())
        cores = given.get("spark.executor.cores", "")
        # A number without a unit is in MiB.
        unit = {"k": 1 / 1024, "m": 1, "g": 1024, "t": 1024**2}[memory.group(2) or "m"] if memory else 0
        return Executor(
            int(cores) if cores.isdecimal() else Executor.cores,
            int(int(memory.group(1)) * unit) if memory else Executor.memory,
        )

    def fits(self, worker: Worker) -> bool:
        """Whether a worker can start one now."""
        return worker.cores_free >= self.cores and worker.memory_free >= self.memory


@dataclass(frozen=True)
class Target:
    """Where a run will execute.

    Attributes:
        java: the Java for the job server; None if the user runs a job server.
        master: the standalone master, if there is one.
    """

    java: Java | None = None
    master: Master | None = None


def check_spark(options: PipelineOptions, master_ui: str | None) -> Target:
    """The quick checks, which need no jar; `score` runs them, too.

    Args:
        options: Beam's options of the run.
        master_ui: the value of --spark_master_ui.

    Raises:
        UsageError: with the first thing that is wrong.
    """
    check_streaming(options)
    if endpoint := options.view_as(PortableOptions).job_endpoint:
        check_endpoint(endpoint)
        return Target()
    master_url = check_master_url(options.view_as(SparkRunnerOptions).spark_master_url)
    java = find_java(options.view_as(JobServerOptions).job_server_java_launcher)
    if not is_standalone(master_url):
        return Target(java)
    master = ask_master(master_url, master_ui)
    check_cores(master, Executor.of(options))
    return Target(java, master)


def check_streaming(options: PipelineOptions) -> str:
    """Streaming is refused: on Spark the portable runner stops after the first results, with an error or without."""
    if options.view_as(StandardOptions).streaming:
        raise UsageError(
            "streaming does not work on Spark: Beam's portable runner fails there after part of the output; leave out "
            "--streaming, or use DataflowRunner or FlinkRunner"
        )
    return "batch"


def check_master_url(url: str) -> str:
    """Spark supports the kind of master."""
    if not _MASTERS.match(url):
        raise UsageError(
            f'--spark_master_url "{url}" must be one of local[N], spark://host:port, yarn and k8s://https://host:port'
        )
    return url


def check_cores(master: Master, executor: Executor = Executor()) -> str:
    """A standalone master can start an executor now; otherwise Spark would wait indefinitely."""
    if master.cores is None:
        return "not known, since the master's web page was not found"
    if not master.workers:
        raise UsageError(
            f"the Spark master {master.url} has no workers, so the job would wait for ever; start one "
            f"(sbin/start-worker.sh {master.url}), and see {master.ui}"
        )
    free = sum(worker.cores_free for worker in master.workers)
    if not free:
        names = ", ".join(f'"{name}"' for name in master.applications[:3]) or "other applications"
        raise UsageError(
            f"the Spark master {master.url} has no free cores: all {master.cores} are held by {names}; wait for them, "
            f"end them at {master.ui}, or start another worker"
        )
    if not any(executor.fits(worker) for worker in master.workers):
        most = max(worker.memory_free for worker in master.workers if worker.cores_free)
        raise UsageError(
            f"no worker of the Spark master {master.url} has room for an executor of {executor.cores} core(s) and "
            f"{executor.memory} MiB, so the job would wait for ever: {most} MiB are free at most; ask for less with "
            "--job_server_jvm_properties=-Dspark.executor.memory=…, or give the workers more"
        )
    return f"{free} of {master.cores} free, on {len(master.workers)} worker{'s' * (len(master.workers) > 1)}"


def check_versions(server: JobServer, cluster: str) -> str:
    """Job server and cluster have the same Spark patch version, since they exchange Java objects."""
    jar = str(server.jar or "of Beam itself")
    if server.spark_version is None:
        return f"not compared, since that of the job server {jar} is not known; the cluster has {cluster}"
    if server.spark_version != cluster:
        raise UsageError(
            f"the job server {jar} is for Spark {server.spark_version}, but the cluster runs {cluster}, and they must be "
            f"equal to the last number; make the right one with: make spark-job-server SPARK_VERSION={cluster}"
        )
    return f"Spark {cluster} in the job server and on the cluster"


def check_endpoint(endpoint: str) -> str:
    """The user's job server, `host:port`, accepts connections; Beam would wait five minutes for it."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UsageError(
            f"there is no job server at --job_endpoint={endpoint}: {reason}; start it, or leave it out"
        ) from None
    return f"{endpoint} takes connections"


def check_worker_command(command: str, environment: Mapping[str, str] | None = None) -> str:
    """The command that starts Python workers exists on this machine, and if it is ours, it runs.

    Args:
        command: the path of an executable; executors give it its arguments.
        environment: what is added to the environment.
    """
    path = shutil.which(command)
    if path is None:
        raise UsageError(
            f'the worker command "{command}" is not on this machine, or is not an executable; install torchbeam where it '
            "is said to be, or name another with --environment_config"
        )
    if Path(path).name != "torchbeam-worker":
        return f"{path} is there; what it does is not known"
    try:
        done = subprocess.run(  # noqa: S603 - our command
            [path, "--help"],
            capture_output=True,
            text=True,
            timeout=_WORKER_SECONDS,
            check=False,
            errors="replace",
            env=os.environ | dict(environment or {}),
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f'"{path} --help" did not end in {_WORKER_SECONDS:.0f} seconds') from None
    except OSError as error:
        raise UsageError(f"{path} cannot be run: {error.strerror or error}; install torchbeam again") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UsageError(f"{path} fails: {last[0]}; install torchbeam again, with the Python that it names")
    return f"{path} runs"
