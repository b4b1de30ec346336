"""Finds the Java for the job server and checks whether Spark supports it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from handlers.errors import UsageError

# Spark 3.5 supports Java 8, 11 and 17; on Java 25 it fails at its start ("getSubject is not supported"). Java 8 is
# excluded because nothing here is tested on it.
SUPPORTED = (11, 17)

_SECONDS = 10.0
_WAY_OUT = "install Java 17 (on Debian: apt-get install openjdk-17-jre-headless), or set JAVA_HOME to one"


@dataclass(frozen=True)
class Java:
    """A Java runtime: its executable, and its reported version, such as `17.0.15`."""

    path: str
    version: str

    @property
    def major(self) -> int:
        """The major version: 8 for 1.8.0_402, 17 for 17.0.15."""
        first, second, *_ = [int(number) for number in re.findall(r"\d+", self.version)] + [0]
        return second if first == 1 else first


def find_java(launcher: str = "java") -> Java:
    """The Java for the job server.

    Args:
        launcher: the value of --job_server_java_launcher. For the default, JAVA_HOME comes first, which Beam ignores for
            job servers, and then PATH.

    Raises:
        UsageError: if Java is missing, does not run, or has a version that Spark does not support.
    """
    home = os.environ.get("JAVA_HOME") if launcher == "java" else None
    path = str(Path(home, "bin", "java")) if home else shutil.which(launcher)
    if path is None:
        where = "on PATH" if launcher == "java" else f"at --job_server_java_launcher={launcher}"
        raise UsageError(f"there is no java {where}, and Spark needs one; {_WAY_OUT}")
    if home and not os.access(path, os.X_OK):
        raise UsageError(f"JAVA_HOME is {home}, but there is no bin/java in it; {_WAY_OUT}")
    java = Java(path, _version(path))
    if java.major not in SUPPORTED:
        raise UsageError(f"{path} is Java {java.version}, but the job server runs on Java 11 and 17; {_WAY_OUT}")
    return java


def _version(path: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the java of the user
            [path, "-version"], capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f'"{path} -version" did not end in {_SECONDS:.0f} seconds; {_WAY_OUT}') from None
    except OSError as error:
        raise UsageError(f"{path} cannot be run: {error.strerror or error}; {_WAY_OUT}") from None
    said = done.stderr + done.stdout
    found = re.search(r'version "([^"]+)"', said)
    if found is None or not re.match(r"\d", found.group(1)):
        last = " ".join(said.split())[-200:] or f"exit code {done.returncode}"
        raise UsageError(f'"{path} -version" does not print a version ({last}); {_WAY_OUT}')
    return found.group(1)
