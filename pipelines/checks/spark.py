"""The checks of the doctor for Spark, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    SparkRunnerOptions,
)

from pipelines import runners
from pipelines.checks.checkup import Checkup, Finding, Outcome, SkipError
from pipelines.command.options import RunOptions
from pipelines.spark import checks, submit
from pipelines.spark.java import Java, find_java
from pipelines.spark.job_server import JobServer, find_job_server
from pipelines.spark.local import is_local
from pipelines.spark.master import Master, ask_master, is_standalone


def examine(checkup: Checkup, runner: Outcome[PipelineOptions], run: RunOptions, arguments: Sequence[str]) -> None:
    """Runs the checks for a run on Spark.

    Args:
        checkup: runs the checks.
        runner: the check that parsed Beam's options.
        run: our options of the run.
        arguments: the arguments for Beam.
    """
    checkup.check("streaming", lambda: Finding(checks.check_streaming(runner.value), None))
    endpoint = runner.finding.value.view_as(PortableOptions).job_endpoint if runner.finding else None
    if endpoint:  # the user's job server, which has the Java, the jar and the master
        checkup.check("server", lambda: Finding(checks.check_endpoint(endpoint), None))
        checkup.check("workers", lambda: _workers(submit.settle(runner.value, arguments, None, None)))
        return
    java = checkup.check("java", lambda: _java(runner.value))
    master = checkup.check("master", lambda: _master(submit.master_url(runner.value, arguments), run.spark_master_ui))
    known = master.finding.value if master.finding else None
    if master.finding is None or known is not None:
        checkup.check("cores", lambda: _cores(runner.value, master.value))
    version = (known.version if known else None) or run.spark_version
    jar = checkup.check("jar", lambda: _jar(runner.value, version))
    if runner.finding and not is_local(submit.master_url(runner.value, arguments)):
        checkup.check("spark", lambda: _versions(jar.value, version))
    checkup.check(
        "workers", lambda: _workers(submit.settle(runner.value, arguments, java.value, jar.value.spark_version))
    )


def _java(options: PipelineOptions) -> Finding[Java]:
    java = find_java(options.view_as(JobServerOptions).job_server_java_launcher)
    return Finding(f"Java {java.version}, {java.path}", java)


def _master(url: str, ui: str | None) -> Finding[Master | None]:
    """The standalone master; None for other kinds, which cannot be queried from here."""
    checks.check_master_url(url)
    if not is_standalone(url):
        here = is_local(url)
        return Finding(f"{url}: {'Spark runs in the job server, here' if here else 'not queried from here'}", None)
    master = ask_master(url, ui)
    if master.ui is None:
        unknown = (
            f"{url} answers, but its web page was not found on its host, ports 8080 to 8083, so its Spark version and its "
            "cores are not known; name the page with --spark_master_ui"
        )
        return Finding(unknown, master, warning=True)
    return Finding(f"{url} answers: Spark {master.version or 'of unknown version'}, {master.ui}", master)


def _cores(options: PipelineOptions, master: Master | None) -> Finding[None]:
    if master is None or master.cores is None:
        raise SkipError("the web page of the master was not found")
    return Finding(checks.check_cores(master, checks.Executor.of(options)), None)


def _jar(options: PipelineOptions, version: str | None) -> Finding[JobServer]:
    """The job server's jar, for the Spark version of the cluster if that is known."""
    server = find_job_server(options.view_as(SparkRunnerOptions).spark_job_server_jar, version)
    if server.jar is None:
        return Finding("Beam's own, which it downloads; its Spark version is not known before that", server)
    return Finding(f"{server.jar}: Spark {server.spark_version or '?'}, Beam {server.beam_version or '?'}", server)


def _versions(server: JobServer, cluster: str | None) -> Finding[None]:
    if cluster is None:
        raise SkipError("the Spark version of the cluster is not known; give it with --spark_version")
    return Finding(checks.check_versions(server, cluster), None, warning=server.spark_version is None)


def _workers(submission: submit.Submission) -> Finding[None]:
    """How Python workers are started."""
    portable = runners.pipeline_options("SparkRunner", submission.arguments).view_as(PortableOptions)
    if portable.environment_type != "PROCESS":
        where = {"LOOPBACK": "in this process", "DOCKER": "in containers of the executors, which are not checked"}
        return Finding(f"{portable.environment_type}: {where.get(portable.environment_type, 'not checked')}", None)
    config = json.loads(portable.environment_config or "{}")
    command = portable.lookup_environment_option("process_command") or config["command"]
    return Finding(
        f"{checks.check_worker_command(str(command), config.get('env'))}; it must be there on all hosts", None
    )
