"""A program ends with the process that started it, and no folder is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from child_processes import is_there, wait_until, written
from deadlines import WAIT_SECONDS

from pipelines.command.supervisor import supervised_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with files in it."""
    (tmp_path / "own" / "deeper").mkdir(parents=True)
    (tmp_path / "own" / "deeper" / "file").write_text("")
    return tmp_path / "own"


class TestSupervisedCommand:
    def test_gives_the_exit_code_and_leaves_the_folder_to_its_owner(self, folder: Path) -> None:
        assert subprocess.run(supervised_command(["sh", "-c", "exit 7"], remove=folder), check=False).returncode == 7
        assert folder.exists()

    def test_starter_that_is_killed(self, tmp_path: Path, folder: Path) -> None:
        program = ["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 3600"]
        start = (
            f"import subprocess, time; from pipelines.command.supervisor import supervised_command\n"
            f"subprocess.Popen(supervised_command({program!r}, {str(folder)!r})); time.sleep(3600)"
        )
        starter = subprocess.Popen([sys.executable, "-c", start])
        child = written(tmp_path / "pid")
        starter.kill()
        starter.wait()
        wait_until(lambda: not is_there(child) and not folder.exists())

    def test_starter_that_is_gone_before(self, folder: Path) -> None:
        gone = subprocess.Popen(["true"])
        gone.wait()
        command = supervised_command(["sleep", "3600"], remove=folder)
        command[command.index(str(os.getpid()))] = str(gone.pid)
        assert subprocess.run(command, check=False, timeout=WAIT_SECONDS).returncode
        assert not folder.exists()

    def test_program_that_ignores_sigterm(self, tmp_path: Path) -> None:
        program = ["sh", "-c", f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"]
        run = f"from pipelines.command import supervisor; supervisor.run({os.getpid()}, '', 1, {program!r})"
        process = subprocess.Popen([sys.executable, "-c", run])
        child = written(tmp_path / "pid")
        process.terminate()
        process.wait(WAIT_SECONDS)
        assert not is_there(child)
