"""Starts the job server of a run on this machine while Beam and PyTorch are imported, which takes as long as its start.

`take` hands it to the run if it is what the run would start; otherwise the run starts its own.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from handlers.errors import TorchbeamError
from pipelines.spark.call import Call, call_of
from pipelines.spark.java import find_java
from pipelines.spark.job_server import VARIABLE, Running, built_job_servers, end, start
from pipelines.spark.local import default_master, is_local, loopback_address

# With these, the job server is not one of the cache, or is not all that Spark needs, or there is none to start.
_OTHERS = ("--job_endpoint", "--spark_job_server_jar", "--spark_submit_uber_jar", "--environment_type", "--streaming")


class _Early(threading.Thread):
    """Starts a job server in the background. It reports no errors: the run meets them again, in the order of its checks."""

    def __init__(self, arguments: Sequence[str], spark_version: str | None, *, verbose: bool) -> None:
        super().__init__(name="start-job-server", daemon=True)
        self._arguments, self._spark_version, self._verbose = arguments, spark_version, verbose
        self.server: Running | None = None

    def run(self) -> None:
        with suppress(TorchbeamError, OSError, SystemExit):
            call = local_call(self._arguments, self._spark_version, verbose=self._verbose)
            if call is not None:
                self.server = start(call)


_early: _Early | None = None


def local_call(arguments: Sequence[str], spark_version: str | None, *, verbose: bool) -> Call | None:
    """What the job server of a run on this machine is started with; None if Spark, or the job server, is another one.

    Args:
        arguments: Beam's.
        spark_version: the value of --spark_version.
        verbose: whether the job server logs everything.
    """
    if os.environ.get(VARIABLE) or any(argument.split("=")[0] in _OTHERS for argument in arguments):
        return None
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--spark_master_url", default=default_master())
    parser.add_argument("--job_server_java_launcher", default="java")
    parser.add_argument("--job_server_jvm_properties", "--job_server_jvm_property", action="append", default=[])
    values, _ = parser.parse_known_args(arguments)
    jars = [each.jar for each in built_job_servers() if each.jar and spark_version in (None, each.spark_version)]
    if not jars or not is_local(values.spark_master_url):
        return None
    java, given = find_java(values.job_server_java_launcher), values.job_server_jvm_properties
    environment = tuple(loopback_address().items())
    return call_of(jars[0], java, values.spark_master_url, given, environment, local=True, verbose=verbose)


@contextmanager
def started_early(runner: str, arguments: Sequence[str], spark_version: str | None, *, verbose: bool) -> Iterator[None]:
    """Has the job server start in the background if the run needs one on this machine; ends it if nobody takes it."""
    global _early
    if runner != "SparkRunner":
        yield
        return
    _early = early = _Early(arguments, spark_version, verbose=verbose)
    early.start()
    try:
        yield
    finally:
        _early = None
        early.join()
        if early.server is not None:
            end(early.server, finished=False)


def take(call: Call) -> Running | None:
    """The job server that was started early, for its new owner to end; None if there is none, or if it is not that of `call`."""
    early = _early
    if early is None:
        return None
    early.join()
    server = early.server
    if server is None or server.call != call:
        return None
    early.server = None
    return server
