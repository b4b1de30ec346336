"""Streams on Prism, Beam's runner for one machine, which `tests/services.sh` builds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from child_processes import is_there, wait_until
from deadlines import WAIT_SECONDS
from stream_folders import Folders, put
from stream_runs import check, save_linear, value

from handlers.errors import UsageError
from pipelines.prism import find_prism

try:
    PRISM = find_prism()
except UsageError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.slow(20)


def command(folders: Folders, *more: str) -> list[str]:
    model = folders.root / "model"
    others = [f"--schema={model / 'schema.json'}", "--runner=PrismRunner", f"--prism_location={PRISM}", *more]
    return [sys.executable, "-m", "pipelines.stream", *folders.arguments(model, *others)]


def by_id(folders: Folders) -> dict[str, dict[str, Any]]:
    """The predictions by the id of their message."""
    return {each["message_id"]: each for each in folders.records("out")}


def prisms_of(pid: int) -> list[int]:
    """The processes of Prism that a process has started, by its supervisors."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = stat.read_bytes().split(b"\0")
        except OSError:
            continue
        if PRISM.encode() in words and b"-P" in words and str(pid).encode() in words:
            found.append(int(stat.parent.name))
    return found


def test_scores_and_leaves_nothing(tmp_path: Path) -> None:
    folders, net = Folders(tmp_path), save_linear(tmp_path / "model")
    put(folders.input, "1.jsonl", [value(row) for row in range(500)] + [b"no json"])
    put(folders.input, "2.jsonl", [value(row) for row in range(500, 1000)])
    ended = subprocess.run(command(folders, "--stop_after=1001"), capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == "1,001 messages read, 1,000 scored, 0 dropped, 1 dead letters"
    assert [line for line in ended.stderr.splitlines() if not line.startswith("INFO torchbeam.stream")] == []
    check(folders.records("out"), net, 1000)
    assert len(folders.records("dead")) == 1


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_ended_and_started_again(tmp_path: Path, end: signal.Signals) -> None:
    folders, net = Folders(tmp_path), save_linear(tmp_path / "model")
    put(folders.input, "1.jsonl", [value(row) for row in range(300)])
    first = subprocess.Popen(command(folders), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # It runs until it is ended: what arrives while it runs is scored while it runs.
    wait_until(lambda: len(folders.records("out")) == 300, process=first)
    put(folders.input, "2.jsonl", [value(row) for row in range(300, 600)])
    wait_until(lambda: len(folders.records("out")) == 600, process=first)
    (prism,) = prisms_of(first.pid) or prisms_of(
        int(Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()[0])
    )
    os.kill(first.pid, end)
    _, err = first.communicate(timeout=WAIT_SECONDS)
    if end == signal.SIGTERM:
        assert first.returncode == 130, err
    wait_until(lambda: not is_there(prism))
    put(folders.input, "3.jsonl", [value(row) for row in range(600, 900)])
    # What was written and not yet committed when the process was killed comes again, with the same ids.
    again = subprocess.Popen(command(folders), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(by_id(folders)) == 900, process=again)
    again.terminate()
    _, err = again.communicate(timeout=WAIT_SECONDS)
    assert again.returncode == 130, err
    check(list(by_id(folders).values()), net, 900)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (None, "PrismRunner needs its program, and there is no prism on PATH; build it (make prism, or go install"),
        ("/nowhere/prism", '--prism_location "/nowhere/prism" is no program on this machine'),
    ],
)
def test_no_program(
    tmp_path: Path,
    location: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pipelines.stream import main

    folders = Folders(tmp_path)
    save_linear(tmp_path / "model")
    put(folders.input, "1.jsonl", [value(0)])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = [each for each in command(folders)[3:] if not each.startswith("--prism_location")]
    assert main([*arguments, *([f"--prism_location={location}"] if location else [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"torchbeam stream: error: {message}")
    assert not (tmp_path / "out").exists()
