"""What ends with what: a program with its starter, a worker with its executor; and no folders are left of them."""

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
from spark_parts import wait_for

from pipelines.spark.supervisor import tether_command


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def written(file: Path) -> int:
    """The number in a file, once it is there."""
    wait_for(lambda: file.exists() and file.read_text().endswith("\n"), 20)
    return int(file.read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with files in it."""
    (tmp_path / "own" / "deeper").mkdir(parents=True)
    (tmp_path / "own" / "deeper" / "file").write_text("")
    return tmp_path / "own"


class TestTether:
    def test_gives_the_exit_code_and_leaves_the_folder_to_its_owner(self, folder: Path) -> None:
        assert subprocess.run(tether_command(["sh", "-c", "exit 7"], remove=folder), check=False).returncode == 7
        assert folder.exists()

    def test_starter_that_is_killed(self, tmp_path: Path, folder: Path) -> None:
        program = ["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"]
        start = (
            f"import subprocess, time; from pipelines.spark.supervisor import tether_command\n"
            f"subprocess.Popen(tether_command({program!r}, {str(folder)!r})); time.sleep(60)"
        )
        starter = subprocess.Popen([sys.executable, "-c", start])
        child = written(tmp_path / "pid")
        starter.kill()
        starter.wait()
        wait_for(lambda: not is_there(child) and not folder.exists(), 10)

    def test_starter_that_is_gone_before(self, folder: Path) -> None:
        gone = subprocess.Popen(["true"])
        gone.wait()
        command = tether_command(["sleep", "60"], remove=folder)
        command[command.index(str(os.getpid()))] = str(gone.pid)
        begin = time.monotonic()
        assert subprocess.run(command, check=False).returncode
        assert time.monotonic() - begin < 20
        assert not folder.exists()

    def test_program_that_does_not_heed_sigterm(self, tmp_path: Path) -> None:
        program = ["sh", "-c", f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"]
        run = (
            f"from pipelines.spark import tether; tether.GRACE_SECONDS = 1; tether.run({os.getpid()}, '', {program!r})"
        )
        process = subprocess.Popen([sys.executable, "-c", run])
        child = written(tmp_path / "pid")
        process.terminate()
        process.wait(10)
        assert not is_there(child)


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
        wait_for(lambda: bool(children.read_text()) and any((tmp_path / "scratch").iterdir()), 20)
        child = int(children.read_text().split()[0])
        time.sleep(1)  # the worker itself must have begun to look at who started it
        if how == "told to end":
            os.kill(watcher, signal.SIGTERM)
        elif how == "killed":
            os.kill(watcher, signal.SIGKILL)
        else:
            executor.kill()
        wait_for(lambda: not any((tmp_path / "scratch").iterdir()) and not is_there(child), 15)
        wait_for(lambda: not is_there(watcher), 5)  # the folder goes a moment before it does
        executor.wait(10)
