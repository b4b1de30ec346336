"""The checks of the doctor for Spark, in their order."""

from __future__ import annotations

from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions, SparkRunnerOptions

from pipelines.checkup import Checkup, Finding, Outcome, SkipError
from pipelines.spark import checks
from pipelines.spark.java import Java, find_java
from pipelines.spark.master import Master, ask_master, is_standalone


def examine(checkup: Checkup, runner: Outcome[PipelineOptions], ui: str | None) -> None:
    """Makes the checks for a run on Spark.

    Args:
        checkup: where the checks are made.
        runner: the check that found Beam's options.
        ui: the value of --spark_master_ui.
    """
    checkup.check("streaming", lambda: Finding(checks.check_streaming(runner.value), None))
    checkup.check("java", lambda: _java(runner.value))
    master = checkup.check("master", lambda: _master(runner.value.view_as(SparkRunnerOptions).spark_master_url, ui))
    if master.finding is None or master.value is not None:
        checkup.check("cores", lambda: _cores(runner.value, master.value))


def _java(options: PipelineOptions) -> Finding[Java]:
    java = find_java(options.view_as(JobServerOptions).job_server_java_launcher)
    return Finding(f"Java {java.version}, {java.path}", java)


def _master(url: str, ui: str | None) -> Finding[Master | None]:
    """The standalone master; None for other kinds, of which nothing can be asked from here."""
    checks.check_master_url(url)
    if not is_standalone(url):
        where = (
            "Spark runs in the job server, on this machine" if url.startswith("local") else "it is not asked from here"
        )
        return Finding(f"{url}: {where}", None)
    master = ask_master(url, ui)
    if master.ui is None:
        unknown = (
            f"{url} answers, but its web page was not found on its host, ports 8080 to 8083, so its Spark version and its "
            "cores are not known; say where it is with --spark_master_ui"
        )
        return Finding(unknown, master, warning=True)
    return Finding(f"{url} answers: Spark {master.version or 'of unknown version'}, {master.ui}", master)


def _cores(options: PipelineOptions, master: Master | None) -> Finding[None]:
    if master is None or master.cores is None:
        raise SkipError("the web page of the master was not found")
    return Finding(checks.check_cores(master, checks.Executor.of(options)), None)
