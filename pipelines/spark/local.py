"""Spark on this machine: its master, and what its Java is started with.

Nothing here imports Beam, since a job server is started before Beam is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.command.built import built
from pipelines.spark.java import Java

_LOCAL_MASTER = re.compile(r"local(\[.+\])?$")
_ARCHIVES_SINCE = 13  # the first Java that writes an archive of the classes of a program


def is_local(master: str) -> bool:
    """Whether Spark runs in the job server, on this machine."""
    return _LOCAL_MASTER.match(master) is not None


def default_master() -> str:
    """This machine with a task for each core (Beam's default is four)."""
    return f"local[{_cores()}]"


def _cores() -> int:
    """The cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def loopback_address() -> dict[str, str]:
    """The variable that has Spark listen on the loopback address only; none if the user has set it."""
    return {} if "SPARK_LOCAL_IP" in os.environ else {"SPARK_LOCAL_IP": "127.0.0.1"}


def log_settings(*, verbose: bool) -> list[str]:
    """Arguments of Java: what the job server logs."""
    settings = [f"-Dlog4j2.configurationFile={Path(__file__).with_name('log4j2.properties')}"]
    return [*settings, "-Dtorchbeam.log=info"] if verbose else settings


def short_lived(given: Sequence[str]) -> list[str]:
    """Arguments of Java for a job server whose Python workers are in this process.

    Rows are read, scored and written there, so Java has little to do: compiling it well would take more time than it saves, and so
    would several threads that collect garbage.

    Args:
        given: the arguments of the user, which come later and win. Java refuses two collectors.
    """
    has_collector = any(re.fullmatch(r"-XX:\+Use\w+GC", each) for each in given)
    return ["-XX:TieredStopAtLevel=1", *([] if has_collector else ["-XX:+UseSerialGC"])]


def class_archive(java: Java, jar: Path) -> Path | None:
    """The file of the loaded classes of a job server, which Java maps into memory at its next start (AppCDS).

    It is next to the jar, which is in the user's cache, and each version of Java has its own. None if the jar is elsewhere, or
    if Java writes no archives.
    """
    if jar.parent != built("spark-job-server") or java.major < _ARCHIVES_SINCE:
        return None
    return jar.with_name(f"{jar.stem}.java-{java.version}.jsa")


def is_current(archive: Path, jar: Path) -> bool:
    """Whether an archive exists and is newer than the jar."""
    try:
        return archive.stat().st_mtime > jar.stat().st_mtime
    except OSError:
        return False
