"""What a job server is started with: by a run, and before it, where both must come to the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.spark.java import Java
from pipelines.spark.local import class_archive, log_settings, short_lived


@dataclass(frozen=True)
class Call:
    """What a job server is started with.

    Attributes:
        jar: the jar of the job server.
        java: the Java executable.
        master: the URL of the Spark master.
        arguments: arguments of Java, including Spark's settings.
        environment: variables to add to those of this process.
        local: whether Spark runs in the job server, and the Python workers in this process: nothing else has to be ended.
        archive: the archive of its classes, which a run that finishes writes if it is not current; None for none.
    """

    jar: Path
    java: str
    master: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    local: bool = False
    archive: Path | None = None


def call_of(
    jar: Path,
    java: Java,
    master: str,
    given: Sequence[str],
    environment: Sequence[tuple[str, str]],
    *,
    local: bool,
    verbose: bool,
) -> Call:
    """What a job server is started with.

    Args:
        jar: the jar of the job server.
        java: the Java that runs it.
        master: the URL of the Spark master.
        given: the arguments of Java that the user gives; they come last and win.
        environment: variables to add to those of this process.
        local: whether Spark runs in the job server, and the Python workers in this process.
        verbose: whether it logs everything.
    """
    arguments = (*log_settings(verbose=verbose), *(short_lived(given) if local else ()), *given)
    return Call(
        jar, java.path, master, arguments, tuple(environment), local, class_archive(java, jar) if local else None
    )
