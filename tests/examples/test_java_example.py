"""`examples/java`: a Java pipeline on Spark's job server scores rows by a Python expansion service, as `score` does.

A worker that dies leaves a job waiting for ever, so each process has a time after which it is killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from short_jvms import SHORT_JVM

from handlers import ModelDir
from handlers.errors import UsageError
from pipelines.command.supervisor import supervised_command
from pipelines.spark.java import find_java
from pipelines.spark.job_server import DEFAULT_SPARK_VERSION, Call, find_job_server, running
from torchbeam import score

pytestmark = pytest.mark.slow(60)

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "java"
BUILD_SECONDS, START_SECONDS, RUN_SECONDS = 300, 300, 300
ROWS = [
    {"id": row, "a": None if row % 10 == 3 else row / 8, "b": 1.5 - row / 16, "name": f"näme {row}"}
    for row in range(60)
]


@pytest.fixture(scope="module")
def classpath(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The class path of the example, built in a folder of its own."""
    mvn = shutil.which("mvn")
    if mvn is None:
        pytest.skip("there is no mvn on PATH; apt-get install maven")
    folder = tmp_path_factory.mktemp("java")
    shutil.copytree(PROJECT / "src", folder / "src")
    shutil.copy(PROJECT / "pom.xml", folder)
    command = [mvn, "--batch-mode", "--quiet", "--file", str(folder / "pom.xml"), "package"]
    code, said = ended(command, folder / "mvn.log", BUILD_SECONDS)
    if code and re.search("Could not (resolve|transfer|find artifact)", said):
        pytest.skip(f"Maven cannot get what the example needs: {said.strip().splitlines()[0][:300]}")
    assert code == 0, said
    return f"{folder}/target/score-from-java-1.jar:{folder}/target/lib/*"


def ended(command: list[str], log: Path, seconds: float) -> tuple[int | str, str]:
    """Runs a command until it ends or is killed, with all that it started: its exit code and its output."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            supervised_command(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ | SHORT_JVM,
        )
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = f"killed after {seconds:.0f} s"
        finally:
            kill(process)
    return code, log.read_text(errors="replace")[-20_000:]


def kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def expansion_service(log: Path) -> Iterator[str]:
    """A Python expansion service whose threads are the Python workers: the command of the example's README."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "apache_beam.runners.portability.expansion_service_main", f"--port={port}"]
    command += ["--fully_qualified_name_glob=torchbeam.*", "--serve_loopback_worker"]
    command += ["--environment_type=EXTERNAL", f"--environment_config=127.0.0.1:{port}"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            supervised_command(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(port):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < end, f"no expansion service within {START_SECONDS} s"
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        kill(process)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.timeout(BUILD_SECONDS + 2 * START_SECONDS + RUN_SECONDS)
def test_java_gives_what_score_gives(classpath: str, tmp_path: Path) -> None:
    try:
        java = find_java().path
        jar = find_job_server(None, DEFAULT_SPARK_VERSION).jar
    except UsageError as error:
        pytest.skip(str(error))
    assert jar is not None
    net, labels = torch.nn.Linear(2, 3), ["x", "y", "z"]
    arguments = {"in_features": 2, "out_features": 3}
    inputs = [{"name": "x", "columns": ["a", "b"]}]
    model = ModelDir.save(
        net, tmp_path / "model", task="classification", labels=labels, inputs=inputs, arguments=arguments
    )
    lines = [",".join("" if value is None else str(value) for value in row.values()) for row in ROWS]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    (tmp_path / "out").mkdir()

    logging = ROOT / "pipelines" / "spark" / "log4j2.properties"
    settings = [f"-Dlog4j2.configurationFile={logging}", "-Dspark.ui.enabled=false"]
    with (
        expansion_service(tmp_path / "expansion.log") as expansion,
        running(Call(jar, java, "local[2]", tuple(settings))) as server,
    ):
        command = [java, "-cp", classpath, "torchbeam.example.ScoreFromJava"]
        command += [f"--jobEndpoint={server.endpoint}", f"--expansionService={expansion}", "--giveUpMinutes=5"]
        command += [f"--model={model.path}", f"--input={tmp_path}/rows.csv", f"--output={tmp_path}/out"]
        code, said = ended(command, tmp_path / "java.log", RUN_SECONDS)
    service = (tmp_path / "expansion.log").read_text(errors="replace")[-5000:]
    assert code == 0, f"{code}\n{said}\n--- job server\n{chr(10).join(server.last)}\n--- expansion service\n{service}"

    expected = score(model, ROWS)
    good = written(tmp_path / "out", "good")
    assert len(good) == len(expected.predictions) == 54
    for got, want in zip(good, expected.predictions, strict=True):
        assert got.pop("confidence") == pytest.approx(want.pop("confidence"), abs=1e-6)
        assert got == want
    errors = written(tmp_path / "out", "errors")
    reasons = [
        {
            "element": {name: row[name] for name in ROWS[0]},
            "msg": row["dead_letter"]["message"],
            **{name: row["dead_letter"][name] for name in ("stage", "type", "model_version", "raw")},
        }
        for row in expected.dead_letters
    ]
    assert len(errors) == 6
    assert errors == reasons


def written(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows that Java wrote, by their id."""
    rows = [json.loads(line) for file in folder.glob(f"{name}-*.jsonl") for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: row.get("element", row)["id"])
