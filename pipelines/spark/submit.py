"""What a run on Spark needs beyond the options of the user: the job server, the workers, and Spark's own settings."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions, PortableOptions, SparkRunnerOptions

from handlers.errors import UsageError
from pipelines.spark.java import Java
from pipelines.spark.job_server import VARIABLE, JobServer, find_job_server
from pipelines.spark.local import default_master, is_local, loopback_address
from pipelines.spark.master import addresses, is_standalone, on_loopback

# The fields that the configuration of PROCESS may have.
_PROCESS_FIELDS = ("command", "env", "os", "arch")
_ENVIRONMENTS = ("LOOPBACK", "PROCESS", "DOCKER", "EXTERNAL")
# Numbers of threads in the libraries of a worker; by default each library starts one for every core of the machine.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# How long workers are kept. Otherwise every stage of the job starts new ones, which load the model again.
_ENVIRONMENT_CACHE_MILLIS = 600_000


@dataclass(frozen=True)
class Submission:
    """A run on Spark, ready to be started.

    Attributes:
        arguments: all arguments for Beam.
        job_server: None if the user has a running one (`--job_endpoint`).
        java: the Java that runs it; None without `job_server`.
        jvm_arguments: those of the user, including Spark's settings.
        environment: variables of the job server's process, in addition to those of this one.
        threads: threads of each task if the workers are threads of this process and Spark runs here, too; None if they
            are not, or if the user has set the number.
        warnings: warnings for the user, one line each.
    """

    arguments: tuple[str, ...]
    job_server: JobServer | None
    java: Java | None
    jvm_arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    threads: int | None = None
    warnings: tuple[str, ...] = ()


def master_url(options: PipelineOptions, arguments: Sequence[str]) -> str:
    """The master of the run; by default this machine with a task for each core (Beam's default is four)."""
    if _names_master(arguments):
        return str(options.view_as(SparkRunnerOptions).spark_master_url)
    return default_master()


def _names_master(arguments: Sequence[str]) -> bool:
    return any(argument.split("=")[0] == "--spark_master_url" for argument in arguments)


def settle(
    options: PipelineOptions, arguments: Sequence[str], java: Java | None, spark_version: str | None
) -> Submission:
    """Completes the user's arguments, and changes none of them.

    Args:
        options: the arguments as Beam parses them.
        arguments: the arguments that are passed to Beam.
        java: the Java to use; None if the user has a running job server.
        spark_version: the Spark version of the cluster, if it is known.

    Raises:
        UsageError: if there is no job server or no worker command, or an option has an invalid value.
    """
    master = master_url(options, arguments)
    portable = options.view_as(PortableOptions)
    server_options = options.view_as(JobServerOptions)
    settings = spark_settings(server_options.job_server_jvm_properties)
    cpus = task_cpus(settings)
    added = []
    # A running job server has a default master for jobs that name none.
    if not portable.job_endpoint or _names_master(arguments):
        added.append(f"--spark_master_url={master}")
    if not _whole_number("environment_cache_millis", portable.environment_cache_millis):
        added.append(f"--environment_cache_millis={_ENVIRONMENT_CACHE_MILLIS}")
    _whole_number("sdk_worker_parallelism", portable.sdk_worker_parallelism)
    kind = _environment(portable, master, named=_names_master(arguments))
    added.append(f"--environment_type={kind}")
    if kind == "PROCESS" and not portable.lookup_environment_option("process_command"):
        added.append(f"--environment_config={_worker_config(portable.environment_config, settings)}")
    elif kind == "LOOPBACK":
        # Beam would run `pip freeze` for its workers to compare, but they are this process.
        added.append("--experiments=disable_logging_submission_environment")
    if not any(argument.startswith("--app_name") for argument in arguments):
        added.append("--app_name=torchbeam")
    all_arguments = (*arguments, *added)
    threads = cpus if kind == "LOOPBACK" and is_local(master) and _THREADS[0] not in os.environ else None
    if portable.job_endpoint or options.view_as(SparkRunnerOptions).spark_submit_uber_jar:
        return Submission(all_arguments, None, None, (), (), threads)
    named_jar = options.view_as(SparkRunnerOptions).spark_job_server_jar
    job_server = find_job_server(named_jar, spark_version)
    warnings = []
    if not is_local(master) and not spark_version and not named_jar and not os.environ.get(VARIABLE):
        inside = f"is for Spark {job_server.spark_version}" if job_server.spark_version else "is Beam's own"
        warnings.append(
            f"the Spark version of the cluster {master} is unknown; the job server {inside}, and the two "
            "must be equal to the patch version; give that of the cluster as --spark_version"
        )
    # The driver of a cluster on this machine, and Spark in the job server, need no address that other hosts can reach.
    here = is_local(master) or on_loopback(master)
    environment = loopback_address() if here else {}
    jvm_arguments = tuple(server_options.job_server_jvm_properties)
    return Submission(
        all_arguments, job_server, java, jvm_arguments, tuple(environment.items()), threads, tuple(warnings)
    )


def _whole_number(name: str, value: object) -> int:
    if not str(value).isdecimal():
        raise UsageError(f'--{name} must be an integer of 0 or more, not "{value}"')
    return int(str(value))


def _environment(portable: PortableOptions, master: str, *, named: bool) -> str:
    """How Python workers are started: as the user asks, or as the master requires.

    Args:
        portable: the user's options.
        master: the URL of the master.
        named: whether the user named it.
    """
    kind, endpoint = portable.environment_type, portable.job_endpoint
    if kind and kind not in _ENVIRONMENTS and ":" not in kind:  # a URN
        raise UsageError(f'--environment_type "{kind}" is none of {", ".join(_ENVIRONMENTS)}')
    remote = endpoint if endpoint and not _on_this_host(endpoint.rpartition(":")[0]) else None
    if remote and not kind and not named:
        raise UsageError(
            f"it is unknown where the job server {remote} runs Python workers: name its Spark master with "
            "--spark_master_url, or choose how they are started with --environment_type (PROCESS or DOCKER)"
        )
    if kind == "LOOPBACK":
        if is_standalone(master) and not any(_on_this_host(host) for host, _ in addresses(master)):
            remote = remote or master
        if remote:
            raise UsageError(
                f"--environment_type=LOOPBACK runs Python in this process, which only this host can reach, but {remote} "
                "is on another one; use PROCESS or DOCKER"
            )
    return str(kind or ("LOOPBACK" if is_local(master) and not remote else "PROCESS"))


def _on_this_host(host: str) -> bool:
    """Whether a name or an address is one of this host: a socket can be bound to it."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as own:
            own.bind(address)
            return True
    return False


def spark_settings(jvm_properties: Sequence[str]) -> dict[str, str]:
    """Spark's settings among the job server's Java properties (`-Dspark.task.cpus=2`)."""
    pairs = (text.removeprefix("-D").partition("=") for text in jvm_properties if text.startswith("-Dspark."))
    return {name: value for name, _, value in pairs}


def task_cpus(settings: dict[str, str]) -> int:
    """The cores that Spark counts for each task."""
    cpus = settings.get("spark.task.cpus", "1")
    if not cpus.isdecimal() or not int(cpus):
        raise UsageError(f'-Dspark.task.cpus must be an integer of 1 or more, not "{cpus}"')
    return int(cpus)


def worker_command() -> str:
    """The boot command of the workers, next to the Python that runs now. The other hosts must have it, too."""
    for folder in (Path(sys.executable).parent, Path(sys.prefix, "bin"), Path(sys.prefix, "Scripts")):
        for name in ("torchbeam-worker", "torchbeam-worker.exe"):
            if (folder / name).is_file():
                return str((folder / name).absolute())
    raise UsageError(
        f"there is no torchbeam-worker next to {sys.executable}; install the package there (pip install torchbeam), or "
        'give the command of the workers: --environment_type=PROCESS --environment_config=\'{"command": "/path/to/it"}\''
    )


def worker_environment(settings: dict[str, str]) -> dict[str, str]:
    """The variables of the workers: this process's import path, and as many threads per task as it has cores.

    An executor runs one task on each `spark.task.cpus` of its cores, so this number of threads keeps all of them busy
    and no more, whatever the number of workers (`--sdk_worker_parallelism`).
    """
    threads = str(task_cpus(settings))
    environment = {name: os.environ.get(name, threads) for name in _THREADS}
    environment["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")  # see pipelines.score
    folders = [str(Path(folder).absolute()) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if sys.path[0] in ("", str(Path.cwd())):  # `python -m` looks there first, and finds the user's functions
        folders.insert(0, str(Path.cwd()))
    if folders:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(folders))
    return environment


def _worker_config(given: str | None, settings: dict[str, str]) -> str:
    """The configuration for PROCESS: the user's JSON, completed with the command and the variables."""
    try:
        config = json.loads(given) if given else {}
        _check_worker_config(config)
    except ValueError as error:
        raise UsageError(
            f"--environment_config {given} is not valid for PROCESS; write it as "
            f'\'{{"command": "/path/to/torchbeam-worker", "env": {{"NAME": "value"}}}}\': {error}'
        ) from None
    return json.dumps(
        config
        | {
            "command": config.get("command") or worker_command(),
            "env": worker_environment(settings) | config.get("env", {}),
        }
    )


def _check_worker_config(config: object) -> None:
    """Raises `ValueError` for a configuration that Beam would fail on, or would ignore in part."""
    if not isinstance(config, dict):
        raise ValueError("it is not an object")
    for name, value in config.items():
        if name not in _PROCESS_FIELDS:
            raise ValueError(f'"{name}" is none of {", ".join(_PROCESS_FIELDS)}')
        if name != "env" and not isinstance(value, str):
            raise ValueError(f'"{name}" is not a string')
        if name == "env" and not (isinstance(value, dict) and all(isinstance(each, str) for each in value.values())):
            raise ValueError('"env" is not an object of strings')
