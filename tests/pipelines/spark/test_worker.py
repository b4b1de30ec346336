"""A worker on Spark ends with its executor, and no folder is left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from child_processes import is_there, written
from deadlines import WAIT_SECONDS
from spark_parts import wait_for


class TestWorker:
    """A worker that waits for its runner."""

    @pytest.fixture
    def runner(self) -> Iterator[str]:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            yield f"127.0.0.1:{silent.getsockname()[1]}"

    @pytest.mark.parametrize("how", ["told to end", "killed", "its executor is killed"])
    def test_leaves_no_folder(self, how: str, tmp_path: Path, runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("SPARK_EXECUTOR_DIRS", "LOCAL_DIRS", "SPARK_LOCAL_DIRS"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "scratch").mkdir()
        arguments = f"--id=1 --provision_endpoint={runner} --semi_persist_dir={tmp_path}/scratch"
        worker = f"{sys.executable} -m pipelines.spark.worker {arguments}"
        executor = subprocess.Popen(["sh", "-c", f"{worker} & echo $! > {tmp_path}/pid; wait"])
        watcher = written(tmp_path / "pid")
        children = Path(f"/proc/{watcher}/task/{watcher}/children")
        wait_for(lambda: bool(children.read_text()) and any((tmp_path / "scratch").iterdir()))
        child = int(children.read_text().split()[0])
        time.sleep(1)  # the worker itself must have begun to look at who started it
        if how == "told to end":
            os.kill(watcher, signal.SIGTERM)
        elif how == "killed":
            os.kill(watcher, signal.SIGKILL)
        else:
            executor.kill()
        wait_for(lambda: not any((tmp_path / "scratch").iterdir()) and not is_there(child))
        wait_for(lambda: not is_there(watcher))  # the folder goes a moment before it does
        executor.wait(WAIT_SECONDS)
